"""Adapts an engine to Beam's RunInference.

The model is shared by the processes of a machine and by all rounds: for that, `EngineModelHandler` says so and every
RunInference step must carry the same ``model_identifier`` (`EngineModelHandler.model_identifier`); with one of the two
missing each round loads the model again.

What RunInference calls a batch may be several batches' worth of prompts (`beam_pipelines.prompt_batching`). They are
cut here, and the completions of each batch are in the journal before the next one is begun: whatever happens then, they
are not generated twice.

An engine that raises, hangs, or answers what is no answer ends the step, and nothing of that batch is journaled. Only
what it says of a single prompt, a `Failure`, is taken as that prompt's outcome.

Source: apache_beam.ml.inference.base, ModelHandler (Beam 2.77).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from apache_beam.ml.inference.base import ModelHandler

from beam_pipelines import inference_metrics
from beam_pipelines.inference_config import InferenceConfig
from beam_pipelines.journal import JournalWriter
from beam_pipelines.prompt_batching import BatchBounds, keyed_prompt_weight
from beam_pipelines.time_limit import call_within
from contracts.record_files import lone_surrogate
from synth_model.engines import EngineConfig, load_engine
from synth_model.generation import Completion, Engine, Failure, Outcome, Prompt, Sampling, completion_key


class EngineModelHandler(ModelHandler[Prompt, Outcome, Engine]):
    """Completes prompts with an engine, one outcome a prompt, journaled.

    Goes inside a `KeyedModelHandler`: the function that weighs prompts expects a key before each.

    Args:
        engine: Which model runs where.
        sampling: How tokens are chosen.
        model_id: The model's identity in journal keys.
        model_identifier: Names the loaded model among the processes of a machine; unique to a run.
        journal_writer: Takes every batch as soon as it is done.
        inference: How the step runs.
    """

    def __init__(
        self,
        *,
        engine: EngineConfig,
        sampling: Sampling,
        model_id: str,
        model_identifier: str,
        journal_writer: JournalWriter,
        inference: InferenceConfig | None = None,
    ) -> None:
        self._engine = engine
        self._inference = inference or InferenceConfig()
        self._bounds = BatchBounds(
            max_prompts=engine.max_batch_size,
            max_tokens=engine.max_batch_tokens,
            num_new_tokens=sampling.max_new_tokens,
            is_padded=engine.pads_batches,
        )
        self._sampling = sampling
        self._model_id = model_id
        self._journal_writer = journal_writer
        self.model_identifier = model_identifier
        super().__init__()

    def load_model(self) -> Engine:
        """Loads the engine; runs on the worker."""
        return load_engine(self._engine)

    def key(self, prompt: Prompt) -> str:
        """Under which the journal holds the completion of a prompt."""
        return completion_key(prompt, model_id=self._model_id, sampling=self._sampling)

    def run_inference(
        self, batch: Sequence[Prompt], model: Engine, inference_args: Mapping[str, Any] | None = None
    ) -> Sequence[Outcome]:
        """One outcome a prompt, in order; every completion is durable when this returns.

        Raises:
            RuntimeError: The engine answered what is no answer.
            TimeoutError: The engine took longer for a batch than it may.
            ValueError: Another start of this run has begun.
        """
        outcomes: dict[int, Outcome] = {}
        for indices in self._bounds.cut(batch):
            completed = self._complete([batch[index] for index in indices], model)
            outcomes.update(zip(indices, completed, strict=True))
        return [outcomes[index] for index in range(len(batch))]

    def _complete(self, prompts: list[Prompt], model: Engine) -> list[Outcome]:
        started = time.monotonic()
        answer = call_within(
            self._inference.max_batch_seconds,
            lambda: model.generate(prompts, sampling=self._sampling),
            message=f"The engine has not completed a batch of {len(prompts)} prompts in "
            f"{self._inference.max_batch_seconds:g} s: it hangs, or inference.max_batch_seconds is too low for it. "
            "What is done is in the journal; start the run again to go on.",
        )
        seconds = time.monotonic() - started
        outcomes = checked_outcomes(answer, num_prompts=len(prompts))
        self._journal_writer.write(
            [
                (self.key(prompt), outcome)
                for prompt, outcome in zip(prompts, outcomes, strict=True)
                if isinstance(outcome, Completion)
            ],
            failures=[outcome for outcome in outcomes if isinstance(outcome, Failure)],
        )
        inference_metrics.count_batch(prompts, outcomes, bounds=self._bounds, seconds=seconds)
        return outcomes

    def share_model_across_processes(self) -> bool:
        """One model a machine."""
        return True

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Prompts are gathered up to a fixed weight; only what a bundle ends with is less."""
        weight = self._bounds.gathered_weight(sorted_batches=self._inference.sorted_batches)
        return {
            "min_batch_size": weight,
            "max_batch_size": weight,
            "element_size_fn": partial(keyed_prompt_weight, bounds=self._bounds),
        }

    def get_resource_hints(self) -> dict[str, Any]:
        """What the step needs of a worker; RunInference asks it for the model's step alone."""
        return self._inference.resource_hints()

    def get_metrics_namespace(self) -> str:
        """Where Beam's own inference metrics appear, beside those of `beam_pipelines.inference_metrics`."""
        return inference_metrics.NAMESPACE


def checked_outcomes(answer: Any, *, num_prompts: int) -> list[Outcome]:
    """An engine's answer, once it is one outcome a prompt.

    A completion that no UTF-8 file can hold, with half of a surrogate pair in its text, becomes a failure.

    Raises:
        RuntimeError: It is not: no prompt of the batch has an outcome then.
    """
    if not isinstance(answer, list) or len(answer) != num_prompts:
        what = f"{len(answer)} outcomes" if isinstance(answer, list) else f"a {type(answer).__name__}"
        raise RuntimeError(
            f"The engine gave {what} for {num_prompts} prompts; it must give a list of one outcome each."
        )
    return [_checked_outcome(outcome) for outcome in answer]


def _checked_outcome(outcome: Any) -> Outcome:
    match outcome:
        case Completion(text=str(), finish_reason="stop" | "length", num_prompt_tokens=int(), num_new_tokens=int()):
            if (place := lone_surrogate(outcome.text)) is None:
                return outcome
            return Failure(reason="invalid_unicode", detail=f"lone surrogate at character {place} of the completion")
        case Failure(reason=str(), detail=str()):
            return outcome
        case _:
            raise RuntimeError(f"The engine gave as an outcome what is none: {outcome!r:.200}")
