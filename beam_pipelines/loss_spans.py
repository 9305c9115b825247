"""Which tokens of a text and of a row are targets, where that is not all of them.

A rendered text names ranges of characters; tokenizing turns them into ranges of tokens, and packing moves these to
where the text's pieces stand in their rows. A token is a target when it lies in a range with all of its characters: a
token that reaches from the last character of a response into what follows would teach to write that, too.

Cost: linear in the tokens, for each range of characters once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def loss_span_tokens(offsets: NDArray[np.int64], *, spans: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """The tokens of a text that are targets.

    Args:
        offsets: int64, shape (num_tokens, 2): half-open range of characters of each token.
        spans: Half-open ranges of characters.

    Returns:
        int32, shape (num_spans, 2): half-open ranges of tokens, ascending and apart.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    is_target = np.zeros(len(offsets), dtype=bool)
    for start, end in spans:
        is_target |= (start <= starts) & (ends <= end)
    changes = np.diff(np.concatenate([[False], is_target, [False]]).astype(np.int8))
    return np.flatnonzero(changes).reshape(-1, 2).astype(np.int32)


def row_loss_spans(
    spans: Sequence[NDArray[np.int32]], *, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int32]:
    """The loss spans of a row.

    Args:
        spans: For each piece of the row the spans of its text, each int32 of shape (num_spans, 2), in tokens.
        starts: int64, shape (num_pieces,): first token of each piece in its text.
        lengths: int64, shape (num_pieces,): tokens of each piece.

    Returns:
        int32, shape (num_spans, 2): half-open ranges of positions in the row, ascending.
    """
    positions = np.cumsum(lengths) - lengths
    moved = [
        np.clip(of_text, start, start + length) - start + position
        for of_text, start, length, position in zip(spans, starts, lengths, positions, strict=True)
    ]
    joined = np.concatenate(moved) if moved else np.zeros((0, 2), np.int32)
    return joined[joined[:, 0] < joined[:, 1]].astype(np.int32)
