"""What is said of steps that were skipped: which rows they had, how to look at these, and when there were too many.

Which steps are skipped is decided in `loss_spikes`. Of a skipped step the rows with the highest losses are logged, by
the global numbers that ``python -m beam_pipelines trace`` takes.

Cost: nothing as long as no step is skipped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NoReturn

from accelerate import Accelerator
from accelerate.utils import gather_object

from trainer.checkpoints import RunState
from trainer.step_gradients import StepResult

_log = logging.getLogger(__name__)

_MAX_ROWS = 16
_MAX_ROWS_SHOWN = 4


def rows_with_highest_losses(result: StepResult, *, accelerator: Accelerator) -> list[tuple[int, float | None]]:
    """Some rows of a step with their mean losses, the highest first; every process must call it.

    A loss that is not finite comes before all others, as None.
    """
    own = [
        (row, loss if math.isfinite(loss) else None)
        for rows, losses in zip(result.own_rows, result.own_losses, strict=True)
        # A process without rows passes an empty one through the model.
        for row, loss in zip(rows, losses.tolist(), strict=False)
    ]
    rows: list[tuple[int, float | None]] = gather_object(own)
    return sorted(rows, key=lambda entry: (-math.inf if entry[1] is None else -entry[1], entry[0]))[:_MAX_ROWS]


def warn_of_skipped_step(result: StepResult, *, step: int, shards: str) -> None:
    """Logs that a step was skipped, and how to look at its rows."""
    _log.warning(
        "Skipped step %d: %s. Highest losses: %s. What a row was made of: python -m beam_pipelines trace --shards %s "
        "--row %d",
        step,
        result.skipped,
        _shown(result.skipped_rows),
        shards,
        result.skipped_rows[0][0],
    )


def refuse_to_go_on(result: StepResult, *, state: RunState, last_good_step: int) -> NoReturn:
    """Ends a run of which too many steps in a row were skipped.

    Args:
        result: The last of them.
        state: The state after it.
        last_good_step: The last step that was not skipped.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"The run has stopped after step {state.position.step}: {state.spikes.num_consecutive} steps in a row were "
        f"skipped, the last because {result.skipped} (highest losses: {_shown(result.skipped_rows)}). The weights and "
        f"the newest checkpoint are those after step {last_good_step}. Look at these rows; if they are as they should "
        "be, train with a lower optimizer.learning_rate or a longer warm-up, or raise spikes.max_consecutive and start "
        "the same command again."
    )


def _shown(rows: Sequence[tuple[int, float | None]]) -> str:
    return ", ".join(
        f"row {row} ({'not finite' if loss is None else f'{loss:.2f}'})" for row, loss in rows[:_MAX_ROWS_SHOWN]
    )
