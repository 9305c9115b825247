"""The log of a run's steps: what is written of each, and the rates and times that need more than one of them.

A record has the mean loss, also by component, the learning rate and the gradient's norm; the rate and the share of the
devices' peak since the last record; the time of each part of a step since then, and the most memory so far. A skipped
step says why and names rows.

Cost: next to nothing; times are read from the clock without waiting for a GPU, which still works at the update when the
next step begins, so that ``compute_seconds`` holds part of it there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.checkpoints import RunState
from trainer.metrics_log import MetricsLog
from trainer.step_gradients import StepResult, peak_memory_bytes

_PARTS = ("data", "compute", "update")


class StepLog:
    """What is logged of steps.

    Args:
        metrics: Where to.
        state: Where the run stands.
        num_rows_per_epoch: Rows of an epoch.
        peak_tokens_per_second: The rate at which the devices would be at their peak; None when unknown.
        device: The device of this process.
    """

    def __init__(
        self,
        metrics: MetricsLog,
        *,
        state: RunState,
        num_rows_per_epoch: int,
        peak_tokens_per_second: float | None,
        device: torch.device,
    ) -> None:
        self._metrics = metrics
        self._last_logged_state = state
        self._num_rows_per_epoch = num_rows_per_epoch
        self._peak_tokens_per_second = peak_tokens_per_second
        self._device = device
        # Since the last record.
        self._part_seconds = dict.fromkeys(_PARTS, 0.0)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time of a part of a step: of waiting for its rows, of its gradients, of its update."""
        assert part in _PARTS, part
        started = time.monotonic()
        yield
        self._part_seconds[part] += time.monotonic() - started

    def tokens_per_second(self, state: RunState) -> float:
        """The rate since the last record."""
        num_tokens = state.num_tokens_seen - self._last_logged_state.num_tokens_seen
        return num_tokens / max(state.seconds - self._last_logged_state.seconds, 1e-9)

    def mfu(self, state: RunState) -> float | None:
        """The share of the devices' peak that this rate uses; see ``flops``."""
        return self.tokens_per_second(state) / self._peak_tokens_per_second if self._peak_tokens_per_second else None

    def append(self, result: StepResult, *, state: RunState, learning_rate: float) -> None:
        """Logs a step.

        Args:
            result: What it computed.
            state: The state after it.
            learning_rate: The rate of its update.
        """
        num_rows = state.position.epoch * self._num_rows_per_epoch + state.position.rows_consumed
        self._metrics.append(
            {
                "step": state.position.step,
                "epoch": round(num_rows / self._num_rows_per_epoch, 6),
                "rows": num_rows,
                "tokens": state.num_tokens_seen,
                "loss": result.loss,
                "loss_by_component": result.loss_by_component,
                "lr": learning_rate,
                "grad_norm": result.grad_norm,
                "tokens_per_second": round(self.tokens_per_second(state), 1),
                "mfu": self.mfu(state),
                "seconds": round(state.seconds, 3),
                **{f"{part}_seconds": round(seconds, 6) for part, seconds in self._part_seconds.items()},
                "peak_memory_bytes": peak_memory_bytes(self._device),
                **({"z_loss": result.z_loss} if result.z_loss else {}),
                **({"skipped": result.skipped, "skipped_rows": result.skipped_rows} if result.skipped else {}),
            }
        )
        self._last_logged_state = state
        self._part_seconds = dict.fromkeys(_PARTS, 0.0)
