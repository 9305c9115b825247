import json
import pathlib
import shutil
from dataclasses import replace

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from synth_model.engines import EngineConfig, load_engine, model_loading
from synth_model.engines.continuous_batching_session import ContinuousBatchingOptions
from synth_model.engines.model_loading import LoadedModel, find_adapter, load_model
from synth_model.generation import Prompt, Sampling
from tests.synth_model import tiny_model

SAMPLING = Sampling(max_new_tokens=12)
PROMPTS = [Prompt(text=text) for text in ("a", "The tide turns.", "<s> <CON> Ebb. </CON>\n\n", "zzzz")]
IDS = torch.tensor([[5, 40, 70, 9]])


@pytest.fixture(scope="module")
def config(model_folder):
    return EngineConfig(
        model=model_folder,
        device="cpu",
        dtype="float32",
        context_length=64,
        max_batch_tokens=512,
        continuous=ContinuousBatchingOptions(page_size=16, max_step_tokens=64, max_requests=4),
    )


@pytest.fixture(scope="module")
def adapted(model_folder):
    """The tiny model with a LoRA of random weights beside its own, as training leaves it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, lora).eval()


@pytest.fixture(scope="module")
def adapter_folder(adapted, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("adapter"))
    adapted.save_pretrained(folder)
    return folder


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def test_a_model_comes_with_its_tokenizer_and_ends(config):
    loaded = load_model(config)
    assert isinstance(loaded, LoadedModel)
    assert loaded.device == "cpu"
    assert loaded.eos_ids == (1, *range(20, 30))
    assert not loaded.model.training
    assert loaded.tokenizer.encode([Prompt(text="<s>")]) == [[0]]


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_have_the_dtype_that_is_asked_for(config, dtype, expected):
    model = load_model(replace(config, dtype=dtype)).model
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_models_own_sampling_settings_do_not_count(config, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    path = pathlib.Path(tmp_path, "generation_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1}))
    for batching in ("padded", "continuous"):
        plain, other = (
            load_engine(replace(config, model=model, batching=batching)).generate(PROMPTS, sampling=SAMPLING)
            for model in (model_folder, str(tmp_path))
        )
        assert other == plain
    assert load_model(replace(config, model=str(tmp_path))).model.generation_config.repetition_penalty is None
    # Not vacuous: the settings change what transformers itself generates.
    ids = load_model(config).tokenizer.encode(PROMPTS)
    texts = []
    for folder in (model_folder, str(tmp_path)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        texts.append([model.generate(torch.tensor([row]), max_new_tokens=12, do_sample=False).tolist() for row in ids])
    assert texts[0] != texts[1]


def test_an_adapter_changes_the_model_as_peft_does(config, adapted, adapter_folder):
    plain = load_model(config).model
    merged = load_model(replace(config, adapter=adapter_folder)).model
    assert type(merged) is type(plain)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)
    assert (logits(merged) - logits(plain)).abs().max() > 0.1


def test_an_adapter_stays_beside_quantized_weights(config, adapted, adapter_folder, monkeypatch):
    from_pretrained = AutoModelForCausalLM.from_pretrained

    def quantized(*args, **kwargs):
        model = from_pretrained(*args, **kwargs)
        model.is_quantized = True
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", quantized)
    model = load_model(replace(config, adapter=adapter_folder)).model
    assert [name for name, _ in model.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(model), logits(adapted))


def test_both_engines_generate_with_the_adapter(config, adapted, adapter_folder):
    texts = {}
    for adapter in ("", adapter_folder):
        for batching in ("padded", "continuous"):
            engine = load_engine(replace(config, adapter=adapter, batching=batching))
            texts[adapter, batching] = engine.generate(PROMPTS, sampling=SAMPLING)
    assert texts[adapter_folder, "padded"] == texts[adapter_folder, "continuous"]
    assert texts["", "padded"] == texts["", "continuous"]
    assert texts["", "padded"] != texts[adapter_folder, "padded"]
    # What peft's model generates for a prompt alone.
    engine = load_engine(config)
    for prompt, outcome in zip(PROMPTS, texts[adapter_folder, "padded"], strict=True):
        (ids,) = engine._tokenizer.encode([prompt])
        new_ids = adapted.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
        kept = [token for token in new_ids.tolist() if token not in engine._eos_ids]
        assert outcome.text == engine._tokenizer.tokenizer.decode(kept)


def test_an_adapter_of_another_model_is_refused(config, adapter_folder, tmp_path):
    def refused(change, message):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        tokenizer = tiny_model.write_tokenizer(str(folder))
        base = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        tiny_model.LlamaForCausalLM(tiny_model.LlamaConfig(**(base | change))).save_pretrained(folder)
        with pytest.raises(ValueError, match=r"The adapter '.*' does not fit engine\.model: it was made for '.*tiny_m"):
            load_model(replace(config, model=str(folder), adapter=adapter_folder))
        with pytest.raises(ValueError, match=message):
            load_model(replace(config, model=str(folder), adapter=adapter_folder))

    refused({"hidden_size": 64}, "size mismatch")
    # More layers than the adapter knows, and fewer.
    refused({"num_hidden_layers": 3}, "no counterpart of .*lora_")
    refused({"num_hidden_layers": 1}, "no counterpart of .*lora_")


def test_an_adapter_that_cannot_be_read_is_refused(config, adapter_folder, model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"There is no adapter folder '/nowhere/at all'"):
        load_model(replace(config, adapter="/nowhere/at all"))
    with pytest.raises(ValueError, match=r"has no adapter_config\.json and no adapter_model\.safetensors"):
        find_adapter(model_folder)
    shutil.copy(pathlib.Path(adapter_folder, "adapter_config.json"), tmp_path)
    pathlib.Path(tmp_path, "adapter_model.bin").touch()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors: .* in safetensors"):
        find_adapter(str(tmp_path))


def test_an_adapter_that_the_hub_does_not_give_is_refused(config, monkeypatch):
    def snapshot_download(name, *, allow_patterns):
        assert name == "owner/adapter"
        assert allow_patterns == ["adapter_config.json", "adapter_model.safetensors"]
        raise OSError("The hub is away.\nMore words.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"No adapter could be loaded from 'owner/adapter': .*\(The hub is away\.\)"):
        load_model(replace(config, adapter="owner/adapter"))


def test_an_adapter_of_the_hub_is_its_folder(adapter_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: adapter_folder)
    assert find_adapter("owner/adapter") == adapter_folder


def test_only_lora_is_taken(config, model_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    ia3 = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(model, ia3).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"is of the kind .*IA3; only LORA is supported"):
        load_model(replace(config, adapter=str(tmp_path)))


def test_without_peft_it_is_said_what_to_install(adapter_folder, monkeypatch):
    assert peft is not None
    monkeypatch.setattr(model_loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"peft, which reads adapters, is not installed: pip install '\.\[adapters\]'"):
        find_adapter(adapter_folder)
