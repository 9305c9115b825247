"""`MeasureContextDependence`: see `synth_model.gates.context_dependence`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.scoring_handler import ScoringModelHandler
from beam_pipelines.transforms.score_pairs import ScorePairs
from contracts.records import Document
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.gates.config import PairGateConfig
from synth_model.gates.context_dependence import add_context_dependence, scoring_requests
from synth_model.gates.judging import JudgedPair
from synth_model.scoring import ScoringRequest, TextScores
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer

_UNASKED = "unasked"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedText:
    """A text with its pairs, measured by gates, and whatever waits for the verdict."""

    document: Document
    pairs: tuple[JudgedPair, ...]
    waiting: Any


@dataclass(kw_only=True)
class MeasureContextDependence(beam.PTransform):
    """`JudgedText` -> `JudgedText`, the pairs that have passed so far measured by one more gate.

    Args:
        engine: For its tokenizer.
        synthesizer: Builds prompts.
        gates: For the bound.
        model_handler: Scores responses.
        journal: Keyed `TextScores` of an earlier start of this run, or None on the first start.
    """

    engine: EngineConfig
    synthesizer: SynthesizerConfig
    gates: PairGateConfig
    model_handler: ScoringModelHandler
    journal: beam.PCollection | None = None

    def expand(self, texts: beam.PCollection) -> beam.PCollection:
        """Texts without a pair that has passed so far are not asked about."""
        requests, unasked = texts | "Ask" >> beam.ParDo(_BuildRequests(self.engine, self.synthesizer)).with_outputs(
            _UNASKED, main="requests"
        )
        measured = (
            requests
            | "ScorePairs" >> ScorePairs(model_handler=self.model_handler, journal=self.journal)
            | "Measure" >> beam.Map(_measure, self.gates)
        )
        return (measured, unasked) | "Texts" >> beam.Flatten()


class _BuildRequests(beam.DoFn):
    def __init__(self, engine: EngineConfig, synthesizer: SynthesizerConfig) -> None:
        self._engine = engine
        self._synthesizer_config = synthesizer

    def setup(self) -> None:
        self._special_tokens = load_tokenizer(self._engine).special_tokens
        self._synthesizer = make_synthesizer(self._synthesizer_config)

    def process(self, text: JudgedText) -> Iterable[tuple[JudgedText, tuple[ScoringRequest, ...]] | TaggedOutput]:
        passed = [item.pair for item in text.pairs if item.refusal is None]
        if not passed:
            yield TaggedOutput(_UNASKED, text)
            return
        yield (
            text,
            scoring_requests(
                passed,
                document=text.document,
                synthesizer=self._synthesizer,
                special_tokens=self._special_tokens,
            ),
        )


def _measure(scored: tuple[JudgedText, TextScores], gates: PairGateConfig) -> JudgedText:
    text, scores = scored
    pairs = add_context_dependence(text.pairs, scores.outcomes, gates=gates)
    return JudgedText(document=text.document, pairs=tuple(pairs), waiting=text.waiting)
