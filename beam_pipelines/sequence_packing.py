"""Decides which part of which text stands in which row: packing as arithmetic on lengths, before any token is moved.

Two strategies. ``concatenate`` puts the texts one behind the other and cuts the stream every ``sequence_length``
tokens, as in GPT-2/GPT-3 pre-training and in the paper: no padding but in the last row, and a text is cut wherever a
row ends. ``best_fit`` keeps every text that fits a row whole: pieces are taken longest first, and each goes to the row
with the least room that still holds it (best-fit-decreasing bin packing).

Best fit without a search: a piece's length and a row's room are both at most ``sequence_length``, so rows are kept in
one queue for each room, and an integer with one bit for each queue that is not empty gives the tightest one by bit
arithmetic. Pieces of one length are placed together: a row with the least room stays the tightest until nothing more
of that length fits, so that whole queues are filled at once. The result is that of placing piece by piece.

Cost: O(n log n) for the sort of n texts, and at most n steps of O(sequence_length / 64), usually far fewer; a million
texts take about a second. Memory: about 100 bytes a piece.

Not done here: the order of texts (the caller's) and of rows among components (`beam_pipelines.shard_writing`).

Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830), sections 2 and 3.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PackingStrategy = Literal["concatenate", "best_fit"]
LongTexts = Literal["continue", "cut"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowPlan:
    """Rows as pieces of texts. The pieces of row r are those from ``row_offsets[r]`` to ``row_offsets[r + 1]``.

    Args:
        piece_text: int64, shape (num_pieces,): index of the text in the lengths that were given. In a row it ascends.
        piece_start: int64, the same shape: first token of the piece in its text.
        piece_length: int64, the same shape: tokens of the piece, at least 1.
        row_offsets: int64, shape (num_rows + 1,): from 0 to num_pieces, strictly ascending.
        num_tokens: Tokens in the rows.
        num_padding_tokens: What the rows hold beyond them.
        num_truncations: Texts that do not stand whole in one row: cut where a row ends, shortened to the length of a
            row, or cut where the tokens asked for end.
        num_dropped_tokens: Tokens of the texts taken that stand in no row.
    """

    piece_text: NDArray[np.int64]
    piece_start: NDArray[np.int64]
    piece_length: NDArray[np.int64]
    row_offsets: NDArray[np.int64]
    num_tokens: int
    num_padding_tokens: int
    num_truncations: int
    num_dropped_tokens: int

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.row_offsets) - 1


def pack_rows(
    lengths: NDArray[np.int64],
    *,
    sequence_length: int,
    strategy: PackingStrategy,
    long_texts: LongTexts,
    num_tokens: int | None = None,
) -> RowPlan:
    """Plans the rows of texts of one component.

    Args:
        lengths: int64, shape (num_texts,): tokens of each text, at least 1, in the order in which they are taken; a
            text that is taken twice stands there twice.
        sequence_length: Tokens a row.
        strategy: ``concatenate`` cuts whatever crosses a row's end; ``best_fit`` cuts only texts longer than a row.
        long_texts: What becomes of a text longer than a row: with ``continue`` what follows its first
            ``sequence_length`` tokens goes on in another row (with ``best_fit`` as if it were a text of its own); with
            ``cut`` it is dropped.
        num_tokens: Tokens to take, at most as many as there are: what follows is not taken, and the text in the
            middle of which they end is cut there. None takes all. With ``long_texts="cut"`` a text counts as
            ``sequence_length`` tokens at most.

    Returns:
        The plan. With ``concatenate`` rows are in the order of the stream; with ``best_fit`` in the order in which
        they were begun, longest first.
    """
    assert lengths.ndim == 1, lengths.shape
    assert (lengths > 0).all(), "a text has no token"
    taken = np.minimum(lengths, sequence_length) if long_texts == "cut" else lengths.astype(np.int64)
    ends = np.cumsum(taken)
    if num_tokens is not None:
        assert 0 <= num_tokens <= (ends[-1] if len(ends) else 0), num_tokens
        num_taken = int(np.searchsorted(ends, num_tokens)) + 1 if num_tokens else 0
        ends = np.minimum(ends[:num_taken], num_tokens)
        taken = np.diff(ends, prepend=0)
    # Where a text's piece with number i ends: at a multiple of the row's length, counted from the beginning of the
    # stream or of the text itself.
    offsets = (ends - taken) % sequence_length if strategy == "concatenate" else np.zeros_like(taken)
    pieces_of_text = -(-(offsets + taken) // sequence_length)
    text = np.repeat(np.arange(len(taken)), pieces_of_text)
    number = np.arange(len(text)) - np.repeat(np.cumsum(pieces_of_text) - pieces_of_text, pieces_of_text)
    start = np.maximum(number * sequence_length - offsets[text], 0)
    length = np.minimum((number + 1) * sequence_length - offsets[text], taken[text]) - start
    if strategy == "concatenate":
        row = (ends - taken)[text] // sequence_length + number
    else:
        row = _best_fit_rows(length, sequence_length=sequence_length)
    by_row = np.argsort(row, kind="stable")
    row_offsets = np.concatenate([[0], np.cumsum(np.bincount(row))]) if len(row) else np.zeros(1, np.int64)
    num_placed = int(taken.sum())
    return RowPlan(
        piece_text=text[by_row],
        piece_start=start[by_row],
        piece_length=length[by_row],
        row_offsets=row_offsets,
        num_tokens=num_placed,
        num_padding_tokens=(len(row_offsets) - 1) * sequence_length - num_placed,
        num_truncations=int(((pieces_of_text > 1) | (taken < lengths[: len(taken)])).sum()),
        num_dropped_tokens=int(lengths[: len(taken)].sum()) - num_placed,
    )


def _best_fit_rows(lengths: NDArray[np.int64], *, sequence_length: int) -> NDArray[np.int64]:
    """The row of each piece by best-fit-decreasing.

    Pieces of equal length are taken in their order. Among rows with the same room the one that has had it for longest
    comes first; a new row is begun when no other has room.
    """
    row_of_piece = np.zeros(len(lengths), np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    rooms = _Rooms()
    num_rows = position = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = position + count
        while position < end:
            room = rooms.tightest(size)
            if room is None:
                room = sequence_length
                num_needed = -(-(end - position) // (room // size))
                rooms.add(room, np.arange(num_rows, num_rows + num_needed))
                num_rows += num_needed
            num_fitting = room // size
            rows = rooms.take(room, max_rows=-(-(end - position) // num_fitting))
            num_placed = min(len(rows) * num_fitting, end - position)
            row_of_piece[longest_first[position : position + num_placed]] = np.repeat(rows, num_fitting)[:num_placed]
            position += num_placed
            num_in_last = num_placed - (len(rows) - 1) * num_fitting
            rooms.add(room - num_fitting * size, rows[:-1])
            rooms.add(room - num_in_last * size, rows[-1:])
    return row_of_piece


class _Rooms:
    """Rows by the room that is left in them, each room a queue; full rows are forgotten."""

    def __init__(self) -> None:
        self._queues: defaultdict[int, deque[NDArray[np.int64]]] = defaultdict(deque)
        # Bit r is set when some row has room r.
        self._occupied = 0

    def tightest(self, size: int) -> int | None:
        """The least room of at least ``size`` that some row has."""
        large_enough = self._occupied >> size
        return size + (large_enough & -large_enough).bit_length() - 1 if large_enough else None

    def add(self, room: int, rows: NDArray[np.int64]) -> None:
        """Puts rows at the end of the queue of a room."""
        if room and len(rows):
            self._queues[room].append(rows)
            self._occupied |= 1 << room

    def take(self, room: int, *, max_rows: int) -> NDArray[np.int64]:
        """Takes one run of rows, at most so many, from the front of the queue of a room."""
        queue = self._queues[room]
        rows = queue.popleft()
        if len(rows) > max_rows:
            queue.appendleft(rows[max_rows:])
        if not queue:
            self._occupied &= ~(1 << room)
        return rows[:max_rows]
