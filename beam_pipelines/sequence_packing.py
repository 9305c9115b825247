"""Packs tokenized texts into rows of equal length by concatenation and chunking.

The texts of a component are put one behind the other and the stream is cut every ``sequence_length`` tokens, as in
GPT-2/GPT-3 pre-training and in the paper. A text that crosses a cut goes on in the next row as a segment of its own;
how many texts do is reported. When more tokens are asked for than the stream holds, it starts again in a new order, so
that every text is seen k or k + 1 times.

Cost: linear in the tokens written; memory: the rows of one component of one shard.

Source: concatenate-and-chunk as described in Ding et al. 2024 (arXiv 2404.10830), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_pipelines.text_tokenization import TokenizedText
from contracts.records import PackedRow
from contracts.seeding import stable_hash


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedComponent:
    """The rows of one component of one shard.

    Args:
        rows: The rows in stream order.
        num_tokens: Tokens in the rows, padding not counted.
        num_padding_tokens: Padding, all of it in the last row.
        num_truncations: Texts, counted each time they are taken, that do not stand whole in one row.
        num_dropped_tokens: Tokens of the last text that the last row did not hold.
    """

    rows: list[PackedRow]
    num_tokens: int
    num_padding_tokens: int
    num_truncations: int
    num_dropped_tokens: int


def concatenate_and_chunk(
    texts: Sequence[TokenizedText], *, num_tokens: int, sequence_length: int, pad_id: int, seed: int
) -> PackedComponent:
    """Packs exactly ``num_tokens`` tokens of texts of one component into as few rows as hold them.

    Args:
        texts: At least one text when ``num_tokens`` is above 0, in any order; each has at least one token.
        num_tokens: Tokens to take. The stream is repeated, newly ordered, until it holds them, and cut behind them.
        sequence_length: Tokens a row.
        pad_id: Fills what is left of the last row.
        seed: Orders the texts, anew in each epoch.
    """
    if not num_tokens:
        return PackedComponent(rows=[], num_tokens=0, num_padding_tokens=0, num_truncations=0, num_dropped_tokens=0)
    assert texts, "rows of no texts"
    component = texts[0].component
    num_rows = -(-num_tokens // sequence_length)
    capacity = num_rows * sequence_length
    taken: list[TokenizedText] = []
    num_taken = epoch = 0
    while num_taken < num_tokens:
        for text in _ordered(texts, epoch=epoch, seed=seed):
            if num_taken >= num_tokens:
                break
            taken.append(text)
            num_taken += text.num_tokens
        epoch += 1
    stream = np.full(capacity, pad_id, dtype=np.int64)
    stream[:num_tokens] = np.concatenate([text.token_ids() for text in taken])[:num_tokens]
    ends = np.minimum(np.cumsum([text.num_tokens for text in taken]), num_tokens)
    starts = np.concatenate([[0], ends[:-1]])
    is_whole = starts // sequence_length == (ends - 1) // sequence_length
    is_whole[-1] &= num_taken == num_tokens
    return PackedComponent(
        rows=[
            _row(stream, starts, ends, taken, index=index, sequence_length=sequence_length, component=component)
            for index in range(num_rows)
        ],
        num_tokens=num_tokens,
        num_padding_tokens=capacity - num_tokens,
        num_truncations=int((~is_whole).sum()),
        num_dropped_tokens=num_taken - num_tokens,
    )


def _ordered(texts: Sequence[TokenizedText], *, epoch: int, seed: int) -> list[TokenizedText]:
    # The ids break ties between texts that wrongly share an id, so that the order never depends on arrival.
    return sorted(
        texts,
        key=lambda text: (stable_hash(seed, "text order", epoch, text.component, text.text_id), text.text_id, text.ids),
    )


def _row(
    stream: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    texts: Sequence[TokenizedText],
    *,
    index: int,
    sequence_length: int,
    component: str,
) -> PackedRow:
    begin, end = index * sequence_length, (index + 1) * sequence_length
    first = int(np.searchsorted(ends, begin, side="right"))
    last = int(np.searchsorted(starts, end, side="left"))
    lengths = np.minimum(ends[first:last], end) - np.maximum(starts[first:last], begin)
    return PackedRow(
        input_ids=stream[begin:end],
        segment_lengths=lengths.astype(np.int32),
        component=component,
        text_ids=tuple(text.text_id for text in texts[first:last]),
    )
