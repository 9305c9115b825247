"""Writes one Parquet file of an artifact, whole or not at all, and describes it.

The bytes depend on the table alone: no timestamp, host or thread count enters a file.
"""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from contracts import storage
from contracts.manifest import FileEntry

ROW_GROUP_ROWS = 4096


def write_parquet(folder: str, *, path: str, table: pa.Table) -> FileEntry:
    """Writes a table as ``folder/path`` and returns its entry for a manifest."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    data = buffer.getvalue()
    storage.write_bytes_atomically(storage.join(folder, path), data)
    return FileEntry(path=path, num_rows=table.num_rows, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def part_name(stem: str, *, index: int, count: int) -> str:
    """``part-00003-of-00010.parquet`` and the like."""
    return f"{stem}-{index:05d}-of-{count:05d}.parquet"
