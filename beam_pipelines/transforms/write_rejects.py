"""`WriteRejects`: the Parquet files of everything that did not go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import apache_beam as beam

from contracts.accounting import RejectsReport, report_rejects
from contracts.parquet_files import part_name, write_parquet
from contracts.records import Reject
from contracts.schemas import rejects_to_table
from contracts.seeding import stable_hash


@dataclass(kw_only=True)
class WriteRejects(beam.PTransform):
    """`Reject` -> `RejectsReport`, one a file under ``rejects/``; a file without a reject is not written."""

    output: str
    num_files: int

    def expand(self, rejects: beam.PCollection) -> beam.PCollection:
        """Rejects are grouped by file and sorted; each also counts in Beam's metrics."""
        return (
            rejects
            | "File" >> beam.Map(_with_file, self.num_files)
            | "GroupByFile" >> beam.GroupByKey()
            | "Write" >> beam.Map(_write, self.output, self.num_files)
        )


def _with_file(reject: Reject, num_files: int) -> tuple[int, Reject]:
    beam.metrics.Metrics.counter("rejects", f"{reject.stage}/{reject.reason}").inc()
    return stable_hash(0, "reject file", reject.doc_id) % num_files, reject


def _write(file: tuple[int, Iterable[Reject]], output: str, num_files: int) -> RejectsReport:
    rejects = sorted(file[1], key=astuple)
    path = f"rejects/{part_name('part', index=file[0], count=num_files)}"
    return report_rejects(write_parquet(output, path=path, table=rejects_to_table(rejects)), rejects)
