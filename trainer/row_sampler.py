"""Which rows a step sees, and which process passes them through the model.

An epoch is a seeded permutation of the global row numbers; a step takes the next ``rows_per_step`` of them, and the
last step of an epoch takes what is left, so that every row comes exactly once an epoch. The rows of a step follow from
the seed and the position alone. Only then are they dealt to the processes, in contiguous blocks: one process or eight
see the same steps, and a run may go on with another number of processes.

Cost: no memory, and one evaluation of the permutation a row.

Does not weigh components; where they are weighed, the numbers stand for rows as ``component_weights`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.row_permutation import RowPermutation


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands between two steps.

    Args:
        step: Steps done.
        epoch: Epochs completed.
        rows_consumed: Rows of the current epoch that are done; less than an epoch.
    """

    step: int = 0
    epoch: int = 0
    rows_consumed: int = 0


class RowSampler:
    """The rows of each step of a run.

    Args:
        num_rows: Rows of the training split.
        rows_per_step: Rows of a step over all processes.
        seed: The run's seed.
    """

    def __init__(self, num_rows: int, *, rows_per_step: int, seed: int) -> None:
        self._num_rows = num_rows
        self._rows_per_step = rows_per_step
        self._seed = seed

    def rows_at(self, position: Position) -> list[int]:
        """The row numbers of the step that begins at a position."""
        permutation = RowPermutation(self._num_rows, seed=self._seed, name="train", epoch=position.epoch)
        return [permutation[index] for index in range(position.rows_consumed, self._end_of_step(position))]

    def position_after(self, position: Position) -> Position:
        """The position behind the step that begins at a position."""
        end = self._end_of_step(position)
        ends_epoch = end == self._num_rows
        return Position(
            step=position.step + 1,
            epoch=position.epoch + ends_epoch,
            rows_consumed=0 if ends_epoch else end,
        )

    def _end_of_step(self, position: Position) -> int:
        return min(position.rows_consumed + self._rows_per_step, self._num_rows)

    def num_steps(self, *, num_epochs: int, start: Position) -> int:
        """Steps of a whole run of so many epochs that stands at ``start``, those already done included."""
        steps_per_epoch = -(-self._num_rows // self._rows_per_step)
        steps_to_end_of_epoch = -(-(self._num_rows - start.rows_consumed) // self._rows_per_step)
        if start.epoch >= num_epochs:
            return start.step
        return start.step + steps_to_end_of_epoch + (num_epochs - start.epoch - 1) * steps_per_epoch


def deal_rows(rows: Sequence[int], *, process_index: int, num_processes: int, micro_batch_rows: int) -> list[list[int]]:
    """The micro-batches of row numbers that one process gets of the rows of a step.

    Every process gets equally many micro-batches, since they meet at each one; where the rows do not suffice, the last
    ones are empty.
    """
    block = -(-len(rows) // num_processes)
    own = rows[process_index * block : (process_index + 1) * block]
    return [list(own[start : start + micro_batch_rows]) for start in range(0, block, micro_batch_rows)]
