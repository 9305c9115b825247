"""Tokenizes training texts in batches.

Special tokens inside a text are plain text, whatever the tokenizer would make of them; BOS and EOS are put around it by
id where the config asks for them, never by the tokenizer's post-processor. A text with loss spans says itself where its
special tokens stand (`beam_pipelines.span_tokenization`).

Workers read a tokenizer from a file that the submitting process wrote (`beam_pipelines.tokenizer_loading`), with
the ``tokenizers`` library: no hub, no transformers, a tenth of a second.

Cost: of 100 ns that a token takes, about 3 go into moving its id out of the tokenizer's answer (a list of Python
integers is all it offers; it lives for one text). `TextTokenizer.encode` may be called from several threads, and most
of it runs outside of Python's lock.

Not done here: tokenizers without a fast (Rust) implementation.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_pipelines.span_tokenization import SpanTokenizer
from contracts import storage
from contracts.records import RenderedText

_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")
_CHARACTERS_OF_NAMES = "<0x123456789ABCDEF>"
# Log probabilities of pieces are about -15 at the least, and a name has six characters.
_LAST_CHOICE = -1000.0
# What the model takes off the least score for an unknown character.
_UNKNOWN_PENALTY = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerDescription:
    """What the manifest says of a tokenizer, and what its texts may not be taken for.

    Args:
        name: Hub name or folder.
        sha256: Hash of the whole definition.
        vocab_size: One more than the largest id; of a vocabulary with gaps, more than it has tokens.
        special_ids: Ids of ``bos``, ``eos`` and ``pad``; None where there is none.
        special_tokens: The strings that it reads as special tokens.
    """

    name: str
    sha256: str
    vocab_size: int
    special_ids: dict[str, int | None]
    special_tokens: tuple[str, ...] = ()

    @property
    def pad_id(self) -> int:
        """Fills what is left of a row; any id would do, since padding is never attended to nor a target."""
        return next((id_ for id_ in (self.special_ids["pad"], self.special_ids["eos"]) if id_ is not None), 0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenizedTexts:
    """Texts as token ids, one behind the other.

    Args:
        texts: The texts that have a token, in order.
        ids: uint32, shape (num_tokens,): BOS and EOS included.
        lengths: int64, shape (num_texts,): tokens of each text, at least 1.
        loss_spans: For each text int32 of shape (num_spans, 2), half-open ranges of its tokens that are targets; None
            where all of them are.
        empty: The texts that have none.
    """

    texts: Sequence[RenderedText]
    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    loss_spans: Sequence[NDArray[np.int32]] | None = None
    empty: Sequence[RenderedText] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenization:
    """What decides the ids of texts.

    Args:
        definition_url: File with the tokenizer's definition, where every worker can read it.
        plain_definition_url: File with its definition without special tokens, likewise.
        tokenizer: The same tokenizer's description.
        add_bos: Whether each text begins with BOS.
        add_eos: Whether each text ends with EOS.
    """

    definition_url: str
    plain_definition_url: str
    tokenizer: TokenizerDescription
    add_bos: bool
    add_eos: bool


class TextTokenizer:
    """Encodes texts.

    Args:
        settings: What decides their ids.
    """

    def __init__(self, settings: Tokenization) -> None:
        self.description = settings.tokenizer
        self._definition_url = settings.definition_url
        self._prefix = _ids_of(self.description, "bos", wanted=settings.add_bos)
        self._suffix = _ids_of(self.description, "eos", wanted=settings.add_eos)
        definition = storage.read_text(settings.plain_definition_url)
        self._backend = _open(definition)
        self._byte_names = _ByteNames.of(definition)

    @cached_property
    def spans(self) -> SpanTokenizer:
        """The same tokenizer for texts with loss spans; loaded when it is needed."""
        definition = storage.read_text(self._definition_url)
        return SpanTokenizer(definition, eos_id=self._suffix[0] if self._suffix else None)

    def encode(self, texts: Sequence[RenderedText]) -> TokenizedTexts:
        """Tokenizes a batch.

        Args:
            texts: The texts, all with loss spans or none.
        """
        if any(text.loss_spans is not None for text in texts):
            return self._encode_with_spans(texts)
        encodings = self._backend.encode_batch_fast([text.text for text in texts], add_special_tokens=False)
        ids, lengths, kept, empty = array("I"), [], [], []
        for text, encoding in zip(texts, encodings, strict=True):
            own = encoding.ids
            if self._byte_names and self._byte_names.are_in(text.text):
                own = self._byte_names.encode(text.text)
            if own:
                kept.append(text)
                lengths.append(len(self._prefix) + len(own) + len(self._suffix))
                ids.extend(self._prefix)
                # Twice to three times as fast as extend() and np.array().
                ids.fromlist(own)
                ids.extend(self._suffix)
            else:
                empty.append(text)
        return TokenizedTexts(
            texts=kept, ids=np.asarray(ids, np.uint32), lengths=np.asarray(lengths, np.int64), empty=empty
        )

    def _encode_with_spans(self, texts: Sequence[RenderedText]) -> TokenizedTexts:
        encoded = self.spans.encode([text.text for text in texts], spans=[text.loss_spans or () for text in texts])
        with_tokens = [(text, ids, spans) for text, (ids, spans) in zip(texts, encoded, strict=True) if len(ids)]
        return TokenizedTexts(
            texts=[text for text, _, _ in with_tokens],
            ids=np.concatenate([np.zeros(0, np.uint32), *(ids for _, ids, _ in with_tokens)]),
            lengths=np.asarray([len(ids) for _, ids, _ in with_tokens], np.int64),
            loss_spans=[spans for _, _, spans in with_tokens],
            empty=[text for text, (ids, _) in zip(texts, encoded, strict=True) if not len(ids)],
        )


def _open(definition: str) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(definition)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


class _ByteNames:
    """Encodes texts that spell the names of pieces which stand for single bytes (``<0x41>``).

    A Unigram model finds such a name in a text and makes the byte of it, where SentencePiece spells it out. The pieces
    cannot be renamed, since the fallback goes by their names; so here they are the last choice. Their score would be
    one that unknown characters get too, so characters of names that the vocabulary lacks become pieces, whose ids
    are then exchanged for what the fallback makes of them.

    Args:
        content: The tokenizer's definition, of a Unigram model with all 256 of these pieces.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        ids = {piece: id_ for id_, (piece, _) in enumerate(vocab)}
        least = min(score for _, score in vocab)
        vocab = [[piece, _LAST_CHOICE if _BYTE_NAME.fullmatch(piece) else score] for piece, score in vocab]
        missing = [character for character in _CHARACTERS_OF_NAMES if character not in ids]
        self._real_ids = {
            len(vocab) + number: ids[f"<0x{ord(character):02X}>"] for number, character in enumerate(missing)
        }
        vocab += [[character, least - _UNKNOWN_PENALTY] for character in missing]
        self._backend = _open(json.dumps({**content, "model": {**content["model"], "vocab": vocab}}))

    @classmethod
    def of(cls, definition: str) -> _ByteNames | None:
        """For a tokenizer that would find these names in a text; None for any other."""
        content = json.loads(definition)
        model = content["model"]
        if not model.get("byte_fallback") or isinstance(model["vocab"], dict):
            return None
        # SentencePiece has all of them or none.
        names = {f"<0x{byte:02X}>" for byte in range(256)}
        return cls(content) if names <= {piece for piece, _ in model["vocab"]} else None

    def are_in(self, text: str) -> bool:
        """Whether a text spells one, as the model gets to see it."""
        normalizer = self._backend.normalizer
        return _BYTE_NAME.search(normalizer.normalize_str(text) if normalizer else text) is not None

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [self._real_ids.get(id_, id_) for id_ in ids]


def _ids_of(description: TokenizerDescription, name: str, *, wanted: bool) -> array[int]:
    id_ = description.special_ids[name]
    assert not wanted or id_ is not None, name
    return array("I", [id_] if wanted and id_ is not None else [])
