"""A whole synthesis, its resumption and its status on each kind of storage; then pack and the trainer behind it."""

import json

import fsspec
import pytest

from beam_pipelines import journal, model_handler
from beam_pipelines.command_line import beam_options
from beam_pipelines.dry_run import dry_run, report_url
from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.status import read_status
from contracts import storage
from contracts.artifact import completed_fingerprint
from synth_model.engines import load_engine
from tests.beam_pipelines.pipeline_runs import (
    IN_MEMORY,
    fake_engine,
    make_documents,
    run_pack,
    run_synthesize,
    synthesize_config,
    write_jsonl,
)
from trainer.shard_dataset import ShardDataset

NUM_DOCUMENTS = 9
SETTINGS = {"chain_length": 2, "engine": fake_engine(max_batch_size=1)}


@pytest.fixture(scope="module")
def s3_server():
    """A server on this machine that speaks the protocol of S3, found as an operator would have it found."""
    server_module = pytest.importorskip("moto.server", reason="moto is absent; install the extra dev")
    pytest.importorskip("s3fs", reason="s3fs is absent; install the extra s3")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}", "key": "testing", "secret": "testing"}
        )
        fsspec.filesystem("s3").mkdir("bucket")
        yield
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def root(request, tmp_path):
    """A folder on each kind of storage."""
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return f"s3://bucket/{tmp_path.name}"
    return str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"


class InterruptedByTestError(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def asked(monkeypatch):
    """The prompts that reach the engine; ``limit`` prompts in, it raises."""

    class Asked(list):
        limit = float("inf")

    prompts_asked = Asked()

    class Engine:
        def __init__(self, engine):
            self._engine = engine

        def generate(self, prompts, *, sampling):
            if len(prompts_asked) + len(prompts) > prompts_asked.limit:
                raise InterruptedByTestError
            prompts_asked.extend(prompts)
            return self._engine.generate(prompts, sampling=sampling)

    monkeypatch.setattr(model_handler, "load_engine", lambda config: Engine(load_engine(config)))
    return prompts_asked


def digests(folder):
    urls = storage.list_files(folder, suffixes=(".parquet",))
    assert urls
    return {url.rsplit("/", 1)[-1]: storage.file_sha256(url) for url in urls}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_synthesize([write_jsonl(folder / "in.jsonl", make_documents(NUM_DOCUMENTS))], folder / "out", **SETTINGS)
    return digests(str(folder / "out"))


def test_a_synthesis_is_interrupted_resumed_looked_at_and_packed(
    root, uninterrupted, asked, tokenizer_folder, monkeypatch
):
    monkeypatch.setattr(journal, "_FAN_IN", 2)
    corpus, output = storage.join(root, "in", "corpus.jsonl"), storage.join(root, "out")
    records = [json.dumps(document).encode() + b"\n" for document in make_documents(NUM_DOCUMENTS)]
    storage.write_bytes_atomically(corpus, b"".join(records))
    config = synthesize_config([corpus], output, dry_run=True, **SETTINGS)

    assert dry_run(config, options=beam_options(IN_MEMORY)).num_prompts == NUM_DOCUMENTS
    assert storage.exists(report_url(output))
    assert not storage.exists(output)

    asked.limit = 6
    with pytest.raises(Exception, match="InterruptedByTestError"):
        run_synthesize([corpus], output, **SETTINGS)
    status = read_status(output)
    assert not status.is_completed
    assert (status.progress.num_done, status.progress.num_planned) == (6, NUM_DOCUMENTS)
    assert len(journal.list_files(output)) < 6

    asked.clear()
    asked.limit = float("inf")
    manifest = run_synthesize([corpus], output, **SETTINGS)
    assert len(asked) == NUM_DOCUMENTS - 6
    assert completed_fingerprint(output) == manifest.fingerprint
    status = read_status(output)
    assert status.is_completed
    assert status.progress.num_done == NUM_DOCUMENTS == journal.read_progress(output).num_done
    assert digests(output) == uninterrupted

    shards = storage.join(root, "shards")
    packed = run_pack(
        [ComponentConfig(name="augmented", kind="chains", input=[output])],
        shards,
        tokenizer=tokenizer_folder,
        sequence_length=64,
    )
    assert len(ShardDataset(shards, manifest=packed, split="train")) == packed.num_rows("train") > 0
