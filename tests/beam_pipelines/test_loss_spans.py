import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.loss_spans import loss_span_tokens, row_loss_spans


def tokens_of(offsets, spans):
    return loss_span_tokens(np.array(offsets, np.int64).reshape(-1, 2), spans=spans).tolist()


def test_a_token_is_a_target_with_all_of_its_characters():
    offsets = [(0, 3), (3, 5), (5, 6), (6, 9), (9, 10)]
    assert tokens_of(offsets, [(3, 6)]) == [[1, 3]]
    # The third token ends behind the span, the first begins before it.
    assert tokens_of(offsets, [(2, 8)]) == [[1, 3]]
    assert tokens_of(offsets, [(0, 3), (6, 10)]) == [[0, 1], [3, 5]]
    assert tokens_of(offsets, [(4, 5)]) == []
    assert tokens_of(offsets, []) == []
    assert tokens_of([], [(0, 4)]) == []


def test_the_bytes_of_one_character_are_targets_together():
    assert tokens_of([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], [(1, 2)]) == [[1, 4]]


@given(
    cuts=st.lists(st.integers(1, 5), max_size=20),
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4),
)
def test_against_a_walk_over_the_characters(cuts, spans):
    ends = np.cumsum(cuts, dtype=int)
    offsets = [(int(end) - cut, int(end)) for cut, end in zip(cuts, ends, strict=True)]
    expected = [
        index
        for index, (start, end) in enumerate(offsets)
        if any(all(first <= character < last for character in range(start, end)) for first, last in spans)
    ]
    found = tokens_of(offsets, spans)
    assert [token for start, end in found for token in range(start, end)] == expected
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(found))


def as_spans(mask):
    return np.array([[index, index + 1] for index in np.flatnonzero(mask)], np.int32).reshape(-1, 2)


@given(data=st.data())
def test_spans_of_a_row_are_those_of_its_tokens(data):
    masks = data.draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=10), max_size=5))
    starts = [data.draw(st.integers(0, len(mask) - 1)) for mask in masks]
    lengths = [data.draw(st.integers(1, len(mask) - start)) for mask, start in zip(masks, starts, strict=True)]
    expected = [
        flag
        for mask, start, length in zip(masks, starts, lengths, strict=True)
        for flag in mask[start : start + length]
    ]
    found = row_loss_spans(
        [as_spans(mask) for mask in masks], starts=np.array(starts, np.int64), lengths=np.array(lengths, np.int64)
    )
    assert found.dtype == np.int32
    marked = np.zeros(sum(lengths), bool)
    for start, end in found:
        assert start < end
        marked[start:end] = True
    assert marked.tolist() == expected


def test_a_span_that_reaches_over_both_ends_of_a_piece():
    spans = [np.array([[2, 9]], np.int32), np.array([[0, 1], [3, 8]], np.int32)]
    found = row_loss_spans(spans, starts=np.array([4, 2]), lengths=np.array([3, 4]))
    assert found.tolist() == [[0, 3], [4, 7]]
