"""How alike responses and pairs are to gold ones.

*Token F1* and *exact match* are those of SQuAD: both sides in lower case, without punctuation and English articles, F1
on the multisets of their words. Scripts written without spaces count by character, so that Chinese and Thai are
measured too.

*Pairs* are compared as wholes, instruction and response in one string. The generated pairs of a text are assigned to
gold pairs one to one, so that the sum of their token F1 is largest; twice a sum of likenesses over the number of pairs
on both sides is then an F1 of the two sets: 1 when they are equal, lower for a pair too many as for one too few. A
generated pair that is good and not among the gold ones counts as wrong, so only differences between systems say much.

Cost: token F1 for each generated with each gold pair, some tens of microseconds each, then ROUGE-L (the product of the
lengths) and chrF for the assigned ones. Needs the extra ``evaluation``.

Source: Rajpurkar et al. 2016 (arXiv 1606.05250) for F1 and exact match; Lin 2004 for ROUGE-L, by rouge-score; Popović
2015 for chrF, by sacrebleu; Kuhn 1955 for the assignment, by scipy. The paper of the method gives F1 between generated
and gold pairs without saying how pairs meet.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from contracts.records import InstructionPair

_ARTICLES = frozenset({"a", "an", "the"})
_UNSPACED = "\u0e00-\u0e7f\u2e80-\u9fff\uf900-\uff9f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text in one case, without punctuation; each character of an unspaced script is one."""
    kept = "".join(character for character in text.casefold() if not _is_punctuation(character))
    return _WORD.findall(kept)


@lru_cache(maxsize=1 << 16)
def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def answer_words(text: str) -> list[str]:
    """The words that answers are compared by: without English articles."""
    return [word for word in words(text) if word not in _ARTICLES]


def exact_match(response: str, *, gold: str) -> float:
    """1 when both have the same answer words in the same order, else 0."""
    return float(answer_words(response) == answer_words(gold))


def token_f1(response: str, *, gold: str) -> float:
    """From 0 to 1: F1 of the answer words, repeated ones counted; two answers without any are equal."""
    if not answer_words(response) or not answer_words(gold):
        return exact_match(response, gold=gold)
    return float(_rouge("rouge1").score(gold, response)["rouge1"].fmeasure)


def rouge_l(generated: str, *, gold: str) -> float:
    """From 0 to 1: F1 of the longest common subsequence of answer words."""
    return float(_rouge("rougeL").score(gold, generated)["rougeL"].fmeasure)


def chrf(generated: str, *, gold: str) -> float:
    """From 0 to 1: F2 of character n-grams up to six, case and punctuation included."""
    return float(_chrf().sentence_score(generated, [gold]).score) / 100


class _AnswerTokenizer:
    """What rouge-score takes for a tokenizer; its own drops every letter outside of a to z."""

    def tokenize(self, text: str) -> list[str]:
        return answer_words(text)


@lru_cache
def _rouge(kind: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge-score") from error
    return RougeScorer([kind], tokenizer=_AnswerTokenizer())


@lru_cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise _missing("sacrebleu") from error
    return CHRF()


def check_available() -> None:
    """Refuses to start without the libraries that measure.

    Raises:
        ValueError: One of them is not installed.
    """
    _rouge("rouge1")
    _chrf()
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise _missing("scipy") from error


def _missing(library: str) -> ValueError:
    return ValueError(f"Evaluating needs {library}: pip install 'instruction-pretraining[evaluation]'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairQuality:
    """How alike the generated pairs of a text are to its gold pairs; all from 0 to 1.

    Args:
        f1: By token F1.
        precision: The mean token F1 of a generated pair with its gold pair, 0 for one that got none.
        recall: The mean token F1 of a gold pair with its generated pair, 0 for one that got none.
        rouge_l: As ``f1``, with ROUGE-L for the likeness of assigned pairs.
        chrf: The same with chrF.
    """

    f1: float
    precision: float
    recall: float
    rouge_l: float
    chrf: float


def pair_quality(generated: Sequence[InstructionPair], *, gold: Sequence[InstructionPair]) -> PairQuality:
    """Compares the generated pairs of a text with its gold pairs, at least one; none generated is 0 throughout."""
    assert gold, "a text to judge by has gold pairs"
    if not generated:
        return PairQuality(f1=0.0, precision=0.0, recall=0.0, rouge_l=0.0, chrf=0.0)
    left, right = [as_text(pair) for pair in generated], [as_text(pair) for pair in gold]
    assigned = assign_pairs([[token_f1(one, gold=other) for other in right] for one in left])
    total = sum(likeness for _, _, likeness in assigned)
    num_both = len(left) + len(right)
    return PairQuality(
        f1=2 * total / num_both,
        precision=total / len(left),
        recall=total / len(right),
        rouge_l=2 * sum(rouge_l(left[row], gold=right[column]) for row, column, _ in assigned) / num_both,
        chrf=2 * sum(chrf(left[row], gold=right[column]) for row, column, _ in assigned) / num_both,
    )


def as_text(pair: InstructionPair) -> str:
    """A pair as the string it is compared by."""
    return f"{pair.instruction}\n{pair.response}"


def assign_pairs(likeness: Sequence[Sequence[float]]) -> list[tuple[int, int, float]]:
    """Rows assigned to columns one to one, as many as the shorter side has, for the largest sum.

    Args:
        likeness: Of each row with each column.

    Returns:
        Row, column and their likeness, by row.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(likeness, maximize=True)
    return [(row, column, likeness[row][column]) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
