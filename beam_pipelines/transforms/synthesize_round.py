"""`SynthesizeRound`: one round of multi-round synthesis over all chains; see `synth_model.chain_state`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.transforms.complete_prompts import CompletePrompts
from contracts.records import Example
from synth_model.chain_state import ChainState, add_completion, add_failure, fit_prompt, visible_examples
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import Completion, Failure, Outcome, Prompt, Sampling
from synth_model.pair_gates import PairGateConfig, apply_gates
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer

_IDLE = "idle"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """A chain that waits for a completion, and how many earlier examples its prompt shows."""

    state: ChainState
    num_visible: int


@dataclass(kw_only=True)
class SynthesizeRound(beam.PTransform):
    """`ChainState` -> `ChainState` with one pending document fewer; a state without one passes through.

    Args:
        engine: For its tokenizer and its context length.
        synthesizer: Builds prompts and reads completions.
        sampling: For the length of a completion.
        gates: What a pair must pass.
        model_handler: Completes prompts; the same object in every round.
        journal: Keyed completions of an earlier start of this run, or None on the first start.
    """

    engine: EngineConfig
    synthesizer: SynthesizerConfig
    sampling: Sampling
    gates: PairGateConfig
    model_handler: EngineModelHandler
    journal: beam.PCollection | None = None

    def expand(self, states: beam.PCollection) -> beam.PCollection:
        """Prompts are built, completed and parsed."""
        requests, idle = states | "Prompt" >> beam.ParDo(
            _BuildPrompt(self.engine, self.synthesizer, self.sampling)
        ).with_outputs(_IDLE, main="requests")
        finished = (
            requests
            | "Complete" >> CompletePrompts(model_handler=self.model_handler, journal=self.journal)
            | "Parse" >> beam.ParDo(_ApplyOutcome(self.engine, self.synthesizer, self.gates))
        )
        return (finished, idle) | "States" >> beam.Flatten()


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

        def build(examples: Sequence[Example]) -> Prompt:
            return self._synthesizer.build_prompt(
                examples, document=state.pending[0], special_tokens=self._tokenizer.special_tokens
            )

        fitted = fit_prompt(
            visible_examples(state),
            build=build,
            fits=lambda prompt: self._tokenizer.count([prompt])[0] <= self._max_prompt_tokens,
        )
        # Documents were split to fit when they were read.
        assert fitted is not None, f"document {state.pending[0].doc_id} does not fit its prompt"
        prompt, num_visible = fitted
        yield _Request(state=state, num_visible=num_visible), prompt


class _ApplyOutcome(_UsesSynthesizer):
    def __init__(self, engine: EngineConfig, synthesizer: SynthesizerConfig, gates: PairGateConfig) -> None:
        super().__init__(engine, synthesizer)
        self._gates = gates

    def process(self, keyed: tuple[_Request, Outcome]) -> Iterable[ChainState]:
        request, outcome = keyed
        if isinstance(outcome, Failure):
            yield add_failure(request.state, failure=outcome)
            return
        assert isinstance(outcome, Completion), outcome
        parsed = self._synthesizer.parse(outcome, special_tokens=self._tokenizer.special_tokens)
        pairs, rejected_pairs = apply_gates(parsed, document=request.state.pending[0], gates=self._gates)
        yield add_completion(
            request.state,
            pairs=pairs,
            completion=outcome,
            num_visible=request.num_visible,
            rejected_pairs=rejected_pairs,
        )
