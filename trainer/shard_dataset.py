"""Packed rows by global row number, and their collation into tensors.

What is known of the shards comes from the manifest and the Arrow schema of the contract, nothing else. Every shard of
the split is read once when the dataset opens: its bytes are held against the checksum in the manifest, its schema
against the contract, its rows against the counts, so that a damaged shard is found before the first step. After that
a row is a slice of a table in memory.

Cost: in memory two bytes a token (four for vocabularies above 65,536), and about 0.1 ms to fetch a row.

Does not stream: the split must fit into memory. Does not shuffle either; see ``row_sampler``.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from contracts import storage
from contracts.manifest import ShardEntry, ShardManifest, Split
from contracts.records import PackedRow
from contracts.schemas import packed_row_schema, packed_rows_from_batch
from trainer.loss import IGNORED_LABEL


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Rows as tensors.

    Args:
        input_ids: int64, shape (num_rows, sequence_length).
        labels: int64, the same shape: the token at that position where it is a target, else `IGNORED_LABEL`. Not
            shifted.
        component_ids: int64, shape (num_rows,): indices into `ShardDataset.components`.
        num_tokens: Tokens in the rows, padding not counted.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    component_ids: torch.Tensor
    num_tokens: int

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        return Batch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            component_ids=self.component_ids.to(device, non_blocking=True),
            num_tokens=self.num_tokens,
        )


class ShardDataset:
    """The rows of one split of a folder of shards.

    Args:
        folder: The folder of shards.
        manifest: Its manifest, as `contracts.manifest.read_shard_manifest` gives it.
        split: Which split.

    Raises:
        ValueError: A shard is missing, damaged, or not what the manifest says.
    """

    def __init__(self, folder: str, *, manifest: ShardManifest, split: Split) -> None:
        self.components: tuple[str, ...] = tuple(sorted(manifest.components))
        self._sequence_length = manifest.sequence_length
        entries = manifest.shards_of(split)
        self._tables = [_read_shard(folder, entry=entry, manifest=manifest) for entry in entries]
        self._first_rows = list(itertools.accumulate((entry.num_rows for entry in entries), initial=0))

    def __len__(self) -> int:
        return self._first_rows[-1]

    def row(self, row_number: int) -> PackedRow:
        """The row with a global number.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= row_number < len(self):
            raise IndexError(f"Row {row_number} is not in range({len(self)}).")
        shard = bisect.bisect_right(self._first_rows, row_number) - 1
        row_batch = self._tables[shard].slice(row_number - self._first_rows[shard], 1).to_batches()[0]
        return next(packed_rows_from_batch(row_batch))

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
                component_ids=torch.zeros(1, dtype=torch.int64),
                num_tokens=0,
            )
        rows = [self.row(row_number) for row_number in row_numbers]
        return Batch(
            input_ids=torch.from_numpy(np.stack([row.input_ids for row in rows])),
            labels=torch.from_numpy(np.stack([labels_of(row) for row in rows])),
            component_ids=torch.tensor([self.components.index(row.component) for row in rows]),
            num_tokens=sum(int(row.segment_lengths.sum()) for row in rows),
        )


def labels_of(row: PackedRow) -> NDArray[np.int64]:
    """The labels of a row, int64, shape (sequence_length,), not shifted.

    A token is a target unless it is padding, stands outside the row's loss spans, or is the first of its segment:
    what stands before that one belongs to another text.
    """
    labels = np.full_like(row.input_ids, IGNORED_LABEL)
    is_target = np.zeros(len(labels), dtype=bool)
    spans = [(0, len(labels))] if row.loss_spans is None else row.loss_spans
    for start, end in spans:
        is_target[start:end] = True
    segment_ends = np.cumsum(row.segment_lengths)
    is_target[segment_ends - row.segment_lengths] = False
    is_target[segment_ends[-1] if len(segment_ends) else 0 :] = False
    labels[is_target] = row.input_ids[is_target]
    return labels


def _read_shard(folder: str, *, entry: ShardEntry, manifest: ShardManifest) -> pa.Table:
    url = storage.join(folder, entry.path)
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError as error:
        raise ValueError(f"The shard {url} is missing, though the manifest lists it. Pack the shards again.") from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ValueError(
            f"The shard {url} is damaged: its checksum is not the one in the manifest "
            f"({len(content)} bytes here, {entry.num_bytes} there). Pack the shards again."
        )
    table = pq.read_table(pa.BufferReader(content))
    schema = packed_row_schema(
        sequence_length=manifest.sequence_length,
        vocab_size=manifest.vocab_size,
        with_loss_spans=manifest.has_loss_spans,
    )
    if not table.schema.equals(schema):
        raise ValueError(f"The shard {url} has the columns {table.schema}, not the contract's: {schema}.")
    if table.num_rows != entry.num_rows:
        raise ValueError(f"The shard {url} holds {table.num_rows} rows; the manifest says {entry.num_rows}.")
    # One chunk a column, so that a slice is one record batch.
    return table.combine_chunks()
