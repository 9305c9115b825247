import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synth_model.engines.key_value_batch import KeyValueBatch

NUM_LAYERS, NUM_HEADS, KEY_DIM, VALUE_DIM = 2, 3, 4, 5


def states(num_rows, num_tokens, *, fill):
    """Keys and values of new tokens, each number of its own."""
    values = torch.arange(num_rows * NUM_HEADS * num_tokens * VALUE_DIM, dtype=torch.float32) + fill
    values = values.reshape(num_rows, NUM_HEADS, num_tokens, VALUE_DIM)
    return -values[..., :KEY_DIM], values


def write(batch, num_rows, num_tokens, *, fill):
    """What a model does to the cache; returns the new keys and values, and what attention would read, by layer."""
    new = [states(num_rows, num_tokens, fill=fill + 1000 * layer) for layer in range(NUM_LAYERS)]
    read = [batch.cache.update(*layer_states, layer) for layer, layer_states in enumerate(new)]
    return new, read


def make(*, num_rows, longest, num_new):
    return KeyValueBatch(
        num_layers=NUM_LAYERS, num_rows=num_rows, num_prompt_columns=longest, num_columns=longest + num_new
    )


def test_rows_end_in_the_same_column_and_attention_reads_views():
    batch = make(num_rows=2, longest=3, num_new=2)
    batch.add_row(num_prompt_tokens=3)
    assert batch.cache.get_seq_length() == 0
    assert batch.cache.get_mask_sizes(3, 0) == (3, 0)
    first, read = write(batch, 1, 3, fill=1)
    assert all(torch.equal(read[layer][0], first[layer][0]) for layer in range(NUM_LAYERS))
    batch.add_row(num_prompt_tokens=1)
    second, read = write(batch, 1, 1, fill=500)
    assert torch.equal(read[1][1], second[1][1])

    assert batch.next_column().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.cache.get_seq_length() == 3
    new, read = write(batch, 2, 1, fill=900)
    keys, values = read[0]
    assert keys.shape == (2, NUM_HEADS, 4, KEY_DIM)
    assert torch.equal(values[0, :, :3], first[0][1][0])
    assert torch.equal(values[1, :, 2:3], second[0][1][0])
    assert torch.equal(values[:, :, 3:], new[0][1])
    assert not values[1, :, :2].any()
    assert batch.next_column().tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    # The same memory, token after token: nothing is copied.
    _, again = write(batch, 2, 1, fill=2000)
    assert again[0][0].data_ptr() == keys.data_ptr()


def test_known_tokens_stand_before_those_that_are_computed():
    batch = make(num_rows=2, longest=4, num_new=0)
    batch.add_row(num_prompt_tokens=4)
    first, _ = write(batch, 1, 4, fill=1)
    batch.add_row(num_prompt_tokens=3, known=batch.row(0, num_tokens=2))
    assert batch.cache.get_seq_length() == 2
    new, read = write(batch, 1, 1, fill=300)
    for layer in range(NUM_LAYERS):
        for kind in (0, 1):
            assert torch.equal(read[layer][kind][0, :, :2], first[layer][kind][0, :, :2])
            assert torch.equal(read[layer][kind][0, :, 2:], new[layer][kind][0])
            assert torch.equal(batch.row(1, num_tokens=3)[layer][kind], read[layer][kind][0])


def test_a_row_is_asked_for_only_when_there_is_one():
    batch = make(num_rows=1, longest=2, num_new=1)
    batch.add_row(num_prompt_tokens=2)
    with pytest.raises(AssertionError, match="no prompt has been computed"):
        batch.row(0, num_tokens=1)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
)
def test_each_row_keeps_its_sequence_while_others_leave(lengths, drops):
    """The oracle is a list of sequences: each with its states, token by token."""
    batch = make(num_rows=len(lengths), longest=max(lengths), num_new=len(drops))
    sequences = []
    for number, length in enumerate(lengths):
        batch.add_row(num_prompt_tokens=length)
        new, _ = write(batch, 1, length, fill=10_000 * number)
        sequences.append([[kind[0] for kind in layer] for layer in new])
    for step, rows in enumerate(drops):
        if not sequences:
            break
        mask = batch.next_column()
        num_columns = mask.shape[1]
        assert mask.sum(dim=1).tolist() == [sequence[0][0].shape[1] + 1 for sequence in sequences]
        assert all(row.tolist() == sorted(row.tolist()) for row in mask)
        # Columns that no row uses any more are not read.
        assert num_columns == max(mask.sum(dim=1).tolist())
        new, read = write(batch, len(sequences), 1, fill=100_000 * (step + 1))
        for row, sequence in enumerate(sequences):
            for layer in range(NUM_LAYERS):
                for kind in (0, 1):
                    sequence[layer][kind] = torch.cat([sequence[layer][kind], new[layer][kind][row]], dim=1)
                    visible = read[layer][kind][row][:, mask[row].bool()]
                    assert torch.equal(visible, sequence[layer][kind])
                    assert read[layer][kind].shape[2] == num_columns
                    assert not read[layer][kind][row][:, ~mask[row].bool()].any()
        for row in rows:
            if row < len(sequences):
                batch.drop_row(row)
                last = sequences.pop()
                if row < len(sequences):
                    sequences[row] = last
        assert batch.num_rows == len(sequences)
        for row, sequence in enumerate(sequences):
            kept = batch.row(row, num_tokens=sequence[0][0].shape[1])
            assert all(torch.equal(kept[layer][kind], sequence[layer][kind]) for layer in (0, 1) for kind in (0, 1))
