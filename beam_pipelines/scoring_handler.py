"""Adapts an engine that scores to Beam's RunInference, beside `beam_pipelines.model_handler`, which completes.

Both load the same engine, and both steps carry the same ``model_identifier``, so that a machine holds one model for
both. What was scored is in the journal, in segments of its own kind, before it leaves the handler.

Source: apache_beam.ml.inference.base, ModelHandler (Beam 2.77).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from beam_pipelines import inference_metrics
from beam_pipelines.inference_config import InferenceConfig
from beam_pipelines.journal import JournalWriter
from beam_pipelines.time_limit import call_within
from synth_model.engines import EngineConfig, load_engine
from synth_model.generation import Failure
from synth_model.scoring import ScoringEngine, ScoringRequest, TextScores, scoring_key

JOURNAL_KIND = "scores"


class ScoringModelHandler(ModelHandler[tuple[ScoringRequest, ...], TextScores, ScoringEngine]):
    """Scores the requests of one text after the other, many texts at once.

    Args:
        engine: Which model runs where.
        model_id: The model's identity in journal keys.
        model_identifier: Names the loaded model among the processes of a machine, as in the handler that completes.
        journal_writer: Takes every batch as soon as it is done; of the kind `JOURNAL_KIND`.
        inference: How the step runs.
    """

    def __init__(
        self,
        *,
        engine: EngineConfig,
        model_id: str,
        model_identifier: str,
        journal_writer: JournalWriter,
        inference: InferenceConfig,
    ) -> None:
        self._engine = engine
        self._model_id = model_id
        self._journal_writer = journal_writer
        self._inference = inference
        self.model_identifier = model_identifier
        super().__init__()

    def load_model(self) -> ScoringEngine:
        """Loads the engine; runs on the worker, unless the handler that completes has loaded it there already."""
        engine: Any = load_engine(self._engine)
        return engine  # type: ignore[no-any-return]

    def key(self, requests: Sequence[ScoringRequest]) -> str:
        """Under which the journal holds the scores of a text."""
        return scoring_key(requests, model_id=self._model_id)

    def run_inference(
        self,
        batch: Sequence[tuple[ScoringRequest, ...]],
        model: ScoringEngine,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Sequence[TextScores]:
        """The scores of each text, in order; durable when this returns, but for texts with a failure.

        Raises:
            TimeoutError: The engine took longer for a batch than it may.
            ValueError: Another start of this run has begun.
        """
        requests = [request for text in batch for request in text]
        outcomes = call_within(
            self._inference.max_batch_seconds,
            lambda: model.score(requests),
            message=f"The engine has not scored {len(requests)} responses in {self._inference.max_batch_seconds:g} s: "
            "it hangs, or inference.max_batch_seconds is too low for it. What is done is in the journal; start the "
            "run again to go on.",
        )
        assert len(outcomes) == len(requests), (len(outcomes), len(requests))
        remaining = iter(outcomes)
        scores = [TextScores(outcomes=tuple(next(remaining) for _ in text)) for text in batch]
        self._journal_writer.write(
            [
                (self.key(text), found)
                for text, found in zip(batch, scores, strict=True)
                if not any(isinstance(outcome, Failure) for outcome in found.outcomes)
            ]
        )
        Metrics.counter(inference_metrics.NAMESPACE, "num_scores").inc(len(outcomes))
        return scores

    def share_model_across_processes(self) -> bool:
        """One model a machine."""
        return True

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """As many texts as the engine takes prompts: it sorts their requests and cuts them into batches itself."""
        return {"min_batch_size": self._engine.max_batch_size, "max_batch_size": self._engine.max_batch_size}

    def get_resource_hints(self) -> dict[str, Any]:
        """What the step needs of a worker."""
        return self._inference.resource_hints()

    def get_metrics_namespace(self) -> str:
        """Where Beam's own inference metrics appear."""
        return inference_metrics.NAMESPACE
