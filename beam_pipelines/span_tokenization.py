"""Tokenizes texts that say which of their characters are targets.

Such a text is written for the model to the last character: its BOS and EOS stand in it as strings and are read as the
tokens they are, and what merely looks like them in the data was escaped when it was rendered. Where the tokenizer's EOS
is another token than the one the text ends in, it may be added as one more target, so that a model learns to stop.

The ids are those of the whole text, as the engines encode prompts. Offsets cost about a third more time than ids alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from beam_pipelines.loss_spans import loss_span_tokens


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
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            self._closed(
                np.array(encoding.ids, np.uint32),
                loss_span_tokens(np.array(encoding.offsets, np.int64).reshape(-1, 2), spans=of_text),
            )
            for encoding, of_text in zip(encodings, spans, strict=True)
        ]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as `encode` gives them."""
        return [len(ids) for ids, _ in self.encode(texts, spans=[()] * len(texts))]

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
