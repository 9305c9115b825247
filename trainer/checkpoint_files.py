"""The files of a checkpoint: complete, verified, rotated; what is in them is not this module's business.

``files.json`` lists size and SHA-256 of every file, and ``COMPLETED``, written last, has the SHA-256 of that list: one
flipped bit, a missing file or one too many is found and named. A folder without ``COMPLETED`` was never finished and is
as good as not there. When a checkpoint is removed, ``COMPLETED`` goes first, so that a kill at any moment leaves whole
checkpoints and unfinished ones, and nothing between.

Cost: every file is read once when it is completed, which the page cache serves, and once when it is verified; each by
a thread of its own, since hashing runs outside Python's lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from contracts import storage
from contracts.artifact import COMPLETED_FILE, completed_fingerprint, mark_completed
from trainer.folders import child_folders, file_sizes, flush_folder

FILES_FILE = "files.json"

_NAME = re.compile(r"step-(\d{8,})")
_NAME_PREFIX = "step-"
_MAX_HASHING_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file by its path in the checkpoint, with its size and hash."""

    name: str
    num_bytes: int
    sha256: str


def checkpoint_url(root: str, *, step: int) -> str:
    """The folder of the checkpoint after a step."""
    return storage.join(root, f"{_NAME_PREFIX}{step:08d}")


def step_of(url: str) -> int | None:
    """The step that the name of a checkpoint's folder says; None for a folder of another name."""
    match = _NAME.fullmatch(url.rstrip("/").rsplit("/", 1)[-1])
    return int(match[1]) if match else None


def describe_files(folder: str, names: Iterable[str]) -> list[FileEntry]:
    """Sizes and hashes of files below a local folder."""
    names = sorted(names)
    sizes = [os.path.getsize(os.path.join(folder, name)) for name in names]
    hashes = _hash([os.path.join(folder, name) for name in names])
    return [
        FileEntry(name=name, num_bytes=size, sha256=sha256)
        for name, size, sha256 in zip(names, sizes, hashes, strict=True)
    ]


def write_file_list(folder: str, files: Sequence[FileEntry]) -> str:
    """Writes the list of a checkpoint's files beside them; returns the checkpoint's fingerprint."""
    content = {
        entry.name: {"num_bytes": entry.num_bytes, "sha256": entry.sha256}
        for entry in sorted(files, key=lambda entry: entry.name)
    }
    url = storage.join(folder, FILES_FILE)
    storage.write_json(url, content)
    return storage.file_sha256(url)


def complete_checkpoint(url: str, *, fingerprint: str) -> None:
    """Marks a checkpoint as whole, once all its files are in place."""
    mark_completed(url, fingerprint=fingerprint)
    flush_folder(url)


def verify_checkpoint(url: str) -> set[str]:
    """Reads a checkpoint to the last byte; returns the names of its files.

    Raises:
        ValueError: It was not completed, or is not as it was then; the message names the file.
    """
    fingerprint = completed_fingerprint(url)
    sizes = file_sizes(url)
    if FILES_FILE not in sizes:
        raise _damaged(url, f"{FILES_FILE} is missing")
    if storage.file_sha256(storage.join(url, FILES_FILE)) != fingerprint:
        raise _damaged(url, f"{FILES_FILE} is not the list that it was completed with")
    content = storage.read_json(storage.join(url, FILES_FILE))
    strangers = sizes.keys() ^ {FILES_FILE, COMPLETED_FILE, *content}
    if strangers:
        name = min(strangers)
        raise _damaged(url, f"{name} is missing" if name in content else f"{name} does not belong to it")
    for name, entry in content.items():
        if sizes[name] != entry["num_bytes"]:
            raise _damaged(url, f"{name} has {sizes[name]} bytes instead of {entry['num_bytes']}")
    for name, sha256 in zip(content, _hash([storage.join(url, name) for name in content]), strict=True):
        if sha256 != content[name]["sha256"]:
            raise _damaged(url, f"the content of {name} has changed (its SHA-256 is {sha256})")
    return set(content)


def completed_checkpoints(root: str) -> list[str]:
    """The checkpoints below a folder that have been completed, damaged since or not, oldest first."""
    return [url for url in _checkpoints(root) if storage.exists(storage.join(url, COMPLETED_FILE))]


def remove_checkpoint(url: str) -> None:
    """Removes a checkpoint, whole or not; from the first moment on nobody takes it for a whole one."""
    storage.remove_file(storage.join(url, COMPLETED_FILE))
    storage.remove_folder(url)


def remove_old_checkpoints(root: str, *, num_kept: int, keep_every_steps: int | None) -> None:
    """Removes what a kill left unfinished, and all but the newest checkpoints and those of milestones."""
    completed = completed_checkpoints(root)
    kept = set(completed[-num_kept:])
    if keep_every_steps is not None:
        kept |= {url for url in completed if (step_of(url) or 0) % keep_every_steps == 0}
    for name in child_folders(root):
        url = storage.join(root, name)
        if name.startswith(_NAME_PREFIX) and url not in kept:
            remove_checkpoint(url)


def _checkpoints(root: str) -> list[str]:
    steps = {step: name for name in child_folders(root) if (step := step_of(name)) is not None}
    return [storage.join(root, steps[step]) for step in sorted(steps)]


def _hash(urls: Sequence[str]) -> list[str]:
    with ThreadPoolExecutor(max_workers=_MAX_HASHING_THREADS) as executor:
        return list(executor.map(storage.file_sha256, urls))


def _damaged(url: str, what: str) -> ValueError:
    return ValueError(f"The checkpoint {url} is damaged: {what}.")
