"""`RemoveNearDuplicates`: see `beam_pipelines.near_duplicates`."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.near_duplicates import band_keys, duplicates_in_bucket
from contracts.seeding import stable_hash_hex
from synth_model.text_similarity import normalize

TEXTS, REFUSED = "texts", "refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """A text that does not stay: its id, and the id of one that it equals or resembles and that stayed longer."""

    text_id: Any
    text: str
    other_id: Any
    similarity: float


@dataclass(kw_only=True)
class RemoveNearDuplicates(beam.PTransform):
    """(id, text) -> (``texts`` that stay, as they came; `Duplicate`), two collections.

    Of texts that resemble one another those with the lowest ids stay. Ids differ, and are of one type that can be
    ordered and grouped by: numbers, strings or tuples of them.

    Args:
        max_similarity: Jaccard index above which two texts are near-duplicates; at 1 only equal texts are sought.
        max_repeats: How many texts that resemble one another may stay.
    """

    max_similarity: float
    max_repeats: int = 1

    def expand(self, texts: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """Equal texts are dealt with first, by one grouping, so that no bucket holds more than texts that differ."""
        distinct, equal = (
            texts
            | "KeyByText" >> beam.Map(_with_text_key)
            | "GroupByText" >> beam.GroupByKey()
            | "KeepFirst" >> beam.FlatMap(_keep_first, self.max_repeats).with_outputs(REFUSED, main=TEXTS)
        )
        if self.max_similarity >= 1:
            return distinct, equal
        resembling = (
            distinct
            | "KeyByBand" >> beam.FlatMap(_with_band_keys, self.max_similarity)
            | "GroupByBand" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMap(_compare, self.max_similarity, self.max_repeats)
        )
        staying, similar = (
            {"text": distinct, "resembles": resembling}
            | "JoinText" >> beam.CoGroupByKey()
            | "Decide" >> beam.FlatMap(_decide).with_outputs(REFUSED, main=TEXTS)
        )
        return staying, (equal, similar) | "Refused" >> beam.Flatten()


def _with_text_key(text: tuple[Any, str]) -> tuple[str, tuple[Any, str]]:
    return stable_hash_hex(0, "text", normalize(text[1])), text


def _keep_first(group: tuple[str, Iterable[tuple[Any, str]]], max_repeats: int) -> Iterable[Any]:
    first = heapq.nsmallest(max_repeats, group[1])
    yield from first
    for text_id, text in group[1]:
        if text_id > first[-1][0]:
            yield TaggedOutput(REFUSED, Duplicate(text_id=text_id, text=text, other_id=first[0][0], similarity=1.0))


def _with_band_keys(
    text: tuple[Any, str], max_similarity: float
) -> Iterable[tuple[tuple[int, bytes], tuple[Any, str]]]:
    for key in band_keys(text[1], max_similarity=max_similarity):
        yield key, text


def _compare(
    bucket: tuple[tuple[int, bytes], Iterable[tuple[Any, str]]], max_similarity: float, max_repeats: int
) -> Iterable[tuple[Any, tuple[Any, float]]]:
    for text_id, other_id, similarity in duplicates_in_bucket(
        bucket[1], max_similarity=max_similarity, max_repeats=max_repeats
    ):
        yield text_id, (other_id, similarity)


def _decide(joined: tuple[Any, dict[str, Iterable[Any]]]) -> Iterable[Any]:
    text_id, found = joined
    (text,) = found["text"]
    resembled = min(found["resembles"], default=None)
    if resembled is None:
        yield text_id, text
    else:
        other_id, similarity = resembled
        yield TaggedOutput(REFUSED, Duplicate(text_id=text_id, text=text, other_id=other_id, similarity=similarity))
