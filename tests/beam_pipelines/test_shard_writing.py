from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines import shard_writing
from beam_pipelines.component_tokenization import Keeping, TokenizedUnit, tokenize_unit
from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.shard_selection import Holdings, count_holdings
from beam_pipelines.shard_writing import PackingConfig, ShardLayout, plan_tokens, total_counts, write_shard
from contracts import storage
from contracts.records import RenderedText
from contracts.schemas import packed_rows_from_batch
from tests.beam_pipelines.byte_tokenizer import DESCRIPTION, ByteTokenizer

NUM_SHARDS = {"train": 2, "validation": 1}
SEQUENCE_LENGTH = 8
CONCATENATE = PackingConfig()


def component(name, **settings):
    return ComponentConfig(name=name, kind="documents", input=["x"], **settings)


def holdings(num_tokens):
    return Holdings(num_documents=1, num_texts=1, num_tokens=num_tokens, num_usable_tokens=num_tokens)


def tokenize(folder, texts_by_component):
    """Units of texts, each a string with its id and with two documents."""
    keeping = Keeping(part_tokens=1 << 20, validation_fraction=0.0, seed=0)
    return [
        TokenizedUnit(
            component=name,
            index=tokenize_unit(
                f"{folder}/{name}",
                [
                    RenderedText(
                        text_id=text_id,
                        component=name,
                        text=text,
                        template_id="raw",
                        doc_ids=(text_id, f"{text_id}-2"),
                        group_id=text_id,
                    )
                    for text_id, text in texts.items()
                ],
                tokenizer=ByteTokenizer(),
                keeping=keeping,
            ),
        )
        for name, texts in texts_by_component.items()
    ]


def write(folder, texts_by_component, num_tokens, *, packing=CONCATENATE, seed=0):
    """One shard of everything, and its rows."""
    components = [component(name) for name in texts_by_component]
    layout = ShardLayout(
        output=str(folder / "shards"),
        components=components,
        sequence_length=SEQUENCE_LENGTH,
        packing=packing,
        tokenizer=DESCRIPTION,
        seed=seed,
    )
    units = tokenize(folder / "tokenized", texts_by_component)
    report = write_shard(
        ("train", 0),
        count=1,
        num_tokens=num_tokens,
        holdings=count_holdings(
            ("train", 0), count=1, components=components, units=units, max_usable=layout.max_usable
        ),
        units=units,
        layout=layout,
    )
    rows = [
        row
        for batch in pq.ParquetFile(f"{layout.output}/{report.entry.path}").iter_batches()
        for row in packed_rows_from_batch(batch)
    ]
    return report, rows


def pieces_of(rows):
    """The pieces of each text as strings, in no order: rows are mixed."""
    pieces = defaultdict(list)
    for row in rows:
        ends = np.cumsum(row.segment_lengths)
        assert set(row.input_ids[ends[-1] :].tolist()) <= {DESCRIPTION.pad_id}
        for start, end, text_id in zip([0, *ends[:-1]], ends, row.text_ids, strict=True):
            pieces[row.component, text_id].append(bytes(row.input_ids[start:end].astype(np.uint8)).decode())
    return pieces


def test_the_plan_mixes_training_and_takes_validation_as_it_is():
    plan = plan_tokens(
        [component("a", epochs=2), component("b", token_ratio=0.5, relative_to=["a"])],
        holdings={
            ("train", 0): {"a": holdings(30)},
            ("train", 1): {"a": holdings(10), "b": holdings(5)},
            ("validation", 0): {"a": holdings(3), "b": holdings(7)},
        },
        num_shards=NUM_SHARDS,
        sequence_length=SEQUENCE_LENGTH,
    )
    assert plan == {
        ("train", 0): {"a": 60, "b": 0},
        ("train", 1): {"a": 20, "b": 40},
        ("validation", 0): {"a": 3, "b": 7},
    }


def test_a_component_that_is_all_held_out_is_refused():
    held = {("validation", 0): {"a": holdings(3)}}
    with pytest.raises(ValueError, match="everything in it went to validation"):
        plan_tokens([component("a")], holdings=held, num_shards=NUM_SHARDS, sequence_length=SEQUENCE_LENGTH)


def texts_named(name, count, *, length=4):
    return {f"{name}-{number}": f"{name}{number:0{length - 1}d}" for number in range(count)}


def test_a_shard_holds_its_rows_mixed_and_reports_them(tmp_path):
    texts = {"a": texts_named("a", 20), "b": texts_named("b", 20)}
    report, rows = write(tmp_path, texts, {"a": 80, "b": 37})
    entry = report.entry
    assert entry.path == "shard-00000-of-00001.parquet"
    assert entry.sha256 == storage.file_sha256(f"{tmp_path}/shards/{entry.path}")
    assert entry.num_bytes == (tmp_path / "shards" / entry.path).stat().st_size
    assert entry.rows_by_component == dict(Counter(row.component for row in rows)) == {"a": 10, "b": 5}
    assert entry.tokens_by_component == {"a": 80, "b": 37}
    assert entry.num_rows == len(rows) == 15
    counts = report.counts["b"]
    assert (counts.num_texts, counts.num_documents, counts.num_available_tokens) == (20, 40, 80)
    assert (counts.num_tokens, counts.num_padding_tokens, counts.num_dropped_tokens) == (37, 3, 3)
    assert [row.component for row in rows] not in (["a"] * 10 + ["b"] * 5, ["b"] * 5 + ["a"] * 10)


TEXTS = st.dictionaries(
    st.sampled_from([f"text-{n}" for n in range(9)]), st.text("xyz", min_size=1, max_size=30), min_size=1
)


@given(
    texts=st.fixed_dictionaries({"a": TEXTS, "b": TEXTS}),
    epochs=st.integers(1, 3),
    strategy=st.sampled_from(["concatenate", "best_fit"]),
    group_tokens=st.sampled_from([8, 24, 1 << 20]),
)
def test_every_text_stands_in_the_rows_as_often_as_asked_for(tmp_path_factory, texts, epochs, strategy, group_tokens):
    num_tokens = {name: epochs * sum(map(len, members.values())) for name, members in texts.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writing, "ROW_GROUP_TOKENS", group_tokens)
        report, rows = write(tmp_path_factory.mktemp("s"), texts, num_tokens, packing=PackingConfig(strategy=strategy))
    pieces = pieces_of(rows)
    assert set(pieces) == {(name, text_id) for name, members in texts.items() for text_id in members}
    for (name, text_id), found in pieces.items():
        text = texts[name][text_id]
        assert Counter("".join(found)) == Counter(text * epochs)
        assert all(piece in text for piece in found)
        if strategy == "best_fit" and len(text) <= SEQUENCE_LENGTH:
            assert found == [text] * epochs
    assert {name: counts.num_tokens for name, counts in report.counts.items()} == num_tokens


def test_what_is_longer_than_a_row_is_cut_there_when_asked_for(tmp_path):
    texts = {"a": {"long": "abcdefghijkl", "short": "xyz"}}
    report, rows = write(tmp_path, texts, {"a": 11}, packing=PackingConfig(strategy="best_fit", long_texts="cut"))
    assert pieces_of(rows) == {("a", "long"): ["abcdefgh"], ("a", "short"): ["xyz"]}
    counts = report.counts["a"]
    assert (counts.num_available_tokens, counts.num_tokens, counts.num_dropped_tokens) == (15, 11, 4)
    assert (counts.num_truncations, counts.num_padding_tokens) == (1, 5)


def test_each_epoch_has_an_order_of_its_own(tmp_path):
    texts = {"a": {f"t{number}": chr(97 + number) * 4 for number in range(20)}}
    _, rows = write(tmp_path, texts, {"a": 2 * 80})
    neighbours = [row.text_ids for row in rows]
    assert Counter(text_id for pair in neighbours for text_id in pair) == Counter(list(texts["a"]) * 2)
    # In the same order twice, the same texts would share a row again.
    assert len(set(neighbours)) > 15


@given(order=st.permutations(range(12)))
def test_the_order_of_arrival_does_not_change_a_byte(tmp_path_factory, order):
    texts = {f"text-{number}": "abc"[number % 3] * (number + 1) for number in range(12)}
    num_tokens = {"a": sum(map(len, texts.values())) + 5}
    expected, _ = write(tmp_path_factory.mktemp("s"), {"a": texts}, num_tokens)
    again = {f"text-{number}": texts[f"text-{number}"] for number in order}
    assert write(tmp_path_factory.mktemp("s"), {"a": again}, num_tokens)[0] == expected


def test_another_seed_orders_rows_anew(tmp_path):
    texts = {"a": texts_named("a", 30, length=8)}
    orders = [[row.text_ids for row in write(tmp_path / str(seed), texts, {"a": 240}, seed=seed)[1]] for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_rows_without_loss_spans_are_targets_throughout_where_others_have_some(tmp_path):
    units = tokenize(tmp_path, {"raw": {"t": "abcdefghij"}})
    components = [component("raw"), replace(component("tuning"), kind="synthesizer_tuning")]
    layout = ShardLayout(
        output=str(tmp_path / "shards"),
        components=components,
        sequence_length=SEQUENCE_LENGTH,
        packing=PackingConfig(),
        tokenizer=DESCRIPTION,
        seed=0,
    )
    held = count_holdings(("train", 0), count=1, components=components, units=units, max_usable=None)
    report = write_shard(("train", 0), count=1, num_tokens={"raw": 10}, holdings=held, units=units, layout=layout)
    (batch,) = pq.ParquetFile(f"{layout.output}/{report.entry.path}").iter_batches()
    spans = {int(row.segment_lengths.sum()): row.loss_spans.tolist() for row in packed_rows_from_batch(batch)}
    assert spans == {8: [[0, 8]], 2: [[0, 2]]}


def test_a_shard_that_takes_no_token_is_an_empty_file(tmp_path):
    report, rows = write(tmp_path, {"a": {"t": "xy"}}, {"a": 0})
    assert rows == []
    assert (report.entry.rows_by_component, report.entry.tokens_by_component) == ({}, {"a": 0})


def test_counts_of_shards_add_up_by_component_and_split(tmp_path):
    first, _ = write(tmp_path / "1", {"a": {"0": "abcdef"}, "b": {"0": "abc"}}, {"a": 12, "b": 3})
    second, _ = write(tmp_path / "2", {"a": {"1": "abcd"}}, {"a": 8})
    third, _ = write(tmp_path / "3", {"a": {"2": "abcde"}}, {"a": 5})
    third = replace(third, entry=replace(third.entry, split="validation"))
    totals = total_counts([first, second, third], requested={"a": 19, "b": 3})
    assert {name: sorted(by_split) for name, by_split in totals.items()} == {
        "a": ["train", "validation"],
        "b": ["train"],
    }
    train = totals["a"]["train"]
    assert (train.num_texts, train.num_available_tokens, train.num_tokens, train.num_rows) == (2, 10, 20, 3)
    assert (train.epochs, train.num_padding_tokens, train.num_requested_tokens) == (2.0, 4, 19)
    assert (totals["a"]["validation"].epochs, totals["a"]["validation"].num_padding_tokens) == (1.0, 3)
    assert totals["a"]["validation"].num_requested_tokens == 5
