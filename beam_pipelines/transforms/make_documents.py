"""`MakeDocuments`: see `beam_pipelines.record_reading.document_from_record`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.record_reading import FieldNames, document_from_record
from contracts.record_files import Record
from contracts.records import Document, Reject

DOCUMENTS, REJECTS = "documents", "rejects"


@dataclass(kw_only=True)
class MakeDocuments(beam.PTransform):
    """`Record` -> ``documents`` of `Document`, ``rejects`` of `Reject`."""

    fields: FieldNames

    def expand(self, records: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """One record at a time."""
        return records | beam.ParDo(_make_document, self.fields).with_outputs(REJECTS, main=DOCUMENTS)


def _make_document(record: Record, fields: FieldNames) -> Iterable[Document | TaggedOutput]:
    document = document_from_record(record, fields=fields)
    yield TaggedOutput(REJECTS, document) if isinstance(document, Reject) else document
