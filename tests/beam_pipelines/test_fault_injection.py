"""Faults at every call that a synthesis makes, one start after the other on one output folder: nothing is lost, nothing
is paid for twice, and the last start gives the bytes of a run without faults.
"""

import errno
import json
import os
import subprocess
import sys
import threading
from collections import Counter

import pytest

from beam_pipelines import journal, model_handler
from beam_pipelines.command_line import config_as_json
from beam_pipelines.inference_config import InferenceConfig
from synth_model.engines import load_engine
from synth_model.generation import Completion
from tests.beam_pipelines.pipeline_runs import (
    fake_engine,
    make_documents,
    parquet_digests,
    read_examples,
    read_rejects,
    run_synthesize,
    synthesize_config,
    write_jsonl,
)
from tests.conftest import REPOSITORY

NUM_DOCUMENTS = 24
SETTINGS = {
    "chain_length": 2,
    "num_files": 2,
    "engine": fake_engine(max_batch_size=2, failure_rate=0.15),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "in.jsonl", make_documents(NUM_DOCUMENTS))


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """Checksums of all data files and the manifest of a run without faults."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    manifest = run_synthesize([corpus], folder, **SETTINGS)
    assert manifest.accounts.num_rejected > 1
    return parquet_digests(folder, "**/*.parquet"), manifest


@pytest.fixture
def engine(monkeypatch):
    """An engine whose ``fault`` is called with each batch, and which counts batches and the completions it gave."""

    class Engine:
        num_batches = 0
        num_completions = 0
        fault = None

        def generate(self, prompts, *, sampling):
            self.num_batches += 1
            answer = inner.generate(prompts, sampling=sampling)
            if self.fault is not None:
                answer = self.fault(prompts, answer)
            self.num_completions += sum(isinstance(outcome, Completion) for outcome in answer or ())
            return answer

    inner = load_engine(SETTINGS["engine"])
    instance = Engine()
    monkeypatch.setattr(model_handler, "load_engine", lambda config: instance)
    return instance


def journaled_keys(output):
    return Counter(key for segment in journal.list_segments(str(output)) for key, _ in journal.read_segment(segment))


def check_complete(output, manifest, expected):
    """The bytes of a run without faults, every completion journaled once, and accounts that add up."""
    digests, expected_manifest = expected
    assert parquet_digests(output, "**/*.parquet") == digests
    assert manifest.fingerprint == expected_manifest.fingerprint
    accounts = manifest.accounts
    assert accounts.num_augmented + accounts.num_kept_raw + accounts.num_rejected == accounts.num_texts == NUM_DOCUMENTS
    ids = [*read_examples(output), *(reject.doc_id for reject in read_rejects(output))]
    assert Counter(ids) == dict.fromkeys((f"web-{number}" for number in range(NUM_DOCUMENTS)), 1)
    keys = journaled_keys(output)
    assert keys == dict.fromkeys(keys, 1)
    assert keys.total() == NUM_DOCUMENTS - accounts.num_rejected
    assert not list(output.glob("**/*.partial"))


# What an engine may do to the third batch of each start.


class BrokenEngineError(Exception):
    pass


def raises(prompts, answer):
    raise BrokenEngineError("CUDA error: an illegal memory access was encountered")


def hangs(prompts, answer):
    # Longer than any test; the thread is left behind.
    threading.Event().wait(600)


FAULTS = {
    "raises": (raises, "illegal memory access"),
    "hangs": (hangs, "has not completed a batch"),
    "gives nothing": (lambda prompts, answer: None, "The engine gave a NoneType"),
    "gives too few": (lambda prompts, answer: answer[:-1], "The engine gave 1 outcomes for 2 prompts"),
    "gives strings": (lambda prompts, answer: ["text"] * len(answer), "what is none: 'text'"),
}


@pytest.mark.slow
def test_an_engine_that_breaks_in_every_way_costs_no_more_than_its_batch(corpus, expected, engine, tmp_path):
    output = tmp_path / "out"
    settings = {**SETTINGS, "inference": InferenceConfig(max_batch_seconds=1)}
    num_kept = []
    for fault, message in FAULTS.values():
        engine.num_batches = 0
        engine.fault = lambda prompts, answer, fault=fault: (
            answer if engine.num_batches <= 2 else fault(prompts, answer)
        )
        with pytest.raises(Exception, match=message):
            run_synthesize([corpus], output, **settings)
        assert engine.num_batches == 3
        assert not (output / "COMPLETED").exists()
        num_kept.append(journaled_keys(output).total())
    assert num_kept == sorted(num_kept)
    assert len(set(num_kept)) > 1, "starts that broke have got further all the same"
    assert num_kept[-1] < NUM_DOCUMENTS / 2

    engine.fault, engine.num_completions = None, 0
    manifest = run_synthesize([corpus], output, **settings)
    check_complete(output, manifest, expected)
    assert engine.num_completions == NUM_DOCUMENTS - manifest.accounts.num_rejected - num_kept[-1]


# Which write finds the disk full, in the order in which a run comes to them.
WRITES = (
    "run.json",
    "start.json",
    "plan.json",
    ".jsonl.zst",
    "failures/",
    "part-00000",
    "rejects/",
    "manifest.json",
    "COMPLETED",
)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_stops_the_run_and_costs_no_more_than_a_batch(
    corpus, expected, engine, monkeypatch, tmp_path
):
    output = tmp_path / "out"
    replace = os.replace

    def replace_unless_full(source, target):
        if full_at is not None and full_at in os.path.relpath(target, output):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_unless_full)
    num_lost = 0
    for full_at in WRITES:
        before = engine.num_completions
        with pytest.raises(Exception, match="No space left on device"):
            run_synthesize([corpus], output, **SETTINGS)
        assert not (output / "COMPLETED").exists()
        if full_at == ".jsonl.zst":
            num_lost = engine.num_completions - before
            assert 0 < num_lost <= SETTINGS["engine"].max_batch_size
    full_at = None
    manifest = run_synthesize([corpus], output, **SETTINGS)
    check_complete(output, manifest, expected)
    assert engine.num_completions == NUM_DOCUMENTS - manifest.accounts.num_rejected + num_lost


DYING_WORKER = """
import os
from synth_model.engines import fake_engine

generate = fake_engine.FakeEngine.generate

def generate_or_die(self, prompts, *, sampling):
    outcomes = generate(self, prompts, sampling=sampling)
    if os.path.exists(os.environ["DIE_AT"]):
        os.unlink(os.environ["DIE_AT"])
        os._exit(9)
    return outcomes

fake_engine.FakeEngine.generate = generate_or_die
"""


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_and_costs_no_more_than_a_batch(corpus, expected, tmp_path):
    output = tmp_path / "out"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_as_json(synthesize_config([corpus], output, **SETTINGS))))
    # What Python imports as it starts, in each of the runner's processes.
    (tmp_path / "sitecustomize.py").write_text(DYING_WORKER)
    marker = tmp_path / "die"
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)]),
        "DIE_AT": str(marker),
    }
    command = [
        *(sys.executable, "-m", "beam_pipelines", "synthesize", "--config", str(config), "--"),
        *("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    ]
    marker.touch()
    died = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, timeout=100, check=False)
    assert not marker.exists(), died.stderr.decode()
    assert died.returncode == 1
    assert not (output / "COMPLETED").exists()

    manifest = run_synthesize([corpus], output, **SETTINGS)
    check_complete(output, manifest, expected)
