"""`ReadRecords`: see `contracts.record_files`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from contracts.record_files import Record, read_records
from contracts.records import Reject
from contracts.storage import InputFile

RECORDS, REJECTS, COUNTS = "records", "rejects", "counts"


@dataclass(kw_only=True)
class ReadRecords(beam.PTransform):
    """Begin -> ``records`` of `Record`, ``rejects`` of `Reject`, ``counts`` of int: how many of both a file holds.

    Args:
        files: The files, in any order.
        text_field: The field that the whole of a ``.txt`` file becomes.
    """

    files: Sequence[InputFile]
    text_field: str = "text"

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        """Files are dealt out by a reshuffle, so that each is read where there is a free worker."""
        return (
            pbegin
            | "Files" >> beam.Create([file.url for file in self.files])
            | "DealFiles" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_ReadFile(self.text_field)).with_outputs(REJECTS, COUNTS, main=RECORDS)
        )


class _ReadFile(beam.DoFn):
    def __init__(self, text_field: str) -> None:
        self._text_field = text_field

    def process(self, url: str) -> Iterable[Record | TaggedOutput]:
        num_records = 0
        for record in read_records(url, text_field=self._text_field):
            num_records += 1
            yield TaggedOutput(REJECTS, record) if isinstance(record, Reject) else record
        yield TaggedOutput(COUNTS, num_records)
