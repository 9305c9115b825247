"""Files anywhere, through fsspec: ``file``, ``memory://``, ``s3://``, ``gs://``, ``hf://``.

A file that another process may read is written whole or not at all: on a local disk aside, flushed and renamed; on an
object store in one put of a temporary local file, which is atomic there. Nothing here knows what the files mean.

Source: fsspec's file system interface (https://filesystem-spec.readthedocs.io).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar, overload

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

_Missing = TypeVar("_Missing")


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A file to read, with what tells one version of it from another without reading it."""

    url: str
    size_bytes: int
    version: str


def join(folder: str, *names: str) -> str:
    """A path below a folder, local or remote."""
    return "/".join([folder.rstrip("/") or folder, *names])


def _file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


def exists(url: str) -> bool:
    """Whether a file or folder of that name is there."""
    fs, path = _file_system(url)
    # As in `list_files`: another process may have made it since the folder was listed here.
    fs.invalidate_cache(path)
    return bool(fs.exists(path))


def is_folder(url: str) -> bool:
    """Whether a folder is there; on an object store, whether any file has that prefix."""
    fs, path = _file_system(url)
    return bool(fs.isdir(path))


def list_files(folder: str, *, suffixes: Sequence[str] = ()) -> list[str]:
    """Every file below a folder, sorted; with ``suffixes``, those that end in one of them. A missing one is empty."""
    fs, path = _file_system(folder)
    # Listings are cached by some file systems; another process may have written since.
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return []
    return sorted(
        fs.unstrip_protocol(name) if not isinstance(fs, LocalFileSystem) else name
        for name in fs.find(path)
        if not suffixes or name.endswith(tuple(suffixes))
    )


def find_input_files(patterns: Sequence[str], *, suffixes: Sequence[str]) -> list[InputFile]:
    """The files that a list of files, folders and globs names, each once, sorted.

    A folder stands for every file below it with a known suffix.

    Raises:
        ValueError: A pattern matches nothing or names a file of another type.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        fs, path = _file_system(pattern)
        if fs.isdir(path):
            names = [name for name in fs.find(path) if name.endswith(tuple(suffixes))]
            if not names:
                raise ValueError(f"The folder {pattern!r} holds no file that ends in {_either(suffixes)}.")
        else:
            names = [name for name in fs.glob(path) if not fs.isdir(name)] if _is_glob(path) else [path]
            if not names or not all(fs.exists(name) for name in names):
                raise ValueError(
                    f"No file matches {pattern!r}. Give files, folders or globs; {_either(suffixes)} can be read."
                )
            foreign = [name for name in names if not name.endswith(tuple(suffixes))]
            if foreign:
                raise ValueError(f"{foreign[0]!r} cannot be read: a file must end in {_either(suffixes)}.")
        for name in names:
            info = fs.info(name)
            url = name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
            version = next(
                (str(info[key]) for key in ("ETag", "etag", "blob_id", "mtime", "created") if info.get(key)), ""
            )
            found[url] = InputFile(url=url, size_bytes=int(info.get("size") or 0), version=version)
    return [found[url] for url in sorted(found)]


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _either(suffixes: Sequence[str]) -> str:
    return ", ".join(suffixes)


@contextmanager
def open_input(url: str) -> Iterator[IO[bytes]]:
    """Opens a file to read bytes or lines, decompressed when its name ends in ``.gz`` or ``.zst``."""
    if url.endswith(".zst"):
        # Through Arrow, which reads every frame and reports a cut one; what fsspec opens gives no lines.
        with fsspec.open(url, "rb") as file, io.BufferedReader(pa.CompressedInputStream(file, "zstd")) as content:
            yield content
        return
    with fsspec.open(url, "rb", compression="gzip" if url.endswith(".gz") else None) as file:
        yield file


def open_random_access(url: str) -> pa.NativeFile:
    """Opens a file to read parts of it in any order: mapped into memory on a local disk, by ranges elsewhere."""
    fs, path = _file_system(url)
    if isinstance(fs, LocalFileSystem):
        return pa.memory_map(path)
    # What is read ahead would mostly be thrown away.
    return pa.PythonFile(fs.open(path, "rb", cache_type="none"), mode="r")


_PARTIAL_SUFFIX = ".partial"


def is_partial(url: str) -> bool:
    """Whether a name is that of a file that `open_atomic_output` had not finished."""
    return url.endswith(_PARTIAL_SUFFIX)


@contextmanager
def open_atomic_output(url: str) -> Iterator[IO[bytes]]:
    """Opens a file to write; it appears under its name only when the block ends without an error."""
    fs, path = _file_system(url)
    if not isinstance(fs, LocalFileSystem):
        # Written here first: closing a remote file that was left in the middle would publish what it holds so far.
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            fs.put_file(file.name, path)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    aside = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.remove(aside)
        raise


def write_bytes_atomically(url: str, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with open_atomic_output(url) as file:
        file.write(data)


def read_bytes(url: str) -> bytes:
    """The content of a file."""
    fs, path = _file_system(url)
    content: bytes = fs.cat_file(path)
    return content


@overload
def read_text(url: str) -> str: ...
@overload
def read_text(url: str, *, missing: _Missing) -> str | _Missing: ...
def read_text(url: str, **default: Any) -> Any:
    """The content of a UTF-8 file, or ``missing`` when it is given and there is no such file."""
    try:
        return read_bytes(url).decode("utf-8")
    except FileNotFoundError:
        if "missing" in default:
            return default["missing"]
        raise


def write_json(url: str, value: Any) -> None:
    """Writes JSON for people to read: indented, keys in the given order, whole or not at all."""
    write_bytes_atomically(url, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def read_json(url: str) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise ValueError(f"{url} is not valid JSON: {error}.") from error


def remove_file(url: str) -> None:
    """Removes a file; a missing one is fine."""
    fs, path = _file_system(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_folder(url: str) -> None:
    """Removes a folder with all that is in it; a missing one is fine."""
    fs, path = _file_system(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def file_sha256(url: str) -> str:
    """SHA-256 of a file's bytes as hexadecimal characters, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with fsspec.open(url, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def relative_names(folder: str) -> list[str]:
    """Every file below a folder by its path from there, sorted. A missing folder has none."""
    fs, path = _file_system(folder)
    fs.invalidate_cache(path)
    root = path.rstrip("/") + "/"
    return sorted(name.removeprefix(root) for name in fs.find(path)) if fs.isdir(path) else []
