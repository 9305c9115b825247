"""`CompletePrompts`: completions from the journal where it holds them, from the model where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.inference_metrics import count_from_journal
from beam_pipelines.model_handler import EngineModelHandler
from synth_model.generation import Prompt

_MISSING = "missing"


@dataclass(kw_only=True)
class CompletePrompts(beam.PTransform):
    """(anything, `Prompt`) -> (the same, `Outcome`).

    Args:
        model_handler: Completes prompts and writes them to the journal.
        journal: Keyed completions of an earlier start of this run, or None on the first start.
    """

    model_handler: EngineModelHandler
    journal: beam.PCollection | None = None

    def expand(self, requests: beam.PCollection) -> beam.PCollection:
        """What the journal holds is taken from there by a join on the key; only the rest is generated."""
        outcomes = []
        if self.journal is not None:
            keyed = requests | "Key" >> beam.Map(_with_key, self.model_handler)
            known, requests = (
                {"requests": keyed, "completions": self.journal}
                | "JoinJournal" >> beam.CoGroupByKey()
                | "LookUp" >> beam.FlatMap(_look_up).with_outputs(_MISSING, main="known")
            )
            outcomes.append(known)
        outcomes.append(
            requests
            | "Generate"
            >> RunInference(KeyedModelHandler(self.model_handler), model_identifier=self.model_handler.model_identifier)
        )
        return outcomes | "Outcomes" >> beam.Flatten()


def _with_key(request: tuple[Any, Prompt], model_handler: EngineModelHandler) -> tuple[str, tuple[Any, Prompt]]:
    return model_handler.key(request[1]), request


def _look_up(joined: tuple[str, dict[str, Iterable[Any]]]) -> Iterable[Any]:
    # Equal prompts may have been completed more than once; which of their completions counts must not depend on order.
    completion = min(joined[1]["completions"], key=astuple, default=None)
    for waiting, prompt in joined[1]["requests"]:
        if completion is None:
            yield TaggedOutput(_MISSING, (waiting, prompt))
        else:
            count_from_journal()
            yield waiting, completion
