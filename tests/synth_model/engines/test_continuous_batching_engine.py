import gc
import logging
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

from synth_model.engines import EngineConfig, continuous_batching_session, load_engine
from synth_model.engines.continuous_batching_engine import ContinuousBatchingEngine, drop_idle_window
from synth_model.engines.continuous_batching_session import ContinuousBatchingOptions, StalledError
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.generation import ChatMessage, Completion, Failure, Prompt, Sampling
from tests.conftest import REPOSITORY
from tests.synth_model import tiny_model

GREEDY = Sampling(max_new_tokens=12)
PENALIZED = replace(GREEDY, frequency_penalty=2.0)
HOT = Sampling(max_new_tokens=12, temperature=1.5, top_p=0.95, frequency_penalty=0.3, seed=3)
SAMPLINGS = (GREEDY, PENALIZED, HOT)
PREFIX = "What all of them begin with is long enough to share. "
PROMPTS = [
    Prompt(text=text)
    for text in [
        "a",
        "The tide turns twice a day.",
        "The tide turns twice a week, and that is a longer text than the one before.",
        "<s> <CON> Ebb. </CON>\n\n",
        *(PREFIX + ending for ending in ("Ebb", "Flood and ebb", "", "Neap tide, spring tide", "x", "yz")),
        "naïve 漢字 \U0001f642",
        "zzzzzzzzzzzzzzzzzzzz",
    ]
] + [Prompt(messages=(ChatMessage(role="user", content="Ask."),), response_prefix="Q:")]
PAGE = 16
MODEL_FOLDER = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """The manager collects garbage whenever it ends: what is there already is left out, since that takes its time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def config(model_folder):
    return EngineConfig(
        model=model_folder,
        device="cpu",
        dtype="float32",
        context_length=256,
        max_batch_size=8,
        max_batch_tokens=4096,
        batching="continuous",
        continuous=ContinuousBatchingOptions(page_size=PAGE, max_step_tokens=128, max_requests=8, stall_seconds=60),
    )


@pytest.fixture(scope="module")
def padded(config):
    """What padded batches give for each sampling."""
    engine = TransformersEngine(config)
    return {sampling: engine.generate(PROMPTS, sampling=sampling) for sampling in SAMPLINGS}


@pytest.fixture
def load(monkeypatch):
    """Loads engines and closes them when the test ends."""
    # Kept, what the manager logs of an error would keep its tensors.
    monkeypatch.setattr(logging.getLogger("ContinuousBatchingLogger"), "disabled", True)
    engines = []

    def load(config):
        engines.append(ContinuousBatchingEngine(config))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def changed(config, **options):
    return replace(config, continuous=replace(config.continuous, **options))


def watch_forward(engine, monkeypatch, watch):
    """Calls ``watch`` with the token ids of each forward pass, shape (tokens,), before it."""
    forward = engine._model.forward

    def watched(*args, **kwargs):
        watch(kwargs["input_ids"][0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine._model, "forward", watched)


def generation_threads():
    return [thread for thread in threading.enumerate() if "_run_generation_loop" in thread.name]


def test_the_prompts_end_in_both_ways_and_say_different_things(padded):
    for outcomes in padded.values():
        assert {outcome.finish_reason for outcome in outcomes} == {"stop", "length"}
        assert len({outcome.text for outcome in outcomes}) >= 10


@pytest.mark.parametrize("sizes", [{"max_requests": 2}, {"max_step_tokens": 7, "page_size": 4}], ids=str)
def test_outcomes_are_those_of_padded_batches(config, padded, load, sizes):
    engine = load(changed(config, **sizes))
    for sampling in SAMPLINGS:
        assert engine.generate(PROMPTS, sampling=sampling) == padded[sampling]
        assert engine.generate(PROMPTS[::-1], sampling=sampling)[::-1] == padded[sampling]


def test_one_batch_lives_over_calls_and_serves_all_samplings(config, padded, load):
    engine = load(config)
    sessions = []
    for sampling in (GREEDY, GREEDY, PENALIZED, HOT, GREEDY):
        assert engine.generate(PROMPTS, sampling=sampling) == padded[sampling]
        sessions.append(engine._session)
    # Greedy ones alone leave the manager free to use what choosing tokens forbids; from the first penalty on it is one.
    assert sessions[0] is sessions[1] is not sessions[2]
    assert sessions[2] is sessions[3] is sessions[4]
    assert len(generation_threads()) == 1


def test_threads_get_each_their_own_outcomes(config, padded, load):
    engine = load(config)
    work = [(SAMPLINGS[number % 3], slice(number % 5, number % 5 + 7)) for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda job: engine.generate(PROMPTS[job[1]], sampling=job[0]), work))
    assert outcomes == [padded[sampling][part] for sampling, part in work]
    assert len(generation_threads()) == 1


def test_requests_of_several_threads_share_steps(config, load, monkeypatch):
    engine = load(changed(config, max_requests=64))
    engine.generate(PROMPTS[:1], sampling=GREEDY)
    both_are_in = threading.Barrier(2)
    sizes = []

    def work(part):
        both_are_in.wait()
        return engine.generate(PROMPTS[part], sampling=replace(GREEDY, max_new_tokens=60))

    watch_forward(engine, monkeypatch, lambda ids: sizes.append(len(ids)))
    # Long runs: the two calls overlap unless one of them waits for the other.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (slice(2), slice(4, 6))))
    together = len(sizes)
    sizes.clear()
    for part in (slice(2), slice(4, 6)):
        engine.generate(PROMPTS[part], sampling=replace(GREEDY, max_new_tokens=60))
    assert together < len(sizes)


def test_no_prompts_have_no_outcomes_and_start_nothing(config, load):
    engine = load(config)
    assert engine.generate([], sampling=GREEDY) == []
    (failure,) = engine.generate([Prompt(text="x" * 300)], sampling=GREEDY)
    assert failure.reason == "prompt_too_long"
    assert engine._session is None


def test_prompts_that_cannot_be_completed_are_failures_of_their_own(config, padded, load):
    engine = load(config)
    fits, too_long, half = Prompt(text="x" * 244), Prompt(text="x" * 245), Prompt(text="half \ud800")
    outcomes = engine.generate([PROMPTS[0], too_long, half, fits, PROMPTS[1]], sampling=GREEDY)
    assert [outcomes[0], outcomes[4]] == padded[GREEDY][:2]
    assert (outcomes[1].reason, outcomes[2].reason) == ("prompt_too_long", "prompt_not_encodable")
    assert "245 tokens and 12 new exceed the context of 256" in outcomes[1].detail
    assert isinstance(outcomes[3], Completion)


# --- pages


def num_computed(engine, monkeypatch, prompts):
    """Tokens of the prompts, and tokens computed for prompts and completions without the last of each."""
    computed = []
    with monkeypatch.context() as patch:
        watch_forward(engine, patch, lambda ids: computed.append(len(ids)))
        outcomes = engine.generate(prompts, sampling=PENALIZED)
    num_new = sum(outcome.num_new_tokens - (outcome.finish_reason == "length") for outcome in outcomes)
    return sum(outcome.num_prompt_tokens for outcome in outcomes), sum(computed) - num_new, outcomes


@pytest.mark.parametrize("page_size", [4, 16])
def test_the_next_round_computes_only_what_is_new(config, load, monkeypatch, page_size):
    engine = load(changed(config, page_size=page_size))
    first = [Prompt(text=f"<s> <CON> {subject} turns twice a day. </CON>\n\n") for subject in ("Tide", "Wind", "Luck")]
    num_tokens, num_read, outcomes = num_computed(engine, monkeypatch, first)
    assert num_read == num_tokens
    # A token is a byte, or one of the special ones: what was generated stands again in the same tokens.
    second = [
        Prompt(text=f"{prompt.text}{outcome.text}</s><s> <CON> More. </CON>\n\n")
        for prompt, outcome in zip(first, outcomes, strict=True)
    ]
    num_tokens, num_read, again = num_computed(engine, monkeypatch, second)
    num_shared = num_tokens - num_read
    # Whole pages of round 1, whose last token was never computed, up to a byte that is no text.
    count = engine._tokenizer.count
    known = [
        min(*count([Prompt(text=prompt.text + outcome.text.partition("\ufffd")[0])]), before - 1)
        for prompt, outcome in zip(first, outcomes, strict=True)
        for before in [outcome.num_prompt_tokens + outcome.num_new_tokens]
    ]
    assert num_shared == sum(length // page_size * page_size for length in known)
    assert num_shared > num_tokens // 3
    assert again == TransformersEngine(config).generate(second, sampling=PENALIZED)
    # And once more, all of it is there but for the tail that is no page.
    num_tokens, num_read, once_more = num_computed(engine, monkeypatch, second)
    assert once_more == again
    assert num_read == sum((outcome.num_prompt_tokens - 1) % page_size + 1 for outcome in again)


@pytest.mark.parametrize("window", [256, 32])
def test_a_sliding_window_hinders_sharing_only_if_a_prompt_can_outgrow_it(config, load, monkeypatch, tmp_path, window):
    tokenizer = tiny_model.write_tokenizer(str(tmp_path))
    torch.manual_seed(0)
    MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            initializer_range=0.6,
            sliding_window=window,
            eos_token_id=1,
        )
    ).save_pretrained(tmp_path)
    config = replace(config, model=str(tmp_path))
    engine = load(config)
    prompts = [Prompt(text=PREFIX * 2 + ending) for ending in "abc"]
    expected = TransformersEngine(config).generate(prompts, sampling=PENALIZED)
    for _ in range(2):
        num_tokens, num_read, outcomes = num_computed(engine, monkeypatch, prompts)
        assert outcomes == expected
    assert (num_read < num_tokens // 4) is (window == 256)


def test_layers_of_their_own_kind_keep_their_window():
    mistral = MistralConfig(sliding_window=64)
    drop_idle_window(mistral, context_length=65)
    assert mistral.sliding_window == 64
    drop_idle_window(mistral, context_length=64)
    assert mistral.sliding_window is None
    mixed = MistralConfig(sliding_window=64)
    mixed.layer_types = ["sliding_attention", "full_attention"]
    drop_idle_window(mixed, context_length=64)
    assert mixed.sliding_window == 64


def test_requests_that_are_evicted_go_on_as_they_would_have(config, padded, load, monkeypatch):
    evictions = []
    offload = OffloadingManager.offload_requests

    def watched(self):
        before = len(self.scheduler.waiting_requests)
        done = offload(self)
        evictions.append(len(self.scheduler.waiting_requests) - before)
        return done

    monkeypatch.setattr(OffloadingManager, "offload_requests", watched)
    engine = load(changed(replace(config, context_length=112), cache_tokens=112, max_requests=32, page_size=4))
    for sampling in SAMPLINGS:
        # Room for one prompt of full length, and all want in.
        assert engine.generate(PROMPTS, sampling=sampling) == padded[sampling]
    assert max(evictions) > 0


# --- errors


def test_an_error_in_a_batch_costs_one_prompt(config, padded, load, monkeypatch):
    engine = load(config)
    (poison,) = engine._tokenizer.tokenizer.encode("\x07", add_special_tokens=False)

    def raise_on_poison(ids):
        if (ids == poison).any():
            raise IndexError("index out of range in self")

    watch_forward(engine, monkeypatch, raise_on_poison)
    prompts = [*PROMPTS[:3], Prompt(text="The tide \x07 turns"), *PROMPTS[3:7]]
    outcomes = engine.generate(prompts, sampling=GREEDY)
    assert outcomes[3] == Failure(reason="generation_failed", detail="IndexError: index out of range in self")
    assert outcomes[:3] + outcomes[4:] == padded[GREEDY][:7]
    # The engine goes on working, also for a thread beside one whose prompts are bad.
    with ThreadPoolExecutor(3) as pool:
        jobs = [prompts[:4], PROMPTS[:4], prompts[2:]]
        results = list(pool.map(lambda job: engine.generate(job, sampling=GREEDY), jobs))
    assert results == [outcomes[:4], padded[GREEDY][:4], outcomes[2:]]
    assert len(generation_threads()) == 1


@pytest.mark.parametrize(
    "error", [TypeError("a fault of the program"), torch.AcceleratorError("CUDA error: unspecified launch failure")]
)
def test_an_error_that_no_prompt_causes_is_raised(config, load, monkeypatch, error):
    engine = load(config)

    def fail(ids):
        raise error

    watch_forward(engine, monkeypatch, fail)
    with pytest.raises(type(error), match=str(error)):
        engine.generate(PROMPTS, sampling=GREEDY)


def test_running_out_of_memory_halves_the_batch_and_goes_on(config, padded, load, monkeypatch, caplog):
    engine = load(config)
    sizes = []

    def run_out(ids):
        sizes.append(engine._session.options.max_step_tokens)
        if sizes[-1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    watch_forward(engine, monkeypatch, run_out)
    assert engine.generate(PROMPTS, sampling=HOT) == padded[HOT]
    options = engine._session.options
    assert (options.max_step_tokens, options.max_requests, options.cache_tokens) == (32, 2, 1024)
    assert "goes on with 1/4 of its tokens and requests" in caplog.text
    assert [size for size in sizes if size > 32] == [128, 64]
    assert len(generation_threads()) == 1


def test_what_still_runs_out_of_memory_fails_alone(config, padded, load, monkeypatch):
    engine = load(changed(config, cache_tokens=2048))
    (greedy_one,) = engine._tokenizer.tokenizer.encode("\x07", add_special_tokens=False)
    starts = []
    end = threading.Event()

    def run_out(ids):
        if (ids == greedy_one).any() and not end.is_set():
            starts.append(engine._session)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    watch_forward(engine, monkeypatch, run_out)
    prompts = [PROMPTS[0], Prompt(text="\x07 wants it all"), PROMPTS[1]]
    outcomes = engine.generate(prompts, sampling=GREEDY)
    assert outcomes[::2] == padded[GREEDY][:2]
    assert outcomes[1] == Failure(reason="out_of_memory", detail="14 tokens: CUDA out of memory.")
    # Four halvings, and once more alone.
    assert len(set(starts)) <= 6
    assert engine._num_halvings == 4
    # A cache holds the longest prompt however little there is.
    assert engine._session.options.cache_tokens == 256
    end.set()
    assert isinstance(engine.generate(prompts, sampling=GREEDY)[1], Completion)


def test_a_cache_that_does_not_fit_is_halved_too(config, padded, load, monkeypatch):
    from transformers.generation.continuous_batching.cache import PagedAttentionMemoryHandler

    monkeypatch.setattr(PagedAttentionMemoryHandler, "get_available_memory", lambda self: 1 << 21)
    engine = load(changed(config, cache_tokens=16384))
    assert engine.generate(PROMPTS, sampling=GREEDY) == padded[GREEDY]
    assert engine._num_halvings > 0


@pytest.fixture
def clock(monkeypatch):
    """The sessions' clock, which a test sets."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(continuous_batching_session, "time", clock)
    return clock


def test_a_batch_that_hangs_is_given_up(config, load, monkeypatch, clock):
    engine = load(config)
    go_on = threading.Event()

    def hang(ids):
        clock.now += 61
        go_on.wait()

    watch_forward(engine, monkeypatch, hang)
    try:
        with pytest.raises(StalledError, match=r"no forward pass in 60 s .*with 13 prompts under way"):
            engine.generate(PROMPTS, sampling=GREEDY)
        with pytest.raises(StalledError):
            engine.generate(PROMPTS, sampling=GREEDY)
    finally:
        go_on.set()


def test_a_slow_batch_does_not_hang(config, padded, load, monkeypatch, clock):
    engine = load(config)

    def be_slow(ids):
        clock.now += 59

    watch_forward(engine, monkeypatch, be_slow)
    assert engine.generate(PROMPTS, sampling=GREEDY) == padded[GREEDY]
    # Nor does one that had nothing to do, though its first pass is not done when it is looked at again.
    monkeypatch.undo()
    monkeypatch.setattr(continuous_batching_session, "time", clock)
    watch_forward(engine, monkeypatch, lambda ids: threading.Event().wait(0.3))
    threading.Event().wait(0.5)
    clock.now += 1000
    assert engine.generate(PROMPTS[:2], sampling=GREEDY) == padded[GREEDY][:2]


# --- ends


def test_a_closed_engine_ends_its_batch_and_takes_no_more(config, load):
    engine = load(config)
    engine.generate(PROMPTS, sampling=GREEDY)
    assert generation_threads()
    engine.close()
    assert not generation_threads()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(PROMPTS, sampling=GREEDY)


def test_a_forgotten_engine_ends_its_batch(config):
    engine = ContinuousBatchingEngine(config)
    engine.generate(PROMPTS, sampling=GREEDY)
    assert generation_threads()
    del engine
    gc.collect()
    assert not generation_threads()


def test_a_process_ends_though_its_batches_run_or_hang(model_folder):
    script = f"""
        import threading
        from dataclasses import replace
        from synth_model.engines import EngineConfig, load_engine
        from synth_model.engines.continuous_batching_session import ContinuousBatchingOptions
        from synth_model.generation import Prompt, Sampling

        config = EngineConfig(
            model={model_folder!r}, device="cpu", context_length=64, max_batch_tokens=512, batching="continuous",
            continuous=ContinuousBatchingOptions(page_size=16),
        )
        engine = load_engine(config)
        hanging = load_engine(replace(config, continuous=replace(config.continuous, stall_seconds=0.5)))
        hanging._model.forward = lambda **inputs: threading.Event().wait()
        print(engine.generate([Prompt(text="a")], sampling=Sampling(max_new_tokens=4))[0].finish_reason)
        try:
            hanging.generate([Prompt(text="a")], sampling=Sampling(max_new_tokens=4))
        except RuntimeError as error:
            print(type(error).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["length", "StalledError"]), done.stderr


# --- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"page_size": 3}, r"engine\.continuous\.page_size is 3; it must be at least 4"),
        ({"max_step_tokens": 0}, r"engine\.continuous\.max_step_tokens is 0"),
        ({"max_requests": 0}, r"engine\.continuous\.max_requests is 0"),
        ({"cache_tokens": 255}, r"engine\.continuous\.cache_tokens \(255\) is below engine\.context_length \(256\)"),
        ({"memory_fraction": 1.0}, r"engine\.continuous\.memory_fraction is 1\.0; it must be between 0 and 1"),
        ({"stall_seconds": 0.0}, r"engine\.continuous\.stall_seconds is 0\.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, options, message):
    config.check()
    with pytest.raises(ValueError, match=message):
        changed(config, **options).check()


def test_batching_goes_by_the_device_unless_it_is_asked_for(config, monkeypatch):
    chosen = []
    for engine in ("continuous_batching_engine.ContinuousBatchingEngine", "transformers_engine.TransformersEngine"):
        monkeypatch.setattr(f"synth_model.engines.{engine}", lambda config, name=engine: chosen.append(name))
    monkeypatch.setattr(
        "synth_model.engines.model_loading.resolve_device", lambda device: "cuda" if device == "auto" else device
    )
    for batching, device in (
        ("auto", "cpu"),
        ("padded", "cuda"),
        ("auto", "auto"),
        ("auto", "cuda"),
        ("continuous", "cpu"),
    ):
        load_engine(replace(config, batching=batching, device=device))
    assert [name.split("_")[0] for name in chosen] == ["transformers"] * 2 + ["continuous"] * 3


def test_a_cuda_device_that_is_not_there_is_an_error(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"engine\.device is 'cuda', but no CUDA device is available"):
        load_engine(replace(config, device="cuda", batching="auto"))


@pytest.mark.real_model
@pytest.mark.skipif(not MODEL_FOLDER.is_dir(), reason="the quickstart's model is not downloaded; run the quickstart")
def test_a_real_model_writes_what_it_writes_in_padded_batches():
    config = EngineConfig(
        model=str(MODEL_FOLDER),
        device="cpu",
        dtype="float32",
        context_length=256,
        max_batch_tokens=1024,
        batching="continuous",
        continuous=ContinuousBatchingOptions(page_size=16, max_step_tokens=128, max_requests=4),
    )
    prompts = [
        Prompt(messages=(ChatMessage(role="user", content=content),))
        for content in ("Name three rivers.", "What is a tide?", "Write one sentence about bees.")
    ]
    sampling = Sampling(max_new_tokens=24, frequency_penalty=0.1)
    engine = ContinuousBatchingEngine(config)
    try:
        outcomes = engine.generate(prompts, sampling=sampling)
    finally:
        engine.close()
    assert outcomes == TransformersEngine(config).generate(prompts, sampling=sampling)
    assert all(len(outcome.text.split()) > 3 for outcome in outcomes)
