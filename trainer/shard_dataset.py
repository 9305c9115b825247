"""Packed rows by global row number, and their collation into tensors.

What is known of the shards comes from the manifest and the Arrow schema of the contract, nothing else. The rows are
read from a local folder of decoded shards (``row_cache``), which is filled when the dataset opens: each shard's bytes
are held against the checksum in the manifest, its schema against the contract, its rows against the counts, so that a
damaged shard is found before the first step.

Cost: about 40 microseconds to fetch a row of 2048 tokens that the operating system holds in memory, else a random read
of the disk. A few kilobytes of memory a shard, however many rows it has.

Does not shuffle; see ``row_sampler``.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.manifest import ShardManifest, Split
from contracts.records import PackedRow
from trainer.loss import IGNORED_LABEL
from trainer.row_cache import DamagedRowError, RowCache, TrainingRow

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Rows as tensors.

    Args:
        input_ids: int64, shape (num_rows, sequence_length).
        labels: int64, the same shape: the token at that position where it is a target, else `IGNORED_LABEL`. Not
            shifted.
        position_ids: int64, the same shape: the place of each token in its segment, from 0. Padding counts as one
            more segment.
        component_ids: int64, shape (num_rows,): indices into `ShardDataset.components`.
        num_tokens: Tokens in the rows, padding not counted.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    component_ids: torch.Tensor
    num_tokens: int

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch with its tensors in page-locked memory, from which a copy to a GPU need not be waited for."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            input_ids=change(self.input_ids),
            labels=change(self.labels),
            position_ids=change(self.position_ids),
            component_ids=change(self.component_ids),
            num_tokens=self.num_tokens,
        )


class ShardDataset:
    """The rows of one split of a folder of shards.

    Args:
        folder: The folder of shards.
        manifest: Its manifest, as `contracts.manifest.read_shard_manifest` gives it.
        split: Which split.
        cache: Local folder of decoded shards, which is filled and kept; None takes a temporary one that goes with the
            dataset.

    Raises:
        ValueError: A shard is missing, damaged, or not what the manifest says; or the disk of the cache is full.
    """

    def __init__(self, folder: str, *, manifest: ShardManifest, split: Split, cache: str | None = None) -> None:
        self.components: tuple[str, ...] = tuple(sorted(manifest.components))
        self._sequence_length = manifest.sequence_length
        if cache is None:
            self._temporary_cache = tempfile.TemporaryDirectory(prefix="rows-")
            cache = self._temporary_cache.name
        self._cache = RowCache(cache, shards=folder, manifest=manifest)
        self._entries = manifest.shards_of(split)
        self._shards = self._cache.open_split(split)
        self._first_rows = _running_sums([entry.num_rows for entry in self._entries])
        self._first_rows_by_component = {
            name: _running_sums([entry.rows_by_component.get(name, 0) for entry in self._entries])
            for name in self.components
        }

    def __len__(self) -> int:
        return self._first_rows[-1]

    @property
    def num_rows_by_component(self) -> dict[str, int]:
        """Rows of each component."""
        return {name: first_rows[-1] for name, first_rows in self._first_rows_by_component.items()}

    def row(self, row_number: int) -> TrainingRow:
        """The row with a global number. A row that was damaged in the cache is decoded again, with its shard.

        Raises:
            IndexError: There is no such row.
            ValueError: The row was damaged, and its shard cannot be decoded again.
        """
        shard, row_in_shard = self.locate(row_number)
        try:
            return self._shards[shard].row(row_in_shard)
        except DamagedRowError:
            entry = self._entries[shard]
            _log.warning("%s is damaged; decoding %s again.", self._cache.path_of(entry), entry.path)
            self._shards[shard] = self._cache.restore(entry)
            return self._shards[shard].row(row_in_shard)

    def locate(self, row_number: int) -> tuple[int, int]:
        """Where a row with a global number stands: the index of its shard in the split, and its number there.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= row_number < len(self):
            raise IndexError(f"Row {row_number} is not in range({len(self)}).")
        shard = bisect.bisect_right(self._first_rows, row_number) - 1
        return shard, row_number - self._first_rows[shard]

    def row_number_in(self, component: str, index: int) -> int:
        """The global number of a component's row, which are counted through the shards from 0.

        Raises:
            IndexError: The component has no such row.
        """
        first_rows = self._first_rows_by_component[component]
        if not 0 <= index < first_rows[-1]:
            raise IndexError(f"Row {index} of component {component!r} is not in range({first_rows[-1]}).")
        shard = bisect.bisect_right(first_rows, index) - 1
        return self._first_rows[shard] + int(self._shards[shard].rows_of(component)[index - first_rows[shard]])

    def batch(self, row_numbers: Sequence[int]) -> Batch:
        """Rows as tensors, in the given order.

        No row numbers give one row of zeros without a target: a process that has nothing to contribute to a step
        still has to pass something through the model, because the others wait for it there.
        """
        if not row_numbers:
            shape = (1, self._sequence_length)
            return Batch(
                input_ids=torch.zeros(shape, dtype=torch.int64),
                labels=torch.full(shape, IGNORED_LABEL, dtype=torch.int64),
                position_ids=torch.arange(self._sequence_length).unsqueeze(0),
                component_ids=torch.zeros(1, dtype=torch.int64),
                num_tokens=0,
            )
        rows = [self.row(row_number) for row_number in row_numbers]
        return Batch(
            input_ids=torch.from_numpy(np.stack([row.input_ids for row in rows])),
            labels=torch.from_numpy(np.stack([labels_of(row) for row in rows])),
            position_ids=torch.from_numpy(np.stack([positions_of(row) for row in rows])),
            component_ids=torch.tensor([self.components.index(row.component) for row in rows]),
            num_tokens=sum(int(row.segment_lengths.sum()) for row in rows),
        )


def labels_of(row: TrainingRow | PackedRow) -> NDArray[np.int64]:
    """The labels of a row, int64, shape (sequence_length,), not shifted.

    A token is a target unless it is padding, stands outside the row's loss spans, or is the first of its segment:
    what stands before that one belongs to another text.
    """
    labels = np.full(len(row.input_ids), IGNORED_LABEL, np.int64)
    is_target = np.zeros(len(labels), dtype=bool)
    spans = [(0, len(labels))] if row.loss_spans is None else row.loss_spans
    for start, end in spans:
        is_target[start:end] = True
    segment_ends = np.cumsum(row.segment_lengths)
    is_target[segment_ends - row.segment_lengths] = False
    is_target[segment_ends[-1] if len(segment_ends) else 0 :] = False
    labels[is_target] = row.input_ids[is_target]
    return labels


def positions_of(row: TrainingRow | PackedRow) -> NDArray[np.int64]:
    """The place of each token of a row in its segment, from 0: int64, shape (sequence_length,).

    Padding counts as one more segment.
    """
    lengths = np.append(row.segment_lengths, len(row.input_ids) - row.segment_lengths.sum())
    starts: NDArray[np.int64] = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.arange(len(row.input_ids)) - starts


def _running_sums(counts: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(counts, initial=0))
