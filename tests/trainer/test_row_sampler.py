from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.row_sampler import Position, RowSampler, deal_rows


def walk(sampler, position, num_steps):
    steps = []
    for _ in range(num_steps):
        steps.append(sampler.rows_at(position))
        position = sampler.position_after(position)
    return steps, position


def test_seven_rows_by_three_make_steps_of_three_three_and_one():
    sampler = RowSampler(7, rows_per_step=3, seed=0)
    steps, position = walk(sampler, Position(), 3)
    assert [len(rows) for rows in steps] == [3, 3, 1]
    assert sorted(chain(*steps)) == list(range(7))
    assert position == Position(step=3, epoch=1, rows_consumed=0)


@given(
    num_rows=st.integers(1, 40),
    rows_per_step=st.integers(1, 12),
    num_epochs=st.integers(1, 3),
    num_done=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_a_run_sees_every_row_once_an_epoch_and_can_go_on_anywhere(num_rows, rows_per_step, num_epochs, num_done):
    sampler = RowSampler(num_rows, rows_per_step=rows_per_step, seed=3)
    num_steps = sampler.num_steps(num_epochs=num_epochs, start=Position())
    steps, end = walk(sampler, Position(), num_steps)
    assert end == Position(step=num_steps, epoch=num_epochs, rows_consumed=0)
    assert sorted(chain(*steps)) == sorted(list(range(num_rows)) * num_epochs)

    num_done = min(num_done, num_steps)
    _, middle = walk(sampler, Position(), num_done)
    assert sampler.num_steps(num_epochs=num_epochs, start=middle) == num_steps
    rest, _ = walk(RowSampler(num_rows, rows_per_step=rows_per_step, seed=3), middle, num_steps - num_done)
    assert rest == steps[num_done:]


def test_every_epoch_has_an_order_of_its_own():
    sampler = RowSampler(50, rows_per_step=50, seed=0)
    (first, second), _ = walk(sampler, Position(), 2)
    assert first != second
    assert sorted(first) == sorted(second)


def test_deals_contiguous_blocks():
    rows = list(range(10, 18))
    assert deal_rows(rows, process_index=0, num_processes=2, micro_batch_rows=3) == [[10, 11, 12], [13]]
    assert deal_rows(rows, process_index=1, num_processes=2, micro_batch_rows=3) == [[14, 15, 16], [17]]


@given(num_rows=st.integers(1, 30), num_processes=st.integers(1, 9), micro_batch_rows=st.integers(1, 7))
def test_dealing_gives_every_row_to_one_process_and_every_process_as_many_batches(
    num_rows, num_processes, micro_batch_rows
):
    rows = list(range(num_rows))
    dealt = [
        deal_rows(rows, process_index=index, num_processes=num_processes, micro_batch_rows=micro_batch_rows)
        for index in range(num_processes)
    ]
    assert [row for batches in dealt for batch in batches for row in batch] == rows
    assert len({len(batches) for batches in dealt}) == 1
    assert all(len(batch) <= micro_batch_rows for batches in dealt for batch in batches)
