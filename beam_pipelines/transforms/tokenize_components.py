"""`TokenizeComponents`: see `beam_pipelines.component_tokenization`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.component_reading import Rendering, read_texts
from beam_pipelines.component_tokenization import (
    Keeping,
    TokenizedUnit,
    Unit,
    UnitIndex,
    find_unit,
    read_rejects,
    tokenize_unit,
)
from beam_pipelines.text_tokenization import TextTokenizer, Tokenization
from contracts.accounting import RejectsReport
from contracts.parquet_files import part_name, write_tables
from contracts.records import Reject, RenderedText
from contracts.schemas import REJECT_SCHEMA

UNITS, REJECTS = "units", "rejects"


@dataclass(kw_only=True)
class TokenizeComponents(beam.PTransform):
    """Begin -> (`TokenizedUnit`, `RejectsReport`), two collections.

    Rejects have their texts with them, so they do not go through the runner: each unit's are a file below ``rejects/``,
    what was unusable in the order of its inputs and then texts without a token; a unit without a reject has none.

    Args:
        units: The units of all components.
        output: Folder of the artifact that the rejects belong to.
        rendering: What decides the texts.
        tokenization: What decides their ids.
        keeping: How they are laid out.
    """

    units: Sequence[Unit]
    output: str
    rendering: Rendering
    tokenization: Tokenization
    keeping: Keeping

    def expand(self, pbegin: beam.pvalue.PBegin) -> tuple[beam.PCollection, beam.PCollection]:
        """`Create` deals several units out, so that each is tokenized where there is a free worker."""
        units, rejects = (
            pbegin
            | "Units" >> beam.Create(list(enumerate(self.units)))
            | "Tokenize" >> beam.ParDo(_TokenizeUnit(self)).with_outputs(REJECTS, main=UNITS)
        )
        return units, rejects


class _TokenizeUnit(beam.DoFn):
    def __init__(self, settings: TokenizeComponents) -> None:
        self._rendering, self._tokenization = settings.rendering, settings.tokenization
        self._keeping = settings.keeping
        self._output, self._num_units = settings.output, len(settings.units)
        self._tokenizer: TextTokenizer | None = None

    def process(self, numbered: tuple[int, Unit]) -> Iterable[TokenizedUnit | TaggedOutput]:
        number, unit = numbered
        index = find_unit(unit.folder)
        if index is None:
            # Not in setup(): where everything is found again, there is no need of a tokenizer.
            self._tokenizer = self._tokenizer or TextTokenizer(self._tokenization)
            texts = self._read(unit, tokenizer=self._tokenizer)
            index = tokenize_unit(unit.folder, texts, tokenizer=self._tokenizer, keeping=self._keeping)
        for component in unit.components:
            yield TokenizedUnit(component=component, index=index)
        if index.rejects:
            path = f"rejects/{part_name('part', index=number, count=self._num_units)}"
            yield TaggedOutput(REJECTS, _write_rejects(index, output=self._output, path=path))

    def _read(self, unit: Unit, *, tokenizer: TextTokenizer) -> Iterable[RenderedText | Reject]:
        for url, byte_range in unit.files:
            yield from read_texts(
                url,
                byte_range=byte_range,
                kind=unit.kind,
                component=unit.components[0],
                rendering=self._rendering,
                tokenizer=tokenizer,
            )


def _write_rejects(index: UnitIndex, *, output: str, path: str) -> RejectsReport:
    """Copies a unit's rejects, some at a time, and counts them; each also counts in Beam's metrics."""
    by_reason: Counter[str] = Counter()

    def counted() -> Iterable[pa.Table]:
        for table in read_rejects(index):
            stages, reasons = (table.column(name).to_pylist() for name in ("stage", "reason"))
            by_reason.update(f"{stage}/{reason}" for stage, reason in zip(stages, reasons, strict=True))
            yield table

    entry = write_tables(output, path=path, schema=REJECT_SCHEMA, tables=counted())
    for reason, count in by_reason.items():
        beam.metrics.Metrics.counter("rejects", reason).inc(count)
    return RejectsReport(entry=entry, by_reason=by_reason)
