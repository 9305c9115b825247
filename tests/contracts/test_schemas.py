import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Chain, Document, Example, InstructionPair, PackedRow, Reject
from contracts.schemas import (
    CHAIN_SCHEMA,
    REJECT_SCHEMA,
    chain_from_row,
    chains_to_table,
    packed_row_schema,
    packed_rows_from_batch,
    packed_rows_to_table,
    rejects_to_table,
    token_type,
)

# Every character but the halves of surrogate pairs, which UTF-8 cannot hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
COUNT = st.integers(0, 2**31 - 1)
DOCUMENTS = st.builds(Document, doc_id=TEXT, source=TEXT, text=TEXT, title=st.none() | TEXT)
PAIRS = st.builds(InstructionPair, instruction=TEXT, response=TEXT)
EXAMPLES = st.builds(
    Example,
    document=DOCUMENTS,
    pairs=st.lists(PAIRS, max_size=3).map(tuple),
    inherits_previous=st.booleans(),
    finish_reason=st.sampled_from(["stop", "length", "given"]),
    num_prompt_tokens=COUNT,
    num_new_tokens=COUNT,
)
CHAINS = st.builds(
    Chain, chain_id=TEXT, source=TEXT, examples=st.lists(EXAMPLES, max_size=3).map(tuple), synthesizer_id=TEXT
)
REJECTS = st.builds(Reject, doc_id=TEXT, source=TEXT, stage=TEXT, reason=TEXT, detail=TEXT, text=TEXT)


def through_parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(buffer)


@given(st.lists(CHAINS, max_size=3))
def test_chains_come_back_as_they_were(chains):
    table = through_parquet(chains_to_table(chains))
    assert table.schema.equals(CHAIN_SCHEMA)
    assert [chain_from_row(row) for row in table.to_pylist()] == chains


@given(st.lists(REJECTS, max_size=3))
def test_rejects_come_back_as_they_were(rejects):
    table = through_parquet(rejects_to_table(rejects))
    assert table.schema.equals(REJECT_SCHEMA)
    assert [Reject(**row) for row in table.to_pylist()] == rejects


SEQUENCE_LENGTH = 8


@st.composite
def packed_rows(draw, vocab_size, *, with_loss_spans):
    lengths = draw(
        st.lists(st.integers(1, SEQUENCE_LENGTH), max_size=4).filter(lambda lengths: sum(lengths) <= SEQUENCE_LENGTH)
    )
    ids = st.sampled_from([0, 1, vocab_size - 1]) | st.integers(0, vocab_size - 1)
    spans = st.lists(st.tuples(st.integers(0, 4), st.integers(5, SEQUENCE_LENGTH)), max_size=2)
    return PackedRow(
        input_ids=np.array(draw(st.lists(ids, min_size=SEQUENCE_LENGTH, max_size=SEQUENCE_LENGTH)), np.int64),
        segment_lengths=np.array(lengths, np.int32),
        component=draw(st.sampled_from(["augmented", "raw", "général"])),
        text_ids=tuple(draw(st.lists(TEXT, min_size=len(lengths), max_size=len(lengths)))),
        loss_spans=np.array(draw(spans), np.int32).reshape(-1, 2) if with_loss_spans else None,
    )


def assert_same_row(actual, expected):
    for name in ("input_ids", "segment_lengths", "loss_spans"):
        here, there = getattr(actual, name), getattr(expected, name)
        if there is None:
            assert here is None
            continue
        assert here.dtype == there.dtype
        assert here.shape == there.shape
        assert (here == there).all()
    assert (actual.component, actual.text_ids) == (expected.component, expected.text_ids)


@given(st.data(), st.sampled_from([2, 300, 65_536, 65_537, 1 << 32]), st.booleans(), st.integers(1, 3))
def test_packed_rows_come_back_as_they_were(data, vocab_size, with_loss_spans, batch_rows):
    rows = data.draw(st.lists(packed_rows(vocab_size, with_loss_spans=with_loss_spans), max_size=4))
    table = through_parquet(
        packed_rows_to_table(
            rows, sequence_length=SEQUENCE_LENGTH, vocab_size=vocab_size, with_loss_spans=with_loss_spans
        )
    )
    # In batches that begin in the middle of the table, as readers hand them out.
    back = [row for batch in table.to_batches(max_chunksize=batch_rows) for row in packed_rows_from_batch(batch)]
    assert len(back) == len(rows)
    for actual, expected in zip(back, rows, strict=True):
        assert_same_row(actual, expected)


def test_ids_take_two_bytes_as_long_as_the_vocabulary_allows():
    assert token_type(1) == token_type(65_536) == pa.uint16()
    assert token_type(65_537) == token_type(1 << 32) == pa.uint32()
    for vocab_size in (0, -1, (1 << 32) + 1):
        with pytest.raises(ValueError, match="vocab_size is"):
            token_type(vocab_size)
    for vocab_size, last, value_type in ((65_536, 65_535, pa.uint16()), (65_537, 65_536, pa.uint32())):
        table = packed_rows_to_table([row_of([0, last])], sequence_length=2, vocab_size=vocab_size)
        assert table.schema.field("input_ids").type.value_type == value_type
        (row,) = packed_rows_from_batch(table.to_batches()[0])
        assert row.input_ids.tolist() == [0, last]


def row_of(ids, **changes):
    values = {
        "input_ids": np.array(ids, np.int64),
        "segment_lengths": np.array([1], np.int32),
        "component": "raw",
        "text_ids": ("t",),
        **changes,
    }
    return PackedRow(**values)


def test_no_rows_make_a_table_all_the_same():
    for with_loss_spans in (False, True):
        table = packed_rows_to_table([], sequence_length=4, vocab_size=10, with_loss_spans=with_loss_spans)
        assert table.num_rows == 0
        assert table.schema == packed_row_schema(sequence_length=4, vocab_size=10, with_loss_spans=with_loss_spans)
    assert ("loss_spans" in table.schema.names) is True


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of([1, 2, 3]), r"A row has shape \(3,\), not \(2,\)"),
        (row_of([1, 10]), "Token ids from 1 to 10 do not fit a vocabulary of 10"),
        (row_of([-1, 1]), "Token ids from -1 to 2 do not fit"),
        (row_of([1, 2], loss_spans=np.array([[0, 1]], np.int32)), "with_loss_spans=False, but a row says otherwise"),
    ],
)
def test_a_row_that_does_not_fit_the_schema_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        packed_rows_to_table([row_of([1, 2]), row], sequence_length=2, vocab_size=10)


def test_rows_without_loss_spans_do_not_fit_a_schema_with_them():
    with pytest.raises(ValueError, match="with_loss_spans=True, but a row says otherwise: None"):
        packed_rows_to_table([row_of([1, 2])], sequence_length=2, vocab_size=10, with_loss_spans=True)


def test_a_row_must_hold_a_token_and_its_target():
    with pytest.raises(ValueError, match="sequence_length is 1"):
        packed_row_schema(sequence_length=1, vocab_size=10)


@pytest.mark.parametrize(
    "changes",
    [
        {"segment_lengths": np.array([3], np.int32)},
        {"segment_lengths": np.array([0], np.int32)},
        {"segment_lengths": np.array([1, 1], np.int32)},
        {"input_ids": np.zeros((1, 2), np.int64)},
    ],
)
def test_a_packed_row_holds_its_own_invariants(changes):
    with pytest.raises(AssertionError):
        row_of([1, 2], **changes)


@given(CHAINS)
def test_the_conversion_would_notice_a_change(chain):
    (row,) = chains_to_table([chain]).to_pylist()
    row["chain_id"] += "x"
    assert chain_from_row(row) != chain
