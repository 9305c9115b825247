from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.shard_writing import plan_tokens, shard_of, total_counts, write_shard
from beam_pipelines.text_tokenization import TokenizedText, TokenizerDescription
from contracts import storage
from contracts.schemas import packed_rows_from_batch

TOKENIZER = TokenizerDescription(name="t", sha256="0", vocab_size=300, special_ids={"bos": 0, "eos": 1, "pad": 2})
NUM_SHARDS = {"train": 2, "validation": 1}


def component(name, **settings):
    return ComponentConfig(name=name, kind="documents", input=["x"], **settings)


def text(component, number, ids, split="train"):
    return TokenizedText(
        text_id=f"{component}-{number}",
        component=component,
        split=split,
        num_documents=2,
        ids=np.asarray(ids, dtype="<u4").tobytes(),
    )


def read_rows(folder, entry):
    return [
        row
        for batch in pq.ParquetFile(f"{folder}/{entry.path}").iter_batches()
        for row in packed_rows_from_batch(batch)
    ]


def write(folder, texts, num_tokens, *, key=("train", 0), seed=0):
    return write_shard(
        key,
        texts,
        num_tokens=num_tokens,
        output=str(folder),
        num_shards=NUM_SHARDS[key[0]],
        sequence_length=8,
        tokenizer=TOKENIZER,
        seed=seed,
    )


def test_the_plan_mixes_training_and_takes_validation_as_it_is():
    tokens = {
        (("train", 0), "a"): 30,
        (("train", 1), "a"): 10,
        (("train", 1), "b"): 5,
        (("validation", 0), "a"): 3,
        (("validation", 0), "b"): 7,
    }
    plan = plan_tokens(
        [component("a", epochs=2), component("b", token_ratio=0.5, relative_to=["a"])],
        tokens=tokens,
        num_shards=NUM_SHARDS,
        sequence_length=8,
    )
    assert plan == {
        ("train", 0): {"a": 60, "b": 0},
        ("train", 1): {"a": 20, "b": 40},
        ("validation", 0): {"a": 3, "b": 7},
    }


def test_a_component_that_is_all_held_out_is_refused():
    with pytest.raises(ValueError, match="everything in it went to validation"):
        plan_tokens([component("a")], tokens={(("validation", 0), "a"): 3}, num_shards=NUM_SHARDS, sequence_length=8)


def test_texts_are_spread_over_shards_by_their_names():
    keys = Counter(
        shard_of(text("a", number, [1], split), num_shards={"train": 4, "validation": 2}, seed=0)
        for number in range(400)
        for split in ("train", "validation")
    )
    assert set(keys) == {("train", n) for n in range(4)} | {("validation", n) for n in range(2)}
    assert min(keys.values()) > 60


def test_a_shard_holds_its_rows_mixed_and_reports_them(tmp_path):
    texts = [text(name, number, range(10, 14)) for name in ("a", "b") for number in range(20)]
    report = write(tmp_path, texts, {"a": 80, "b": 37})
    rows = read_rows(tmp_path, report.entry)
    assert report.entry.path == "shard-00000-of-00002.parquet"
    assert report.entry.sha256 == storage.file_sha256(f"{tmp_path}/{report.entry.path}")
    assert report.entry.rows_by_component == dict(Counter(row.component for row in rows)) == {"a": 10, "b": 5}
    assert report.entry.tokens_by_component == {"a": 80, "b": 37}
    assert report.entry.num_rows == len(rows) == 15
    counts = report.counts["b"]
    assert (counts.num_texts, counts.num_documents, counts.num_available_tokens) == (20, 40, 80)
    assert (counts.num_tokens, counts.num_padding_tokens, counts.num_dropped_tokens) == (37, 3, 3)
    assert [row.component for row in rows] not in (["a"] * 10 + ["b"] * 5, ["b"] * 5 + ["a"] * 10)


@given(st.data())
def test_the_order_of_arrival_does_not_change_a_byte(tmp_path_factory, data):
    texts = [text(name, number, range(number, number + 3)) for name in ("a", "b") for number in range(6)]
    folder = tmp_path_factory.mktemp("shards")
    expected = write(folder, texts, {"a": 18, "b": 40})
    assert write(folder, data.draw(st.permutations(texts)), {"a": 18, "b": 40}) == expected


def test_another_seed_orders_rows_anew(tmp_path):
    texts = [text("a", number, range(8)) for number in range(30)]
    orders = [
        [row.text_ids for row in read_rows(tmp_path, write(tmp_path, texts, {"a": 240}, seed=s).entry)] for s in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_shard_that_takes_no_token_is_an_empty_file(tmp_path):
    report = write(tmp_path, [text("a", 0, [5, 6])], {"a": 0})
    assert read_rows(tmp_path, report.entry) == []
    assert (report.entry.rows_by_component, report.entry.tokens_by_component) == ({}, {"a": 0})


def test_counts_of_shards_add_up_by_component_and_split(tmp_path):
    reports = [
        write(tmp_path, [text("a", 0, range(6)), text("b", 0, range(3))], {"a": 12, "b": 3}),
        write(tmp_path, [text("a", 1, range(4))], {"a": 8}, key=("train", 1)),
        write(tmp_path, [text("a", 2, range(5), "validation")], {"a": 5}, key=("validation", 0)),
    ]
    totals = total_counts(reports)
    assert {name: sorted(by_split) for name, by_split in totals.items()} == {
        "a": ["train", "validation"],
        "b": ["train"],
    }
    train = totals["a"]["train"]
    assert (train.num_texts, train.num_available_tokens, train.num_tokens, train.num_rows) == (2, 10, 20, 3)
    assert (train.epochs, train.num_padding_tokens) == (2.0, 4)
    assert (totals["a"]["validation"].epochs, totals["a"]["validation"].num_padding_tokens) == (1.0, 3)
