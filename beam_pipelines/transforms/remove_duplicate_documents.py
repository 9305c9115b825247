"""`RemoveDuplicateDocuments`: see `beam_pipelines.document_deduplication`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.document_deduplication import (
    DeduplicationConfig,
    DocumentKey,
    band_keys,
    describe_key,
    document_key,
    duplicates_in_bucket,
    signature,
    text_key,
)
from contracts.records import Document, Reject

DOCUMENTS, REJECTS = "documents", "rejects"
_STAGE = "deduplicate"


@dataclass(kw_only=True)
class RemoveDuplicateDocuments(beam.PTransform):
    """`Document` -> (documents that stay, `Reject` for each of the others), two collections.

    Args:
        settings: What counts as a duplicate.
    """

    settings: DeduplicationConfig

    def expand(self, documents: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """Equal texts meet by one grouping; of what is left only signatures do, and then the verdicts the documents."""
        distinct, equal = (
            documents
            | "KeyByText" >> beam.Map(lambda document: (text_key(document), document))
            | "GroupByText" >> beam.GroupByKey()
            | "KeepFirst" >> beam.FlatMap(_keep_first).with_outputs(REJECTS, main=DOCUMENTS)
        )
        if not self.settings.seeks_near_duplicates:
            return distinct, equal
        resembling = (
            distinct
            | "KeyByBand" >> beam.FlatMap(_with_band_keys, self.settings.max_similarity)
            | "GroupByBand" >> beam.GroupByKey()
            | "Compare" >> beam.FlatMap(_compare, self.settings.max_similarity)
        )
        staying, similar = (
            {"document": distinct | "KeyByDocument" >> beam.Map(_with_document_key), "resembles": resembling}
            | "JoinDocument" >> beam.CoGroupByKey()
            | "Decide" >> beam.FlatMap(_decide).with_outputs(REJECTS, main=DOCUMENTS)
        )
        return staying, (equal, similar) | "Removed" >> beam.Flatten()


def _with_document_key(document: Document) -> tuple[DocumentKey, Document]:
    return document_key(document), document


def _keep_first(group: tuple[str, Iterable[Document]]) -> Iterable[Document | TaggedOutput]:
    first = min(group[1], key=_order)
    yield first
    is_passed = False
    for document in group[1]:
        # Records may even share their id: all but one of them go.
        if not is_passed and document == first:
            is_passed = True
            continue
        detail = f"the same text as {describe_key(document_key(first))}"
        yield TaggedOutput(REJECTS, _reject(document, reason="exact_duplicate", detail=detail))


def _order(document: Document) -> tuple[str, ...]:
    # Texts that differ in case or white space alone are one text here; the rest decides, so that order cannot.
    return document.source, document.doc_id, document.text, document.title or ""


def _with_band_keys(document: Document, max_similarity: float) -> Iterable[tuple[bytes, tuple[DocumentKey, bytes]]]:
    values = signature(document.text)
    member = (document_key(document), values.tobytes())
    for key in band_keys(values, max_similarity=max_similarity):
        yield key, member


def _compare(
    bucket: tuple[bytes, Iterable[tuple[DocumentKey, bytes]]], max_similarity: float
) -> Iterable[tuple[DocumentKey, tuple[float, DocumentKey]]]:
    for key, other, similarity in duplicates_in_bucket(bucket[1], max_similarity=max_similarity):
        yield key, (-similarity, other)


def _decide(joined: tuple[DocumentKey, dict[str, Iterable[Any]]]) -> Iterable[Document | TaggedOutput]:
    (document,) = joined[1]["document"]
    resembled = min(joined[1]["resembles"], default=None)
    if resembled is None:
        yield document
        return
    similarity, other = -resembled[0], resembled[1]
    detail = f"similarity {similarity:.2f} to {describe_key(other)}"
    yield TaggedOutput(REJECTS, _reject(document, reason="near_duplicate", detail=detail))


def _reject(document: Document, *, reason: str, detail: str) -> Reject:
    return Reject(
        doc_id=document.doc_id,
        source=document.source,
        stage=_STAGE,
        reason=reason,
        detail=detail,
        text=document.text,
    )
