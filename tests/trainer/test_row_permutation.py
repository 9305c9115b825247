import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.seeding import stable_hash
from trainer.row_permutation import RowPermutation


def rows(num_rows, *, seed=0, name="train", epoch=0):
    permutation = RowPermutation(num_rows, seed=seed, name=name, epoch=epoch)
    return [permutation[position] for position in range(num_rows)]


@given(num_rows=st.integers(1, 400), seed=st.integers(0, 2**63), epoch=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_row_comes_exactly_once(num_rows, seed, epoch):
    assert sorted(rows(num_rows, seed=seed, epoch=epoch)) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [10**6, 10**12 + 39])
def test_far_positions_of_large_ranges_are_distinct(num_rows):
    permutation = RowPermutation(num_rows, seed=1, name="train", epoch=0)
    positions = [*range(2000), *range(num_rows - 2000, num_rows)]
    seen = {permutation[position] for position in positions}
    assert len(seen) == len(positions)
    assert all(0 <= row < num_rows for row in seen)


def test_is_the_cycle_walk_of_a_table_built_from_the_definition():
    # The network written out over the whole product as a table, then walked: the definition, without any shortcut.
    num_rows, seed = 55, 7
    num_left, num_right = 8, 7
    key = stable_hash(seed, "row-permutation", "train", 3)
    table = {}
    for number in range(num_left * num_right):
        left, right = number // num_right, number % num_right
        for round_number in range(8):
            if round_number % 2 == 0:
                left = (left + stable_hash(key, round_number, right)) % num_left
            else:
                right = (right + stable_hash(key, round_number, left)) % num_right
        table[number] = left * num_right + right
    assert sorted(table.values()) == list(range(num_left * num_right))
    expected = []
    for position in range(num_rows):
        row = table[position]
        while row >= num_rows:
            row = table[row]
        expected.append(row)
    assert rows(num_rows, seed=seed, epoch=3) == expected


def test_seed_epoch_and_name_each_give_another_order():
    base = rows(200)
    for other in (rows(200, seed=1), rows(200, epoch=1), rows(200, name="validation")):
        # Two independent permutations agree at one position on average.
        assert sum(a == b for a, b in zip(base, other, strict=True)) < 10
    assert rows(200) == base


@pytest.mark.parametrize("num_rows", [2, 5, 16])
def test_every_row_is_equally_likely_at_every_position(num_rows):
    num_draws = 600
    counts = np.zeros((num_rows, num_rows))
    for seed in range(num_draws):
        for position, row in enumerate(rows(num_rows, seed=seed)):
            counts[position, row] += 1
    expected = num_draws / num_rows
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = (num_rows - 1) ** 2
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def test_refuses_what_is_out_of_range():
    permutation = RowPermutation(3, seed=0, name="train", epoch=0)
    assert len(permutation) == 3
    for position in (-1, 3):
        with pytest.raises(IndexError, match="not in range"):
            permutation[position]
    with pytest.raises(ValueError, match="at least one row"):
        RowPermutation(0, seed=0, name="train", epoch=0)
