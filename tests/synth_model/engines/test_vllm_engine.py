import importlib.util
import inspect
import json
import threading
from dataclasses import fields, replace

import pytest
import torch

from synth_model.engines import EngineConfig, load_engine
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.engines.vllm_engine import VllmEngine, VllmOptions
from synth_model.generation import ChatMessage, Completion, Prompt, Sampling, prompt_seed
from synth_model.wire_format import build_prompt
from tests.conftest import REPOSITORY
from tests.synth_model.engines import vllm_stub

SAMPLING = Sampling(max_new_tokens=12)
HOT = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=3, frequency_penalty=0.5, presence_penalty=0.25)
PROMPTS = [
    Prompt(text=text)
    for text in [
        "a",
        "The tide turns twice a day.",
        build_prompt([], text="Ebb."),
        "naïve 漢字 \U0001f642",
        "zzzzzzzzzzzzzzzzzzzz",
        "Neap tide, spring tide",
        "Flood and ebb",
    ]
]
CHAT = Prompt(messages=(ChatMessage(role="user", content="Ask."),), response_prefix="Q:")


@pytest.fixture
def stub(monkeypatch):
    vllm_stub.install(monkeypatch)


@pytest.fixture
def config(model_folder):
    return EngineConfig(kind="vllm", model=model_folder, device="cpu", context_length=256)


@pytest.fixture
def engine(stub, config):
    return load_engine(config)


def write_adapter(folder, *, rank=8):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return str(folder)


def test_vllm_is_loaded_as_the_config_says(stub, config):
    engine = load_engine(config)
    assert isinstance(engine, VllmEngine)
    assert engine._llm.arguments == {
        "model": config.model,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "dtype": "float32",
        "gpu_memory_utilization": 0.9,
        "enforce_eager": False,
        "kv_cache_memory_bytes": None,
        "max_model_len": 256,
        "enable_prefix_caching": True,
    }
    options = VllmOptions(memory_fraction=0.5, kv_cache_gib=0.25, num_gpus=2, enforce_eager=True)
    other = load_engine(replace(config, dtype="bfloat16", trust_remote_code=True, vllm=options))._llm.arguments
    assert (other["dtype"], other["trust_remote_code"], other["tensor_parallel_size"]) == ("bfloat16", True, 2)
    assert (other["gpu_memory_utilization"], other["kv_cache_memory_bytes"]) == (0.5, 1 << 28)
    assert other["enforce_eager"] is True


def test_greedy_outcomes_are_those_of_the_transformers_engine(engine, config):
    prompts = [*PROMPTS, CHAT]
    expected = TransformersEngine(replace(config, kind="transformers", dtype="float32")).generate(
        prompts, sampling=SAMPLING
    )
    assert engine.generate(prompts, sampling=SAMPLING) == expected
    assert {outcome.finish_reason for outcome in expected} == {"stop", "length"}
    # All of them in one call, so that vLLM can batch as it likes.
    assert [len(call["prompts"]) for call in engine._llm.calls] == [8]


def test_bos_stands_once_in_what_vllm_reads(engine):
    engine.generate([Prompt(text=build_prompt([], text="Flood."))], sampling=SAMPLING)
    (prompt,) = engine._llm.calls[0]["prompts"]
    assert set(prompt) == {"prompt_token_ids"}
    assert prompt["prompt_token_ids"].count(0) == 1


def test_sampling_means_the_same(engine):
    engine.generate(PROMPTS, sampling=HOT)
    engine.generate(PROMPTS[2:3], sampling=HOT)
    engine.generate(PROMPTS[:1], sampling=SAMPLING)
    all_params, (alone,), (greedy,) = (call["sampling_params"] for call in engine._llm.calls)
    assert [params.seed for params in all_params] == [prompt_seed(prompt, sampling=HOT) for prompt in PROMPTS]
    assert alone == all_params[2]
    assert (alone.temperature, alone.top_p, alone.frequency_penalty, alone.max_tokens) == (0.8, 0.9, 0.5, 12)
    assert (alone.presence_penalty, greedy.presence_penalty) == (0.25, 0.0)
    assert (greedy.temperature, greedy.top_p, greedy.seed, greedy.frequency_penalty) == (0.0, 1.0, None, 0.0)


def test_prompts_that_cannot_be_completed_are_failures_of_their_own(engine, config):
    expected = engine.generate(PROMPTS[:2], sampling=SAMPLING)
    bad = [Prompt(text="x" * 245), Prompt(text="half \ud800"), Prompt(text="poison ~"), Prompt(text="given up }")]
    outcomes = engine.generate([PROMPTS[0], *bad, PROMPTS[1]], sampling=SAMPLING)
    assert [outcome.reason for outcome in outcomes[1:5]] == [
        "prompt_too_long",
        "prompt_not_encodable",
        "generation_failed",
        "generation_failed",
    ]
    assert "out of vocabulary" in outcomes[3].detail
    assert "abort" in outcomes[4].detail
    assert [outcomes[0], outcomes[5]] == expected
    assert engine.generate([], sampling=SAMPLING) == []
    assert engine.generate(bad[:2], sampling=SAMPLING) == outcomes[1:3]


def test_a_dead_engine_is_an_error_and_not_a_failure_of_each(engine):
    engine._llm.is_dead = True
    with pytest.raises(RuntimeError, match=r"vLLM's engine has died; .* lower engine\.vllm\.memory_fraction"):
        engine.generate(PROMPTS, sampling=SAMPLING)


def test_threads_share_an_engine(engine, monkeypatch):
    expected = engine.generate(PROMPTS, sampling=SAMPLING)
    generate, is_busy, results = engine._llm.generate, threading.Lock(), {}

    def generate_alone(*arguments, **options):
        assert is_busy.acquire(blocking=False)
        try:
            return generate(*arguments, **options)
        finally:
            is_busy.release()

    monkeypatch.setattr(engine._llm, "generate", generate_alone)

    def work(number):
        results[number] = engine.generate(PROMPTS[number : number + 4], sampling=SAMPLING)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: expected[number : number + 4] for number in range(4)}


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (512, 512)])
def test_an_adapter_goes_with_every_request(stub, config, tmp_path, rank, room):
    folder = write_adapter(tmp_path / "adapter", rank=rank)
    engine = load_engine(replace(config, adapter=folder))
    arguments = engine._llm.arguments
    assert (arguments["enable_lora"], arguments["max_loras"], arguments["max_lora_rank"]) == (True, 1, room)
    engine.generate(PROMPTS, sampling=SAMPLING)
    request = engine._llm.calls[0]["lora_request"]
    assert (request.lora_path, request.lora_int_id) == (folder, 1)
    # It was loaded before the first prompt, so that a bad one is found then.
    assert engine._llm.llm_engine.loras == [request]


def test_an_adapter_that_cannot_be_used_is_an_error(stub, config, tmp_path):
    with pytest.raises(ValueError, match="There is no adapter folder"):
        load_engine(replace(config, adapter=str(tmp_path / "absent")))
    with pytest.raises(ValueError, match="has rank 1024; vLLM takes up to 512"):
        load_engine(replace(config, adapter=write_adapter(tmp_path / "high", rank=1024)))
    with pytest.raises(ValueError, match=r"adapter '.*broken' does not fit .*size mismatch"):
        load_engine(replace(config, adapter=write_adapter(tmp_path / "broken")))


@pytest.mark.parametrize(
    ("kind", "device", "message"),
    [
        ("cpu", "cuda", "engine.device is 'cuda', but this installation of vLLM runs on the CPU"),
        ("cuda", "cpu", "engine.device is 'cpu', but this installation of vLLM is made for GPUs"),
        ("none", "cuda", "engine.device is 'cuda', but this installation of vLLM finds no device"),
        ("none", "auto", "engine.device is 'auto', but this installation of vLLM finds no device"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(monkeypatch, config, kind, device, message):
    vllm_stub.install(monkeypatch, kind=kind)
    with pytest.raises(ValueError, match=message):
        load_engine(replace(config, device=device))


@pytest.mark.parametrize(
    ("kind", "device", "dtype"),
    [("cpu", "auto", "float32"), ("cuda", "auto", "bfloat16"), ("cuda", "cuda", "bfloat16")],
)
def test_the_dtype_follows_the_device(monkeypatch, config, kind, device, dtype):
    vllm_stub.install(monkeypatch, kind=kind)
    assert load_engine(replace(config, device=device))._llm.arguments["dtype"] == dtype


def test_what_cannot_be_loaded_is_an_error(stub, config, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"There is no model folder '.*absent'"):
        load_engine(replace(config, model=str(tmp_path / "absent")))
    with pytest.raises(ValueError, match=r"vLLM could not load '.*': User-specified max_model_len is greater than the"):
        load_engine(replace(config, context_length=513))
    monkeypatch.setitem(vllm_stub.sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[vllm\]'"):
        load_engine(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_fraction": 0.0}, r"engine\.vllm\.memory_fraction is 0\.0"),
        ({"memory_fraction": 1.1}, r"engine\.vllm\.memory_fraction is 1\.1"),
        ({"kv_cache_gib": -1.0}, r"engine\.vllm\.kv_cache_gib is -1\.0"),
        ({"num_gpus": 0}, r"engine\.vllm\.num_gpus is 0"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    config = EngineConfig(kind="vllm", model="hub/name")
    config.check()
    with pytest.raises(ValueError, match=message):
        replace(config, vllm=VllmOptions(**changes)).check()
    with pytest.raises(ValueError, match=r"engine\.model is empty"):
        replace(config, model="").check()


# The real package, in an environment of its own: see docs/engines.md.

REAL_MODEL = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; docs/engines.md says how to run this"
)


@needs_vllm
@pytest.mark.real_model
def test_the_stub_has_the_signatures_of_the_real_package():
    import vllm
    from vllm import exceptions
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.platforms import Platform
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.engine.llm_engine import LLMEngine

    for stub, real in (
        (vllm_stub.LLM.__init__, vllm.LLM.__init__),
        (vllm_stub.LLM.generate, vllm.LLM.generate),
        (vllm_stub.SamplingParams, vllm.SamplingParams),
        (vllm_stub.LoRARequest, LoRARequest),
        (vllm_stub.LLMEngine.add_lora, LLMEngine.add_lora),
        (vllm_stub.Platform.is_cpu, Platform.is_cpu),
        (vllm_stub.Platform.is_cuda_alike, Platform.is_cuda_alike),
    ):
        known = inspect.signature(real).parameters
        for name, parameter in inspect.signature(stub).parameters.items():
            assert name in known, (real, name)
            assert parameter.kind == known[name].kind, (real, name)
            if parameter.default is not parameter.empty:
                assert parameter.default == known[name].default, (real, name)
    further = {"max_model_len", "enable_prefix_caching", "enable_lora", "max_loras", "max_lora_rank"}
    assert further <= {field.name for field in fields(EngineArgs)}
    assert {field.name for field in fields(vllm_stub.CompletionOutput)} <= {f.name for f in fields(CompletionOutput)}
    assert "outputs" in inspect.signature(RequestOutput).parameters
    assert issubclass(exceptions.VLLMValidationError, exceptions.VLLMClientError)
    assert not issubclass(EngineDeadError, (exceptions.VLLMClientError, ValueError))


@pytest.fixture(scope="module")
def real_config():
    if not REAL_MODEL.is_dir():
        pytest.skip(f"{REAL_MODEL} is absent; make model puts it there")
    options = VllmOptions(kv_cache_gib=0.25, enforce_eager=True)
    return EngineConfig(
        kind="vllm", model=str(REAL_MODEL), device="auto", dtype="float32", context_length=1024, vllm=options
    )


QUESTIONS = [
    Prompt(messages=(ChatMessage(role="user", content=f"{text} Write two questions about this and answer them."),))
    for text in (
        "The old lighthouse of Varnby was built in 1871 by the engineer Tove Lindqvist.",
        "Bees find their way home by the position of the sun.",
        "A function that is called with too few arguments raises a TypeError.",
        "Bread rises because yeast turns sugar into gas.",
        "The tide turns about every six hours.",
        "Glass is made of sand, soda and lime.",
    )
]


@needs_vllm
@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_vllm_completes_as_transformers_does(real_config):
    engine = load_engine(real_config)
    here = load_engine(replace(real_config, kind="transformers", batching="padded"))
    sampling = Sampling(max_new_tokens=32)
    for own in (sampling, replace(sampling, frequency_penalty=1.0)):
        outcomes = engine.generate(QUESTIONS, sampling=own)
        expected = here.generate(QUESTIONS, sampling=own)
        num_equal = sum(outcome == other for outcome, other in zip(outcomes, expected, strict=True))
        print(f"frequency_penalty {own.frequency_penalty}: {num_equal} of {len(QUESTIONS)} completions equal")
        # Where two tokens are equally likely, rounding may decide otherwise.
        assert num_equal >= len(QUESTIONS) - 1
        assert all(isinstance(outcome, Completion) for outcome in outcomes)
    # A completion that ends by itself ends at the same place.
    short = [Prompt(messages=(ChatMessage(role="user", content="What is the capital of France?"),))]
    ended = engine.generate(short, sampling=Sampling(max_new_tokens=40))
    assert ended == here.generate(short, sampling=Sampling(max_new_tokens=40))
    assert ended[0].finish_reason == "stop"

    hot = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=5)
    drawn = engine.generate(QUESTIONS, sampling=hot)
    assert drawn == [engine.generate([prompt], sampling=hot)[0] for prompt in QUESTIONS]
    assert drawn != engine.generate(QUESTIONS, sampling=replace(hot, seed=6))
    draws = engine.generate([replace(QUESTIONS[0], draw=draw) for draw in range(8)], sampling=hot)
    assert len({outcome.text for outcome in draws}) >= 6

    # What a prompt of an earlier round begins with is not read again, as far as whole blocks of it go.
    (ids,) = engine._tokenizer.encode(QUESTIONS[:1])
    rounds = [ids * 5, ids * 8]
    first, second = (engine._llm.generate([{"prompt_token_ids": one}], use_tqdm=False)[0] for one in rounds)
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens > len(rounds[0]) - 128

    refused = engine._complete_safely([[0, 1], [10**7], [2, 3]], [0, 0, 0], sampling)
    assert [getattr(outcome, "reason", "") for outcome in refused] == ["", "generation_failed", ""]


@needs_vllm
@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_vllm_takes_an_adapter(real_config, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(REAL_MODEL), dtype=torch.float32)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(str(tmp_path / "adapter"))
    config = replace(real_config, adapter=str(tmp_path / "adapter"))
    sampling = Sampling(max_new_tokens=8)
    outcomes = load_engine(config).generate(QUESTIONS, sampling=sampling)
    here = load_engine(replace(config, kind="transformers", batching="padded"))
    expected = here.generate(QUESTIONS, sampling=sampling)
    plain = load_engine(replace(config, kind="transformers", batching="padded", adapter="")).generate(
        QUESTIONS, sampling=sampling
    )
    assert sum(outcome == other for outcome, other in zip(outcomes, expected, strict=True)) >= len(QUESTIONS) - 1
    assert outcomes != plain
