"""How often each row comes in an epoch when components are re-weighted at read time.

A component of n rows and weight w comes round(w n) times an epoch: each of its rows floor(w) times, and as many of them
once more as make up the rest. Which ones these are follows from a fixed permutation of the component's rows, of which
every epoch takes the next stretch, around the end to the beginning: over any number of epochs no row comes more than
once more often than another. A weight of 1 is the component as it is, 0 leaves it out.

The epoch is a range of numbers, in which each component has a stretch of its own; shuffling the numbers (see
``row_sampler``) mixes the components, and a number gives its row by arithmetic.

Cost: no memory; to find the row of a component, its rows in one shard are looked up, about 5 microseconds.

Does not draw with replacement, and never changes what is validated on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainer.row_permutation import RowPermutation
from trainer.shard_dataset import ShardDataset


def rows_per_epoch(num_rows_by_component: Mapping[str, int], *, weights: Mapping[str, float]) -> dict[str, int]:
    """How many rows of each component an epoch has, repeated ones counted each time.

    Args:
        num_rows_by_component: Rows of each component.
        weights: Times that a row of a component comes in an epoch; 1 where a component is not named.

    Raises:
        ValueError: A weight names no component, or no row is left.
    """
    unknown = sorted(weights.keys() - num_rows_by_component.keys())
    if unknown:
        raise ValueError(
            f"data.component_weights names {', '.join(map(repr, unknown))}; the shards have the components "
            f"{', '.join(map(repr, sorted(num_rows_by_component)))}."
        )
    # Half a row counts as one; Python's round() would take the even neighbour.
    counts = {
        name: math.floor(weights.get(name, 1.0) * num_rows + 0.5) for name, num_rows in num_rows_by_component.items()
    }
    if not sum(counts.values()):
        raise ValueError(f"data.component_weights {dict(weights)} leaves no row to train on; give a larger weight.")
    return counts


class WeightedRows:
    """The rows of an epoch under weights.

    Args:
        dataset: The training split.
        weights: Times that a row of a component comes in an epoch; 1 where a component is not named.
        seed: The run's seed.

    Raises:
        ValueError: As for `rows_per_epoch`.
    """

    def __init__(self, dataset: ShardDataset, *, weights: Mapping[str, float], seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._num_rows = dataset.num_rows_by_component
        self._rows_per_epoch = rows_per_epoch(self._num_rows, weights=weights)

    def __len__(self) -> int:
        return sum(self._rows_per_epoch.values())

    def row_number(self, number: int, *, epoch: int) -> int:
        """The global row number that a number of the epoch stands for.

        Raises:
            IndexError: There is no such number.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"Number {number} is not in range({len(self)}).")
        for component, count in self._rows_per_epoch.items():
            if number < count:
                return self._dataset.row_number_in(component, self._row_of(component, number, epoch=epoch))
            number -= count
        raise AssertionError("the counts sum to the length")

    def _row_of(self, component: str, number: int, *, epoch: int) -> int:
        """Which of a component's rows its number stands for: whole copies first, then this epoch's stretch."""
        num_rows = self._num_rows[component]
        copies, num_extra = divmod(self._rows_per_epoch[component], num_rows)
        if number < copies * num_rows:
            return number % num_rows
        order = RowPermutation(num_rows, seed=self._seed, name=f"weights of {component}", epoch=0)
        return order[(epoch * num_extra + number - copies * num_rows) % num_rows]
