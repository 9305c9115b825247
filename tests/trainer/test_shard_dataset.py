import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contracts.manifest import read_shard_manifest
from contracts.records import PackedRow
from tests.shard_fixtures import VOCAB_SIZE, make_rows, write_shards
from trainer.loss import IGNORED_LABEL
from trainer.shard_dataset import ShardDataset, labels_of, positions_of

X = IGNORED_LABEL


def make_row(ids, lengths, spans=None):
    return PackedRow(
        input_ids=np.array(ids, np.int64),
        segment_lengths=np.array(lengths, np.int32),
        component="raw",
        text_ids=tuple(f"t{index}" for index in range(len(lengths))),
        loss_spans=None if spans is None else np.array(spans, np.int32).reshape(-1, 2),
    )


def test_no_label_on_padding_or_on_the_first_token_of_a_text():
    assert labels_of(make_row([10, 11, 12, 13, 14, 0, 0], [3, 2])).tolist() == [X, 11, 12, X, 14, X, X]


def test_no_label_outside_the_loss_spans():
    row = make_row([10, 11, 12, 13, 14, 15, 0], [6], spans=[(0, 2), (4, 7)])
    assert labels_of(row).tolist() == [X, 11, X, X, 14, 15, X]
    assert labels_of(make_row([10, 11], [2], spans=[])).tolist() == [X, X]


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_labels_against_a_walk_over_the_tokens(lengths, num_padding, random):
    size = sum(lengths) + num_padding
    ids = [random.randrange(100) for _ in range(size)]
    spans = [(random.randrange(size), random.randrange(size + 1)) for _ in range(2)] if size else None
    expected = [X] * size
    position = 0
    for length in lengths:
        for offset in range(length):
            is_in_span = spans is None or any(start <= position < end for start, end in spans)
            if offset > 0 and is_in_span:
                expected[position] = ids[position]
            position += 1
    assert labels_of(make_row(ids, lengths, spans)).tolist() == expected


def test_positions_start_anew_with_each_text_and_with_the_padding():
    assert positions_of(make_row([10, 11, 12, 13, 14, 0, 0], [3, 2])).tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert positions_of(make_row([10, 11], [2])).tolist() == [0, 1]


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 4))
def test_positions_against_a_walk_over_the_tokens(lengths, num_padding):
    expected = [position for length in [*lengths, num_padding] for position in range(length)]
    assert positions_of(make_row([0] * len(expected), lengths)).tolist() == expected


@pytest.fixture
def shards(tmp_path):
    rows = [*make_rows(7, component="raw"), *make_rows(4, component="instructions", seed=1)]
    folder = str(tmp_path / "shards")
    write_shards(folder, {"train": [rows[:4], rows[4:5], rows[5:]]}, tokenizer_folder="tokenizer", tokenizer_sha256="0")
    return folder, rows


def open_train(folder):
    return ShardDataset(folder, manifest=read_shard_manifest(folder), split="train")


def test_global_row_numbers_count_through_the_shards(shards):
    folder, rows = shards
    dataset = open_train(folder)
    assert len(dataset) == len(rows) == 11
    assert dataset.components == ("instructions", "raw")
    for number, expected in enumerate(rows):
        row = dataset.row(number)
        assert row.input_ids.tolist() == expected.input_ids.tolist()
        assert row.segment_lengths.tolist() == expected.segment_lengths.tolist()
        assert row.component == expected.component
        assert dataset.locate(number) == ((0, number) if number < 4 else (1, 0) if number == 4 else (2, number - 5))
    for number in (-1, 11):
        with pytest.raises(IndexError):
            dataset.row(number)


def test_the_rows_of_a_component_count_through_the_shards(shards):
    folder, rows = shards
    dataset = open_train(folder)
    assert dataset.num_rows_by_component == {"instructions": 4, "raw": 7}
    for component in dataset.components:
        expected = [number for number, row in enumerate(rows) if row.component == component]
        assert [dataset.row_number_in(component, index) for index in range(len(expected))] == expected
        for index in (-1, len(expected)):
            with pytest.raises(IndexError, match="is not in range"):
                dataset.row_number_in(component, index)


def test_a_batch_holds_its_rows_in_order(shards):
    folder, rows = shards
    batch = open_train(folder).batch([8, 0, 5])
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.input_ids.tolist() == [rows[number].input_ids.tolist() for number in (8, 0, 5)]
    assert batch.labels.tolist() == [labels_of(rows[number]).tolist() for number in (8, 0, 5)]
    assert batch.position_ids.tolist() == [positions_of(rows[number]).tolist() for number in (8, 0, 5)]
    assert batch.position_ids.dtype == torch.int64
    assert batch.component_ids.tolist() == [0, 1, 1]
    assert batch.num_tokens == sum(int(rows[number].segment_lengths.sum()) for number in (8, 0, 5))


def test_a_batch_of_no_rows_has_a_row_without_targets(shards):
    batch = open_train(shards[0]).batch([])
    assert batch.input_ids.shape == (1, 32)
    assert (batch.labels == X).all()
    assert batch.position_ids.tolist() == [list(range(32))]
    assert batch.num_tokens == 0


def test_loss_spans_come_through(tmp_path):
    rows = make_rows(3, component="tuning", with_loss_spans=True)
    folder = str(tmp_path / "shards")
    write_shards(folder, {"train": [rows]}, tokenizer_folder="tokenizer", tokenizer_sha256="0")
    batch = open_train(folder).batch([0, 1, 2])
    assert batch.labels.tolist() == [labels_of(row).tolist() for row in rows]
    assert (batch.labels[:, 16:] == X).all()


def test_a_vocabulary_above_16_bits(tmp_path):
    rows = make_rows(2, component="raw", vocab_size=70_000)
    rows[0].input_ids[0] = 69_999
    folder = str(tmp_path / "shards")
    write_shards(folder, {"train": [rows]}, tokenizer_folder="tokenizer", tokenizer_sha256="0", vocab_size=70_000)
    assert open_train(folder).batch([0]).input_ids[0, 0] == 69_999


def test_an_empty_split_has_no_rows(shards):
    assert len(ShardDataset(shards[0], manifest=read_shard_manifest(shards[0]), split="validation")) == 0


def test_refuses_shards_that_are_missing_or_changed(shards):
    folder, _ = shards
    manifest = read_shard_manifest(folder)
    path = os.path.join(folder, manifest.shards[1].path)
    with open(path, "rb+") as file:
        file.seek(40)
        file.write(b"\xff\x00\xff")
    with pytest.raises(ValueError, match=r"train-00001.parquet is damaged"):
        open_train(folder)
    os.remove(path)
    with pytest.raises(ValueError, match=r"train-00001.parquet is missing"):
        open_train(folder)


def test_refuses_shards_that_are_not_what_the_manifest_says(shards):
    folder, _ = shards
    manifest = read_shard_manifest(folder)
    with pytest.raises(ValueError, match="columns"):
        ShardDataset(folder, manifest=replace(manifest, sequence_length=64), split="train")
    with pytest.raises(ValueError, match="columns"):
        ShardDataset(folder, manifest=replace(manifest, vocab_size=VOCAB_SIZE * 1000), split="train")
    first = replace(manifest.shards[0], num_rows=5)
    with pytest.raises(ValueError, match="holds 4 rows; the manifest says 5"):
        ShardDataset(folder, manifest=replace(manifest, shards=(first, *manifest.shards[1:])), split="train")
    first = replace(manifest.shards[0], rows_by_component={"raw": 3, "instructions": 1})
    with pytest.raises(
        ValueError, match=r"components: \{'raw': 4\}; the manifest says \{'raw': 3, 'instructions': 1\}"
    ):
        ShardDataset(folder, manifest=replace(manifest, shards=(first, *manifest.shards[1:])), split="train")
