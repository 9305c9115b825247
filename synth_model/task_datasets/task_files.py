"""Reads the entries of a task dataset's files: JSON, JSON Lines, Parquet, CSV and TSV, the first two also compressed.

An entry is a line, a row, or, of a JSON file, each element of a list and otherwise the whole. What cannot be read
becomes a `Reject` that names its place, and reading goes on.

Memory: a JSON file is read whole, as it must be; everything else line by line or in batches. A TSV file has no quotes,
as is usual for TSV; a CSV file has those of RFC 4180.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from contracts.record_files import DAMAGED_FILE_ERRORS, read_records, reject_record
from contracts.records import Reject
from contracts.storage import open_input

# RACE keeps its JSON in files that end in .txt.
_JSON = (".json", ".json.gz", ".json.zst", ".txt")
_JSON_LINES_AND_PARQUET = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonlines", ".parquet")
_TABLES = (".csv", ".tsv")
SUFFIXES = (*_JSON, *_JSON_LINES_AND_PARQUET, *_TABLES)

# Cells hold whole articles; the csv module's own limit is 128 KiB.
_MAX_CELL_CHARACTERS = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEntry:
    """A JSON value of a file and where it stood: file and line, row or element."""

    value: Any
    place: str


def read_entries(url: str) -> Iterator[TaskEntry | Reject]:
    """The entries of a file in order; what cannot be read comes as a `Reject` in its place.

    Args:
        url: File whose name ends in one of `SUFFIXES`.
    """
    if url.endswith(_JSON_LINES_AND_PARQUET):
        for record in read_records(url):
            yield record if isinstance(record, Reject) else TaskEntry(value=record.values, place=record.place)
        return
    try:
        yield from _read_json(url) if url.endswith(_JSON) else _read_table(url)
    except (*DAMAGED_FILE_ERRORS, csv.Error, ValueError, RecursionError) as error:
        # A ValueError here is bad UTF-8 or bad JSON.
        detail = f"{type(error).__name__}: {error}; what stands behind it is not read"
        yield reject_record(url, "unreadable_file", detail, b"")


def _read_json(url: str) -> Iterator[TaskEntry]:
    with open_input(url) as file:
        value = json.loads(file.read().decode("utf-8-sig"))
    if isinstance(value, list):
        for number, element in enumerate(value):
            yield TaskEntry(value=element, place=f"{url}:element {number}")
    else:
        yield TaskEntry(value=value, place=url)


def _read_table(url: str) -> Iterator[TaskEntry | Reject]:
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    with open_input(url) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = (
            csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            if url.endswith(".tsv")
            else csv.reader(lines, strict=True)
        )
        header = next(rows, [])
        for row in rows:
            if not row:
                continue
            place = f"{url}:{rows.line_num}"
            if len(row) == len(header):
                yield TaskEntry(value=dict(zip(header, row, strict=True)), place=place)
            else:
                detail = f"{len(row)} cells under a header of {len(header)}"
                yield reject_record(place, "wrong_columns", detail, ",".join(row).encode())
