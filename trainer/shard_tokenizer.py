"""The tokenizer that the shards were packed with, found again and verified.

Training needs no tokenizer, but a model without the tokenizer of its ids is of no use: the run finds it before any
work and exports it with the model. What counts is not its name but the hash in the shards' manifest: SHA-256 of its
whole definition as the ``tokenizers`` library writes it (``Tokenizer.to_str()``).

Source: the tokenizers library (https://huggingface.co/docs/tokenizers).
"""

from __future__ import annotations

import hashlib
import os

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from contracts.manifest import TokenizerEntry

_FILE = "tokenizer.json"


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """The hash of a tokenizer's whole definition, 64 hexadecimal characters."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def open_shard_tokenizer(entry: TokenizerEntry, *, model_location: str | None) -> PreTrainedTokenizerBase:
    """Opens the shards' tokenizer: from the model to be continued when that has one, else where the manifest says.

    Args:
        entry: What the manifest says of the tokenizer.
        model_location: Folder or hub name of the model to be continued; None when it starts from scratch.

    Raises:
        ValueError: The model has another tokenizer than the shards, or theirs is nowhere to be found.
    """
    if model_location is not None:
        sha256 = _sha256_at(model_location)
        if sha256 == entry.sha256:
            return _load(model_location)
        if sha256 is not None:
            raise ValueError(
                f"The model {model_location} has another tokenizer ({sha256[:12]}…) than the shards, which were packed "
                f"with {entry.name} ({entry.sha256[:12]}…). Pack with the model's tokenizer."
            )
    try:
        tokenizer = _load(entry.name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The shards were packed with the tokenizer {entry.name}, which cannot be opened here: {error}"
        ) from error
    # A tokenizer without its own file is hashed as the library loads it; pack does the same.
    sha256 = _sha256_at(entry.name) or tokenizer_sha256(tokenizer.backend_tokenizer)
    if sha256 != entry.sha256:
        raise ValueError(
            f"The tokenizer {entry.name} has changed since the shards were packed with it ({sha256[:12]}… now, "
            f"{entry.sha256[:12]}… then). Restore it, or pack again."
        )
    return tokenizer


def _sha256_at(location: str) -> str | None:
    """The hash of the tokenizer's own file in a folder or on the hub; None when there is none."""
    if os.path.isdir(location):
        file = os.path.join(location, _FILE)
    else:
        try:
            file = cached_file(location, _FILE)
        except OSError:
            return None
    return tokenizer_sha256(Tokenizer.from_file(file)) if os.path.isfile(file) else None


def _load(location: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(location)
