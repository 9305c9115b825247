"""Reads records from files people have: JSON Lines (plain, gzip, zstd), plain text, Parquet.

A record that cannot be used becomes a `Reject` that names file and line, and reading goes on; so does a file that
breaks off in the middle. Memory: one line of JSON Lines, one text file, or one batch of Parquet rows.

Plain JSON Lines can be read by ranges of bytes, so that one large file is shared out like many small ones: a record
belongs to the range in which its line begins, whatever the ranges are. Nothing needs to be known of the rest of the
file; therefore a line of a later range is named by its number in that range.

Not done here: ranges of compressed files, which have no place to begin at, and of Parquet.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.records import Reject
from contracts.storage import InputFile, open_input

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".parquet")
DAMAGED_FILE_ERRORS = (OSError, EOFError, zlib.error, pa.ArrowException)
# What a value of Parquet raises that Python cannot hold, such as a time that its calendar does not reach.
_UNREADABLE_VALUE_ERRORS = (ValueError, OverflowError, pa.ArrowException)
_PARQUET_BATCH_ROWS = 256
_SKIPPED_BYTES = 1 << 20
_MAX_REJECT_CHARACTERS = 2000

# From one byte of a file to before another; None is the end of the file.
ByteRange = tuple[int, int | None]
WHOLE_FILE: ByteRange = (0, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The fields of one record and where it stood (file and line, or row)."""

    values: Mapping[str, Any]
    place: str


def byte_ranges(file: InputFile, *, target_bytes: int) -> list[ByteRange]:
    """The ranges in which a file may be read, in order; together they hold every record once.

    Args:
        file: A file whose name ends in one of `SUFFIXES`.
        target_bytes: Length to aim at. A range is at least that long, and shorter than twice that; a file that cannot
            be cut is one range.
    """
    num_ranges = max(1, file.size_bytes // target_bytes) if file.url.endswith(".jsonl") else 1
    starts = [number * file.size_bytes // num_ranges for number in range(num_ranges)]
    return list(zip(starts, [*starts[1:], None], strict=True))


def read_records(
    url: str, *, text_field: str = "text", byte_range: ByteRange = WHOLE_FILE
) -> Iterator[Record | Reject]:
    """The records of a file in order; what is not a record comes as a `Reject` in its place.

    Args:
        url: File whose name ends in one of `SUFFIXES`.
        text_field: The field that the whole of a ``.txt`` file becomes.
        byte_range: The part to read, one of `byte_ranges`: the records whose lines begin in it.
    """
    assert byte_range == WHOLE_FILE or url.endswith(".jsonl"), (url, byte_range)
    try:
        if url.endswith(".parquet"):
            yield from _read_parquet(url)
        elif url.endswith(".txt"):
            yield from _read_text(url, text_field)
        else:
            yield from _read_json_lines(url, byte_range)
    except DAMAGED_FILE_ERRORS as error:
        if getattr(error, "errno", None) is not None:
            # The file system's own word, such as no permission or no connection: nothing is wrong with the content.
            raise
        yield reject_record(
            url, "unreadable_file", f"{type(error).__name__}: {error}; what stands behind it is not read", b""
        )


def _read_json_lines(url: str, byte_range: ByteRange) -> Iterator[Record | Reject]:
    start, _ = byte_range
    with open_input(url) as file:
        for number, line in enumerate(_lines(file, byte_range), start=1):
            if number == 1 and not start:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            place = f"{url}:{number} from byte {start}" if start else f"{url}:{number}"
            try:
                values = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield reject_record(place, "invalid_utf8", f"byte {error.start} of the line is not UTF-8", line)
                continue
            except (ValueError, RecursionError) as error:
                yield reject_record(place, "not_json", str(error), line)
                continue
            if isinstance(values, dict):
                yield Record(values=values, place=place)
            else:
                yield reject_record(
                    place, "not_an_object", f"a {type(values).__name__}, not an object with fields", line
                )


def _lines(file: IO[bytes], byte_range: ByteRange) -> Iterator[bytes]:
    """The lines of a file that begin in a range of its bytes."""
    position, end = byte_range
    if position:
        # A line begins here if the byte before ends one; else what comes first belongs to an earlier range.
        position -= 1
        file.seek(position)
        skipped = b""
        while not skipped.endswith(b"\n") and (end is None or position < end):
            # In pieces: a line may be longer than memory.
            skipped = file.readline(_SKIPPED_BYTES)
            if not skipped:
                return
            position += len(skipped)
    if end is not None and position >= end:
        return
    for line in file:
        yield line
        position += len(line)
        if end is not None and position >= end:
            return


def _read_text(url: str, text_field: str) -> Iterator[Record | Reject]:
    with open_input(url) as file:
        content = file.read()
    try:
        yield Record(values={text_field: content.decode("utf-8-sig")}, place=url)
    except UnicodeDecodeError as error:
        yield reject_record(url, "invalid_utf8", f"byte {error.start} is not UTF-8", content)


def _read_parquet(url: str) -> Iterator[Record | Reject]:
    with open_input(url) as file:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_PARQUET_BATCH_ROWS):
            places = [f"{url}:row {number + row}" for row in range(batch.num_rows)]
            number += batch.num_rows
            try:
                columns = [column.to_pylist() for column in batch.columns]
            except _UNREADABLE_VALUE_ERRORS:
                yield from (_parquet_record(batch, row, place=place) for row, place in enumerate(places))
                continue
            names = batch.schema.names
            for row, place in enumerate(places):
                values = {name: column[row] for name, column in zip(names, columns, strict=True)}
                yield Record(values=values, place=place)


def _parquet_record(batch: pa.RecordBatch, row: int, *, place: str) -> Record | Reject:
    try:
        values = {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        return Record(values=values, place=place)
    except UnicodeDecodeError as error:
        return reject_record(place, "invalid_utf8", f"byte {error.start} of a value is not UTF-8", error.object)
    except _UNREADABLE_VALUE_ERRORS as error:
        return reject_record(place, "unreadable_row", f"{type(error).__name__}: {error}", b"")


def reject_record(place: str, reason: str, detail: str, content: bytes) -> Reject:
    """A record at a place (file and line, or row) that cannot be used; its first characters are kept."""
    text = content[:_MAX_REJECT_CHARACTERS].decode("utf-8", "backslashreplace").rstrip("\n")
    return Reject(doc_id=place, source="", stage="read", reason=reason, detail=f"{place}: {detail}", text=text)


def lone_surrogate(text: str) -> int | None:
    """JSON can spell half of a surrogate pair, which no UTF-8 file and no tokenizer can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
