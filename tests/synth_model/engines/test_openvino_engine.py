import importlib.util
import os
import shutil
import sys
import threading
from dataclasses import replace

import pytest

from synth_model.engines import EngineConfig, load_engine
from synth_model.engines.openvino_engine import OpenvinoEngine, OpenvinoOptions
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.generation import ChatMessage, Completion, Prompt, Sampling, prompt_seed
from synth_model.wire_format import build_prompt
from tests.synth_model import tiny_model
from tests.synth_model.engines import openvino_stub

SAMPLING = Sampling(max_new_tokens=12)
HOT = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=3, frequency_penalty=0.5, presence_penalty=0.25)
PROMPTS = [
    Prompt(text=text)
    for text in ("a", "The tide turns twice a day.", build_prompt([], text="Ebb."), "naïve 漢字 \U0001f642", "zzzz")
]
CHAT = Prompt(messages=(ChatMessage(role="user", content="Ask."),), response_prefix="Q:")


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    """The tiny model's folder with what tells an exported model."""
    folder = str(tmp_path_factory.mktemp("exported") / "model")
    shutil.copytree(model_folder, folder)
    with open(os.path.join(folder, "openvino_model.xml"), "w") as file:
        file.write("<net/>")
    return folder


@pytest.fixture
def config(exported):
    return EngineConfig(kind="openvino", model=exported, context_length=256)


@pytest.fixture
def engine(config, monkeypatch):
    openvino_stub.install(monkeypatch)
    return load_engine(config)


def test_openvino_is_loaded_as_the_config_says(engine, config):
    assert isinstance(engine, OpenvinoEngine)
    assert (engine._pipeline.device, engine._pipeline.scheduler_config.cache_size) == ("CPU", 2)
    assert engine._pipeline.scheduler_config.enable_prefix_caching is True
    other = load_engine(replace(config, openvino=OpenvinoOptions(kv_cache_gib=5)))
    assert other._pipeline.scheduler_config.cache_size == 5


def test_greedy_outcomes_are_those_of_the_transformers_engine(engine, config):
    prompts = [*PROMPTS, CHAT]
    expected = TransformersEngine(replace(config, kind="transformers", device="cpu")).generate(
        prompts, sampling=SAMPLING
    )
    assert engine.generate(prompts, sampling=SAMPLING) == expected
    assert {outcome.finish_reason for outcome in expected} == {"stop", "length"}
    # All of them in one call, so that OpenVINO can batch as it likes; BOS once, where the prompt has it.
    ((read, _),) = engine._pipeline.calls
    assert [ids.count(0) for ids in read] == [0, 0, 1, 0, 0, 0]


def test_sampling_is_passed_on(engine):
    engine.generate(PROMPTS, sampling=HOT)
    engine.generate(PROMPTS[:1], sampling=SAMPLING)
    (_, drawn), (_, (greedy,)) = engine._pipeline.calls
    assert [config.rng_seed for config in drawn] == [prompt_seed(prompt, sampling=HOT) for prompt in PROMPTS]
    first = drawn[0]
    assert (first.do_sample, first.temperature, first.top_p, first.frequency_penalty) == (True, 0.8, 0.9, 0.5)
    assert (first.max_new_tokens, first.stop_token_ids) == (12, {1, *range(20, 30)})
    assert (first.presence_penalty, greedy.presence_penalty) == (0.25, 0.0)
    assert (greedy.do_sample, greedy.frequency_penalty) == (False, 0.0)
    assert not hasattr(greedy, "temperature")


def test_prompts_that_cannot_be_completed_are_failures_of_their_own(engine):
    expected = engine.generate(PROMPTS[:2], sampling=SAMPLING)
    (poison,) = engine._tokenizer.tokenizer.decode([openvino_stub.POISON_ID])
    bad = [Prompt(text="x" * 245), Prompt(text="half \ud800"), Prompt(text=f"poison {poison}")]
    outcomes = engine.generate([PROMPTS[0], *bad, PROMPTS[1]], sampling=SAMPLING)
    assert [outcome.reason for outcome in outcomes[1:4]] == [
        "prompt_too_long",
        "prompt_not_encodable",
        "generation_failed",
    ]
    assert "vocab_size" in outcomes[3].detail
    assert [outcomes[0], outcomes[4]] == expected
    assert engine.generate([], sampling=SAMPLING) == []
    assert engine.generate(bad[:2], sampling=SAMPLING) == outcomes[1:3]


def test_what_does_not_fit_the_cache_is_a_failure(engine):
    engine._pipeline.fits = False
    (outcome,) = engine.generate(PROMPTS[1:2], sampling=SAMPLING)
    assert outcome.reason == "out_of_memory"
    assert "27 tokens" in outcome.detail
    assert "engine.openvino.kv_cache_gib" in outcome.detail


def test_threads_take_turns(engine, monkeypatch):
    expected = engine.generate(PROMPTS, sampling=SAMPLING)
    generate, is_busy, results = engine._pipeline.generate, threading.Lock(), {}

    def generate_alone(*arguments):
        assert is_busy.acquire(blocking=False)
        try:
            return generate(*arguments)
        finally:
            is_busy.release()

    monkeypatch.setattr(engine._pipeline, "generate", generate_alone)

    def work(number):
        results[number] = engine.generate(PROMPTS[number : number + 2], sampling=SAMPLING)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: expected[number : number + 2] for number in range(4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "runs on the CPU"),
        ({"adapter": "some/adapter"}, "without adapters: merge one before the export"),
        ({"context_length": tiny_model.CONTEXT_LENGTH + 1}, f"was made for {tiny_model.CONTEXT_LENGTH}"),
    ],
)
def test_what_does_not_go_with_it_is_refused(engine, config, changes, message):
    with pytest.raises(ValueError, match=message):
        load_engine(replace(config, **changes))


def test_a_folder_without_an_exported_model_is_an_error(engine, config, model_folder, exported, tmp_path):
    with pytest.raises(ValueError, match=r"there is no openvino_model.xml in it: give the folder that `optimum-cli"):
        load_engine(replace(config, model=model_folder))
    shutil.copytree(exported, tmp_path / "broken")
    with pytest.raises(ValueError, match=r"OpenVINO could not load '.*broken': Check failed .* no such layer"):
        load_engine(replace(config, model=str(tmp_path / "broken")))


def test_openvino_that_is_not_installed_is_an_error(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[openvino\]'"):
        load_engine(config)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"engine\.openvino\.kv_cache_gib is 0"):
        EngineConfig(kind="openvino", model="m", openvino=OpenvinoOptions(kv_cache_gib=0)).check()


@pytest.mark.real_model
def test_the_real_one_completes_prompts_and_finds_them_again():
    """With the real package and a model that ``optimum-cli`` exported; see docs/engines.md."""
    folder = os.environ.get("IPT_OPENVINO_MODEL", "")
    if importlib.util.find_spec("openvino_genai") is None or not folder:
        pytest.skip("openvino-genai is not installed, or IPT_OPENVINO_MODEL names no exported model")
    engine = load_engine(EngineConfig(kind="openvino", model=folder))
    texts = ["The tide turns twice a day. " * 8, "Bread rises because yeast makes gas.", "Question: What is rain?"]
    prompts = [Prompt(text=text) for text in texts]
    for sampling in (replace(SAMPLING, max_new_tokens=20), replace(HOT, frequency_penalty=0.1)):
        outcomes = engine.generate(prompts, sampling=sampling)
        assert all(isinstance(outcome, Completion) for outcome in outcomes)
        assert [outcome.num_prompt_tokens for outcome in outcomes] == [
            len(ids) for ids in engine._tokenizer.encode(prompts)
        ]
        assert all(outcome.text for outcome in outcomes)
        # In any batch and order, with what the cache holds.
        assert engine.generate(prompts[::-1], sampling=sampling)[::-1] == outcomes
        assert [outcome for prompt in prompts for outcome in engine.generate([prompt], sampling=sampling)] == outcomes
    drawn = engine.generate([replace(prompts[1], draw=draw) for draw in range(6)], sampling=HOT)
    assert len({outcome.text for outcome in drawn}) > 3
    assert engine._pipeline.get_metrics().max_cache_usage > 0
