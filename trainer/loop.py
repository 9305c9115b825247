"""The training loop: steps, and what happens between them.

A step draws its rows by position, deals them to the processes, accumulates the gradients of its micro-batches
(`step_gradients`) and updates the weights, unless it is to be skipped (`loss_spikes`): then its rows count as done and
the weights stay.

A checkpoint never lies between skipped steps: it holds the state after the last step that was not skipped, in which
the weights are the same. So a run that goes on meets the skipped steps again, and one that stopped because too many
steps in a row were skipped has a checkpoint from before the first of them.

Everything random in a step comes from a generator seeded by the run's seed, the step and the process. Together with
the position this makes a run that was killed and goes on bit-identical to one that was not, on the same number of
processes on a CPU.

Source: Cheng et al. 2024 (arXiv 2406.14491): next-token prediction on all tokens.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace

import torch
from accelerate import Accelerator

from contracts.seeding import stable_hash
from trainer.checkpoints import RunState, save_checkpoint
from trainer.config import PretrainConfig
from trainer.forward import Forward
from trainer.loss_spikes import reason_to_skip
from trainer.metrics_log import MetricsLog
from trainer.processes import on_main_process, unless_stopped
from trainer.progress import Pace, Progress, step_figures
from trainer.schedules import learning_rate_multiplier
from trainer.shard_dataset import ShardDataset
from trainer.skipped_steps import refuse_to_go_on, rows_with_highest_losses, warn_of_skipped_step
from trainer.step_gradients import StepResult, compute_gradients
from trainer.step_loader import LoadedStep, StepLoader
from trainer.step_log import StepLog
from trainer.stop_signals import StopSignals
from trainer.validation import ALL_COMPONENTS, choose_validation_rows, validate

_log = logging.getLogger(__name__)


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
        peak_tokens_per_second: The rate at which the devices would be at their peak, for MFU; None when unknown.
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
        peak_tokens_per_second: float | None = None,
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self.model = model
        self._optimizer = optimizer
        self._train_rows = train_rows
        self._validation_rows = validation_rows
        self._chosen_validation_rows = choose_validation_rows(
            validation_rows, max_rows=config.validation.max_rows, seed=config.seed
        )
        self.metrics = metrics
        self.validations = validations
        self._checkpoint_root = checkpoint_root
        self._loader = StepLoader(
            train_rows,
            rows_per_step=config.batch.rows_per_step,
            seed=config.seed,
            component_weights=config.data.component_weights,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            micro_batch_rows=config.batch.micro_batch_rows,
            num_prefetched_steps=config.data.prefetch_steps,
            pin_memory=accelerator.device.type == "cuda",
        )
        self._forward = Forward(config)
        self.state = state
        self._state_before_skips = state
        self.num_steps = config.max_steps or self._loader.num_steps(num_epochs=config.num_epochs, start=state.position)
        self._step_log = StepLog(
            metrics,
            state=state,
            num_rows_per_epoch=self.num_rows_per_epoch,
            peak_tokens_per_second=peak_tokens_per_second,
            device=accelerator.device,
        )
        self._pace = Pace(
            num_steps=self.num_steps,
            every_steps={"validation": config.validation.every_steps, "save": config.checkpoint.every_steps},
        )
        self._last_saved_step = state.position.step

    @property
    def num_rows_per_epoch(self) -> int:
        """Rows of an epoch; one that comes several times counts each time."""
        return self._loader.num_rows_per_epoch

    @property
    def num_rows_seen(self) -> int:
        """Rows of all steps done, counted likewise."""
        return self.state.position.epoch * self.num_rows_per_epoch + self.state.position.rows_consumed

    def run(self, stop: StopSignals) -> bool:
        """Trains; returns whether the run came to its end, rather than being stopped by a signal."""
        # A signal may have cut short the validation after the last step.
        was_missed = self._is_validation_due() and self._has_not_been_validated(self.state.position.step)
        if was_missed or (self._config.validation.at_start and self._has_not_been_validated()):
            self._validate(stop)
        with (
            self._loader,
            Progress(
                description="pretrain",
                total=self.num_steps,
                completed=self.state.position.step,
                is_shown=self._accelerator.is_main_process,
            ) as progress,
        ):
            while self.state.position.step < self.num_steps:
                with self._pace.measure_step():
                    result = self._step(stop)
                if result is None:
                    self._save(is_last_chance=True)
                    return False
                step = self.state.position.step
                learning_rate = self._learning_rate(step - 1)
                figures = step_figures(
                    loss=result.loss,
                    grad_norm=result.grad_norm,
                    learning_rate=learning_rate,
                    tokens_per_second=self._step_log.tokens_per_second(self.state),
                    mfu=self._step_log.mfu(self.state),
                    num_skipped=self.state.spikes.num_skipped,
                )
                self._log_step(result, learning_rate=learning_rate)
                progress.show(step, figures=figures, seconds_left=self._pace.seconds_left(step))
                if self.state.spikes.num_consecutive >= self._config.spikes.max_consecutive:
                    self._save(is_last_chance=True)
                    refuse_to_go_on(result, state=self.state, last_good_step=self._state_before_skips.position.step)
                self._do_what_is_due(stop)
        # A run that was killed behind its last checkpoint has been here before.
        is_missing = self._config.validation.at_end and self._has_not_been_validated(self.num_steps)
        if is_missing and not self._validate(stop):
            self._save(is_last_chance=True)
            return False
        if self._config.checkpoint.save_final_optimizer_state:
            self._save(is_last_chance=True)
        on_main_process(self._accelerator, self._sync_logs)
        return True

    def _step(self, stop: StopSignals) -> StepResult | None:
        """Trains on the rows of the next step and moves the state behind them; None when told to stop."""
        started = time.monotonic()
        position = self.state.position

        def load() -> LoadedStep:
            # Without what the processes then wait for each other.
            with self._step_log.timed("data"):
                return self._loader.step(position)

        loaded = unless_stopped(self._accelerator, load, stop=stop)
        if loaded is None:
            return None
        torch.manual_seed(stable_hash(self._config.seed, "step", position.step, self._accelerator.process_index))
        with self._step_log.timed("compute"):
            result = compute_gradients(
                self.model,
                step=loaded,
                forward=self._forward,
                components=self._train_rows.components,
                max_grad_norm=self._config.optimizer.max_grad_norm,
                accelerator=self._accelerator,
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(position.step)
        reason = reason_to_skip(
            result.loss,
            result.grad_norm,
            history=self.state.spikes,
            spikes=self._config.spikes,
            relative_rows=len(loaded.rows) / self._config.batch.rows_per_step,
        )
        with self._step_log.timed("update"):
            if reason is None:
                self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        history, window = self.state.spikes, self._config.spikes.window
        self.state = replace(
            self.state,
            position=loaded.next_position,
            num_tokens_seen=self.state.num_tokens_seen + result.num_tokens,
            seconds=self.state.seconds + time.monotonic() - started,
            spikes=history.after_skip() if reason else history.after_update(result.loss, window=window),
        )
        if reason is None:
            self._state_before_skips = self.state
            return result
        rows = rows_with_highest_losses(result, accelerator=self._accelerator)
        result = replace(result, skipped=reason, skipped_rows=rows)
        warn_of_skipped_step(result, step=self.state.position.step, shards=self._config.shards)
        return result

    def _learning_rate(self, step: int) -> float:
        multiplier = learning_rate_multiplier(step, num_steps=self.num_steps, schedule=self._config.schedule)
        return self._config.optimizer.learning_rate * multiplier

    def _log_step(self, result: StepResult, *, learning_rate: float) -> None:
        step = self.state.position.step
        if step % self._config.logging.every_steps == 0 or step == self.num_steps or result.skipped:
            self._step_log.append(result, state=self.state, learning_rate=learning_rate)

    def _do_what_is_due(self, stop: StopSignals) -> None:
        """Validates and saves where the config says so; the last step is left to the end of the run."""
        step = self.state.position.step
        if self._is_validation_due():
            self._validate(stop)
        every_steps = self._config.checkpoint.every_steps
        if every_steps and step % every_steps == 0 and step < self.num_steps:
            self._save()

    def _sync_logs(self) -> None:
        self.metrics.sync()
        self.validations.sync()

    def _is_validation_due(self) -> bool:
        """Whether the config asks for a validation after the step just done, other than those at start and end."""
        step, every_steps = self.state.position.step, self._config.validation.every_steps
        return bool(every_steps) and 0 < step < self.num_steps and step % (every_steps or 1) == 0

    def _has_not_been_validated(self, step: int | None = None) -> bool:
        """Whether no validation, or none at that step, is in the log, which only the main process has."""
        return on_main_process(
            self._accelerator,
            lambda: not any(step in (None, record["step"]) for record in self.validations.records()),
        )

    def _validate(self, stop: StopSignals) -> bool:
        """Validates and logs; returns whether that came to its end, rather than being stopped by a signal."""
        if not self._chosen_validation_rows:
            return True
        with self._pace.measure_pause("validation"):
            result = validate(
                self.model,
                forward=self._forward,
                dataset=self._validation_rows,
                rows=self._chosen_validation_rows,
                micro_batch_rows=self._config.batch.micro_batch_rows,
                accelerator=self._accelerator,
                stop=stop,
            )
        if result is None:
            return False
        step = self.state.position.step
        self.validations.append({"step": step, **asdict(result)})
        by_component = ", ".join(f"{name} {loss:.4f}" for name, loss in result.losses.items() if name != ALL_COMPONENTS)
        _log.info(
            "Validation loss after %d steps: %.4f (by component: %s)", step, result.losses[ALL_COMPONENTS], by_component
        )
        return True

    def _save(self, *, is_last_chance: bool = False) -> None:
        """Saves a checkpoint. If that fails the run goes on, since what it has learnt is nowhere else; unless it ends.

        Raises:
            ValueError: The checkpoint could not be saved, and there will be no later one.
        """
        state = self._state_before_skips
        if state.position.step == self._last_saved_step:
            return
        try:
            with self._pace.measure_pause("save"):
                on_main_process(self._accelerator, self._sync_logs)
                url = save_checkpoint(
                    self._checkpoint_root,
                    state=state,
                    accelerator=self._accelerator,
                    model=self.model,
                    optimizer=self._optimizer,
                    config=self._config.checkpoint,
                )
        except OSError as error:
            if is_last_chance:
                raise ValueError(f"{error}") from error
            if self._accelerator.is_main_process:
                _log.warning("%s The run goes on and will try again when the next checkpoint is due.", error)
            return
        self._last_saved_step = state.position.step
        _log.info("Saved the checkpoint %s", url)
