"""Tokenizes texts that say which of their characters are targets.

Such a text is written for the model to the last character: its BOS and EOS stand in it as strings and are read as the
tokens they are, and what merely looks like them in the data was escaped when it was rendered. Where the tokenizer's EOS
is another token than the one the text ends in, it may be added as one more target, so that a model learns to stop.

A model meets a prompt and what it writes behind it as two strings, encoded one by one; many tokenizers would join
characters across that seam (the blank line behind a context is one token at the end of a prompt, two in front of
``<QUE>``). Where a tokenizer does so, the text is encoded in pieces that begin with the spans, so that a model is tuned
on the very tokens that it will see. Where it does not, as SentencePiece models, the ids are those of the whole text: a
piece of its own would get such a model's leading space.

Offsets cost about a third more time than ids alone.

Not done here: names of bytes (``<0x41>``) in the data as plain text, for Unigram models with byte fallback.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beam_pipelines.loss_spans import loss_span_tokens
from synth_model.wire_format import render_context


class SpanTokenizer:
    """Encodes texts with their loss spans.

    Args:
        definition: The tokenizer as the ``tokenizers`` library writes it (``Tokenizer.to_str()``).
        eos_id: Closes a text that does not end in it; None adds nothing.
    """

    def __init__(self, definition: str, *, eos_id: int | None) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(definition)
        self._backend.encode_special_tokens = False
        self._backend.no_truncation()
        self._backend.no_padding()
        self._eos_id = eos_id
        self._joins_at_seams = self._has_other_tokens_when_joined(render_context("A text."), "<QUE> Q? <ANS> A. </END>")

    def _has_other_tokens_when_joined(self, prompt: str, completion: str) -> bool:
        ids: list[int] = self._backend.encode(prompt, add_special_tokens=False).ids
        joined: list[int] = self._backend.encode(prompt + completion, add_special_tokens=False).ids
        return joined[: len(ids)] != ids

    def encode(
        self, texts: Sequence[str], *, spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[tuple[NDArray[np.uint32], NDArray[np.int32]]]:
        """Ids and targets of each text.

        Args:
            texts: The texts.
            spans: For each text half-open ranges of characters.

        Returns:
            For each text its ids, uint32 of shape (num_tokens,), and its half-open ranges of tokens, int32 of shape
            (num_spans, 2).
        """
        cuts = [self._cuts(text, spans=of_text) for text, of_text in zip(texts, spans, strict=True)]
        pieces = [
            text[start:end]
            for text, of_text in zip(texts, cuts, strict=True)
            for start, end in itertools.pairwise(of_text)
        ]
        encodings = iter(self._backend.encode_batch(pieces, add_special_tokens=False))
        encoded = []
        for of_text, cuts_of_text in zip(spans, cuts, strict=True):
            ids: list[NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
            offsets: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
            for start in cuts_of_text[:-1]:
                encoding = next(encodings)
                ids.append(np.array(encoding.ids, np.uint32))
                offsets.append(np.array(encoding.offsets, np.int64).reshape(-1, 2) + start)
            targets = loss_span_tokens(np.concatenate(offsets), spans=of_text)
            encoded.append(self._closed(np.concatenate(ids), targets))
        return encoded

    def count(self, texts: Sequence[str], *, spans: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
        """Tokens of each text as `encode` gives them."""
        return [len(ids) for ids, _ in self.encode(texts, spans=spans)]

    def _cuts(self, text: str, *, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Where the pieces of a text begin, and its end."""
        starts = [start for start, _ in spans if start] if self._joins_at_seams else []
        return [0, *starts, len(text)]

    def _closed(
        self, ids: NDArray[np.uint32], spans: NDArray[np.int32]
    ) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
        num_tokens = len(ids)
        if self._eos_id is None or not num_tokens or ids[-1] == self._eos_id:
            return ids, spans
        ids = np.append(ids, np.uint32(self._eos_id))
        if len(spans) and spans[-1, 1] == num_tokens:
            return ids, np.concatenate([spans[:-1], [[spans[-1, 0], num_tokens + 1]]]).astype(np.int32)
        return ids, np.concatenate([spans, [[num_tokens, num_tokens + 1]]]).astype(np.int32)
