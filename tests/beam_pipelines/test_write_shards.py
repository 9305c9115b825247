"""Shards of a bundle are written some at a time."""

import threading

import pytest

from beam_pipelines.transforms import write_shards
from beam_pipelines.transforms.write_shards import _WriteShard

NUM_CORES = 2


class Settings:
    """Stands for the work on a shard; two of them are needed for either to go on."""

    def __init__(self):
        self.both = threading.Barrier(NUM_CORES, timeout=60)
        self.lock = threading.Lock()
        self.num_active = self.most_active = 0

    def write(self, dealt, units, holdings):
        with self.lock:
            self.num_active += 1
            self.most_active = max(self.most_active, self.num_active)
        self.both.wait()
        with self.lock:
            self.num_active -= 1
        if dealt == "broken":
            raise ValueError("asks for what is not there")
        return None if dealt == "empty" else f"report of {dealt}"


@pytest.fixture
def do_fn(monkeypatch):
    monkeypatch.setattr(write_shards.os, "cpu_count", lambda: NUM_CORES)
    made = _WriteShard(Settings())
    made.setup()
    yield made
    made.teardown()


def run_bundle(do_fn, shards):
    do_fn.start_bundle()
    reports = [report for shard in shards for report in do_fn.process(shard, [], {})]
    return reports + [value.value for value in do_fn.finish_bundle()]


def test_as_many_as_there_are_cores_and_reported_in_order(do_fn):
    for _ in range(2):
        reports = run_bundle(do_fn, ["a", "b", "empty", "c", "d", "e"])
        assert reports == [f"report of {shard}" for shard in "abcde"]
    assert do_fn._settings.most_active == NUM_CORES


def test_a_shard_that_fails_fails_the_bundle_and_the_next_one_begins_anew(do_fn):
    with pytest.raises(ValueError, match="asks for what is not there"):
        run_bundle(do_fn, ["a", "broken"])
    assert run_bundle(do_fn, ["b", "c"]) == ["report of b", "report of c"]
