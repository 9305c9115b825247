"""Where the weights of a model to be continued are: what ``model.name_or_path`` says, as transformers can load it.

- A local folder is taken as it is, a name on the hub at the commit that its revision names now.
- A GGUF file is converted once (see ``import_model``) into a folder of the cache that is named after its content.
- A folder at a URL (``gs://``, ``s3://``, ``memory://``) is copied once into a folder of the cache that is named after
  its files' names, sizes and versions.

The identity tells a model from others and is that of its content: the same model in another place is the same model.

Cost: reading a GGUF file once a start, to hash it; the rest only where the cache has nothing yet. Processes of one run
share the cache: the main process fills it before the others look, so that on several machines it must lie on a
storage that all of them see.

Does not load weights, and removes nothing from the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from typing import Any

import fsspec
from transformers.utils.hub import cached_file, extract_commit_hash

from contracts import storage
from contracts.artifact import COMPLETED_FILE, RUN_FILE
from trainer.config import ModelConfig
from trainer.folders import write_folder
from trainer.import_model import find_gguf, import_gguf, is_gguf_name

_log = logging.getLogger(__name__)

# Of a weights file, this much of its head (names and shapes) and tail (weights) goes into a model's identity.
_NUM_IDENTITY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model that transformers can load.

    Args:
        location: Its local folder, or its name on the hub.
        revision: The commit on the hub; None for a folder.
        identity: What tells it from other models: the hash of a GGUF file or of a folder's content, or name and commit.
    """

    location: str
    revision: str | None
    identity: str


def find_model(model: ModelConfig) -> ModelSource:
    """Finds the model that a config names, converting or copying it where that has not been done yet.

    Raises:
        ValueError: There is no such model, or it is not complete.
    """
    name = model.name_or_path
    assert name is not None
    if is_gguf_name(name):
        sha256 = storage.file_sha256(find_gguf(name))
        folder = storage.join(model.cache, f"gguf-{sha256[:16]}")
        import_gguf(name, sha256=sha256, output=folder)
        return ModelSource(location=folder, revision=None, identity=f"gguf:{sha256}")
    if "://" in name:
        name = _copy_folder(name, cache=model.cache)
    if os.path.isdir(name):
        _check_folder(name)
        return ModelSource(location=name, revision=None, identity=_folder_identity(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"There is no model folder {name}. Check model.name_or_path.")
    try:
        commit = extract_commit_hash(cached_file(name, "config.json", revision=model.revision), None)
    except OSError as error:
        raise ValueError(f"The model {name} cannot be found or reached: {error}") from error
    return ModelSource(location=name, revision=commit, identity=f"{name}@{commit}")


def _copy_folder(url: str, *, cache: str) -> str:
    """A local copy of a folder at a URL; one that is there already is as whole as when it appeared."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache(path)
    root = path.rstrip("/") + "/"
    files = sorted(fs.find(path)) if fs.isdir(path) else []
    if not files:
        raise ValueError(f"There is no model folder {url}. Check model.name_or_path.")
    versions = [[name.removeprefix(root), fs.size(name), fs.ukey(name)] for name in files]
    folder = storage.join(cache, f"copy-{storage.json_sha256(versions)[:16]}")
    if not os.path.isdir(folder):
        _log.info("Copying %s to %s", url, folder)
        with write_folder(folder) as aside:
            fs.get(root, aside + "/", recursive=True)
    return folder


def _check_folder(folder: str) -> None:
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"{folder} is no Hugging Face model folder: it has no config.json.")
    if storage.exists(storage.join(folder, RUN_FILE)) and not storage.exists(storage.join(folder, COMPLETED_FILE)):
        raise ValueError(f"The run that makes the model {folder} has not completed. Start it again first.")


def _folder_identity(folder: str) -> str:
    """Hash of a model folder's config and of the names, sizes, heads and tails of its weights files.

    The whole of the weights is not read, which would take longer than loading them; training changes every tensor, so
    two models with the same tail are the same model.
    """
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        parts: list[Any] = [json.load(file)]
    for url in storage.list_files(folder, suffixes=(".safetensors",)):
        with fsspec.open(url, "rb") as weights:
            digest = hashlib.sha256(weights.read(_NUM_IDENTITY_BYTES))
            size = weights.seek(0, os.SEEK_END)
            weights.seek(max(0, size - _NUM_IDENTITY_BYTES))
            digest.update(weights.read())
        parts.append([os.path.relpath(url, os.path.abspath(folder)), size, digest.hexdigest()])
    return storage.json_sha256(parts)
