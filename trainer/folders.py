"""Folders that libraries write and read with their own code, on any storage.

Hugging Face libraries write local folders only. A folder is therefore written aside: on a local disk beside its place
and renamed when it is whole; for other storage in a temporary folder that is uploaded then. Since an upload is not
atomic, who needs to know that a folder is whole writes a completion marker into it afterwards.

Cost: no copy on a local disk.
"""

from __future__ import annotations

import os
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
    fs, path = fsspec.core.url_to_fs(url)
    path = path.rstrip("/")
    if not isinstance(fs, LocalFileSystem):
        with tempfile.TemporaryDirectory() as aside:
            yield aside
            fs.put(aside + "/", path + "/", recursive=True)
        return
    aside = path + _PARTIAL_SUFFIX
    storage.remove_folder(aside)
    os.makedirs(aside)
    yield aside
    if not os.path.exists(path):
        os.rename(aside, path)
        return
    for name in os.listdir(aside):
        storage.remove_folder(os.path.join(path, name))
        os.rename(os.path.join(aside, name), os.path.join(path, name))
    os.rmdir(aside)


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
