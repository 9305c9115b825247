"""Arrow schemas of the Parquet artifacts, and the conversion of records to and from rows.

A chain is one nested row; a reject is one flat row; a packed row's ``input_ids`` is a fixed-size list of uint16 when
every id of the vocabulary fits, else of uint32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.records import Chain, Document, Example, GeneralInstruction, InstructionPair, PackedRow, Reject

_PAIR = pa.struct([pa.field("instruction", pa.string(), False), pa.field("response", pa.string(), False)])
_DOCUMENT = pa.struct(
    [
        pa.field("doc_id", pa.string(), False),
        pa.field("source", pa.string(), False),
        pa.field("text", pa.string(), False),
        pa.field("title", pa.string(), True),
    ]
)
_EXAMPLE = pa.struct(
    [
        pa.field("document", _DOCUMENT, False),
        pa.field("pairs", pa.list_(_PAIR), False),
        pa.field("inherits_previous", pa.bool_(), False),
        pa.field("finish_reason", pa.string(), False),
        pa.field("num_prompt_tokens", pa.int32(), False),
        pa.field("num_new_tokens", pa.int32(), False),
    ]
)
CHAIN_SCHEMA = pa.schema(
    [
        pa.field("chain_id", pa.string(), False),
        pa.field("source", pa.string(), False),
        pa.field("examples", pa.list_(_EXAMPLE), False),
        pa.field("synthesizer_id", pa.string(), False),
    ]
)
INSTRUCTION_SCHEMA = pa.schema([pa.field(field.name, pa.string(), False) for field in fields(GeneralInstruction)])
REJECT_SCHEMA = pa.schema([pa.field(field.name, pa.string(), False) for field in fields(Reject)])


def chains_to_table(chains: Iterable[Chain]) -> pa.Table:
    """Chains as a table of `CHAIN_SCHEMA`, one a row, in the given order."""
    return pa.Table.from_pylist([asdict(chain) for chain in chains], schema=CHAIN_SCHEMA)


def chain_from_row(row: Mapping[str, Any]) -> Chain:
    """A chain from one row of a table of `CHAIN_SCHEMA` as a dict."""
    return Chain(
        chain_id=row["chain_id"],
        source=row["source"],
        examples=tuple(
            Example(
                document=Document(**example["document"]),
                pairs=tuple(InstructionPair(**pair) for pair in example["pairs"]),
                inherits_previous=example["inherits_previous"],
                finish_reason=example["finish_reason"],
                num_prompt_tokens=example["num_prompt_tokens"],
                num_new_tokens=example["num_new_tokens"],
            )
            for example in row["examples"]
        ),
        synthesizer_id=row["synthesizer_id"],
    )


def instructions_to_table(instructions: Iterable[GeneralInstruction]) -> pa.Table:
    """Instructions as a table of `INSTRUCTION_SCHEMA`, one a row, in the given order."""
    return pa.Table.from_pylist([asdict(instruction) for instruction in instructions], schema=INSTRUCTION_SCHEMA)


def rejects_to_table(rejects: Iterable[Reject]) -> pa.Table:
    """Rejects as a table of `REJECT_SCHEMA`, one a row, in the given order."""
    return pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECT_SCHEMA)


def token_type(vocab_size: int) -> pa.DataType:
    """The narrowest unsigned type that holds every id of a vocabulary: uint16 up to 65,536 ids, else uint32."""
    if not 0 < vocab_size <= 1 << 32:
        raise ValueError(f"vocab_size is {vocab_size}; it must be from 1 to {1 << 32}.")
    return pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """`token_type` as NumPy has it."""
    return np.uint16 if token_type(vocab_size) == pa.uint16() else np.uint32


def packed_row_schema(*, sequence_length: int, vocab_size: int, with_loss_spans: bool = False) -> pa.Schema:
    """Schema of a shard: ``input_ids``, ``segment_lengths``, ``component``, ``text_ids``, optionally ``loss_spans``.

    ``loss_spans`` is flat: start and end of each span, one after the other.
    """
    if sequence_length < 2:
        raise ValueError(f"sequence_length is {sequence_length}; it must be at least 2 to hold a token and its target.")
    columns = [
        pa.field("input_ids", pa.list_(pa.field("item", token_type(vocab_size), False), sequence_length), False),
        pa.field("segment_lengths", pa.list_(pa.field("item", pa.int32(), False)), False),
        pa.field("component", pa.dictionary(pa.int16(), pa.string()), False),
        pa.field("text_ids", pa.list_(pa.field("item", pa.string(), False)), False),
    ]
    if with_loss_spans:
        columns.append(pa.field("loss_spans", pa.list_(pa.field("item", pa.int32(), False)), False))
    return pa.schema(columns)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedColumns:
    """Packed rows column by column.

    Args:
        input_ids: Any integer type, shape (num_rows, sequence_length).
        segment_lengths: int32, shape (num_segments,): of all rows, one after the other.
        segment_offsets: int64, shape (num_rows + 1,): row r has the segments from ``segment_offsets[r]`` to
            ``segment_offsets[r + 1]``.
        components: The component of each row, strings.
        text_ids: The text of each segment, strings.
        loss_spans: For each row int32 of shape (num_spans, 2); None where every token is a target.
    """

    input_ids: NDArray[Any]
    segment_lengths: NDArray[np.int32]
    segment_offsets: NDArray[np.int64]
    components: pa.Array
    text_ids: pa.Array
    loss_spans: Sequence[NDArray[np.int32]] | None = None


def packed_columns_to_table(rows: PackedColumns, *, sequence_length: int, vocab_size: int) -> pa.Table:
    """Packed rows as a table of `packed_row_schema`; nothing moves as a Python object.

    Raises:
        ValueError: The rows have another length than ``sequence_length``, or hold an id outside the vocabulary.
    """
    ids = rows.input_ids
    if ids.ndim != 2 or ids.shape[1] != sequence_length:
        raise ValueError(f"The rows have shape {ids.shape}, not (num_rows, {sequence_length}).")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"Token ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}.")
    schema = packed_row_schema(
        sequence_length=sequence_length, vocab_size=vocab_size, with_loss_spans=rows.loss_spans is not None
    )
    offsets = pa.array(rows.segment_offsets.astype(np.int32))
    flat_ids = pa.array(ids.reshape(-1).astype(token_dtype(vocab_size), copy=False))
    columns: list[pa.Array] = [
        pa.FixedSizeListArray.from_arrays(flat_ids, type=schema.field("input_ids").type),
        pa.ListArray.from_arrays(
            offsets,
            pa.array(rows.segment_lengths.astype(np.int32, copy=False)),
            type=schema.field("segment_lengths").type,
        ),
        rows.components.cast(pa.string()).dictionary_encode().cast(schema.field("component").type),
        pa.ListArray.from_arrays(offsets, rows.text_ids.cast(pa.string()), type=schema.field("text_ids").type),
    ]
    if rows.loss_spans is not None:
        columns.append(_list_array([spans.reshape(-1) for spans in rows.loss_spans], schema.field("loss_spans").type))
    return pa.Table.from_arrays(columns, schema=schema)


def packed_rows_to_table(
    rows: Sequence[PackedRow], *, sequence_length: int, vocab_size: int, with_loss_spans: bool = False
) -> pa.Table:
    """Packed rows as a table of `packed_row_schema`, in the given order.

    Raises:
        ValueError: A row has another length than ``sequence_length``, an id outside the vocabulary, or loss spans
            where the schema has none (or the other way round).
    """
    for row in rows:
        if row.input_ids.shape != (sequence_length,):
            raise ValueError(f"A row has shape {row.input_ids.shape}, not ({sequence_length},).")
        if (row.loss_spans is not None) != with_loss_spans:
            raise ValueError(f"with_loss_spans={with_loss_spans}, but a row says otherwise: {row.loss_spans!r}.")
    columns = PackedColumns(
        input_ids=np.array([row.input_ids for row in rows], np.int64).reshape(len(rows), sequence_length),
        segment_lengths=np.concatenate([np.zeros(0, np.int32), *(row.segment_lengths for row in rows)]),
        segment_offsets=np.cumsum([0, *(len(row.segment_lengths) for row in rows)]),
        components=pa.array([row.component for row in rows], pa.string()),
        text_ids=pa.array([text_id for row in rows for text_id in row.text_ids], pa.string()),
        loss_spans=[row.loss_spans for row in rows if row.loss_spans is not None] if with_loss_spans else None,
    )
    return packed_columns_to_table(columns, sequence_length=sequence_length, vocab_size=vocab_size)


def _list_array(arrays: Sequence[np.ndarray], list_type: pa.ListType) -> pa.Array:
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    values = np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=list_type)


def packed_rows_from_batch(batch: pa.RecordBatch) -> Iterator[PackedRow]:
    """The rows of a record batch of a shard, in order."""
    ids = batch.column("input_ids")
    matrix = (
        ids.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1).astype(np.int64)
        if len(ids)
        else np.zeros((0, 0), np.int64)
    )
    segments = batch.column("segment_lengths")
    components = batch.column("component").to_pylist()
    text_ids = batch.column("text_ids").to_pylist()
    spans = batch.column("loss_spans") if "loss_spans" in batch.schema.names else None
    for index in range(batch.num_rows):
        yield PackedRow(
            input_ids=matrix[index],
            segment_lengths=segments[index].values.to_numpy(zero_copy_only=False).astype(np.int32),
            component=components[index],
            text_ids=tuple(text_ids[index]),
            loss_spans=None
            if spans is None
            else spans[index].values.to_numpy(zero_copy_only=False).astype(np.int32).reshape(-1, 2),
        )
