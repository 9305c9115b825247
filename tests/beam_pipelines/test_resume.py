import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest

from beam_pipelines import journal, model_handler
from beam_pipelines.command_line import config_as_json
from contracts import storage
from contracts.artifact import completed_fingerprint
from contracts.manifest import read_augmented_corpus_manifest
from synth_model.engines import load_engine
from synth_model.synthesizer import SynthesizerConfig
from tests.beam_pipelines.pipeline_runs import (
    fake_engine,
    make_documents,
    parquet_digests,
    run_synthesize,
    synthesize_config,
    write_jsonl,
)
from tests.conftest import REPOSITORY

NUM_DOCUMENTS = 24
SETTINGS = {"chain_length": 2, "num_files": 2, "engine": fake_engine(seconds_per_prompt=0.02)}


class InterruptedByTestError(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "in.jsonl", make_documents(NUM_DOCUMENTS))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "out"
    return parquet_digests(folder) if run_synthesize([corpus], folder, **SETTINGS) else None


@pytest.fixture
def asked(monkeypatch):
    """The batches that reach the engine; ``limit`` prompts in, it raises."""

    class Asked(list):
        limit = float("inf")

    batches = Asked()

    class Engine:
        def __init__(self, engine):
            self._engine = engine

        def generate(self, prompts, *, sampling):
            if sum(map(len, batches)) + len(prompts) > batches.limit:
                raise InterruptedByTestError
            batches.append(prompts)
            return self._engine.generate(prompts, sampling=sampling)

    monkeypatch.setattr(model_handler, "load_engine", lambda config: Engine(load_engine(config)))
    return batches


def journaled_keys(output):
    return Counter(key for segment in journal.list_segments(str(output)) for key, _ in journal.read_segment(segment))


def test_an_interrupted_run_goes_on_with_what_is_missing(corpus, uninterrupted, asked, tmp_path):
    output = tmp_path / "out"
    asked.limit = 16
    with pytest.raises(Exception, match="InterruptedByTestError"):
        run_synthesize([corpus], output, **SETTINGS)
    num_paid = sum(map(len, asked))
    assert 0 < num_paid <= 16
    assert journaled_keys(output).total() == num_paid
    assert not list(output.glob("COMPLETED"))
    before = journal.read_progress(str(output))
    assert (before.num_done, before.num_planned) == (num_paid, NUM_DOCUMENTS)

    asked.clear()
    asked.limit = float("inf")
    manifest = run_synthesize([corpus], output, **SETTINGS)
    assert sum(map(len, asked)) == NUM_DOCUMENTS - num_paid
    assert journaled_keys(output) == dict.fromkeys(journaled_keys(output), 1)
    assert journaled_keys(output).total() == manifest.accounts.num_texts == NUM_DOCUMENTS
    assert parquet_digests(output) == uninterrupted

    asked.clear()
    assert run_synthesize([corpus], output, **SETTINGS) == manifest
    assert asked == []


def test_a_lost_artifact_is_rebuilt_from_the_journal_alone(corpus, uninterrupted, asked, tmp_path):
    output = tmp_path / "out"
    run_synthesize([corpus], output, **SETTINGS)
    for path in (*output.glob("*.parquet"), output / "COMPLETED"):
        path.unlink()
    asked.clear()
    run_synthesize([corpus], output, **SETTINGS)
    assert asked == []
    assert parquet_digests(output) == uninterrupted


class Storage:
    """Storage that a process writes to until it is killed, at its ``kill_at``-th change; then nothing works."""

    def __init__(self, patch, *, kill_at):
        self.num_changes = 0
        self._kill_at = kill_at
        for name in ("open_atomic_output", "remove_file"):
            patch.setattr(storage, name, self._until_killed(getattr(storage, name)))

    def _until_killed(self, function):
        def change(*arguments, **options):
            self.num_changes += 1
            if self.num_changes > self._kill_at:
                raise InterruptedByTestError
            return function(*arguments, **options)

        return change


def run_until_killed(corpus, output, settings, *, kill_at):
    """A run that is killed after so many changes of the storage; returns whether it got to its end before."""
    with pytest.MonkeyPatch.context() as patch:
        killed_storage = Storage(patch, kill_at=kill_at)
        with contextlib.suppress(Exception):
            run_synthesize([corpus], output, **settings)
            return True
    assert killed_storage.num_changes > kill_at
    return False


def test_a_run_killed_at_a_change_of_the_storage_ends_as_if_it_had_not_been(asked, tmp_path, monkeypatch):
    """The kills go through all stages of a run; `test_journal` kills the journal at each of its changes."""
    monkeypatch.setattr(journal, "_FAN_IN", 2)
    corpus = write_jsonl(tmp_path / "in.jsonl", [*make_documents(5), {"text": ""}])
    settings = {"chain_length": 2, "engine": fake_engine(max_batch_size=1)}
    run_synthesize([corpus], tmp_path / "whole", **settings)
    expected = {pattern: parquet_digests(tmp_path / "whole", pattern) for pattern in ("*.parquet", "rejects/*")}
    fingerprint = completed_fingerprint(str(tmp_path / "whole"))
    num_durable = []
    for kill_at in itertools.count(2, 5):
        output = tmp_path / str(kill_at)
        has_ended = run_until_killed(corpus, output, settings, kill_at=kill_at)
        durable = journaled_keys(output)
        num_durable.append(durable.total())
        if len(num_durable) == 3:
            # A second start that is killed while it merges what the first one left.
            assert not run_until_killed(corpus, output, settings, kill_at=2)
            assert journaled_keys(output) == durable
        asked.clear()
        assert run_synthesize([corpus], output, **settings).fingerprint == fingerprint
        assert sum(map(len, asked)) == 5 - durable.total()
        assert journaled_keys(output) == dict.fromkeys(journaled_keys(output), 1)
        assert journal.read_progress(str(output)).num_done == 5
        assert {pattern: parquet_digests(output, pattern) for pattern in expected} == expected
        if has_ended:
            break
    assert {0, 5} < set(num_durable)


def test_an_earlier_start_that_still_runs_is_stopped_by_a_later_one(
    corpus, uninterrupted, asked, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    begun = []

    class Engine:
        """While the first start generates, a second one begins and ends."""

        def __init__(self, engine):
            self._engine = engine

        def generate(self, prompts, *, sampling):
            if not begun:
                begun.append(True)
                run_synthesize([corpus], output, **SETTINGS)
            return self._engine.generate(prompts, sampling=sampling)

    load = model_handler.load_engine
    monkeypatch.setattr(model_handler, "load_engine", lambda config: Engine(load(config)))
    with pytest.raises(ValueError, match="Another start of this run has taken over"):
        run_synthesize([corpus], output, **SETTINGS)
    assert begun
    assert parquet_digests(output) == uninterrupted
    read_augmented_corpus_manifest(str(output))
    # What the first one had paid for is kept: one batch, twice.
    assert NUM_DOCUMENTS < journaled_keys(output).total() <= NUM_DOCUMENTS + 8


@pytest.mark.slow
def test_a_killed_process_has_lost_no_finished_batch(corpus, tmp_path):
    settings = {"chain_length": 2, "num_files": 2, "engine": fake_engine(seconds_per_prompt=0.1, max_batch_size=2)}
    output = tmp_path / "out"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_as_json(synthesize_config([corpus], output, **settings))))
    process = subprocess.Popen(
        [sys.executable, "-m", "beam_pipelines", "synthesize", "--config", str(config), "--", "--runner=FnApiRunner"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while journal.read_progress(str(output)).num_done < 6:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    paid = journaled_keys(output)
    assert 6 <= paid.total() < NUM_DOCUMENTS

    run_synthesize([corpus], output, **settings)
    keys = journaled_keys(output)
    assert keys >= paid
    assert keys == dict.fromkeys(keys, 1)
    assert keys.total() == NUM_DOCUMENTS
    run_synthesize([corpus], tmp_path / "whole", **settings)
    assert parquet_digests(output) == parquet_digests(tmp_path / "whole")


def test_a_run_goes_on_with_other_batches(corpus, uninterrupted, asked, tmp_path):
    output = tmp_path / "out"
    asked.limit = 16
    with pytest.raises(Exception, match="InterruptedByTestError"):
        run_synthesize([corpus], output, **SETTINGS)
    num_paid = sum(map(len, asked))
    asked.clear()
    asked.limit = float("inf")
    smaller = replace(SETTINGS["engine"], max_batch_size=1, prefix_cache_bytes=0)
    run_synthesize([corpus], output, **{**SETTINGS, "engine": smaller})
    assert [len(prompts) for prompts in asked] == [1] * (NUM_DOCUMENTS - num_paid)
    assert parquet_digests(output) == uninterrupted


def test_a_folder_of_another_run_or_of_strangers_is_refused_before_any_work(corpus, asked, tmp_path):
    output = tmp_path / "out"
    run_synthesize([corpus], output, **SETTINGS)
    before = parquet_digests(output)
    asked.clear()
    with pytest.raises(
        ValueError, match=r"already holds another run\. It differs in: config\.seed \(there 0, here 1\)"
    ):
        run_synthesize([corpus], output, **{**SETTINGS, "seed": 1})
    with pytest.raises(ValueError, match="already holds another run"):
        run_synthesize([corpus], output, **{**SETTINGS, "engine": fake_engine(seed=7)})
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"files that belong to no run of this tool.*thesis\.tex"):
        run_synthesize([corpus], strange, **SETTINGS)
    assert asked == []
    assert parquet_digests(output) == before
    assert [path.name for path in strange.iterdir()] == ["thesis.tex"]


def test_other_few_shot_examples_are_another_run(corpus, tmp_path):
    examples = tmp_path / "examples.yaml"
    settings = {**SETTINGS, "synthesizer": SynthesizerConfig(examples=str(examples))}
    examples.write_text("examples: [{text: A., pairs: [{question: Q, answer: A}]}]")
    run_synthesize([corpus], tmp_path / "out", **settings)
    examples.write_text("examples: [{text: B., pairs: [{question: Q, answer: A}]}]")
    with pytest.raises(ValueError, match=r"It differs in: inputs\.format"):
        run_synthesize([corpus], tmp_path / "out", **settings)
