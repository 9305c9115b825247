from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.sequence_packing import concatenate_and_chunk
from beam_pipelines.text_tokenization import TokenizedText
from contracts.seeding import stable_hash

PAD = 999


def text(number, ids):
    return TokenizedText(
        text_id=f"text-{number}",
        component="raw",
        split="train",
        num_documents=1,
        ids=np.asarray(ids, dtype="<u4").tobytes(),
    )


def texts_of_lengths(lengths):
    """Texts whose tokens are all different, so that each can be found again."""
    ends = np.cumsum(lengths)
    return [
        text(number, range(end - length, end)) for number, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]


def order(texts, *, epoch, seed=0):
    return sorted(texts, key=lambda text: stable_hash(seed, "text order", epoch, "raw", text.text_id))


def pack(texts, *, num_tokens, sequence_length, seed=0):
    return concatenate_and_chunk(texts, num_tokens=num_tokens, sequence_length=sequence_length, pad_id=PAD, seed=seed)


def test_an_example_worked_by_hand():
    texts = texts_of_lengths([3, 4, 2])
    first, second, third = order(texts, epoch=0)
    assert [text.num_tokens for text in (first, second, third)] == [3, 2, 4], "the example below is for this order"
    packed = pack(texts, num_tokens=9, sequence_length=4)
    # 0 1 2 | 7 8 | 3 4 5 6 cut every four tokens: the second and the third text go on in the next row.
    assert [row.input_ids.tolist() for row in packed.rows] == [[0, 1, 2, 7], [8, 3, 4, 5], [6, PAD, PAD, PAD]]
    assert [row.segment_lengths.tolist() for row in packed.rows] == [[3, 1], [1, 3], [1]]
    assert [row.text_ids for row in packed.rows] == [("text-0", "text-2"), ("text-2", "text-1"), ("text-1",)]
    assert (packed.num_tokens, packed.num_padding_tokens) == (9, 3)
    assert (packed.num_truncations, packed.num_dropped_tokens) == (2, 0)


def test_part_of_an_epoch_drops_the_end_of_its_last_text():
    packed = pack(texts_of_lengths([3, 4, 2]), num_tokens=4, sequence_length=4)
    assert [row.input_ids.tolist() for row in packed.rows] == [[0, 1, 2, 7]]
    assert (packed.num_tokens, packed.num_padding_tokens) == (4, 0)
    assert (packed.num_truncations, packed.num_dropped_tokens) == (1, 1)


def test_a_text_shorter_than_half_a_row_stands_there_once():
    packed = pack(texts_of_lengths([3]), num_tokens=3, sequence_length=10)
    assert [row.input_ids.tolist() for row in packed.rows] == [[0, 1, 2] + [PAD] * 7]


def test_no_tokens_make_no_rows():
    assert pack(texts_of_lengths([3]), num_tokens=0, sequence_length=4).rows == []
    assert pack([], num_tokens=0, sequence_length=4).rows == []


def oracle(texts, *, num_tokens, sequence_length):
    """One token after the other: rows of (text number, id), and the counts."""
    stream, epoch = [], 0
    while len(stream) < num_tokens:
        for member in order(texts, epoch=epoch):
            stream += [(epoch, member.text_id, int(id_)) for id_ in member.token_ids()]
        epoch += 1
    kept = stream[:num_tokens]
    rows = [kept[start : start + sequence_length] for start in range(0, num_tokens, sequence_length)]
    length_of = {member.text_id: member.num_tokens for member in texts}
    touched = list(dict.fromkeys((epoch, text_id) for epoch, text_id, _ in kept))
    whole = sum(any(sum((e, t) == key for e, t, _ in row) == length_of[key[1]] for row in rows) for key in touched)
    return {
        "rows": [[id_ for *_, id_ in row] for row in rows],
        "segments": [list(Counter((e, t) for e, t, _ in row).values()) for row in rows],
        "text_ids": [tuple(t for _, t in Counter((e, t) for e, t, _ in row)) for row in rows],
        "padding": -num_tokens % sequence_length,
        "truncations": len(touched) - whole,
        "dropped": sum(length_of[text_id] for _, text_id in touched) - num_tokens,
    }


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(lengths=LENGTHS, num_tokens=st.integers(1, 120), sequence_length=st.integers(2, 16), data=st.data())
def test_rows_and_counts_equal_a_token_by_token_oracle(lengths, num_tokens, sequence_length, data):
    texts = texts_of_lengths(lengths)
    expected = oracle(texts, num_tokens=num_tokens, sequence_length=sequence_length)
    packed = pack(data.draw(st.permutations(texts)), num_tokens=num_tokens, sequence_length=sequence_length)
    assert all(len(row.input_ids) == sequence_length for row in packed.rows)
    held = [row.input_ids[: row.segment_lengths.sum()].tolist() for row in packed.rows]
    assert held == expected["rows"]
    assert [len(row) for row in held[:-1]] == [sequence_length] * (len(held) - 1)
    assert packed.rows[-1].input_ids[len(held[-1]) :].tolist() == [PAD] * expected["padding"]
    assert [row.segment_lengths.tolist() for row in packed.rows] == expected["segments"]
    assert [row.text_ids for row in packed.rows] == expected["text_ids"]
    assert packed.num_tokens == num_tokens
    assert packed.num_padding_tokens == expected["padding"]
    assert packed.num_truncations == expected["truncations"]
    assert packed.num_dropped_tokens == expected["dropped"]


@given(lengths=LENGTHS, num_epochs=st.integers(1, 4), sequence_length=st.integers(2, 40))
def test_whole_epochs_hold_every_token_exactly_so_often(lengths, num_epochs, sequence_length):
    texts = texts_of_lengths(lengths)
    packed = pack(texts, num_tokens=num_epochs * sum(lengths), sequence_length=sequence_length)
    ids = np.concatenate([row.input_ids[: row.segment_lengths.sum()] for row in packed.rows])
    assert Counter(ids.tolist()) == dict.fromkeys(range(sum(lengths)), num_epochs)
    assert packed.num_dropped_tokens == 0
    for epoch in range(num_epochs):
        ordered = np.concatenate([text.token_ids() for text in order(texts, epoch=epoch)])
        assert ids[epoch * sum(lengths) : (epoch + 1) * sum(lengths)].tolist() == ordered.tolist()


@given(lengths=LENGTHS, num_tokens=st.integers(1, 200), sequence_length=st.integers(2, 16))
def test_broken_epochs_take_each_text_k_or_k_plus_one_times(lengths, num_tokens, sequence_length):
    packed = pack(texts_of_lengths(lengths), num_tokens=num_tokens, sequence_length=sequence_length)
    first_tokens = np.cumsum([0, *lengths[:-1]])
    counts = Counter(np.concatenate([row.input_ids for row in packed.rows]).tolist())
    times = [counts[int(id_)] for id_ in first_tokens]
    k = num_tokens // sum(lengths)
    assert set(times) <= {k, k + 1}
    assert num_tokens % sum(lengths) == 0 or k + 1 in times


def test_epochs_come_in_different_orders_and_seeds_too():
    texts = texts_of_lengths([1] * 20)
    packed = pack(texts, num_tokens=40, sequence_length=20)
    assert packed.rows[0].text_ids != packed.rows[1].text_ids
    assert pack(texts, num_tokens=20, sequence_length=20, seed=1).rows[0].text_ids != packed.rows[0].text_ids


def test_texts_that_share_an_id_are_both_packed_in_an_order_of_their_own():
    twins = [text(0, [1, 2]), text(0, [3])]
    first, second = (pack(members, num_tokens=3, sequence_length=3).rows[0] for members in (twins, twins[::-1]))
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert sorted(first.input_ids.tolist()) == [1, 2, 3]
