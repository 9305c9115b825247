"""Re-weighting at read time: how often each row comes, over one epoch and over several."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.manifest import read_shard_manifest
from tests.shard_fixtures import make_rows, write_shards
from tests.trainer.conftest import loss_columns
from trainer.component_weights import WeightedRows, rows_per_epoch
from trainer.shard_dataset import ShardDataset
from trainer.step_loader import StepLoader


class Killed(BaseException):
    """Stands for a process that is gone at once: nothing of the trainer catches it."""


class Rows:
    """What `WeightedRows` asks of a dataset; the rows of a component are named, not numbered."""

    def __init__(self, num_rows_by_component):
        self.num_rows_by_component = num_rows_by_component

    def row_number_in(self, component, index):
        assert 0 <= index < self.num_rows_by_component[component]
        return component, index


def epoch_of(rows, epoch):
    return Counter(rows.row_number(number, epoch=epoch) for number in range(len(rows)))


def test_two_and_a_half_times_is_every_row_twice_and_half_of_them_once_more():
    rows = WeightedRows(Rows({"augmented": 4, "raw": 6}), weights={"raw": 2.5, "augmented": 0.5}, seed=0)
    assert len(rows) == 15 + 2
    counts = epoch_of(rows, 0)
    assert sorted(counts[("raw", index)] for index in range(6)) == [2, 2, 2, 3, 3, 3]
    assert sorted(counts[("augmented", index)] for index in range(4)) == [0, 0, 1, 1]
    # The next epoch takes the other half.
    both = counts + epoch_of(rows, 1)
    assert [both[("raw", index)] for index in range(6)] == [5] * 6
    assert [both[("augmented", index)] for index in range(4)] == [1] * 4


def test_zero_leaves_a_component_out_and_one_keeps_it():
    rows = WeightedRows(Rows({"chat": 3, "raw": 5}), weights={"chat": 0}, seed=0)
    assert epoch_of(rows, 3) == Counter({("raw", index): 1 for index in range(5)})


@given(
    st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 9), st.integers(0, 35)), min_size=1),
    st.integers(0, 5),
    st.integers(1, 6),
)
@settings(max_examples=80)
def test_counts_are_exact_to_one_row_in_each_epoch_and_over_many(components, seed, num_epochs):
    """Weights are tenths, so that the oracle can be exact."""
    num_rows = {name: count for name, (count, _) in components.items()}
    weights = {name: tenths / 10 for name, (_, tenths) in components.items()}
    exact = {name: Fraction(tenths, 10) * count for name, (count, tenths) in components.items()}
    if all(value < Fraction(1, 2) for value in exact.values()):
        with pytest.raises(ValueError, match="leaves no row"):
            rows_per_epoch(num_rows, weights=weights)
        return
    rows = WeightedRows(Rows(num_rows), weights=weights, seed=seed)
    total = Counter()
    for epoch in range(num_epochs):
        counts = epoch_of(rows, epoch)
        total += counts
        for name in num_rows:
            of_component = [counts[(name, index)] for index in range(num_rows[name])]
            assert abs(sum(of_component) - exact[name]) <= Fraction(1, 2)
            assert max(of_component, default=0) - min(of_component, default=0) <= 1
    for name in num_rows:
        of_component = [total[(name, index)] for index in range(num_rows[name])]
        assert max(of_component, default=0) - min(of_component, default=0) <= 1


def test_half_a_row_counts_as_one():
    assert rows_per_epoch({"a": 1, "b": 3, "c": 5}, weights={"a": 0.5, "b": 0.5, "c": 0.5}) == {"a": 1, "b": 2, "c": 3}


def test_which_rows_come_more_often_follows_from_the_seed():
    def extra(seed):
        rows = WeightedRows(Rows({"raw": 40}), weights={"raw": 1.5}, seed=seed)
        return {row for row, count in epoch_of(rows, 0).items() if count == 2}

    assert extra(0) == extra(0) != extra(1)
    # Not the first half either: the rows of a shard lie together.
    assert extra(0) != {("raw", index) for index in range(20)}


def test_names_that_are_no_component_are_listed_with_those_that_are():
    with pytest.raises(ValueError, match=r"names 'rew', 'x'; the shards have the components 'chat', 'raw'"):
        rows_per_epoch({"raw": 1, "chat": 1}, weights={"rew": 1.0, "x": 2.0})


def test_numbers_outside_an_epoch_are_refused():
    rows = WeightedRows(Rows({"raw": 3}), weights={"raw": 2}, seed=0)
    for number in (-1, 6):
        with pytest.raises(IndexError, match="not in range"):
            rows.row_number(number, epoch=0)


def test_finds_the_rows_of_a_component_in_all_shards(tmp_path):
    rows = [*make_rows(7, component="raw"), *make_rows(5, component="chat")]
    mixed = [rows[index] for index in (0, 7, 1, 8, 2, 3, 9, 10, 4, 5, 11, 6)]
    folder = str(tmp_path / "shards")
    write_shards(folder, {"train": [mixed[:5], mixed[5:]]}, tokenizer_folder="tokenizer", tokenizer_sha256="0")
    dataset = ShardDataset(folder, manifest=read_shard_manifest(folder), split="train")
    weighted = WeightedRows(dataset, weights={"chat": 2, "raw": 0}, seed=0)
    chat = [number for number, row in enumerate(mixed) if row.component == "chat"]
    assert epoch_of(weighted, 0) == Counter(dict.fromkeys(chat, 2))


def test_a_run_counts_weighted_rows_and_goes_on_among_them(pretrain, tmp_path, monkeypatch):
    # 14 raw rows and 7 instructions: 7 and 14 with these weights, in 6 steps of up to 4 rows an epoch.
    options = ("--data.component_weights", '{"raw": 0.5, "instructions": 2.0}', "--checkpoint.every_steps", "2")
    assert pretrain(tmp_path / "whole", *options) == 0
    original = StepLoader.step

    def step_or_die(self, position):
        if position.step == 9:
            raise Killed
        return original(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(StepLoader, "step", step_or_die)
        with pytest.raises(Killed):
            pretrain(tmp_path / "killed", *options)
    assert pretrain(tmp_path / "killed", *options) == 0
    records = loss_columns(tmp_path / "whole")
    assert loss_columns(tmp_path / "killed") == records
    assert [record["rows"] for record in records][4:8] == [20, 21, 25, 29]
    assert [record["epoch"] for record in records][5::6] == [1.0, 2.0]


def test_other_weights_are_another_run(pretrain, tmp_path, capsys):
    assert pretrain(tmp_path, "--data.component_weights", '{"raw": 2}', "--max_steps", "1") == 0
    assert pretrain(tmp_path, "--data.component_weights", '{"raw": 3}', "--max_steps", "1") == 2
    assert "component_weights" in capsys.readouterr().err
    assert pretrain(tmp_path / "other", "--data.component_weights", '{"law": 3}') == 2
    assert "the shards have the components 'instructions', 'raw'" in capsys.readouterr().err
