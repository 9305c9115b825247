"""Shards decoded once into files that are mapped into memory.

Parquet cannot be read row by row: a row costs the decoding of its column chunk, and the rows of a step lie anywhere.
Each shard is therefore decoded, before the first step, into an uncompressed Arrow file on a local disk, in which any
row is a few slices. Mapped, the rows take no memory of the process: the operating system keeps of them what fits, and
all processes of a machine share it. One process of a machine decodes, with several threads; the others wait for it.

A file is named after the checksum of its shard, so that any run on the same shards finds it, and appears under its name
only when it is whole. Beside the columns it holds a checksum of every row, which is compared whenever a row is read: a
file that was damaged since, or one of another shard, never gives a wrong row, and opening costs no reading of it all.

Cost: disk space of two bytes a token (four for vocabularies above 65,536) and about 1 % more. Decoding reads each
shard once, whole, and holds it against the checksum in the manifest: 3.5 seconds of processor time a gigabyte, where
the disk keeps up. Each thread has a shard in memory, about three times. Opening a shard that is there takes less than a
millisecond and one mapping, of which Linux allows a process 65,530.

Does not notice a file that is cut while it is mapped: the system ends the process (SIGBUS). Removing one is harmless.
Does not keep what training does not need: ids of texts stay in the shards.

Source: Arrow's IPC file format (https://arrow.apache.org/docs/format/Columnar.html); Megatron-LM's and LitGPT's
data sets are mapped flat files for the same reason.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from contracts import storage
from contracts.manifest import ShardEntry, ShardManifest, Split
from contracts.schemas import packed_row_schema, token_dtype
from contracts.seeding import stable_hash_hex
from trainer.progress import Progress

_LAYOUT_VERSION = 1
_LOCK_FILE = ".lock"
_DEFAULT_FOLDER = "rows"
_MAX_THREADS = 8
_GIGABYTE = 1e9


class DamagedRowError(Exception):
    """A row of a cached shard is not what was written."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingRow:
    """What training needs of a packed row; see `contracts.records.PackedRow`.

    Args:
        input_ids: int64, shape (sequence_length,).
        segment_lengths: int32, shape (num_segments,).
        component: Name of the mixture component.
        loss_spans: int32, shape (num_spans, 2); None when every token is a target.
    """

    input_ids: NDArray[np.int64]
    segment_lengths: NDArray[np.int32]
    component: str
    loss_spans: NDArray[np.int32] | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CachedShard:
    """The columns of a shard, mapped into memory.

    Args:
        components: Names of the components in the shard.
        input_ids: uint16 or uint32, shape (num_rows, sequence_length).
        segment_lengths: int32, shape (num_segments,), of all rows one after the other.
        segment_offsets: int32, shape (num_rows + 1,): where each row's segments begin.
        component_ids: int16, shape (num_rows,): indices into ``components``.
        span_bounds: int32: starts and ends of the loss spans of all rows; None when every token is a target.
        span_offsets: int32, shape (num_rows + 1,): where each row's bounds begin; None likewise.
        checksums: uint32, shape (num_rows,).
    """

    components: tuple[str, ...]
    input_ids: NDArray[np.unsignedinteger]
    segment_lengths: NDArray[np.int32]
    segment_offsets: NDArray[np.int32]
    component_ids: NDArray[np.int16]
    span_bounds: NDArray[np.int32] | None
    span_offsets: NDArray[np.int32] | None
    checksums: NDArray[np.uint32]

    @property
    def num_rows(self) -> int:
        """Rows in the shard."""
        return len(self.checksums)

    def row(self, index: int) -> TrainingRow:
        """A row by its number in the shard.

        Raises:
            DamagedRowError: The row is not what was written.
        """
        if self.checksum(index) != self.checksums[index]:
            raise DamagedRowError
        return TrainingRow(
            input_ids=self.input_ids[index].astype(np.int64),
            segment_lengths=self.segment_lengths[self.segment_offsets[index] : self.segment_offsets[index + 1]],
            component=self.components[self.component_ids[index]],
            loss_spans=None if self.span_offsets is None else self._bounds(index).reshape(-1, 2),
        )

    def checksum(self, index: int) -> int:
        """CRC-32 of a row's number in the shard and its columns."""
        segments = self.segment_lengths[self.segment_offsets[index] : self.segment_offsets[index + 1]]
        value = zlib.crc32(self.input_ids[index].data, index)
        value = zlib.crc32(segments.data, value)
        value = zlib.crc32(self.component_ids[index : index + 1].data, value)
        return value if self.span_offsets is None else zlib.crc32(self._bounds(index).data, value)

    def rows_of(self, component: str) -> NDArray[np.int64]:
        """The numbers of a component's rows in the shard, ascending: int64."""
        return np.flatnonzero(self.component_ids == self.components.index(component))

    def num_rows_by_component(self) -> dict[str, int]:
        """Rows of each component."""
        return {name: len(self.rows_of(name)) for name in self.components}

    def _bounds(self, index: int) -> NDArray[np.int32]:
        assert self.span_bounds is not None
        assert self.span_offsets is not None
        return self.span_bounds[self.span_offsets[index] : self.span_offsets[index + 1]]


def default_cache_folder(output: str) -> str:
    """Where the decoded shards of a run lie that has no folder given for them; the same at every start of the run.

    Args:
        output: The run's output folder.
    """
    fs, path = fsspec.core.url_to_fs(output)
    if isinstance(fs, LocalFileSystem):
        return os.path.join(path, _DEFAULT_FOLDER)
    return os.path.join(tempfile.gettempdir(), f"{_DEFAULT_FOLDER}-{stable_hash_hex(0, output)}")


class RowCache:
    """A local folder of decoded shards.

    Args:
        folder: The folder; made when it is missing. Several runs and processes may share it.
        shards: The folder of shards.
        manifest: Its manifest.

    Raises:
        ValueError: There is a file where the folder should be.
    """

    def __init__(self, folder: str, *, shards: str, manifest: ShardManifest) -> None:
        self._folder = folder
        self._shards = shards
        self._manifest = manifest
        try:
            os.makedirs(folder, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"The row cache {folder!r} cannot be made: {error}. Choose another data.cache.") from error

    def open_split(self, split: Split) -> list[CachedShard]:
        """The shards of a split in row order; decodes first what is not there yet.

        Raises:
            ValueError: A shard is missing, damaged, or not what the manifest says; or the disk is full.
        """
        entries = self._manifest.shards_of(split)
        opened = [self._open(entry) for entry in entries]
        if None in opened:
            with self._only_process():
                # Another process may have decoded them while this one waited.
                missing = [entry for entry in entries if self._open(entry) is None]
                self._decode_all(missing, split=split)
            opened = [self._open(entry) for entry in entries]
        shards = [shard for shard in opened if shard is not None]
        if len(shards) < len(entries):
            raise ValueError(
                f"Files in the row cache {self._folder!r} were damaged or removed while they were opened. Start again; "
                "if it comes back, the disk may be failing: choose another data.cache."
            )
        return shards

    def restore(self, entry: ShardEntry) -> CachedShard:
        """A shard decoded anew, whatever the cache holds of it.

        Raises:
            ValueError: As for `open_split`.
        """
        with self._only_process():
            self._decode(entry)
        shard = self._open(entry)
        if shard is None:
            raise ValueError(
                f"{self.path_of(entry)} cannot be read back: the disk may be failing. Choose another data.cache."
            )
        return shard

    def path_of(self, entry: ShardEntry) -> str:
        """The file of a shard."""
        return os.path.join(self._folder, f"{entry.sha256}.v{_LAYOUT_VERSION}.arrow")

    def _only_process(self) -> FileLock:
        return FileLock(os.path.join(self._folder, _LOCK_FILE))

    def _open(self, entry: ShardEntry) -> CachedShard | None:
        """A decoded shard, or None where there is none, or one that cannot be this shard."""
        try:
            with pa.memory_map(self.path_of(entry)) as file:
                # The mapping lives as long as the columns; the file need not stay open for it.
                reader = pa.ipc.open_file(file)
                if not reader.schema.equals(self._schema(entry), check_metadata=True):
                    return None
                batch = reader.get_batch(0)
            batch.validate()
            shard = _columns(batch, components=tuple(sorted(entry.rows_by_component)))
        except (OSError, ValueError, pa.ArrowException):
            return None
        return shard if shard.num_rows_by_component() == dict(entry.rows_by_component) else None

    def _decode_all(self, entries: Sequence[ShardEntry], *, split: Split) -> None:
        for partial in glob.glob(os.path.join(glob.escape(self._folder), ".*")):
            # Left by a process that was killed: nobody else writes while this one holds the lock.
            if storage.is_partial(partial):
                storage.remove_file(partial)
        num_bytes = sum(self._num_bytes(entry) for entry in entries)
        free_bytes = shutil.disk_usage(self._folder).free
        if num_bytes > free_bytes:
            raise _disk_full(
                self._folder, f"{num_bytes / _GIGABYTE:.2f} GB are needed, {free_bytes / _GIGABYTE:.2f} free"
            )
        executor = ThreadPoolExecutor(max_workers=min(_MAX_THREADS, os.cpu_count() or 1))
        try:
            with Progress(description=f"decoding {split} shards", total=len(entries), num_plain_lines=5) as progress:
                futures = [executor.submit(self._decode, entry) for entry in entries]
                for num_done, future in enumerate(futures, start=1):
                    future.result()
                    progress.show(num_done)
        finally:
            executor.shutdown(cancel_futures=True)

    def _num_bytes(self, entry: ShardEntry) -> int:
        """About what a decoded shard takes; segments and spans are small beside the tokens."""
        bytes_a_token = np.dtype(token_dtype(self._manifest.vocab_size)).itemsize
        return entry.num_rows * (self._manifest.sequence_length * bytes_a_token + 32)

    def _decode(self, entry: ShardEntry) -> None:
        batch = _decoded(_read_shard(self._shards, entry=entry, manifest=self._manifest), schema=self._schema(entry))
        try:
            with storage.open_atomic_output(self.path_of(entry)) as file, pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _disk_full(self._folder, str(error)) from error
            raise

    def _schema(self, entry: ShardEntry) -> pa.Schema:
        """The columns of a decoded shard; the metadata names the shard and its components."""
        fields = {field.name: field for field in _shard_schema(self._manifest)}
        columns = [
            fields["input_ids"],
            fields["segment_lengths"],
            pa.field("component_id", pa.int16(), False),
            pa.field("checksum", pa.uint32(), False),
        ]
        if "loss_spans" in fields:
            columns.append(fields["loss_spans"])
        metadata = {"shard": entry.sha256, "components": json.dumps(sorted(entry.rows_by_component))}
        return pa.schema(columns, metadata=metadata)


def _columns(batch: pa.RecordBatch, *, components: tuple[str, ...]) -> CachedShard:
    """The columns of a decoded shard as NumPy's views of it."""
    has_spans = "loss_spans" in batch.schema.names
    ids = batch.column("input_ids")
    return CachedShard(
        components=components,
        input_ids=ids.flatten().to_numpy().reshape(len(ids), ids.type.list_size),
        segment_lengths=batch.column("segment_lengths").values.to_numpy(),
        segment_offsets=batch.column("segment_lengths").offsets.to_numpy(),
        component_ids=batch.column("component_id").to_numpy(),
        span_bounds=batch.column("loss_spans").values.to_numpy() if has_spans else None,
        span_offsets=batch.column("loss_spans").offsets.to_numpy() if has_spans else None,
        checksums=batch.column("checksum").to_numpy(),
    )


def _decoded(table: pa.Table, *, schema: pa.Schema) -> pa.RecordBatch:
    """A shard as one batch of the columns in the cache."""
    components = pa.array(json.loads(schema.metadata[b"components"]), pa.string())
    columns = {
        **{name: table.column(name).combine_chunks() for name in schema.names if name in table.schema.names},
        "component_id": pc.index_in(table.column("component").cast(pa.string()), components)
        .cast(pa.int16())
        .combine_chunks(),
        "checksum": pa.array(np.zeros(table.num_rows, np.uint32)),
    }
    batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    shard = _columns(batch, components=tuple(components.to_pylist()))
    checksums = np.fromiter((shard.checksum(index) for index in range(shard.num_rows)), np.uint32, shard.num_rows)
    return batch.set_column(schema.get_field_index("checksum"), schema.field("checksum"), pa.array(checksums))


def _shard_schema(manifest: ShardManifest) -> pa.Schema:
    return packed_row_schema(
        sequence_length=manifest.sequence_length,
        vocab_size=manifest.vocab_size,
        with_loss_spans=manifest.has_loss_spans,
    )


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
    schema = _shard_schema(manifest)
    if not table.schema.equals(schema):
        raise ValueError(f"The shard {url} has the columns {table.schema}, not the contract's: {schema}.")
    if table.num_rows != entry.num_rows:
        raise ValueError(f"The shard {url} holds {table.num_rows} rows; the manifest says {entry.num_rows}.")
    counts = {item["values"]: item["counts"] for item in table.column("component").value_counts().to_pylist()}
    if counts != {name: count for name, count in entry.rows_by_component.items() if count}:
        raise ValueError(
            f"The shard {url} holds rows of these components: {counts}; the manifest says "
            f"{dict(entry.rows_by_component)}."
        )
    return table


def _disk_full(folder: str, detail: str) -> ValueError:
    return ValueError(
        f"The shards cannot be decoded into {folder!r}: the disk is full ({detail}). Free space there, or set "
        "data.cache to a folder on a larger local disk."
    )
