"""`RemoveNearDuplicates`: see `beam_pipelines.near_duplicates`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.near_duplicates import band_keys, duplicates_in_bucket, normalize
from contracts.seeding import stable_hash_hex

TEXTS, REFUSED = "texts", "refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """A text that does not stay: its number, and the number of the text that it equals or resembles, and how much."""

    number: int
    text: str
    other: int
    similarity: float


@dataclass(kw_only=True)
class RemoveNearDuplicates(beam.PTransform):
    """(number, text) -> (``texts`` that stay, as they came; `Duplicate`), two collections.

    Args:
        max_similarity: Jaccard index above which two texts are near-duplicates; at 1 only equal texts are sought.
    """

    max_similarity: float

    def expand(self, texts: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """Equal texts are dealt with first, by one grouping, so that no bucket holds more than texts that differ."""
        distinct, equal = (
            texts
            | "KeyByText" >> beam.Map(_with_text_key)
            | "GroupByText" >> beam.GroupByKey()
            | "KeepFirst" >> beam.FlatMap(_keep_first).with_outputs(REFUSED, main=TEXTS)
        )
        if self.max_similarity >= 1:
            return distinct, equal
        resembling = (
            distinct
            | "KeyByBand" >> beam.FlatMap(_with_band_keys, self.max_similarity)
            | "GroupByBand" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMap(_compare, self.max_similarity)
        )
        staying, similar = (
            {"text": distinct, "resembles": resembling}
            | "JoinText" >> beam.CoGroupByKey()
            | "Decide" >> beam.FlatMap(_decide).with_outputs(REFUSED, main=TEXTS)
        )
        return staying, (equal, similar) | "Refused" >> beam.Flatten()


def _with_text_key(text: tuple[int, str]) -> tuple[str, tuple[int, str]]:
    return stable_hash_hex(0, "text", normalize(text[1])), text


def _keep_first(group: tuple[str, Iterable[tuple[int, str]]]) -> Iterable[Any]:
    first = min(group[1])
    yield first
    for number, text in group[1]:
        if number != first[0]:
            yield TaggedOutput(REFUSED, Duplicate(number=number, text=text, other=first[0], similarity=1.0))


def _with_band_keys(
    text: tuple[int, str], max_similarity: float
) -> Iterable[tuple[tuple[int, bytes], tuple[int, str]]]:
    for key in band_keys(text[1], max_similarity=max_similarity):
        yield key, text


def _compare(
    bucket: tuple[tuple[int, bytes], Iterable[tuple[int, str]]], max_similarity: float
) -> Iterable[tuple[int, tuple[int, float]]]:
    for number, other, similarity in duplicates_in_bucket(bucket[1], max_similarity=max_similarity):
        yield number, (other, similarity)


def _decide(joined: tuple[int, dict[str, Iterable[Any]]]) -> Iterable[Any]:
    number, found = joined
    (text,) = found["text"]
    resembled = min(found["resembles"], default=None)
    if resembled is None:
        yield number, text
    else:
        other, similarity = resembled
        yield TaggedOutput(REFUSED, Duplicate(number=number, text=text, other=other, similarity=similarity))
