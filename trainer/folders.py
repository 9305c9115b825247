"""Folders that libraries write and read with their own code, on any storage.

Hugging Face libraries write local folders only. A folder is therefore written aside: on a local disk beside its place,
flushed and renamed when it is whole; for other storage in a temporary folder that is uploaded then. Since an upload is
not atomic, who needs to know that a folder is whole writes a completion marker into it afterwards.

Cost: no copy on a local disk, but the time until the disk has everything.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
from fsspec.implementations.local import LocalFileSystem

from contracts import storage

_PARTIAL_SUFFIX = ".partial"


@contextmanager
def write_folder(url: str) -> Iterator[str]:
    """Gives a local folder to write to; its content appears in ``url`` when the block ends without an error.

    What has the same name there is replaced; a folder that was not there appears as a whole.
    """
    aside = aside_of(url)
    if aside == url:
        with fill_folder(url) as folder:
            yield folder
        return
    storage.remove_folder(aside)
    try:
        with fill_folder(aside) as folder:
            yield folder
        publish_folder(aside, url)
    except Exception:
        storage.remove_folder(aside)
        raise


def aside_of(url: str) -> str:
    """Where to write a folder before it is whole: beside its place on a local disk, elsewhere in its place."""
    fs, path = fsspec.core.url_to_fs(url)
    return path.rstrip("/") + _PARTIAL_SUFFIX if isinstance(fs, LocalFileSystem) else url


@contextmanager
def fill_folder(url: str) -> Iterator[str]:
    """Gives a local folder whose files are in ``url`` when the block ends, beside those of other processes."""
    fs, path = fsspec.core.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        os.makedirs(path, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder
        fs.put(folder + "/", path.rstrip("/") + "/", recursive=True)


def publish_folder(aside: str, url: str) -> None:
    """Moves what was written aside to its place once the disk has it; on other storage there is nothing to move."""
    if aside == url:
        return
    _, path = fsspec.core.url_to_fs(url)
    path = path.rstrip("/")
    flush_folder(aside)
    if not os.path.exists(path):
        os.rename(aside, path)
    else:
        for name in os.listdir(aside):
            storage.remove_folder(os.path.join(path, name))
            os.rename(os.path.join(aside, name), os.path.join(path, name))
        os.rmdir(aside)
    _flush(os.path.dirname(path) or ".")


def flush_folder(url: str) -> None:
    """Waits until a folder with all that is in it would survive a loss of power; a no-op but on a local disk."""
    fs, path = fsspec.core.url_to_fs(url)
    if not isinstance(fs, LocalFileSystem):
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _flush(os.path.join(folder, name))
        _flush(folder)


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def read_folder(url: str) -> Iterator[str]:
    """Gives a local folder with the content of ``url``: itself on a local disk, else a temporary copy."""
    fs, path = fsspec.core.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        yield path
        return
    with tempfile.TemporaryDirectory() as copy:
        fs.get(path.rstrip("/") + "/", copy + "/", recursive=True)
        yield copy


def free_bytes(url: str) -> int | None:
    """The space left on the local disk that a folder is, or will be, on; None on other storage."""
    fs, path = fsspec.core.url_to_fs(url)
    if not isinstance(fs, LocalFileSystem):
        return None
    while not os.path.exists(path):
        path = os.path.dirname(path.rstrip("/")) or "."
    return shutil.disk_usage(path).free


def child_folders(url: str) -> list[str]:
    """The names of the folders directly in a folder, sorted; none when it is missing."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return []
    entries = fs.ls(path, detail=True)
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")


def file_sizes(url: str) -> dict[str, int]:
    """Every file below a folder by its path relative to the folder, with its size in bytes."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache(path)
    return {name[len(path.rstrip("/")) + 1 :]: int(info["size"]) for name, info in fs.find(path, detail=True).items()}
