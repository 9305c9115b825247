"""Which steps are skipped: those whose loss or gradient is not finite, and those whose loss is a spike.

A spike is a loss that lies ``threshold`` standard deviations above the mean of the last ``window`` steps that were not
skipped. The mean of few rows scatters more than that of many: for the short step at the end of an epoch the deviation
is widened by the square root of the ratio. Skipped steps stay outside the statistics, so a spike does not raise the
bound for the next one; a level that has risen for good therefore ends the run, after ``max_consecutive`` steps.

The plain deviation is meant, not one from medians: where a few steps are of another component and lie higher, a robust
deviation would call all of these spikes.

Cost: the losses of ``window`` steps, and one pass over them a step. All of it is in the checkpoint.

Does not look at finite gradient norms, which clipping bounds, and does not go back to an earlier state.

Source: OLMo 2 (arXiv 2501.00656) and its trainer's optimizer that skips steps, for the rule with 6 deviations over 128
steps; Chowdhery et al. 2022 (arXiv 2204.02311), section 5.1, for skipping the batches of a spike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.config import SpikesConfig

# Losses that hardly scatter must not make a spike of a rounding error.
_MIN_RELATIVE_DEVIATION = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikeHistory:
    """What is known of the steps before the next one.

    Args:
        losses: Of the last steps that were not skipped, oldest first; ``window`` at most.
        num_skipped: Steps skipped since the start of the run.
        num_consecutive: Steps skipped since the last one that was not.
    """

    losses: tuple[float, ...] = ()
    num_skipped: int = 0
    num_consecutive: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SpikeHistory:
        """The history that was written as JSON."""
        return cls(**{**values, "losses": tuple(values["losses"])})

    def after_update(self, loss: float, *, window: int) -> SpikeHistory:
        """The history after a step that was not skipped."""
        return replace(self, losses=(*self.losses, loss)[-window:], num_consecutive=0)

    def after_skip(self) -> SpikeHistory:
        """The history after a skipped step."""
        return replace(self, num_skipped=self.num_skipped + 1, num_consecutive=self.num_consecutive + 1)


def reason_to_skip(
    loss: float, grad_norm: float, *, history: SpikeHistory, spikes: SpikesConfig, relative_rows: float = 1.0
) -> str | None:
    """Why a step is to be skipped; None if it is not.

    Args:
        loss: Mean loss of the step.
        grad_norm: Norm of its gradient.
        history: Of the steps before.
        spikes: The rule.
        relative_rows: Rows of the step as a fraction of those of a full one, in (0, 1].
    """
    if not math.isfinite(loss):
        return "the loss is not finite"
    if not math.isfinite(grad_norm):
        return "the gradient is not finite"
    bound = spike_bound(history, spikes=spikes, relative_rows=relative_rows)
    if loss > bound:
        return f"the loss {loss:.4f} is above {bound:.4f}"
    return None


def spike_bound(history: SpikeHistory, *, spikes: SpikesConfig, relative_rows: float = 1.0) -> float:
    """The highest loss that is no spike; infinite while there is no judgement."""
    if spikes.threshold is None or len(history.losses) < spikes.window:
        return math.inf
    mean = statistics.fmean(history.losses)
    deviation = max(statistics.pstdev(history.losses, mean), _MIN_RELATIVE_DEVIATION * mean)
    return mean + spikes.threshold * deviation / math.sqrt(relative_rows)
