"""Adapts an engine to Beam's RunInference.

The model is shared by the processes of a machine and by all rounds: for that, `EngineModelHandler` says so and every
RunInference step must carry the same ``model_identifier`` (`EngineModelHandler.model_identifier`); with one of the two
missing each round loads the model again.

Completions are written to the journal before they leave the handler, so that whatever happens downstream, they are
not generated twice.

Source: apache_beam.ml.inference.base, ModelHandler (Beam 2.77).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from beam_pipelines import journal
from synth_model.engines import EngineConfig, load_engine
from synth_model.generation import Completion, Engine, Outcome, Prompt, Sampling, completion_key


class EngineModelHandler(ModelHandler[Prompt, Outcome, Engine]):
    """Completes prompts with an engine, one outcome a prompt, journaled.

    Args:
        engine: Which model runs where.
        sampling: How tokens are chosen.
        model_id: The model's identity in journal keys.
        model_identifier: Names the loaded model among the processes of a machine; unique to a run.
        output: Folder whose journal takes the completions.
    """

    def __init__(
        self, *, engine: EngineConfig, sampling: Sampling, model_id: str, model_identifier: str, output: str
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._model_id = model_id
        self._output = output
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
    ) -> Iterable[Outcome]:
        """One outcome a prompt, in order; every completion is durable when this returns."""
        outcomes = model.generate(list(batch), sampling=self._sampling)
        assert len(outcomes) == len(batch), (len(outcomes), len(batch))
        journal.write_segment(
            self._output,
            [
                (self.key(prompt), outcome)
                for prompt, outcome in zip(batch, outcomes, strict=True)
                if isinstance(outcome, Completion)
            ],
        )
        for outcome in outcomes:
            if isinstance(outcome, Completion):
                Metrics.counter("synthesize", "num_completions").inc()
                Metrics.distribution("synthesize", "num_new_tokens").update(outcome.num_new_tokens)
                Metrics.distribution("synthesize", "num_prompt_tokens").update(outcome.num_prompt_tokens)
            else:
                Metrics.counter("synthesize", f"num_failures_{outcome.reason}").inc()
        return outcomes

    def share_model_across_processes(self) -> bool:
        """One model a machine."""
        return True

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Batches of exactly the engine's size, but for the last of a bundle: what they hold decides the speed."""
        return {"min_batch_size": self._engine.max_batch_size, "max_batch_size": self._engine.max_batch_size}

    def get_metrics_namespace(self) -> str:
        """Where Beam's own inference metrics appear."""
        return "synthesize"
