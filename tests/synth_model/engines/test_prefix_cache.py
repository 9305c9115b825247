import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_model.engines.prefix_cache import PrefixCache, num_common_tokens


def array(*tokens):
    return np.array(tokens, dtype=np.int64)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 3), 2), ((1,), (2,), 0), ((), (1,), 0), ((5, 6), (5, 6), 2)],
)
def test_what_two_sequences_begin_with(first, second, length):
    assert num_common_tokens(array(*first), array(*second)) == length
    assert num_common_tokens(array(*second), array(*first)) == length


def test_the_longest_beginning_is_found():
    cache = PrefixCache(max_bytes=100)
    cache.put(array(1, 2, 9, 9, 9), "long", num_bytes=10)
    cache.put(array(1, 2, 3, 8), "near", num_bytes=10)
    assert cache.find(array(1, 2, 3, 4, 5)) == (3, "near")
    assert cache.find(array(1, 2, 9)) == (3, "long")
    # Of equally good ones the one that was used last.
    assert cache.find(array(1, 2)) == (2, "long")
    assert cache.find(array(7, 1, 2)) == (0, None)
    assert cache.find(array()) == (0, None)


def test_what_was_not_used_for_longest_goes_first():
    cache = PrefixCache(max_bytes=30)
    for token in (1, 2, 3):
        cache.put(array(token, 0), token, num_bytes=10)
    cache.find(array(1))
    cache.put(array(4, 0), 4, num_bytes=15)
    assert [cache.find(array(token))[1] for token in (1, 2, 3, 4)] == [1, None, None, 4]
    assert cache.num_bytes == 25


def test_an_entry_takes_the_place_of_what_it_contains():
    cache = PrefixCache(max_bytes=30)
    cache.put(array(1, 2), "round 1", num_bytes=10)
    cache.put(array(5), "other", num_bytes=10)
    cache.put(array(1, 2, 3), "round 2", num_bytes=20)
    assert len(cache) == 2
    assert cache.find(array(1, 2)) == (2, "round 2")
    assert cache.find(array(5)) == (1, "other")


def test_what_is_too_large_is_not_kept_and_costs_nothing():
    cache = PrefixCache(max_bytes=10)
    cache.put(array(1), "fits", num_bytes=10)
    cache.put(array(2), "does not", num_bytes=11)
    assert cache.find(array(1)) == (1, "fits")
    nothing = PrefixCache(max_bytes=0)
    nothing.put(array(1), "x", num_bytes=1)
    assert (len(nothing), nothing.num_bytes) == (0, 0)


SEQUENCES = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
STEPS = st.lists(st.tuples(st.booleans(), SEQUENCES, st.integers(1, 12)), max_size=30)


@given(STEPS, st.integers(0, 40))
def test_it_does_what_a_list_in_order_of_use_does(steps, max_bytes):
    cache = PrefixCache(max_bytes=max_bytes)
    # Least recently used first: tokens and bytes.
    entries = []
    for is_put, tokens, num_bytes in steps:
        if is_put:
            cache.put(array(*tokens), tokens, num_bytes=num_bytes)
            if num_bytes <= max_bytes:
                entries = [entry for entry in entries if tokens[: len(entry[0])] != entry[0]]
                while sum(size for _, size in entries) + num_bytes > max_bytes:
                    entries.pop(0)
                entries.append((tokens, num_bytes))
        else:
            common = [num_common_tokens(array(*tokens), array(*entry)) for entry, _ in entries]
            longest = max(common, default=0)
            expected = None
            if longest:
                place = max(index for index, length in enumerate(common) if length == longest)
                expected = entries[place][0]
                entries.append(entries.pop(place))
            assert cache.find(array(*tokens)) == (longest, expected)
        assert cache.num_bytes == sum(size for _, size in entries) <= max_bytes
        assert len(cache) == len(entries)
