"""The same bytes from every runner, in every order, from every layout of the same input."""

import os
import socket
import subprocess
import sys
import time

import pytest

from beam_pipelines.mixing import ComponentConfig
from tests.beam_pipelines.pipeline_runs import (
    IN_MEMORY,
    fake_engine,
    make_documents,
    parquet_digests,
    run_pack,
    run_synthesize,
    write_jsonl,
)
from tests.conftest import REPOSITORY

DOCUMENTS = make_documents(40)
UNIT_BYTES = 1000
RECORDS = [*DOCUMENTS, DOCUMENTS[3], {"body": "no text"}]


def run_both(folder, corpus, *, beam=IN_MEMORY, tokenizer, **pack_settings):
    """Synthesizes and packs; returns the checksums of everything written but the rejects, which name their files."""
    run_synthesize(
        [corpus],
        folder / "augmented",
        beam=beam,
        chain_length=3,
        num_files=2,
        engine=fake_engine(failure_rate=0.1),
    )
    run_pack(
        [
            ComponentConfig(name="augmented", kind="chains", input=[str(folder / "augmented")], epochs=1.5),
            ComponentConfig(name="web", kind="documents", input=[str(corpus)]),
        ],
        folder / "shards",
        beam=beam,
        tokenizer=tokenizer,
        sequence_length=64,
        num_shards=3,
        num_validation_shards=1,
        validation_fraction=0.2,
        **pack_settings,
    )
    return parquet_digests(folder / "augmented") | parquet_digests(folder / "shards")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        write_jsonl(folder / f"{number}.jsonl", RECORDS[number::3])
    return folder


@pytest.fixture(scope="module")
def expected(corpus, tokenizer_folder, tmp_path_factory):
    digests = run_both(tmp_path_factory.mktemp("expected"), corpus, tokenizer=tokenizer_folder)
    assert len(digests) == 2 + 3 + 1
    return digests


def test_in_another_order_and_in_other_files(expected, tokenizer_folder, tmp_path):
    (tmp_path / "corpus").mkdir()
    for number, start in enumerate((0, 5, 30)):
        stop = (5, 30, None)[number]
        write_jsonl(tmp_path / "corpus" / f"{'zya'[number]}.jsonl", list(reversed(RECORDS))[start:stop])
    assert run_both(tmp_path, tmp_path / "corpus", tokenizer=tokenizer_folder) == expected


def test_another_corpus_gives_other_bytes(expected, tokenizer_folder, tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", RECORDS[1:])
    # A file that held nothing of the document left out, nor of its chain, may well be the same.
    assert run_both(tmp_path, corpus, tokenizer=tokenizer_folder) != expected


def test_from_eight_threads_in_parts_of_a_few_texts(corpus, expected, tokenizer_folder, tmp_path, monkeypatch):
    # Less than a file: each is cut into ranges of bytes.
    monkeypatch.setattr("beam_pipelines.component_tokenization.UNIT_BYTES", UNIT_BYTES)
    assert min(path.stat().st_size for path in corpus.iterdir()) > 2 * UNIT_BYTES
    monkeypatch.setattr("beam_pipelines.component_tokenization.BATCH_CHARACTERS", 300)
    beam = ("--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=8")
    cache = str(tmp_path / "cache")
    settings = {"beam": beam, "tokenizer": tokenizer_folder, "shard_tokens": 500, "cache": cache}
    assert run_both(tmp_path, corpus, **settings) == expected
    assert len(list((tmp_path / "cache").rglob("train-*-00001.arrow"))) >= 3
    assert len(list((tmp_path / "cache").rglob("unit.json"))) >= 2 + 3 * 2


@pytest.mark.slow
def test_from_two_processes(corpus, expected, tokenizer_folder, tmp_path):
    beam = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert run_both(tmp_path, corpus, beam=beam, tokenizer=tokenizer_folder) == expected


@pytest.mark.slow
def test_from_prism(corpus, expected, prism_path, tokenizer_folder, tmp_path):
    # Beam keeps one Prism server a process, and would not take another binary.
    beam = ("--runner=PrismRunner", f"--prism_location={prism_path}", "--experiments=disable_prism_server_singleton")
    assert run_both(tmp_path, corpus, beam=beam, tokenizer=tokenizer_folder) == expected


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def wait_until_open(port, process):
    for _ in range(300):
        assert process.poll() is None, f"port {port}: the process ended with status {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"nothing listens on port {port}")


@pytest.fixture
def cluster(prism_path):
    """A job server and a pool of workers as a cluster has them; returns Beam's options for it."""
    job_port, pool_port = free_port(), free_port()
    # The pool starts `python` from PATH, which must find the project and what it needs.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    commands = {
        job_port: [prism_path, "--job_port", str(job_port), "--serve_http=false"],
        pool_port: [
            *(sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"),
            *("--service_port", str(pool_port)),
        ],
    }
    processes = {
        port: subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for port, command in commands.items()
    }
    try:
        for port, process in processes.items():
            wait_until_open(port, process)
        yield (
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{job_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{pool_port}",
        )
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(timeout=20)


@pytest.mark.slow
def test_from_a_job_server_with_workers_of_its_own(corpus, cluster, tmp_path):
    settings = {"chain_length": 2, "engine": fake_engine(max_batch_size=16)}
    run_synthesize([corpus], tmp_path / "cluster", beam=cluster, **settings)
    run_synthesize([corpus], tmp_path / "here", **settings)
    assert parquet_digests(tmp_path / "cluster") == parquet_digests(tmp_path / "here")
