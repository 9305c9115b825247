"""`ReadJournal`: what earlier starts of a run left in its journal; see `beam_pipelines.journal`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from beam_pipelines import journal
from beam_pipelines.journal import Segment
from synth_model.generation import Completion


@dataclass(kw_only=True)
class ReadJournal(beam.PTransform):
    """Begin -> (key, record), in no order; a key may come more than once.

    Args:
        output: The run's folder; nothing else may write to its journal but the start that this pipeline belongs to.
        kind: Which entries to read; see `beam_pipelines.journal.JournalWriter`.
        record: Makes an entry anew from its fields.
    """

    output: str
    kind: str = journal.COMPLETIONS
    record: Callable[..., Any] = Completion

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        """The files are listed where the pipeline runs, merged writer by writer, and read wherever there is room."""
        return (
            pbegin
            | "Journal" >> beam.Create([self.output])
            | "List" >> beam.FlatMap(_files_by_writer, self.kind)
            | "DealWriters" >> beam.Reshuffle()
            | "RollUp" >> beam.FlatMap(journal.roll_up)
            # What was merged is settled here: a step behind that is tried again does not merge again.
            | "DealSegments" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, self.record)
        )


def _read(segment: Segment, record: Callable[..., Any]) -> Iterable[tuple[str, Any]]:
    return journal.read_segment(segment, record=record)


def _files_by_writer(output: str, kind: str) -> Iterable[Sequence[Segment]]:
    by_writer: dict[str, list[Segment]] = {}
    for segment in journal.list_files(output, kind=kind):
        by_writer.setdefault(segment.writer_id, []).append(segment)
    return by_writer.values()
