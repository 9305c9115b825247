"""`pack_rows`: which part of which text stands in which row."""

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.sequence_packing import pack_rows
from contracts.seeding import rng

LENGTHS = st.lists(st.integers(1, 30), max_size=40)
SEQUENCE_LENGTHS = st.integers(2, 20)
STRATEGIES = st.sampled_from(["concatenate", "best_fit"])
LONG_TEXTS = st.sampled_from(["continue", "cut"])


def plan(lengths, *, sequence_length, strategy="best_fit", long_texts="continue", num_tokens=None):
    return pack_rows(
        np.array(lengths, np.int64),
        sequence_length=sequence_length,
        strategy=strategy,
        long_texts=long_texts,
        num_tokens=num_tokens,
    )


def pieces(plan):
    """The rows, each a list of (text, start, length)."""
    triples = list(zip(plan.piece_text.tolist(), plan.piece_start.tolist(), plan.piece_length.tolist(), strict=True))
    offsets = plan.row_offsets.tolist()
    assert (offsets[0], offsets[-1]) == (0, len(triples))
    return [triples[start:end] for start, end in itertools.pairwise(offsets)]


def test_best_fit_worked_by_hand():
    # Longest first: 7 begins row 0 (room 3), 5 row 1 (room 5), 4 fits only row 1 (room 1), 3 fills row 0, the 2 begins
    # row 2, and 1 goes to the room of 1 in row 1, not to the room of 8.
    packed = plan([3, 4, 7, 1, 5, 2], sequence_length=10)
    assert pieces(packed) == [[(0, 0, 3), (2, 0, 7)], [(1, 0, 4), (3, 0, 1), (4, 0, 5)], [(5, 0, 2)]]
    assert (packed.num_rows, packed.num_tokens, packed.num_padding_tokens) == (3, 22, 8)
    assert (packed.num_truncations, packed.num_dropped_tokens) == (0, 0)


def test_only_a_text_longer_than_a_row_is_cut_and_its_rest_is_packed_like_a_text():
    packed = plan([3, 23, 6], sequence_length=10)
    assert pieces(packed) == [[(1, 0, 10)], [(1, 10, 10)], [(0, 0, 3), (2, 0, 6)], [(1, 20, 3)]]
    assert (packed.num_truncations, packed.num_dropped_tokens, packed.num_padding_tokens) == (1, 0, 8)


def test_a_text_longer_than_a_row_may_be_cut_instead():
    for strategy, rows in (
        ("best_fit", [[(1, 0, 10)], [(0, 0, 3), (2, 0, 6)]]),
        ("concatenate", [[(0, 0, 3), (1, 0, 7)], [(1, 7, 3), (2, 0, 6)]]),
    ):
        packed = plan([3, 23, 6], sequence_length=10, strategy=strategy, long_texts="cut")
        assert pieces(packed) == rows
        assert (packed.num_tokens, packed.num_dropped_tokens, packed.num_truncations) == (19, 13, 1)


def test_concatenation_worked_by_hand():
    packed = plan([3, 4, 2], sequence_length=4, strategy="concatenate")
    assert pieces(packed) == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 3), (2, 0, 1)], [(2, 1, 1)]]
    assert (packed.num_truncations, packed.num_padding_tokens, packed.num_dropped_tokens) == (2, 3, 0)


def test_fewer_truncations_than_by_concatenation():
    """The paper's point: every text fits a row, and yet concatenation cuts one wherever a row ends."""
    lengths = [6, 7, 5, 4, 5, 3]
    cut = plan(lengths, sequence_length=10, strategy="concatenate")
    whole = plan(lengths, sequence_length=10)
    assert (cut.num_rows, cut.num_truncations) == (3, 2)
    assert (whole.num_rows, whole.num_truncations, whole.num_padding_tokens) == (3, 0, 0)


def test_no_texts_and_no_tokens_make_no_rows():
    for strategy in ("concatenate", "best_fit"):
        for packed in (
            plan([], sequence_length=4, strategy=strategy),
            plan([3], sequence_length=4, strategy=strategy, num_tokens=0),
        ):
            assert (packed.num_rows, len(packed.piece_text), packed.num_padding_tokens) == (0, 0, 0)


def naive_best_fit(lengths, *, sequence_length):
    """Piece after piece, every row looked at: rows as lists of pieces. The oldest of equal rooms comes first."""
    chunks = [
        (index, start, min(sequence_length, length - start))
        for index, length in enumerate(lengths)
        for start in range(0, length, sequence_length)
    ]
    rows, last_change = [], []
    for clock, chunk in enumerate(sorted(chunks, key=lambda chunk: -chunk[2])):
        rooms = [sequence_length - sum(length for *_, length in row) for row in rows]
        fitting = [number for number, room in enumerate(rooms) if room >= chunk[2]]
        if not fitting:
            rows.append([])
            last_change.append(0)
            fitting, rooms = [len(rows) - 1], [*rooms, sequence_length]
        chosen = min(fitting, key=lambda number: (rooms[number], last_change[number]))
        rows[chosen].append(chunk)
        last_change[chosen] = clock
    return [sorted(row) for row in rows]


@given(lengths=LENGTHS, sequence_length=SEQUENCE_LENGTHS)
def test_best_fit_equals_a_search_over_all_rows(lengths, sequence_length):
    assert pieces(plan(lengths, sequence_length=sequence_length)) == naive_best_fit(
        lengths, sequence_length=sequence_length
    )


def test_best_fit_equals_the_search_on_a_larger_case():
    lengths = np.maximum(1, rng(0, "lengths").lognormal(3.5, 1.0, 400)).astype(np.int64)
    packed = pieces(plan(lengths, sequence_length=128))
    assert packed == naive_best_fit(lengths.tolist(), sequence_length=128)
    assert any(len(row) > 4 for row in packed)


def naive_concatenation(lengths, *, sequence_length):
    stream = [(index, token) for index, length in enumerate(lengths) for token in range(length)]
    rows = [stream[start : start + sequence_length] for start in range(0, len(stream), sequence_length)]
    return [
        [
            (index, min(token for i, token in row if i == index), count)
            for index, count in Counter(index for index, _ in row).items()
        ]
        for row in rows
    ]


@given(lengths=LENGTHS, sequence_length=SEQUENCE_LENGTHS)
def test_concatenation_equals_cutting_a_stream_of_tokens(lengths, sequence_length):
    packed = plan(lengths, sequence_length=sequence_length, strategy="concatenate")
    assert pieces(packed) == naive_concatenation(lengths, sequence_length=sequence_length)


@given(
    lengths=LENGTHS,
    sequence_length=SEQUENCE_LENGTHS,
    strategy=STRATEGIES,
    long_texts=LONG_TEXTS,
    share=st.none() | st.floats(0, 1),
)
def test_every_token_stands_once_and_the_counts_are_true(lengths, sequence_length, strategy, long_texts, share):
    available = [min(length, sequence_length) if long_texts == "cut" else length for length in lengths]
    num_tokens = None if share is None else int(share * sum(available))
    packed = plan(
        lengths, sequence_length=sequence_length, strategy=strategy, long_texts=long_texts, num_tokens=num_tokens
    )
    rows = pieces(packed)
    expected = sum(available) if num_tokens is None else num_tokens
    # The first so many tokens of the stream, each of them once.
    wanted = [(index, token) for index, length in enumerate(available) for token in range(length)][:expected]
    held = [(index, start + token) for row in rows for index, start, length in row for token in range(length)]
    assert sorted(held) == wanted
    assert packed.num_tokens == expected
    assert all(0 < sum(length for *_, length in row) <= sequence_length for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert packed.num_padding_tokens == len(rows) * sequence_length - expected
    touched = {index for index, _ in wanted}
    assert packed.num_dropped_tokens == sum(lengths[index] for index in touched) - expected
    whole = {(index, length) for row in rows for index, start, length in row if start == 0}
    assert packed.num_truncations == sum((index, lengths[index]) not in whole for index in touched)


@given(lengths=LENGTHS, sequence_length=SEQUENCE_LENGTHS)
def test_best_fit_leaves_no_text_cut_that_fits_a_row_and_no_two_rows_that_fit_one(lengths, sequence_length):
    packed = plan(lengths, sequence_length=sequence_length)
    assert packed.num_truncations == sum(length > sequence_length for length in lengths)
    used = sorted(sum(length for *_, length in row) for row in pieces(packed))
    assert len(used) < 2 or used[0] + used[1] > sequence_length


@pytest.mark.parametrize("sequence_length", [512, 2048, 8192])
def test_padding_is_under_a_tenth_of_a_percent_at_usual_lengths(sequence_length):
    lengths = np.maximum(1, rng(0, "usual lengths").lognormal(6.2, 1.1, 20_000)).astype(np.int64)
    packed = plan(lengths, sequence_length=sequence_length)
    assert packed.num_padding_tokens < 0.001 * packed.num_tokens
    assert packed.num_truncations == (lengths > sequence_length).sum()
    concatenated = plan(lengths, sequence_length=sequence_length, strategy="concatenate")
    # No packing can do with fewer rows than concatenation.
    assert concatenated.num_rows == math.ceil(lengths.sum() / sequence_length)
    assert packed.num_truncations < 0.7 * concatenated.num_truncations


def test_a_million_texts_take_seconds():
    lengths = np.maximum(1, rng(0, "many").lognormal(6.2, 1.1, 1_000_000)).astype(np.int64)
    started = time.process_time()
    packed = plan(lengths, sequence_length=2048)
    assert time.process_time() - started < 10
    assert packed.num_padding_tokens < 0.001 * packed.num_tokens
