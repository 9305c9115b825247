"""Reading ahead: what a step gets, when errors come, and that no thread stays."""

import threading
import time
import traceback
from itertools import chain

import pytest
import torch

from contracts.manifest import read_shard_manifest
from trainer.row_sampler import Position, RowSampler
from trainer.shard_dataset import ShardDataset
from trainer.step_loader import StepLoader


@pytest.fixture(scope="module")
def dataset(shards):
    return ShardDataset(shards, manifest=read_shard_manifest(shards), split="train")


def make_loader(dataset, *, num_prefetched_steps=2, process_index=0, num_processes=1, weights=None):
    return StepLoader(
        dataset,
        rows_per_step=4,
        seed=7,
        component_weights=weights or {},
        process_index=process_index,
        num_processes=num_processes,
        micro_batch_rows=2,
        num_prefetched_steps=num_prefetched_steps,
    )


def walk(loader, position, num_steps):
    steps = []
    for _ in range(num_steps):
        steps.append(loader.step(position))
        position = steps[-1].next_position
    return steps


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("step-loader")]


def assert_same(step, other):
    assert (step.rows, step.micro_batches, step.next_position) == (other.rows, other.micro_batches, other.next_position)
    assert len(step.batches) == len(other.batches)
    for batch, other_batch in zip(step.batches, other.batches, strict=True):
        assert torch.equal(batch.input_ids, other_batch.input_ids)
        assert torch.equal(batch.labels, other_batch.labels)


@pytest.mark.parametrize("num_prefetched_steps", [0, 1, 2, 5])
def test_a_step_is_what_the_sampler_says(dataset, num_prefetched_steps):
    sampler, position = RowSampler(21, rows_per_step=4, seed=7), Position()
    with make_loader(dataset, num_prefetched_steps=num_prefetched_steps) as loader:
        for step in walk(loader, position, 13):
            assert step.rows == sampler.rows_at(position)
            assert list(chain(*step.micro_batches)) == step.rows
            for rows, batch in zip(step.micro_batches, step.batches, strict=True):
                assert torch.equal(batch.input_ids, dataset.batch(rows).input_ids)
            position = sampler.position_after(position)
            assert step.next_position == position


def test_what_was_read_ahead_is_not_given_for_another_position(dataset):
    with make_loader(dataset, num_prefetched_steps=0) as plain, make_loader(dataset) as ahead:
        steps = walk(plain, Position(), 8)
        positions = [Position(), *(step.next_position for step in steps)]
        # There, back, twice the same, and far on.
        for number in (0, 1, 2, 1, 1, 2, 7, 0):
            assert_same(ahead.step(positions[number]), steps[number])


def test_every_number_of_processes_sees_the_same_rows_once(dataset):
    for weights in ({}, {"raw": 0.5, "instructions": 3}):
        with make_loader(dataset, weights=weights) as single:
            expected = walk(single, Position(), 12)
        for num_processes in (2, 3, 7):
            dealt = []
            for index in range(num_processes):
                with make_loader(dataset, process_index=index, num_processes=num_processes, weights=weights) as loader:
                    dealt.append(walk(loader, Position(), 12))
            for number, step in enumerate(expected):
                assert list(chain(*(chain(*steps[number].micro_batches) for steps in dealt))) == step.rows
                assert len({len(steps[number].batches) for steps in dealt}) == 1


def test_an_epoch_of_weighted_rows_has_them_as_often_as_they_weigh(dataset):
    with make_loader(dataset, weights={"raw": 2.0, "instructions": 0.0}) as loader:
        assert loader.num_rows_per_epoch == 28
        assert loader.num_steps(num_epochs=2, start=Position()) == 14
        steps = walk(loader, Position(), 14)
    assert steps[6].next_position == Position(step=7, epoch=1)
    raw = sorted(dataset.row_number_in("raw", index) for index in range(14))
    for epoch in (steps[:7], steps[7:]):
        assert sorted(chain(*(step.rows for step in epoch))) == sorted(raw * 2)
    assert [step.rows for step in steps[:7]] != [step.rows for step in steps[7:]]


def test_the_next_epoch_takes_the_rows_that_this_one_left(dataset):
    with make_loader(dataset, weights={"raw": 0.5, "instructions": 0.0}) as loader:
        steps = walk(loader, Position(), 4)
    assert steps[-1].next_position == Position(step=4, epoch=2)
    raw = [dataset.row_number_in("raw", index) for index in range(14)]
    assert sorted(chain(*(step.rows for step in steps))) == sorted(raw)


def test_reads_ahead_while_nobody_asks(dataset, monkeypatch):
    read = []
    original = ShardDataset.batch

    def recording(self, rows):
        read.append(rows)
        return original(self, rows)

    monkeypatch.setattr(ShardDataset, "batch", recording)
    with make_loader(dataset, num_prefetched_steps=2) as loader:
        loader.step(Position())
        for _ in range(500):
            if len(read) == 6:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        # Two micro-batches for each of three steps, and no more.
        assert len(read) == 6


@pytest.mark.parametrize("num_prefetched_steps", [0, 3])
def test_an_error_comes_at_the_step_that_it_struck_with_its_traceback(dataset, monkeypatch, num_prefetched_steps):
    sampler = RowSampler(21, rows_per_step=4, seed=7)
    third = sampler.position_after(sampler.position_after(Position()))
    bad_row = sampler.rows_at(third)[-1]
    original = ShardDataset.row

    def read_or_fail(self, row_number):
        if row_number == bad_row:
            raise OSError("the disk is gone")
        return original(self, row_number)

    with make_loader(dataset, num_prefetched_steps=num_prefetched_steps) as loader:
        with monkeypatch.context() as patch:
            patch.setattr(ShardDataset, "row", read_or_fail)
            steps = walk(loader, Position(), 2)
            with pytest.raises(OSError, match="the disk is gone") as caught:
                loader.step(steps[-1].next_position)
            assert "read_or_fail" in "".join(traceback.format_tb(caught.value.__traceback__))
        # Asked again, it is read again.
        assert loader.step(third).rows == sampler.rows_at(third)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_no_thread_stays_however_the_loop_ends(dataset, error):
    assert not loader_threads()
    loader = make_loader(dataset)

    def loop():
        with loader:
            walk(loader, Position(), 2)
            assert len(loader_threads()) == 1
            if error:
                raise error

    if error:
        with pytest.raises(error):
            loop()
    else:
        loop()
    assert not loader_threads()


def test_a_step_that_is_being_read_is_waited_for(dataset, monkeypatch):
    original = ShardDataset.batch
    started = threading.Event()

    def slow(self, rows):
        started.set()
        time.sleep(0.2)
        return original(self, rows)

    monkeypatch.setattr(ShardDataset, "batch", slow)
    with make_loader(dataset) as loader:
        loader.step(Position())
    assert started.is_set()
    assert not loader_threads()
