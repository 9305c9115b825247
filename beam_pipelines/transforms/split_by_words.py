"""`SplitByWords`: see `beam_pipelines.mining.document_parts`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.mining.document_parts import split_document
from contracts.records import Document

DOCUMENTS, SPLIT = "documents", "split"


@dataclass(kw_only=True)
class SplitByWords(beam.PTransform):
    """`Document` -> ``documents`` of at most ``max_words`` words, ``split``: parts of each document that was split."""

    max_words: int

    def expand(self, documents: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """One document at a time."""
        return documents | beam.ParDo(_split, self.max_words).with_outputs(SPLIT, main=DOCUMENTS)


def _split(document: Document, max_words: int) -> Iterable[Document | TaggedOutput]:
    parts = split_document(document, max_words=max_words)
    if len(parts) > 1:
        yield TaggedOutput(SPLIT, len(parts))
    yield from parts
