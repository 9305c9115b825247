"""`ScorePairs`: likelihoods of responses, from the journal where it holds them, from the model where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.scoring_handler import ScoringModelHandler
from synth_model.scoring import ScoringRequest

_MISSING = "missing"


@dataclass(kw_only=True)
class ScorePairs(beam.PTransform):
    """(anything, all requests of one text) -> (the same, `TextScores`).

    Args:
        model_handler: Scores requests and writes the scores to the journal.
        journal: Keyed `TextScores` of an earlier start of this run, or None on the first start.
    """

    model_handler: ScoringModelHandler
    journal: beam.PCollection | None = None

    def expand(self, requests: beam.PCollection) -> beam.PCollection:
        """What the journal holds is taken from there by a join on the key; only the rest is scored."""
        scores = []
        if self.journal is not None:
            keyed = requests | "Key" >> beam.Map(_with_key, self.model_handler)
            known, requests = (
                {"requests": keyed, "scores": self.journal}
                | "JoinJournal" >> beam.CoGroupByKey()
                | "LookUp" >> beam.FlatMap(_look_up).with_outputs(_MISSING, main="known")
            )
            scores.append(known)
        scores.append(
            requests
            | "Score"
            >> RunInference(KeyedModelHandler(self.model_handler), model_identifier=self.model_handler.model_identifier)
        )
        return scores | "Scores" >> beam.Flatten()


def _with_key(
    request: tuple[Any, tuple[ScoringRequest, ...]], model_handler: ScoringModelHandler
) -> tuple[str, tuple[Any, tuple[ScoringRequest, ...]]]:
    return model_handler.key(request[1]), request


def _look_up(joined: tuple[str, dict[str, Iterable[Any]]]) -> Iterable[Any]:
    # Two starts may have scored the same text, with other roundings; which of them counts must not depend on order.
    scores = min(joined[1]["scores"], key=astuple, default=None)
    for waiting, requests in joined[1]["requests"]:
        yield TaggedOutput(_MISSING, (waiting, requests)) if scores is None else (waiting, scores)
