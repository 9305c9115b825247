"""`SynthesizeRound`: one round of multi-round synthesis over all chains; see `synth_model.chain_state`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.model_handler import EngineModelHandler
from contracts.records import Example
from synth_model.chain_state import ChainState, add_completion, add_failure, fit_prompt, visible_examples
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import Completion, Failure, Outcome, Prompt, Sampling, completion_key
from synth_model.pair_gates import PairGateConfig, apply_gates
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer

_IDLE, _MISSING = "idle", "missing"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """A chain that waits for a completion, and how many earlier examples its prompt shows."""

    state: ChainState
    prompt: Prompt
    num_visible: int


@dataclass(kw_only=True)
class SynthesizeRound(beam.PTransform):
    """`ChainState` -> `ChainState` with one pending document fewer; a state without one passes through.

    Args:
        engine: For its tokenizer and its context length.
        synthesizer: Builds prompts and reads completions.
        sampling: How tokens are chosen; part of a completion's key.
        model_id: The model's identity; part of a completion's key.
        gates: What a pair must pass.
        model_handler: Completes prompts; the same object in every round.
        journal: Keyed completions of an earlier start of this run, or None on the first start.
    """

    engine: EngineConfig
    synthesizer: SynthesizerConfig
    sampling: Sampling
    model_id: str
    gates: PairGateConfig
    model_handler: EngineModelHandler
    journal: beam.PCollection | None = None

    def expand(self, states: beam.PCollection) -> beam.PCollection:
        """What the journal holds is taken from there by a join on the key; only the rest is generated."""
        requests, idle = states | "Prompt" >> beam.ParDo(
            _BuildPrompt(self.engine, self.synthesizer, self.sampling)
        ).with_outputs(_IDLE, main="requests")
        outcomes = []
        if self.journal is not None:
            keyed = requests | "Key" >> beam.Map(
                lambda request, model_id, sampling: (
                    completion_key(request.prompt, model_id=model_id, sampling=sampling),
                    request,
                ),
                self.model_id,
                self.sampling,
            )
            known, requests = (
                {"requests": keyed, "completions": self.journal}
                | "JoinJournal" >> beam.CoGroupByKey()
                | "LookUp" >> beam.FlatMap(_look_up).with_outputs(_MISSING, main="known")
            )
            outcomes.append(known)
        outcomes.append(
            requests
            | "KeyByRequest" >> beam.Map(lambda request: (request, request.prompt))
            | "Generate"
            >> RunInference(KeyedModelHandler(self.model_handler), model_identifier=self.model_handler.model_identifier)
        )
        finished = (
            outcomes
            | "Outcomes" >> beam.Flatten()
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

    def process(self, state: ChainState) -> Iterable[_Request | TaggedOutput]:
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
        yield _Request(state=state, prompt=prompt, num_visible=num_visible)


def _look_up(joined: tuple[str, dict[str, Iterable[Any]]]) -> Iterable[Any]:
    # Equal prompts may have been completed more than once; which of their completions counts must not depend on order.
    completion = min(joined[1]["completions"], key=astuple, default=None)
    for request in joined[1]["requests"]:
        yield TaggedOutput(_MISSING, request) if completion is None else (request, completion)


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
