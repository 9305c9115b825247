"""Reads the rows of the coming steps while the model computes.

One thread, one step after the other: the loop asks for the step at a position, gets it as soon as it is read, and the
steps behind it are read meanwhile. What a step holds follows from its position alone, so reading ahead is never
visible: a loop that asks for another position than the one that comes next gets just that.

An error while reading is raised where the loop asks for the step that it struck, with its own traceback.

Cost: the batches of as many steps in memory as are read ahead, and about 50 microseconds of processor time a row.

Does not go on by itself: who asks for no step gets none read, and leaving the context drops what was read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from trainer.component_weights import WeightedRows
from trainer.row_sampler import Position, RowSampler, deal_rows
from trainer.shard_dataset import Batch, ShardDataset


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedStep:
    """The rows of one step, and those of this process as tensors.

    Args:
        rows: The step's global row numbers over all processes.
        next_position: The position behind the step.
        micro_batches: The row numbers of this process by micro-batch; every process has equally many.
        batches: The micro-batches as tensors on the CPU.
    """

    rows: list[int]
    next_position: Position
    micro_batches: list[list[int]]
    batches: list[Batch]


class StepLoader:
    """The steps of a run as one process sees them; a context manager.

    Args:
        dataset: The training split.
        rows_per_step: Rows of a step over all processes.
        seed: The run's seed; decides the order of the rows.
        component_weights: Times that a row of a component comes in an epoch; see ``component_weights``.
        process_index: Which of the processes this one is.
        num_processes: How many share a step.
        micro_batch_rows: Rows of a micro-batch.
        num_prefetched_steps: How many steps to read ahead; 0 reads a step when it is asked for.
        pin_memory: Put batches into page-locked memory, from which a GPU copies them while it computes.

    Attributes:
        num_rows_per_epoch: Rows of an epoch, a row that comes several times counted each time.

    Raises:
        ValueError: The weights do not fit the components.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        rows_per_step: int,
        seed: int,
        component_weights: Mapping[str, float],
        process_index: int,
        num_processes: int,
        micro_batch_rows: int,
        num_prefetched_steps: int,
        pin_memory: bool = False,
    ) -> None:
        self._dataset = dataset
        self._weighted_rows = WeightedRows(dataset, weights=component_weights, seed=seed) if component_weights else None
        self.num_rows_per_epoch = len(dataset if self._weighted_rows is None else self._weighted_rows)
        self._sampler = RowSampler(self.num_rows_per_epoch, rows_per_step=rows_per_step, seed=seed)
        self._process_index = process_index
        self._num_processes = num_processes
        self._micro_batch_rows = micro_batch_rows
        self._num_prefetched_steps = num_prefetched_steps
        self._pin_memory = pin_memory
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step-loader")
        self._ahead: deque[tuple[Position, Future[LoadedStep]]] = deque()

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Waits for the step that is being read, if any, and ends the thread."""
        self._ahead.clear()
        self._executor.shutdown(cancel_futures=True)

    def num_steps(self, *, num_epochs: int, start: Position) -> int:
        """Steps of a whole run of so many epochs that stands at ``start``, those already done included."""
        return self._sampler.num_steps(num_epochs=num_epochs, start=start)

    def step(self, position: Position) -> LoadedStep:
        """The step that begins at a position; blocks until it is read.

        Raises:
            ValueError, OSError: The rows cannot be read.
        """
        if not self._num_prefetched_steps:
            return self._load(position)
        if not self._ahead or self._ahead[0][0] != position:
            self._drop_what_was_read_ahead()
            self._read_ahead(position)
        _, wanted = self._ahead.popleft()
        last = self._ahead[-1][0] if self._ahead else position
        while len(self._ahead) < self._num_prefetched_steps:
            last = self._sampler.position_after(last)
            self._read_ahead(last)
        return wanted.result()

    def _read_ahead(self, position: Position) -> None:
        self._ahead.append((position, self._executor.submit(self._load, position)))

    def _drop_what_was_read_ahead(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _load(self, position: Position) -> LoadedStep:
        rows = self._sampler.rows_at(position)
        if self._weighted_rows is not None:
            rows = [self._weighted_rows.row_number(number, epoch=position.epoch) for number in rows]
        micro_batches = deal_rows(
            rows,
            process_index=self._process_index,
            num_processes=self._num_processes,
            micro_batch_rows=self._micro_batch_rows,
        )
        batches = [self._dataset.batch(row_numbers) for row_numbers in micro_batches]
        return LoadedStep(
            rows=rows,
            next_position=self._sampler.position_after(position),
            micro_batches=micro_batches,
            batches=[batch.pin_memory() for batch in batches] if self._pin_memory else batches,
        )
