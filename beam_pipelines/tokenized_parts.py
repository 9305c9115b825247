"""Files of tokenized texts and of their documents, laid out so that any shard reads only what it needs of them.

Every text and every document has a key, 64 uniform bits of the hash of a document's id. The upper half says where it
goes: shard i of n holds the keys from i/n to (i + 1)/n of their range, whatever n is. The lower half says whether a
component that takes a fraction takes it. A text has the key of its first document, so that a raw text, and the list of
the documents of an augmented one, meet in the same range of keys.

A part is an Arrow IPC file, sorted by key, with one record batch for each of a number of equal ranges of keys, a power
of two that follows from its size. A range of keys is therefore a run of batches, found by arithmetic. On a local disk
the file is mapped into memory: opening it costs nothing, and reading one column does not touch the others.

Cost of reading a range: the batches that it touches. From a local disk each byte is read once, whatever the number of
shards; from an object store each shard reads one batch more than it needs of every part.

Not done here: compression. Token ids hardly compress, and compressed files cannot be mapped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.parquet_files import HashedFile
from contracts.seeding import stable_hash
from contracts.storage import open_atomic_output, open_random_access

NUM_KEYS = 1 << 64
_MAX_BATCHES = 1024
_BATCH_BYTES = 1 << 16
_LOWER_HALF = np.uint64((1 << 32) - 1)

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.uint64(), False),
        pa.field("doc_id", pa.large_string(), False),
        # The key of the text that the document stands in.
        pa.field("text_key", pa.uint64(), False),
    ]
)


def text_schema(*, with_loss_spans: bool) -> pa.Schema:
    """Schema of a part of texts: ``ids`` are the bytes of the ids, ``loss_spans`` flat lists."""
    columns = [
        pa.field("key", pa.uint64(), False),
        pa.field("text_id", pa.large_string(), False),
        pa.field("num_documents", pa.int32(), False),
        pa.field("num_tokens", pa.int64(), False),
        # As bytes: Arrow takes rows of binary data about 30 times faster than rows of lists.
        pa.field("ids", pa.large_binary(), False),
    ]
    if with_loss_spans:
        columns.append(pa.field("loss_spans", pa.large_list(pa.field("item", pa.int32(), False)), False))
    return pa.schema(columns)


def document_key(doc_id: str, *, seed: int) -> int:
    """The key of a document and of the texts that begin with it."""
    return stable_hash(seed, "document", doc_id)


def key_range(number: int, *, count: int) -> tuple[int, int]:
    """The half-open range of keys of one of ``count`` equal ranges; together they hold every key once."""
    return -(-number * NUM_KEYS // count), -(-(number + 1) * NUM_KEYS // count)


def is_drawn(keys: NDArray[np.uint64], *, fraction: float) -> NDArray[np.bool_]:
    """Which keys a fraction draws; a larger fraction draws what a smaller one does, and more."""
    drawn: NDArray[np.bool_] = (keys & _LOWER_HALF) < np.uint64(round(fraction * (1 << 32)))
    return drawn


def write_part(url: str, table: pa.Table) -> str:
    """Writes a part and returns its SHA-256; the rows may come in any order, and those of one key keep theirs."""
    by_key = np.argsort(table.column("key").to_numpy(), kind="stable")
    table = table.take(pa.array(by_key)).combine_chunks()
    num_batches = min(_MAX_BATCHES, 1 << (table.nbytes // _BATCH_BYTES).bit_length())
    first_keys = np.arange(num_batches, dtype=np.uint64) * np.uint64(NUM_KEYS // num_batches % NUM_KEYS)
    starts = np.searchsorted(table.column("key").to_numpy(), first_keys)
    with open_atomic_output(url) as file:
        hashed = HashedFile(file)
        with pa.ipc.new_file(hashed, table.schema) as writer:
            for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True):
                rows = table.slice(start, end - start).to_batches()
                writer.write_batch(rows[0] if rows else pa.RecordBatch.from_pylist([], schema=table.schema))
    return hashed.digest.hexdigest()


def read_range(url: str, keys: tuple[int, int], *, columns: Sequence[str]) -> pa.Table:
    """The rows of a part whose keys lie in a half-open range, by key; only the columns named are read."""
    first, end = keys
    assert 0 <= first < end <= NUM_KEYS, keys
    file = open_random_access(url)
    schema = pa.ipc.open_file(file).schema
    options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
    reader = pa.ipc.open_file(file, options=options)
    batch_keys = NUM_KEYS // reader.num_record_batches
    batches = range(first // batch_keys, (end - 1) // batch_keys + 1)
    table = pa.Table.from_batches([reader.get_batch(number) for number in batches], reader.schema)
    held = table.column("key").to_numpy()
    start = int(np.searchsorted(held, np.uint64(first)))
    stop = int(np.searchsorted(held, np.uint64(end))) if end < NUM_KEYS else len(held)
    return table.slice(start, stop - start)
