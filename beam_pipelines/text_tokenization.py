"""Tokenizes training texts in batches with the tokenizer's own threads.

Special tokens inside a text are encoded as plain text; BOS and EOS are put around it by id where the config asks for
them, never by the tokenizer's post-processor. Ids travel as bytes.

Not done here: tokenizers without a fast (Rust) implementation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.manifest import Split
from contracts.records import RenderedText

_ID_TYPE = np.dtype("<u4")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedText:
    """A training text as token ids.

    Args:
        text_id: Unique in its component.
        component: Mixture component.
        split: Where it goes, decided by its group.
        num_documents: Source documents in it.
        ids: Little-endian uint32, BOS and EOS included.
    """

    text_id: str
    component: str
    split: Split
    num_documents: int
    ids: bytes

    @property
    def num_tokens(self) -> int:
        """Length in tokens."""
        return len(self.ids) // _ID_TYPE.itemsize

    def token_ids(self) -> NDArray[np.uint32]:
        """The ids, uint32 of shape (num_tokens,)."""
        return np.frombuffer(self.ids, dtype=_ID_TYPE)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerDescription:
    """What the manifest says of a tokenizer."""

    name: str
    sha256: str
    vocab_size: int
    special_ids: dict[str, int | None]

    @property
    def pad_id(self) -> int:
        """Fills what is left of a row; any id would do, since padding is never attended to nor a target."""
        return next((id_ for id_ in (self.special_ids["pad"], self.special_ids["eos"]) if id_ is not None), 0)


class TextTokenizer:
    """Encodes texts with a Hugging Face tokenizer.

    Args:
        name_or_path: Hub name or folder.
        add_bos: Whether each text begins with the tokenizer's BOS.
        add_eos: Whether each text ends with the tokenizer's EOS.

    Raises:
        ValueError: No such tokenizer, none with a fast implementation, or it lacks the BOS or EOS asked for.
    """

    def __init__(self, name_or_path: str, *, add_bos: bool, add_eos: bool) -> None:
        from synth_model.prompt_tokenizer import ModelTokenizer

        tokenizer = ModelTokenizer(name_or_path).tokenizer
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"The tokenizer of {name_or_path!r} has no fast implementation; convert it first.")
        for wanted, name in ((add_bos, "bos"), (add_eos, "eos")):
            if wanted and getattr(tokenizer, f"{name}_token_id") is None:
                raise ValueError(
                    f"add_{name} is on, but the tokenizer of {name_or_path!r} has no {name.upper()} token."
                )
        self.description = TokenizerDescription(
            name=name_or_path,
            sha256=_definition_sha256(name_or_path, backend),
            vocab_size=len(tokenizer),
            special_ids={name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        )
        self._prefix = _id_bytes([tokenizer.bos_token_id] if add_bos else [])
        self._suffix = _id_bytes([tokenizer.eos_token_id] if add_eos else [])
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend

    def encode(self, texts: Sequence[RenderedText], *, split_of: dict[str, Split]) -> list[TokenizedText]:
        """Tokenizes a batch; the order is kept.

        Args:
            texts: The texts; one without a single token is left out.
            split_of: The split of each ``group_id``.
        """
        encodings = self._backend.encode_batch_fast([text.text for text in texts], add_special_tokens=False)
        return [
            TokenizedText(
                text_id=text.text_id,
                component=text.component,
                split=split_of[text.group_id],
                num_documents=len(text.doc_ids),
                ids=self._prefix + _id_bytes(encoding.ids) + self._suffix,
            )
            for text, encoding in zip(texts, encodings, strict=True)
            if encoding.ids
        ]


def _id_bytes(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype=_ID_TYPE).tobytes()


def _definition_sha256(name_or_path: str, backend: Any) -> str:
    """The hash of the whole definition, as the file holds it: what loading adds to it is not part of it."""
    from tokenizers import Tokenizer
    from transformers.utils.hub import cached_file

    if os.path.isdir(name_or_path):
        path: str | None = os.path.join(name_or_path, "tokenizer.json")
    else:
        path = cached_file(name_or_path, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    definition = Tokenizer.from_file(path) if path and os.path.isfile(path) else backend
    return hashlib.sha256(definition.to_str().encode()).hexdigest()
