"""Takes prompts through engines, one loaded model at a time, batch by batch, with what is done kept on storage.

Prompts that are the same for several requests (a text without examples to show, whatever the number of shots) are
completed once. Longest first, so that memory peaks at once, if it does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

from synth_model.engines import EngineConfig, load_engine
from synth_model.engines.transformers_engine import length_sorted_batches
from synth_model.evaluation.completion_log import CompletionLog
from synth_model.generation import Completion, Engine, Outcome, Prompt, Sampling

# An engine that schedules by itself is kept busy with several batches' worth.
_BATCHES_A_CALL = 8


def complete_prompts(
    prompts: Mapping[str, Prompt],
    *,
    engine: EngineConfig,
    sampling: Sampling,
    load: Callable[[], Engine],
    log: CompletionLog,
    report: Callable[[int], object],
) -> dict[str, Outcome]:
    """An outcome for every prompt by its key; every completion is in the log when it is returned.

    Args:
        prompts: Counted prompts by key, none of them in the log.
        engine: Bounds the batches.
        sampling: How tokens are chosen.
        load: Gives the loaded engine; called only when there is something to complete.
        log: Where completions are kept.
        report: Told after each batch how many prompts it had.
    """
    keys = list(prompts)
    outcomes: dict[str, Outcome] = {}
    for batch in length_sorted_batches(
        [prompts[key].num_tokens or 0 for key in keys],
        num_new_tokens=sampling.max_new_tokens,
        max_batch_size=engine.max_batch_size * (1 if engine.pads_batches else _BATCHES_A_CALL),
        max_batch_tokens=engine.max_batch_tokens * (1 if engine.pads_batches else _BATCHES_A_CALL),
    ):
        members = [keys[index] for index in batch]
        made = dict(zip(members, load().generate([prompts[key] for key in members], sampling=sampling), strict=True))
        log.append({key: outcome for key, outcome in made.items() if isinstance(outcome, Completion)})
        outcomes.update(made)
        report(len(members))
    return outcomes


class LoadedEngine:
    """Loads an engine when it is first called, and gives it back at the end of a ``with`` block."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._engine: Engine | None = None

    def __call__(self) -> Engine:
        """The loaded engine."""
        self._engine = self._engine or load_engine(self._config)
        return self._engine

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, *error: object) -> None:
        # Engines that hold connections or threads have a close.
        close = getattr(self._engine, "close", None)
        self._engine = None
        if close is not None:
            close()
        # Models hold references in circles; the next one needs their memory.
        gc.collect()
