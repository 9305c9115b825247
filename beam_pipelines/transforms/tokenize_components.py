"""`TokenizeComponents`: see `beam_pipelines.component_tokenization`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.component_reading import Rendering, read_texts
from beam_pipelines.component_tokenization import (
    Keeping,
    TokenizedUnit,
    Unit,
    find_unit,
    read_rejects,
    tokenize_unit,
)
from beam_pipelines.text_tokenization import TextTokenizer, Tokenization
from contracts.records import Reject, RenderedText

UNITS, REJECTS = "units", "rejects"


@dataclass(kw_only=True)
class TokenizeComponents(beam.PTransform):
    """Begin -> (`TokenizedUnit`, `Reject`), two collections.

    Args:
        units: The units of all components.
        rendering: What decides the texts.
        tokenization: What decides their ids.
        keeping: How they are laid out.
    """

    units: Sequence[Unit]
    rendering: Rendering
    tokenization: Tokenization
    keeping: Keeping

    def expand(self, pbegin: beam.pvalue.PBegin) -> tuple[beam.PCollection, beam.PCollection]:
        """`Create` deals several units out, so that each is tokenized where there is a free worker."""
        units, rejects = (
            pbegin
            | "Units" >> beam.Create(list(self.units))
            | "Tokenize" >> beam.ParDo(_TokenizeUnit(self)).with_outputs(REJECTS, main=UNITS)
        )
        return units, rejects


class _TokenizeUnit(beam.DoFn):
    def __init__(self, settings: TokenizeComponents) -> None:
        self._rendering, self._tokenization = settings.rendering, settings.tokenization
        self._keeping = settings.keeping
        self._tokenizer: TextTokenizer | None = None

    def process(self, unit: Unit) -> Iterable[TokenizedUnit | TaggedOutput]:
        index = find_unit(unit.folder)
        if index is None:
            # Not in setup(): where everything is found again, there is no need of a tokenizer.
            self._tokenizer = self._tokenizer or TextTokenizer(self._tokenization)
            texts = self._read(unit, tokenizer=self._tokenizer)
            index = tokenize_unit(unit.folder, texts, tokenizer=self._tokenizer, keeping=self._keeping)
        for component in unit.components:
            yield TokenizedUnit(component=component, index=index)
        for reject in read_rejects(index):
            yield TaggedOutput(REJECTS, reject)

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
