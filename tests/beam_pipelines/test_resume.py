import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from beam_pipelines import journal, model_handler
from beam_pipelines.command_line import config_as_json
from synth_model.engines import load_engine
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
    return Counter(key for url in journal.list_segments(str(output)) for key, _ in journal.read_segment(url))


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
