"""What a generated answer is worth, how answers add up to one figure, and how sure that figure is.

A measure turns one answer into an item of one to three numbers; an aggregate turns the items of a task into the figure:

==================  =============================================================  ==================================
figure              item                                                           aggregate
==================  =============================================================  ==================================
exact_match         1 when the answer equals a gold answer                         mean
f1                  overlap of the words with the best gold answer                 mean
numeric_match       1 when the first number is a gold number, within 1 %           mean
entity_f1           (lines found and right, lines found, lines to find)            F1 over all lines of all records
f1 of choices       (right choice, choice taken)                                   F1 by class, weighted by frequency
bits_per_byte       (log-likelihood in nats, bytes); word and byte perplexity too  ratio of the sums
==================  =============================================================  ==================================

Words are compared in lower case, without punctuation and English articles. The standard error of a mean is the
sample's standard deviation over the square root of its size; of every other aggregate it is the deviation over 1,000
samples drawn with replacement (the bootstrap), always the same ones for as many items.

Source: Rajpurkar et al. 2016 (arXiv 1606.05250) for exact match and F1 of answers; Efron 1979 for the bootstrap.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from contracts.seeding import rng

Items = NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+")
_NUMERIC_TOLERANCE = 0.01
_NUM_RESAMPLES = 1000


def exact_match(response: str, *, answers: Sequence[str]) -> float:
    """1.0 when a response has the words of one of the answers, else 0.0."""
    return float(any(_words(response) == _words(answer) for answer in answers))


def token_f1(response: str, *, answers: Sequence[str]) -> float:
    """The harmonic mean of the share of the response's words in an answer and the other way round, of the best."""
    return max(_f1_of_words(_words(response), _words(answer)) for answer in answers)


def numeric_match(response: str, *, answers: Sequence[str]) -> float:
    """1.0 when the first number in a response is that of an answer, within 1 %; a percentage also as a fraction."""
    found = _first_number(response)
    if found is None:
        return 0.0
    gold = [number for answer in answers if (number := _first_number(answer)) is not None]
    return float(
        any(math.isclose(found * scale, number, rel_tol=_NUMERIC_TOLERANCE) for number in gold for scale in (1, 0.01))
    )


def entity_counts(response: str, *, answers: Sequence[str]) -> tuple[int, int, int]:
    """Lines of a response that are lines of the answers, lines of the response, lines of the answers.

    A line is an entity, such as ``Acme Inc, ORG``; case and spaces around it do not count, and each counts once.
    """
    found, gold = _lines(response), _lines("\n".join(answers))
    return len(found & gold), len(found), len(gold)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1_of_words(found: list[str], gold: list[str]) -> float:
    if not found or not gold:
        return float(found == gold)
    num_shared = sum((Counter(found) & Counter(gold)).values())
    return 2 * num_shared / (len(found) + len(gold))


def _first_number(text: str) -> float | None:
    match = _NUMBER.search(text)
    return None if match is None else float(match[0].replace(",", ""))


def _lines(text: str) -> set[str]:
    return {line.strip().lower() for line in text.splitlines() if line.strip()}


def mean(items: Items) -> float:
    """The mean of items of one number."""
    return float(items[:, 0].mean())


def corpus_f1(items: Items) -> float:
    """F1 over all records of items (right, found, to find); 0 where nothing is to be found and nothing was."""
    num_right, num_found, num_gold = items.sum(axis=0)
    return float(2 * num_right / (num_found + num_gold)) if num_found + num_gold else 0.0


def weighted_f1(items: Items) -> float:
    """The F1 of each class of items (right class, class taken), weighted by how often the class is right."""
    gold, taken = items[:, 0], items[:, 1]
    total = 0.0
    for label in np.unique(gold):
        is_gold, is_taken = gold == label, taken == label
        total += is_gold.sum() * 2 * (is_gold & is_taken).sum() / (is_gold.sum() + is_taken.sum())
    return float(total / len(items))


def bits_per_byte(items: Items) -> float:
    """Bits a byte of items (log-likelihood in nats, bytes)."""
    return float(-items[:, 0].sum() / items[:, 1].sum() / math.log(2))


def perplexity(items: Items) -> float:
    """Perplexity a unit of items (log-likelihood in nats, units)."""
    return math.exp(-items[:, 0].sum() / items[:, 1].sum())


# What aggregates items of two or three numbers; items of one are averaged.
AGGREGATES: Mapping[str, Callable[[Items], float]] = {
    "f1": weighted_f1,
    "entity_f1": corpus_f1,
    "bits_per_byte": bits_per_byte,
    "byte_perplexity": perplexity,
    "word_perplexity": perplexity,
}


def items_of(values: Sequence[float | Sequence[float]]) -> Items:
    """Items as an array of shape (num_items, num_numbers)."""
    return np.array([value if isinstance(value, Sequence) else [value] for value in values], np.float64)


def aggregate_of(metric: str, items: Items) -> Callable[[Items], float] | None:
    """What makes one figure of items of shape (num_items, num_numbers); None where this module does not know."""
    return mean if items.shape[1] == 1 else AGGREGATES.get(metric)


def standard_error(items: Items, *, aggregate: Callable[[Items], float]) -> float:
    """The standard error of an aggregate over items; not a number for a single one."""
    num_items = len(items)
    if num_items < 2:
        return math.nan
    if aggregate is mean:
        return float(items[:, 0].std(ddof=1) / math.sqrt(num_items))
    return _deviation_over_resamples(num_items, lambda rows: aggregate(items[rows]))


def paired_standard_error(first: Items, second: Items, *, aggregate: Callable[[Items], float]) -> float:
    """The standard error of the difference between two aggregates over the same records, in the same order."""
    assert first.shape == second.shape, (first.shape, second.shape)
    if aggregate is mean:
        return standard_error(second - first, aggregate=mean)
    if len(first) < 2:
        return math.nan
    return _deviation_over_resamples(len(first), lambda rows: aggregate(second[rows]) - aggregate(first[rows]))


def _deviation_over_resamples(num_items: int, statistic: Callable[[NDArray[np.int64]], float]) -> float:
    generator = rng(0, "bootstrap", num_items)
    values = [statistic(generator.integers(num_items, size=num_items)) for _ in range(_NUM_RESAMPLES)]
    return float(np.std(values, ddof=1))
