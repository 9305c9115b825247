"""Reads records from files people have: JSON Lines (plain, gzip, zstd), plain text, Parquet.

A record that cannot be used becomes a `Reject` that names file and line, and reading goes on; so does a file that
breaks off in the middle. Memory: one line of JSON Lines, one text file, or one batch of Parquet rows.

Not done here: byte ranges inside a file. A corpus is read in parallel by files, so give it several.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.records import Reject
from contracts.storage import open_input

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".parquet")
DAMAGED_FILE_ERRORS = (OSError, EOFError, zlib.error, pa.ArrowException)
_PARQUET_BATCH_ROWS = 1024
_MAX_REJECT_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The fields of one record and where it stood (file and line, or row)."""

    values: Mapping[str, Any]
    place: str


def read_records(url: str, *, text_field: str = "text") -> Iterator[Record | Reject]:
    """The records of a file in order; what is not a record comes as a `Reject` in its place.

    Args:
        url: File whose name ends in one of `SUFFIXES`.
        text_field: The field that the whole of a ``.txt`` file becomes.
    """
    try:
        if url.endswith(".parquet"):
            yield from _read_parquet(url)
        elif url.endswith(".txt"):
            yield from _read_text(url, text_field)
        else:
            yield from _read_json_lines(url)
    except DAMAGED_FILE_ERRORS as error:
        if getattr(error, "errno", None) is not None:
            # The file system's own word, such as no permission or no connection: nothing is wrong with the content.
            raise
        yield reject_record(
            url, "unreadable_file", f"{type(error).__name__}: {error}; what stands behind it is not read", b""
        )


def _read_json_lines(url: str) -> Iterator[Record | Reject]:
    with open_input(url) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            place = f"{url}:{number}"
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
            for row in range(batch.num_rows):
                yield _parquet_record(batch, row, place=f"{url}:row {number}")
                number += 1


def _parquet_record(batch: pa.RecordBatch, row: int, *, place: str) -> Record | Reject:
    try:
        values = {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
        return Record(values=values, place=place)
    except UnicodeDecodeError as error:
        return reject_record(place, "invalid_utf8", f"byte {error.start} of a value is not UTF-8", error.object)
    except (ValueError, OverflowError, pa.ArrowException) as error:
        # Such as a time that Python's calendar does not reach.
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
