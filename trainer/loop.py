"""The training loop: steps, and what happens between them.

A step draws its rows by position, deals them to the processes, accumulates the gradients of its micro-batches and
updates the weights. The loss of a step is the mean over all its target tokens: every micro-batch adds the sum of its
losses divided by the number of targets of the whole step, so that neither the size of the micro-batches nor the number
of processes changes what is computed, only the rounding.

Everything random in a step comes from a generator seeded by the run's seed, the step and the process. Together with
the position this makes a run that was killed and goes on bit-identical to one that was not, on the same number of
processes on a CPU.

Source: Cheng et al. 2024 (arXiv 2406.14491): next-token prediction on all tokens.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from contracts.seeding import stable_hash
from trainer.checkpoints import RunState, save_checkpoint
from trainer.config import PretrainConfig
from trainer.loss import count_targets, mean_losses, row_losses, sums_by_component
from trainer.metrics_log import MetricsLog
from trainer.processes import any_process, on_main_process, sum_over_processes
from trainer.progress import Progress
from trainer.row_sampler import RowSampler, deal_rows
from trainer.schedules import learning_rate_multiplier
from trainer.shard_dataset import Batch, ShardDataset
from trainer.stop_signals import StopSignals
from trainer.validation import ALL_COMPONENTS, choose_validation_rows, validate

_log = logging.getLogger(__name__)

_MAX_ROWS_NAMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step computed: mean loss in nats a token, the gradient's norm before clipping, tokens without padding."""

    loss: float
    loss_by_component: dict[str, float]
    grad_norm: float
    num_tokens: int


class TrainingLoop:
    """Trains a model from one state to the end of its run, or until it is told to stop.

    Args:
        config: The run's config.
        accelerator: The processes.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer, not wrapped.
        train_rows: The training split.
        validation_rows: The validation split; may be empty.
        metrics: Where steps are logged.
        validations: Where validation losses are logged.
        checkpoint_root: The folder of the run's checkpoints.
        state: Where the run stands.
    """

    def __init__(
        self,
        *,
        config: PretrainConfig,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        train_rows: ShardDataset,
        validation_rows: ShardDataset,
        metrics: MetricsLog,
        validations: MetricsLog,
        checkpoint_root: str,
        state: RunState,
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self.model = model
        self._optimizer = optimizer
        self._train_rows = train_rows
        self._validation_rows = validation_rows
        self._chosen_validation_rows = choose_validation_rows(
            len(validation_rows), max_rows=config.validation.max_rows, seed=config.seed
        )
        self._metrics = metrics
        self.validations = validations
        self._checkpoint_root = checkpoint_root
        self._sampler = RowSampler(len(train_rows), rows_per_step=config.batch.rows_per_step, seed=config.seed)
        self.state = state
        self.num_steps = config.max_steps or self._sampler.num_steps(num_epochs=config.num_epochs, start=state.position)
        self._last_saved_step = state.position.step
        self._last_logged_state = state

    def run(self, stop: StopSignals) -> bool:
        """Trains; returns whether the run came to its end, rather than being stopped by a signal."""
        if self._config.validation.at_start and self._has_not_been_validated():
            self._validate()
        with Progress(
            description="pretrain",
            total=self.num_steps,
            completed=self.state.position.step,
            is_shown=self._accelerator.is_main_process,
        ) as progress:
            while self.state.position.step < self.num_steps:
                if any_process(self._accelerator, stop.is_received):
                    self._save()
                    return False
                result = self._step()
                tokens_per_second = self._tokens_per_second()
                self._log_step(result, tokens_per_second)
                progress.show(
                    self.state.position.step, figures=f"loss {result.loss:.3f}  {tokens_per_second:.0f} tok/s"
                )
                self._do_what_is_due()
        # A run that was killed behind its last checkpoint has been here before.
        if self._config.validation.at_end and self._has_not_been_validated(self.num_steps):
            self._validate()
        if self._config.checkpoint.save_final_optimizer_state:
            self._save()
        self._metrics.sync()
        self.validations.sync()
        return True

    def _step(self) -> StepResult:
        """Trains on the rows of the next step and moves the state behind them."""
        started = time.monotonic()
        position = self.state.position
        rows, next_position = self._sampler.next_step(position)
        micro_batches = deal_rows(
            rows,
            process_index=self._accelerator.process_index,
            num_processes=self._accelerator.num_processes,
            micro_batch_rows=self._config.batch.micro_batch_rows,
        )
        batches = [self._train_rows.batch(row_numbers) for row_numbers in micro_batches]
        num_targets, num_tokens = self._count(batches)
        if not num_targets:
            raise ValueError(f"Step {next_position.step} has no token to predict in its rows: {_some(rows)}.")

        torch.manual_seed(stable_hash(self._config.seed, "step", position.step, self._accelerator.process_index))
        sums = torch.zeros(len(self._train_rows.components), 2, dtype=torch.float64, device=self._accelerator.device)
        losses: list[torch.Tensor] = []
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last else self._accelerator.no_sync(self.model):
                batch = batch.to(self._accelerator.device)
                loss = self._row_losses(batch)
                # Accelerate averages gradients over the processes; the loss is their sum.
                self._accelerator.backward(loss.sum() * (self._accelerator.num_processes / num_targets))
            losses.append(loss.detach())
            sums += sums_by_component(
                loss, labels=batch.labels, component_ids=batch.component_ids, num_components=len(sums)
            )
        mean, by_component = mean_losses(
            sum_over_processes(self._accelerator, sums), components=self._train_rows.components
        )
        grad_norm = float(
            self._accelerator.clip_grad_norm_(self.model.parameters(), self._config.optimizer.max_grad_norm)
        )
        if not (math.isfinite(mean) and math.isfinite(grad_norm)):
            self._refuse_step(next_position.step, rows=rows, micro_batches=micro_batches, losses=losses)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(position.step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.state = replace(
            self.state,
            position=next_position,
            num_tokens_seen=self.state.num_tokens_seen + num_tokens,
            seconds=self.state.seconds + time.monotonic() - started,
        )
        return StepResult(loss=mean, loss_by_component=by_component, grad_norm=grad_norm, num_tokens=num_tokens)

    def _row_losses(self, batch: Batch) -> torch.Tensor:
        # In a function of its own, so that the logits, the largest tensor of all, are freed on return.
        logits = self.model(input_ids=batch.input_ids, use_cache=False).logits
        return row_losses(logits, labels=batch.labels)

    def _count(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Target tokens, and tokens without padding, of a whole step over all processes."""
        own = [
            sum(int(count_targets(batch.labels).sum()) for batch in batches),
            sum(batch.num_tokens for batch in batches),
        ]
        counts = sum_over_processes(self._accelerator, torch.tensor(own, device=self._accelerator.device))
        num_targets, num_tokens = counts.tolist()
        return num_targets, num_tokens

    def _learning_rate(self, step: int) -> float:
        multiplier = learning_rate_multiplier(step, num_steps=self.num_steps, schedule=self._config.schedule)
        return self._config.optimizer.learning_rate * multiplier

    def _tokens_per_second(self) -> float:
        """The rate since the last logged step."""
        num_tokens = self.state.num_tokens_seen - self._last_logged_state.num_tokens_seen
        return num_tokens / max(self.state.seconds - self._last_logged_state.seconds, 1e-9)

    def _log_step(self, result: StepResult, tokens_per_second: float) -> None:
        position = self.state.position
        if position.step % self._config.logging.every_steps and position.step != self.num_steps:
            return
        self._last_logged_state = self.state
        num_rows = position.epoch * len(self._train_rows) + position.rows_consumed
        self._metrics.append(
            {
                "step": position.step,
                "epoch": round(num_rows / len(self._train_rows), 6),
                "rows": num_rows,
                "tokens": self.state.num_tokens_seen,
                "loss": result.loss,
                "loss_by_component": result.loss_by_component,
                "lr": self._optimizer.param_groups[0]["lr"],
                "grad_norm": result.grad_norm,
                "tokens_per_second": round(tokens_per_second, 1),
                "seconds": round(self.state.seconds, 3),
            }
        )

    def _do_what_is_due(self) -> None:
        """Validates and saves where the config says so; the last step is left to the end of the run."""
        step = self.state.position.step
        if step == self.num_steps:
            return
        if self._config.validation.every_steps and step % self._config.validation.every_steps == 0:
            self._validate()
        if self._config.checkpoint.every_steps and step % self._config.checkpoint.every_steps == 0:
            self._save()

    def _has_not_been_validated(self, step: int | None = None) -> bool:
        """Whether no validation, or none at that step, is in the log, which only the main process has."""
        return on_main_process(
            self._accelerator,
            lambda: not any(step in (None, record["step"]) for record in self.validations.records()),
        )

    def _validate(self) -> None:
        if not self._chosen_validation_rows:
            return
        result = validate(
            self.model,
            dataset=self._validation_rows,
            rows=self._chosen_validation_rows,
            micro_batch_rows=self._config.batch.micro_batch_rows,
            accelerator=self._accelerator,
        )
        step = self.state.position.step
        self.validations.append({"step": step, **asdict(result)})
        by_component = ", ".join(f"{name} {loss:.4f}" for name, loss in result.losses.items() if name != ALL_COMPONENTS)
        _log.info(
            "Validation loss after %d steps: %.4f (by component: %s)", step, result.losses[ALL_COMPONENTS], by_component
        )

    def _save(self) -> None:
        if self.state.position.step == self._last_saved_step:
            return
        self._metrics.sync()
        self.validations.sync()
        url = save_checkpoint(
            self._checkpoint_root,
            state=self.state,
            accelerator=self._accelerator,
            model=self.model,
            optimizer=self._optimizer,
            num_kept=self._config.checkpoint.keep,
        )
        self._last_saved_step = self.state.position.step
        _log.info("Saved the checkpoint %s", url)

    def _refuse_step(
        self, step: int, *, rows: Sequence[int], micro_batches: list[list[int]], losses: list[torch.Tensor]
    ) -> NoReturn:
        """Raises the error for a step whose loss or gradient is not finite, with the rows that caused it."""
        own = [
            row
            for row_numbers, row_loss in zip(micro_batches, losses, strict=True)
            for row, loss in zip(row_numbers, row_loss.tolist(), strict=False)
            if not math.isfinite(loss)
        ]
        culprits = sorted(gather_object(own))
        what = f"the loss of row {_some(culprits)}" if culprits else f"the gradient over row {_some(rows)}"
        raise ValueError(
            f"Step {step}: {what} of the training split is not finite. The weights were left as they were before this "
            "step. Try a lower optimizer.learning_rate or a longer warm-up; if it is always these rows, look at them."
        )


def _some(rows: Sequence[int]) -> str:
    named = ", ".join(str(row) for row in rows[:_MAX_ROWS_NAMED])
    return named if len(rows) <= _MAX_ROWS_NAMED else f"{named} and {len(rows) - _MAX_ROWS_NAMED} more"
