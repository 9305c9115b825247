"""Which rows are validated on when there are more than one wants to wait for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.manifest import read_shard_manifest
from trainer.shard_dataset import ShardDataset
from trainer.validation import choose_validation_rows


class Rows:
    """Components one after the other, which is all that choosing asks about."""

    def __init__(self, **num_rows_by_component):
        self.num_rows_by_component = num_rows_by_component

    def __len__(self):
        return sum(self.num_rows_by_component.values())

    def row_number_in(self, component, index):
        assert 0 <= index < self.num_rows_by_component[component]
        first = 0
        for name, num_rows in self.num_rows_by_component.items():
            if name == component:
                return first + index
            first += num_rows
        raise AssertionError(component)

    def counts(self, rows):
        numbers = {
            name: {self.row_number_in(name, i) for i in range(n)} for name, n in self.num_rows_by_component.items()
        }
        return {name: len(own & set(rows)) for name, own in numbers.items()}


def test_each_component_gives_its_share():
    rows = Rows(a=600, b=300, c=100)
    chosen = choose_validation_rows(rows, max_rows=100, seed=0)
    assert rows.counts(chosen) == {"a": 60, "b": 30, "c": 10}


def test_a_small_component_gives_a_quarter_of_an_equal_share():
    rows = Rows(raw=9990, rare=10, tiny=2)
    assert rows.counts(choose_validation_rows(rows, max_rows=96, seed=0)) == {"raw": 86, "rare": 8, "tiny": 2}
    assert rows.counts(choose_validation_rows(rows, max_rows=3, seed=0)) == {"raw": 1, "rare": 1, "tiny": 1}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 60), min_size=1), st.integers(1, 120), st.integers(0, 3))
@settings(max_examples=100)
def test_as_many_as_asked_for_each_once_and_every_component_there(num_rows, max_rows, seed):
    rows = Rows(**num_rows)
    present = [name for name, count in num_rows.items() if count]
    if max_rows < len(rows) and max_rows < len(present):
        with pytest.raises(ValueError, match=f"max_rows is {max_rows}, but there are {len(present)} components"):
            choose_validation_rows(rows, max_rows=max_rows, seed=seed)
        return
    chosen = choose_validation_rows(rows, max_rows=max_rows, seed=seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(max_rows, len(rows))
    assert all(0 <= row < len(rows) for row in chosen)
    counts = rows.counts(chosen)
    fewest = max(1, max_rows // (4 * len(present))) if present else 0
    for name in present:
        assert counts[name] >= min(fewest, num_rows[name])
        # Nobody is more than a row behind its share, but for what the small ones got.
        for other in present:
            if counts[other] > fewest and counts[name] < num_rows[name]:
                assert (counts[other] - 1) / num_rows[other] < (counts[name] + 1) / num_rows[name]


def test_no_limit_takes_all_and_the_seed_decides_otherwise(shards):
    dataset = ShardDataset(shards, manifest=read_shard_manifest(shards), split="train")
    assert choose_validation_rows(dataset, max_rows=None, seed=0) == list(range(21))
    assert choose_validation_rows(dataset, max_rows=21, seed=0) == list(range(21))
    first = choose_validation_rows(dataset, max_rows=9, seed=0)
    assert first == choose_validation_rows(dataset, max_rows=9, seed=0)
    assert first != choose_validation_rows(dataset, max_rows=9, seed=1)
    assert sorted({dataset.row(row).component for row in first}) == ["instructions", "raw"]
