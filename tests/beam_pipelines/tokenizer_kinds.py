"""Small tokenizers of the kinds that models have, each with an independent opinion about its ids."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, T5Tokenizer

SPACE = "\u2581"


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """A tokenizer in a folder.

    Args:
        folder: Where it lies.
        encode: Ids of a text by another implementation; None where there is none.
        restores: What of a text comes back when it is encoded and decoded.
    """

    folder: str
    encode: Callable[[str], list[int]] | None
    restores: Callable[[str], str]


def sentences() -> list[str]:
    """English prose and code, from Python's own manual."""
    lines = [line for topic in topics.values() for line in topic.split("\n") if line.strip()]
    return lines[:3000]


def train_sentencepiece(
    model_type: str, *, lines: list[str] | None = None, **settings: Any
) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model of 600 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines or sentences()),
        model_writer=model,
        vocab_size=600,
        model_type=model_type,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def llama_like(folder: str) -> TokenizerKind:
    """SentencePiece BPE with byte fallback, as Llama and Mistral have it."""
    model = train_sentencepiece(
        "bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False
    )
    ids = {model.id_to_piece(id_): id_ for id_ in range(model.get_piece_size())}
    LlamaTokenizer(vocab=ids, merges=list(implied_merges(ids))).save_pretrained(folder)
    return TokenizerKind(folder=folder, encode=model.encode, restores=lambda text: text.replace(SPACE, " "))


def implied_merges(ids: dict[str, int]) -> Iterable[tuple[str, str]]:
    """The merges of a SentencePiece BPE model: pieces in the order of their ids, each from all pairs that make it."""
    for piece in sorted(ids, key=ids.__getitem__):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def t5_like(folder: str) -> TokenizerKind:
    """Unigram, as T5 has it: words are what it keeps of the white space, and unknown characters are lost."""
    model = train_sentencepiece("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    pieces = [(model.id_to_piece(id_), model.get_score(id_)) for id_ in range(model.get_piece_size())]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return TokenizerKind(folder=folder, encode=model.encode, restores=lambda text: " ".join(text.split()))


def unigram_with_bytes(folder: str, *, characters_left_out: str = "") -> TokenizerKind:
    """Unigram with byte fallback, trained on texts without some characters."""
    without = str.maketrans("", "", characters_left_out)
    model = train_sentencepiece(
        "unigram",
        lines=[line.translate(without) for line in sentences()],
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    pieces = [(model.id_to_piece(id_), model.get_score(id_)) for id_ in range(model.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=model.unk_id(), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return TokenizerKind(folder=folder, encode=model.encode, restores=lambda text: text.replace(SPACE, " "))


def large_vocabulary(folder: str, *, num_words: int = 70_000) -> TokenizerKind:
    """More ids than 16 bits hold."""
    ids = {"<unk>": 0, "</s>": 1, **{f"w{number}": number + 2 for number in range(num_words)}}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return TokenizerKind(
        folder=folder, encode=lambda text: [ids[word] for word in text.split()], restores=lambda text: text
    )
