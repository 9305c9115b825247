"""A log of JSON objects, one a line, that stays exact when a run is killed and goes on.

A run that goes on from a checkpoint repeats the steps after it. Opening the log for it drops what was logged of those
steps, together with a line that the kill cut short: no step is then missing and none stands there twice.

A number that is not finite, such as the loss of a step that diverged, stands as ``null``: JSON has no other way.

On a local disk each record is appended at once, so that one can watch the file; other storage cannot append, and gets
the whole log at every ``sync``.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from contracts import storage

_log = logging.getLogger(__name__)


class MetricsLog:
    """The log at a URL.

    Args:
        url: The file; made when it is missing.
        last_step: Records of later steps are dropped; a record says its step under ``step``.
        is_writer: False makes a log that stays empty, for all processes but the main one.
        on_append: Is told of every record once it is logged.
    """

    def __init__(
        self,
        url: str,
        *,
        last_step: int,
        is_writer: bool = True,
        on_append: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        self._url = url
        self._is_writer = is_writer
        self._on_append = on_append
        self._is_local = isinstance(fsspec.core.url_to_fs(url)[0], LocalFileSystem)
        # Whether the file lacks records, since the disk was full.
        self._is_behind = False
        self._lines: list[str] = []
        if is_writer:
            lines = _whole_lines(storage.read_text(url, missing=""))
            self._lines = [line for line in lines if json.loads(line)["step"] <= last_step]
            self._rewrite()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record; it has ``step`` among its keys."""
        if not self._is_writer:
            return
        line = json.dumps(_with_null_for_non_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        self._lines.append(line)
        if self._is_local and not self._is_behind:
            try:
                with fsspec.open(self._url, "ab") as file:
                    file.write(line.encode())
            except OSError as error:
                # A full disk is no reason to lose what is in memory; the next sync tries to write all of it.
                self._is_behind = True
                _log.warning("%s cannot be written and will be later: %s", self._url, error)
        self._on_append(record)

    def sync(self) -> None:
        """Makes sure that everything logged so far is in the file, whatever happens next."""
        if not self._is_writer:
            return
        if not self._is_local or self._is_behind:
            self._rewrite()
            self._is_behind = False
            return
        with fsspec.open(self._url, "rb") as file:
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """All records, oldest first."""
        return [json.loads(line) for line in self._lines]

    def _rewrite(self) -> None:
        storage.write_bytes_atomically(self._url, "".join(self._lines).encode())


def read_log(url: str) -> list[dict[str, Any]]:
    """The records of a log, oldest first; none of a missing one, nor the line that is being written."""
    return [json.loads(line) for line in _whole_lines(storage.read_text(url, missing=""))]


def _with_null_for_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_null_for_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null_for_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole_lines(text: str) -> list[str]:
    """The lines that end in a line feed; not `str.splitlines`, which also splits at separators inside strings."""
    return [line + "\n" for line in text.split("\n")[:-1]]
