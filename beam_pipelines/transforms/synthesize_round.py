"""`SynthesizeRound`: one round of multi-round synthesis over all chains; see `synth_model.chain_state`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.scoring_handler import ScoringModelHandler
from beam_pipelines.transforms.complete_prompts import CompletePrompts
from beam_pipelines.transforms.measure_context_dependence import JudgedText, MeasureContextDependence
from synth_model.chain_state import ChainState, add_completion, add_failure
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.gates.config import PairGateConfig
from synth_model.gates.judging import judge_pairs, score_counts, settle
from synth_model.generation import Completion, Failure, Outcome, Prompt, Sampling
from synth_model.next_prompt import next_prompt
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer

STATES, SCORES = "states", "scores"
_IDLE, _FAILED = "idle", "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """A chain that waits for a completion, and how many earlier examples its prompt shows."""

    state: ChainState
    num_visible: int


@dataclass(kw_only=True)
class SynthesizeRound(beam.PTransform):
    """`ChainState` -> ``states``: `ChainState` with one pending document fewer, ``scores`` for `CountScores`.

    A state without a pending document passes through.

    Args:
        engine: For its tokenizer and its context length.
        synthesizer: Builds prompts and reads completions.
        sampling: For the length of a completion.
        gates: What a pair must pass.
        model_handler: Completes prompts; the same object in every round.
        journal: Keyed completions of an earlier start of this run, or None on the first start.
        scoring_handler: Scores responses, for the gate that asks the model; None when that is off.
        scores_journal: Keyed scores of an earlier start of this run, or None on the first start.
    """

    engine: EngineConfig
    synthesizer: SynthesizerConfig
    sampling: Sampling
    gates: PairGateConfig
    model_handler: EngineModelHandler
    journal: beam.PCollection | None = None
    scoring_handler: ScoringModelHandler | None = None
    scores_journal: beam.PCollection | None = None

    def expand(self, states: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """Prompts are built and completed, completions parsed, their pairs judged, and the chains go on."""
        requests, idle = states | "Prompt" >> beam.ParDo(
            _BuildPrompt(self.engine, self.synthesizer, self.sampling)
        ).with_outputs(_IDLE, main="requests")
        judged, failed = (
            requests
            | "Complete" >> CompletePrompts(model_handler=self.model_handler, journal=self.journal)
            | "Judge"
            >> beam.ParDo(_ParseAndJudge(self.engine, self.synthesizer, self.gates)).with_outputs(
                _FAILED, main="judged"
            )
        )
        if self.scoring_handler is not None:
            judged = judged | "MeasureContextDependence" >> MeasureContextDependence(
                engine=self.engine,
                synthesizer=self.synthesizer,
                gates=self.gates,
                model_handler=self.scoring_handler,
                journal=self.scores_journal,
            )
        finished, scores = judged | "Settle" >> beam.FlatMap(_settle, self.gates).with_outputs(SCORES, main=STATES)
        return (finished, failed, idle) | "States" >> beam.Flatten(), scores


class _UsesSynthesizer(beam.DoFn):
    """Loads tokenizer and synthesizer once a worker."""

    def __init__(self, engine: EngineConfig, synthesizer: SynthesizerConfig) -> None:
        self._engine = engine
        self._synthesizer_config = synthesizer

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._engine)
        self._synthesizer = make_synthesizer(self._synthesizer_config)


class _BuildPrompt(_UsesSynthesizer):
    def __init__(self, engine: EngineConfig, synthesizer: SynthesizerConfig, sampling: Sampling) -> None:
        super().__init__(engine, synthesizer)
        self._max_prompt_tokens = engine.context_length - sampling.max_new_tokens

    def process(self, state: ChainState) -> Iterable[tuple[_Request, Prompt] | TaggedOutput]:
        if not state.pending:
            yield TaggedOutput(_IDLE, state)
            return
        prompt, num_visible = next_prompt(
            state,
            synthesizer=self._synthesizer,
            tokenizer=self._tokenizer,
            max_prompt_tokens=self._max_prompt_tokens,
        )
        yield _Request(state=state, num_visible=num_visible), prompt


class _ParseAndJudge(_UsesSynthesizer):
    def __init__(self, engine: EngineConfig, synthesizer: SynthesizerConfig, gates: PairGateConfig) -> None:
        super().__init__(engine, synthesizer)
        self._gates = gates

    def process(self, keyed: tuple[_Request, Outcome]) -> Iterable[JudgedText | TaggedOutput]:
        request, outcome = keyed
        if isinstance(outcome, Failure):
            yield TaggedOutput(_FAILED, add_failure(request.state, failure=outcome))
            return
        assert isinstance(outcome, Completion), outcome
        document = request.state.pending[0]
        pairs = self._synthesizer.parse(outcome, special_tokens=self._tokenizer.special_tokens)
        judged = judge_pairs(pairs, document=document, gates=self._gates)
        yield JudgedText(document=document, pairs=tuple(judged), waiting=(request, outcome))


def _settle(text: JudgedText, gates: PairGateConfig) -> Iterable[ChainState | TaggedOutput]:
    request, completion = text.waiting
    pairs, rejected_pairs = settle(text.pairs, document=text.document, gates=gates)
    yield add_completion(
        request.state,
        pairs=pairs,
        completion=completion,
        num_visible=request.num_visible,
        rejected_pairs=rejected_pairs,
    )
    for count in score_counts(text.pairs):
        yield TaggedOutput(SCORES, count)
