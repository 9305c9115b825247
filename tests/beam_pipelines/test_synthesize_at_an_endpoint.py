"""A synthesis whose model is a server: a local one that answers as the fake engine does, until it is told not to."""

from collections import Counter
from dataclasses import replace

import pytest

from contracts.manifest import read_augmented_corpus_manifest
from synth_model.engines import EngineConfig
from synth_model.engines.endpoint_engine import EndpointOptions
from synth_model.engines.fake_engine import FakeEngine, FakeOptions
from synth_model.generation import Prompt, Sampling
from synth_model.prompt_tokenizer import ModelTokenizer
from tests.beam_pipelines.pipeline_runs import (
    make_documents,
    parquet_digests,
    read_rejects,
    run_synthesize,
    write_jsonl,
)
from tests.synth_model import tiny_model
from tests.synth_model.engines.endpoint_server import Reply, serving

NUM_DOCUMENTS = 16
NUM_PAID = 9
SAMPLING = Sampling(max_new_tokens=300)
GONE = Reply(status=503, body={"error": {"message": "no worker"}})


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    tiny_model.write_tokenizer(folder)
    return folder


@pytest.fixture
def server(tokenizer_folder):
    tokenizer = ModelTokenizer(tokenizer_folder).tokenizer
    fake = FakeEngine(FakeOptions(no_pair_rate=0.0), context_length=4096)

    def answer(request):
        if request.fields["model"] != "fake":
            return Reply(status=404, body={"error": {"message": "no such model"}})
        prompt = Prompt(text=tokenizer.decode(request.fields["prompt"]))
        (outcome,) = fake.generate([prompt], sampling=SAMPLING)
        return Reply(body={"choices": [{"text": outcome.text, "finish_reason": outcome.finish_reason}]})

    with serving(answer) as server:
        yield server


@pytest.fixture
def settings(server, tokenizer_folder):
    options = EndpointOptions(base_url=server.url, tokenizer=tokenizer_folder, max_concurrency=4, max_retries=1)
    engine = EngineConfig(kind="endpoint", model="fake", context_length=4096, max_batch_size=4, endpoint=options)
    return {"engine": engine, "sampling": SAMPLING, "chain_length": 2}


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "in.jsonl", make_documents(NUM_DOCUMENTS))


def prompts_asked(server):
    return Counter(tuple(request.fields["prompt"]) for request in server.received if request.fields["max_tokens"] > 1)


def test_an_outage_stops_the_run_and_nothing_is_paid_for_twice(server, settings, corpus, tmp_path):
    run_synthesize([corpus], tmp_path / "whole", **settings)
    whole = prompts_asked(server)
    assert sum(whole.values()) == NUM_DOCUMENTS
    ordinary, server.received = server.answer, []
    server.answer = lambda request: ordinary(request) if len(server.received) <= NUM_PAID else GONE
    with pytest.raises(Exception, match=r"does not complete prompts of the model 'fake': HTTP 503: .*no worker"):
        run_synthesize([corpus], tmp_path / "out", **settings)
    server.answer, server.received = ordinary, []
    run_synthesize([corpus], tmp_path / "out", **settings)
    # Of what was answered before the outage, at most the batch that it met is asked for again.
    assert NUM_DOCUMENTS - NUM_PAID < sum(prompts_asked(server).values()) <= NUM_DOCUMENTS - NUM_PAID + 4
    assert prompts_asked(server) < whole
    assert parquet_digests(tmp_path / "out") == parquet_digests(tmp_path / "whole")
    assert read_rejects(tmp_path / "out") == []


def test_what_the_endpoint_refuses_of_one_text_rejects_that_text(server, settings, corpus, tmp_path):
    run_synthesize([corpus], tmp_path / "whole", **settings)
    refused = min(prompts_asked(server))
    ordinary = server.answer
    refusal = Reply(status=400, body={"error": {"message": "unsafe words"}})
    server.answer = lambda request: refusal if tuple(request.fields["prompt"]) == refused else ordinary(request)
    run_synthesize([corpus], tmp_path / "out", **settings)
    (reject,) = read_rejects(tmp_path / "out")
    assert (reject.reason, "unsafe words" in reject.detail) == ("prompt_refused", True)
    accounts = read_augmented_corpus_manifest(str(tmp_path / "out")).accounts
    assert (accounts.num_texts, accounts.num_augmented) == (NUM_DOCUMENTS, NUM_DOCUMENTS - 1)


def test_a_wrong_model_is_told_before_anything_is_written(server, settings, corpus, tmp_path):
    engine = replace(settings["engine"], model="gpt")
    with pytest.raises(ValueError, match=rf"{server.url} does not serve the model 'gpt'.*no such model"):
        run_synthesize([corpus], tmp_path / "out", beam=["--runner=DirectRunner"], **{**settings, "engine": engine})
    assert not (tmp_path / "out").exists()
    assert len(server.received) == 1
