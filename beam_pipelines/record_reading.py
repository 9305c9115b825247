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

from contracts.records import Document, InstructionPair, Reject
from contracts.seeding import stable_hash_hex
from contracts.storage import open_input

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".parquet")
_PARQUET_BATCH_ROWS = 1024
_MAX_REJECT_CHARACTERS = 2000
_DAMAGED = (OSError, EOFError, zlib.error, pa.ArrowException)


@dataclass(frozen=True, kw_only=True)
class FieldNames:
    """Which fields of a record hold what.

    Args:
        text: The text of a document; required in every record.
        id: Identifier; a record without one gets a hash of its source and text.
        title: Title, optional.
        source: What groups documents that may share a chain; a record without one belongs to ``default_source``.
        default_source: Source of records without one.
    """

    text: str = "text"
    id: str = "id"
    title: str = "title"
    source: str = "source"
    default_source: str = "corpus"


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
    except _DAMAGED as error:
        if getattr(error, "errno", None) is not None:
            # The file system's own word, such as no permission or no connection: nothing is wrong with the content.
            raise
        yield _reject(
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
                yield _reject(place, "invalid_utf8", f"byte {error.start} of the line is not UTF-8", line)
                continue
            except (ValueError, RecursionError) as error:
                yield _reject(place, "not_json", str(error), line)
                continue
            if isinstance(values, dict):
                yield Record(values=values, place=place)
            else:
                yield _reject(place, "not_an_object", f"a {type(values).__name__}, not an object with fields", line)


def _read_text(url: str, text_field: str) -> Iterator[Record | Reject]:
    with open_input(url) as file:
        content = file.read()
    try:
        yield Record(values={text_field: content.decode("utf-8-sig")}, place=url)
    except UnicodeDecodeError as error:
        yield _reject(url, "invalid_utf8", f"byte {error.start} is not UTF-8", content)


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
        return _reject(place, "invalid_utf8", f"byte {error.start} of a value is not UTF-8", error.object)
    except (ValueError, OverflowError, pa.ArrowException) as error:
        # Such as a time that Python's calendar does not reach.
        return _reject(place, "unreadable_row", f"{type(error).__name__}: {error}", b"")


def _reject(place: str, reason: str, detail: str, content: bytes) -> Reject:
    text = content[:_MAX_REJECT_CHARACTERS].decode("utf-8", "backslashreplace").rstrip("\n")
    return Reject(doc_id=place, source="", stage="read", reason=reason, detail=f"{place}: {detail}", text=text)


def document_from_record(record: Record, *, fields: FieldNames) -> Document | Reject:
    """The document of a record, or why there is none: a missing, wrong or empty text."""
    text = record.values.get(fields.text)
    if not isinstance(text, str):
        found = "is absent" if text is None else f"is a {type(text).__name__}"
        detail = f"field {fields.text!r} {found}; the record has {sorted(record.values)[:20]}"
        return _reject(record.place, "no_text", detail, _as_json(record))
    if not text.strip():
        return _reject(record.place, "empty_text", f"field {fields.text!r} holds no text", _as_json(record))
    if (lone := _lone_surrogate(text)) is not None:
        return _reject(record.place, "invalid_unicode", f"lone surrogate at character {lone}", _as_json(record))
    source = _label(record, fields.source) or fields.default_source
    title = record.values.get(fields.title)
    return Document(
        doc_id=_label(record, fields.id) or stable_hash_hex(0, "document", source, text),
        source=source,
        text=text,
        title=_encodable(title) if isinstance(title, str) and title.strip() else None,
    )


def pair_from_record(
    record: Record, *, instruction_field: str = "instruction", response_field: str = "response", id_field: str = "id"
) -> tuple[str, InstructionPair] | Reject:
    """An instruction's identifier and the pair of a record, or why there is none."""
    sides: list[str] = []
    for field in (instruction_field, response_field):
        side = record.values.get(field)
        if not isinstance(side, str) or not side.strip() or _lone_surrogate(side) is not None:
            detail = f"field {field!r} holds no text; the record has {sorted(record.values)[:20]}"
            return _reject(record.place, "no_pair", detail, _as_json(record))
        sides.append(side.strip())
    pair = InstructionPair(instruction=sides[0], response=sides[1])
    return _label(record, id_field) or stable_hash_hex(0, "pair", *sides), pair


def _label(record: Record, field: str) -> str | None:
    """A string or number that names something; None where the field is absent, empty or holds anything else."""
    value = record.values.get(field)
    return _encodable(str(value)) or None if isinstance(value, (str, int, float)) else None


def _lone_surrogate(text: str) -> int | None:
    """JSON can spell half of a surrogate pair, which no UTF-8 file and no tokenizer can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_json(record: Record) -> bytes:
    try:
        return json.dumps(dict(record.values), default=str).encode()
    except RecursionError:
        return b"(nested too deeply to be shown)"
