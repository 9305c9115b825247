"""A log of JSON objects, one a line, that stays exact when a run is killed and goes on.

A run that goes on from a checkpoint repeats the steps after it. Opening the log for it drops what was logged of those
steps, together with a line that the kill cut short: no step is then missing and none stands there twice.

On a local disk each record is appended at once, so that one can watch the file; other storage cannot append, and gets
the whole log at every ``sync``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from contracts import storage


class MetricsLog:
    """The log at a URL.

    Args:
        url: The file; made when it is missing.
        last_step: Records of later steps are dropped; a record says its step under ``step``.
        is_writer: False makes a log that stays empty, for all processes but the main one.
    """

    def __init__(self, url: str, *, last_step: int, is_writer: bool = True) -> None:
        self._url = url
        self._is_writer = is_writer
        self._is_local = isinstance(fsspec.core.url_to_fs(url)[0], LocalFileSystem)
        self._lines: list[str] = []
        if is_writer:
            lines = _whole_lines(storage.read_text(url, missing=""))
            self._lines = [line for line in lines if json.loads(line)["step"] <= last_step]
            self._rewrite()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record; it has ``step`` among its keys."""
        if not self._is_writer:
            return
        line = json.dumps(record, ensure_ascii=False) + "\n"
        self._lines.append(line)
        if self._is_local:
            with fsspec.open(self._url, "ab") as file:
                file.write(line.encode())

    def sync(self) -> None:
        """Makes sure that everything logged so far is in the file, whatever happens next."""
        if not self._is_writer:
            return
        if not self._is_local:
            self._rewrite()
            return
        with fsspec.open(self._url, "rb") as file:
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        return [json.loads(line) for line in self._lines]

    def _rewrite(self) -> None:
        storage.write_bytes_atomically(self._url, "".join(self._lines).encode())


def _whole_lines(text: str) -> list[str]:
    """The lines that end in a line feed; not `str.splitlines`, which also splits at separators inside strings."""
    return [line + "\n" for line in text.split("\n")[:-1]]
