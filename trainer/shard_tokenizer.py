"""The tokenizer that the shards were packed with, found again and verified.

Training needs no tokenizer, but a model without the tokenizer of its ids is of no use: the run finds it before any
work and exports it with the model. What counts is not its name but the hash in the shards' manifest: SHA-256 of its
whole definition as the ``tokenizers`` library writes it (``Tokenizer.to_str()``).

A model to be continued was trained on the ids of its own tokenizer. The shards' tokenizer may be another one only if it
extends the model's: every token of the model's vocabulary, added tokens included, has the same id in it. How texts are
cut may differ, since an extension exists to cut them differently; what an id means may not. The exported model then
gets the shards' tokenizer, with the chat template of the model's when it has none of its own.

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


def open_shard_tokenizer(
    entry: TokenizerEntry, *, model_location: str | None, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Opens the shards' tokenizer: from the model to be continued when it has that one, else where the manifest says.

    Args:
        entry: What the manifest says of the tokenizer.
        model_location: Folder or hub name of the model to be continued; None when it starts from scratch.
        revision: The model's commit on the hub.

    Raises:
        ValueError: The model's tokenizer is neither the shards' nor extended by it, or theirs is nowhere to be found.
    """
    own = None if model_location is None else _definition_at(model_location, revision=revision)
    if model_location is None or own is None:
        return _open_by_name(entry)
    if tokenizer_sha256(own) == entry.sha256:
        return _load(model_location, revision=revision)
    tokenizer = _open_by_name(entry)
    difference = find_difference(own.get_vocab(), tokenizer.get_vocab())
    if difference is not None:
        raise ValueError(
            f"The model {model_location} has another tokenizer than the shards, which were packed with {entry.name} "
            f"({entry.sha256[:12]}…), and it is no extension of the model's: {difference}. Pack with the model's "
            "tokenizer."
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _load(model_location, revision=revision).chat_template
    return tokenizer


def find_difference(vocabulary: dict[str, int], extended: dict[str, int]) -> str | None:
    """The first id that means something else in the second vocabulary than in the first; None when it extends it."""
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        if extended.get(token) != token_id:
            there = f"has the id {extended[token]}" if token in extended else "is missing"
            return f"the token {token!r}, of id {token_id} for the model, {there} in the shards' tokenizer"
    return None


def _open_by_name(entry: TokenizerEntry) -> PreTrainedTokenizerBase:
    try:
        tokenizer = _load(entry.name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The shards were packed with the tokenizer {entry.name}, which cannot be opened here: {error}"
        ) from error
    # A tokenizer without its own file is hashed as the library loads it; pack does the same.
    definition = _definition_at(entry.name) or tokenizer.backend_tokenizer
    sha256 = tokenizer_sha256(definition)
    if sha256 != entry.sha256:
        raise ValueError(
            f"The tokenizer {entry.name} has changed since the shards were packed with it ({sha256[:12]}… now, "
            f"{entry.sha256[:12]}… then). Restore it, or pack again."
        )
    return tokenizer


def _definition_at(location: str, *, revision: str | None = None) -> Tokenizer | None:
    """The definition in a tokenizer's own file in a folder or on the hub; None when there is none."""
    if os.path.isdir(location):
        file = os.path.join(location, _FILE)
    else:
        try:
            file = cached_file(location, _FILE, revision=revision)
        except OSError:
            return None
    return Tokenizer.from_file(file) if os.path.isfile(file) else None


def _load(location: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(location, revision=revision or "main")
