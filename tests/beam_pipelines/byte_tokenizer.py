"""A tokenizer whose ids are the bytes of a text, so that expected rows can be written down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beam_pipelines.text_tokenization import TokenizedTexts, TokenizerDescription
from contracts.records import RenderedText

DESCRIPTION = TokenizerDescription(
    name="bytes", sha256="0", vocab_size=257, special_ids={"bos": None, "eos": None, "pad": 256}
)


class ByteTokenizer:
    """One token a byte."""

    description = DESCRIPTION

    def encode(self, texts: Sequence[RenderedText]) -> TokenizedTexts:
        """As `beam_pipelines.text_tokenization.TextTokenizer.encode`."""
        kept = [text for text in texts if text.text]
        data = [text.text.encode() for text in kept]
        return TokenizedTexts(
            texts=kept,
            ids=np.frombuffer(b"".join(data), np.uint8).astype(np.uint32),
            lengths=np.array([len(one) for one in data], np.int64),
            empty=[text for text in texts if not text.text],
        )
