"""Finds texts that share a run of words with an evaluation set, so that a model is not trained on what it is tested on.

Every string of an evaluation record is an item. Its word n-grams (13 words, as GPT-3's authors chose) go into an index;
an item that is shorter counts as a whole, if it has at least ``min_item_words`` words. A text that holds one of these
runs, whatever its case and punctuation, is contaminated.

The index is two sorted arrays a length of n-gram, 12 bytes an n-gram: the 14,000 questions of MMLU take about 10 MB.
It is loaded once a process. Cost: that of `synth_model.word_ngrams`, and a binary search a word and length.

Not done here: paraphrases and translations of an item; cutting the passage out instead of rejecting the text. A run
that many items share, such as the wording of their task, contaminates like any other: look at the rejects, and name the
fields that hold the items.

Source: Brown et al. 2020 (arXiv 2005.14165), appendix C.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts import storage
from contracts.record_files import SUFFIXES, read_records
from contracts.records import Reject
from synth_model.word_ngrams import find_words, ngram_hashes, word_hashes


@dataclass(frozen=True, kw_only=True)
class DecontaminationConfig:
    """Which evaluation sets no document may share a passage with.

    Args:
        files: Files, folders and globs of evaluation sets, in the formats of ``input``; empty turns this off.
        fields: Fields of their records to look at, with all that is nested in them; empty looks at all.
        ngram_words: Words of a run that a document must not share.
        min_item_words: An item that is shorter than a run is sought as a whole if it has at least so many words.
    """

    files: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    ngram_words: int = 13
    min_item_words: int = 8

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A number is out of range.
        """
        if not 1 <= self.min_item_words <= self.ngram_words:
            raise ValueError(
                f"decontamination.min_item_words is {self.min_item_words} and ngram_words {self.ngram_words}; "
                "they must be at least 1, and the former at most the latter."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contamination:
    """A run of words that a text shares with an item: the words as the text has them, the item's file and place."""

    words: str
    file: str
    place: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _NgramsOfLength:
    """The n-grams of one length.

    Args:
        hashes: Sorted and distinct, uint64 of shape (num_ngrams,).
        items: The first item that holds each, int32 of shape (num_ngrams,).
    """

    hashes: NDArray[np.uint64]
    items: NDArray[np.int32]


class EvaluationIndex:
    """The n-grams of evaluation sets.

    Args:
        items: File, place in it and text of each item.
        ngram_words: Words of an n-gram.
        min_item_words: Fewest words of a shorter item.
    """

    def __init__(self, items: Iterable[tuple[str, str, str]], *, ngram_words: int, min_item_words: int) -> None:
        self._places: list[tuple[str, str]] = []
        hashes: dict[int, list[NDArray[np.uint64]]] = defaultdict(list)
        owners: dict[int, list[NDArray[np.int32]]] = defaultdict(list)
        for file, place, text in items:
            words = word_hashes(text)
            length = min(ngram_words, len(words))
            if length < min_item_words:
                continue
            found = ngram_hashes(words, length=length)
            hashes[length].append(found)
            owners[length].append(np.full(len(found), len(self._places), dtype=np.int32))
            self._places.append((file, place))
        self._by_length: dict[int, _NgramsOfLength] = {}
        for length in sorted(hashes, reverse=True):
            # The first of equal values: which item is named does not depend on the sort.
            distinct, first = np.unique(np.concatenate(hashes[length]), return_index=True)
            self._by_length[length] = _NgramsOfLength(hashes=distinct, items=np.concatenate(owners[length])[first])

    @property
    def num_items(self) -> int:
        """Items that are long enough to be sought."""
        return len(self._places)

    def find(self, text: str) -> Contamination | None:
        """The first run of a text, longest n-grams first, that an item holds; None for a clean text."""
        words = word_hashes(text)
        for length, ngrams in self._by_length.items():
            found = ngram_hashes(words, length=length)
            places = np.searchsorted(ngrams.hashes, found)
            places[places == len(ngrams.hashes)] = 0
            matches = np.flatnonzero(ngrams.hashes[places] == found)
            if len(matches):
                start = int(matches[0])
                file, place = self._places[ngrams.items[places[start]]]
                run = find_words(text)[start : start + length]
                return Contamination(words=text[run[0].start() : run[-1].end()], file=file, place=place)
        return None


def load_index(config: DecontaminationConfig, *, files: Sequence[str]) -> EvaluationIndex:
    """The index over evaluation files, built once a process.

    Args:
        config: What counts.
        files: The files that ``config.files`` names.

    Raises:
        ValueError: A file is damaged, or none holds an item that is long enough.
    """
    return _load_index(
        tuple(files),
        fields=tuple(config.fields),
        ngram_words=config.ngram_words,
        min_item_words=config.min_item_words,
    )


@lru_cache(maxsize=2)
def _load_index(
    files: tuple[str, ...], *, fields: tuple[str, ...], ngram_words: int, min_item_words: int
) -> EvaluationIndex:
    index = EvaluationIndex(_read_items(files, fields=fields), ngram_words=ngram_words, min_item_words=min_item_words)
    if not index.num_items:
        where = f"the fields {list(fields)}" if fields else "any field"
        raise ValueError(
            f"decontamination.files ({', '.join(files)}) hold no item of at least {min_item_words} words in {where}."
        )
    return index


def find_evaluation_files(config: DecontaminationConfig) -> list[storage.InputFile]:
    """The evaluation files that a config names.

    Raises:
        ValueError: A pattern matches nothing, or a file of another type.
    """
    return storage.find_input_files(config.files, suffixes=SUFFIXES) if config.files else []


def _read_items(files: Sequence[str], *, fields: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for url in files:
        name = url.rsplit("/", 1)[-1]
        for record in read_records(url):
            if isinstance(record, Reject):
                # An item that is not sought would leave a gap that nobody sees.
                raise ValueError(f"decontamination.files: {record.detail} ({record.reason}). Mend or remove it.")
            wanted: Any = record.values
            if fields:
                wanted = {key: value for key, value in record.values.items() if key in fields}
            for text in _strings(wanted):
                yield name, record.place, text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _strings(entry)
