"""Selects the keywords of a domain: words that a vocabulary trained on the domain has whole and a general one lacks.

1. The words of the whole corpus are counted; the order of documents does not matter to the counts.
2. A SentencePiece vocabulary (byte-pair encoding) is trained on the counted words. A word that it holds as one piece
   is frequent in the domain.
3. A word is general when the given tokenizer, that of the model to be trained, has it as one token in any of its usual
   spellings: with or without a space before it, small, capitalized or as it stands. What is left are the keywords.

Cost: counting is linear; training takes seconds for `MAX_TRAINING_WORDS` words, since it sees each distinct word once.
Not done here: scripts written without spaces, whose runs of letters are no words; keywords of several words.
Source: Cheng et al. 2023 (arXiv 2309.09530), section 3; SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226).
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

MIN_LETTERS = 4
MAX_LETTERS = 32
MAX_TRAINING_WORDS = 1_000_000

# Letters that make up the rest of the text, such as those of quoted foreign words, get no place in the vocabulary.
_LETTER_COVERAGE = 0.9999
_WORD = re.compile(r"[^\W\d_]+")
_WORD_START = "\u2581"


@dataclass(frozen=True, kw_only=True)
class KeywordConfig:
    """How the keywords of the domain are selected.

    Args:
        general_tokenizer: Hub name or folder of the tokenizer whose vocabulary counts as general: that of the model to
            be trained. Empty: no keywords, and so no tasks that ask for a sentence from them.
        vocab_size: Size of the domain's SentencePiece vocabulary.
        min_count: A word that the corpus has fewer times is no keyword.
    """

    general_tokenizer: str = ""
    vocab_size: int = 32_000
    min_count: int = 5

    def check(self) -> None:
        """Refuses what cannot work.

        Raises:
            ValueError: A setting is impossible.
        """
        if self.vocab_size < 256:
            raise ValueError(f"keywords.vocab_size is {self.vocab_size}; it must be at least 256.")
        if self.min_count < 1:
            raise ValueError(f"keywords.min_count is {self.min_count}; it must be at least 1.")


def words_of(text: str) -> list[str]:
    """The words of a text in order: unbroken runs of letters."""
    return _WORD.findall(text)


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs; runs of more than `MAX_LETTERS` letters are no words."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in words_of(text) if len(word) <= MAX_LETTERS)
    return counts


def select_keywords(
    counts: Iterable[tuple[str, int]], *, vocab_size: int, count_tokens: Callable[[Sequence[str]], list[int]]
) -> frozenset[str]:
    """The keywords of a domain.

    Args:
        counts: The domain's distinct words with their counts, in any order.
        vocab_size: Size of the domain's vocabulary.
        count_tokens: Counts the general tokenizer's tokens of each of several texts.

    Raises:
        ValueError: The vocabulary is too small for the letters of the domain.
    """
    domain = [word for word in whole_words(counts, vocab_size=vocab_size) if len(word) >= MIN_LETTERS]
    spellings = [_spellings(word) for word in domain]
    num_tokens = iter(count_tokens([spelling for group in spellings for spelling in group]))
    return frozenset(
        word for word, group in zip(domain, spellings, strict=True) if 1 not in [next(num_tokens) for _ in group]
    )


def _spellings(word: str) -> list[str]:
    return [space + form for form in dict.fromkeys((word, word.lower(), word.capitalize())) for space in ("", " ")]


def whole_words(counts: Iterable[tuple[str, int]], *, vocab_size: int) -> list[str]:
    """The words that a SentencePiece vocabulary of the given size, trained on counted words, holds whole; sorted.

    Raises:
        ValueError: The vocabulary is too small for the letters of the words.
    """
    import sentencepiece

    # Sorted, so that words of equal counts are met in the same order everywhere.
    words = dict(sorted(counts))
    if not words:
        return []
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "words.tsv")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{word}\t{count}\n" for word, count in words.items())
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=path,
                input_format="tsv",
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                max_sentencepiece_length=MAX_LETTERS,
                character_coverage=_LETTER_COVERAGE,
                normalization_rule_name="identity",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"No vocabulary of keywords.vocab_size = {vocab_size} pieces could be trained on {len(words)} words "
                f"({error}). Give a larger one, or leave keywords.general_tokenizer empty."
            ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = {processor.id_to_piece(id_).removeprefix(_WORD_START) for id_ in range(processor.get_piece_size())}
    return sorted(pieces & words.keys())
