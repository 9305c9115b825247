import dataclasses
import json

import pytest
import safetensors.torch
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from contracts.manifest import read_shard_manifest
from tests.conftest import REPOSITORY
from trainer.config import LoraConfig, ModelConfig
from trainer.models import create_model, describe_model

SPECIAL_IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}


@pytest.fixture
def manifest(shards):
    return read_shard_manifest(shards)


@pytest.fixture
def saved(manifest, tmp_path):
    """The folder of a saved tiny model."""
    description = describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=manifest)
    create_model(description, seed=0, special_ids=SPECIAL_IDS).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def describe(folder, manifest):
    return describe_model(ModelConfig(name_or_path=str(folder)), manifest=manifest)


@pytest.mark.parametrize(("preset", "millions"), [("500m", 518), ("1.3b", 1348)])
def test_presets_have_the_sizes_of_the_paper(manifest, preset, millions):
    config = describe_model(ModelConfig(init="scratch", preset=preset), manifest=manifest).config
    config.vocab_size = 32_000
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    assert round(model.num_parameters() / 1e6) == millions


def test_the_vocabulary_is_that_of_the_shards_and_the_seed_decides_the_weights(manifest):
    description = describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=manifest)
    models = [create_model(description, seed=seed, special_ids=SPECIAL_IDS) for seed in (0, 0, 1)]
    first, again, other = (model.get_input_embeddings().weight for model in models)
    assert first.shape[0] == manifest.vocab_size
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert models[0].training
    assert models[0].config.eos_token_id == 1


def test_identity_is_the_content_of_the_folder(saved, manifest, tmp_path):
    identity = describe(saved, manifest).identity
    saved.rename(tmp_path / "moved")
    assert describe(tmp_path / "moved", manifest).identity == identity
    weights = tmp_path / "moved" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert describe(tmp_path / "moved", manifest).identity != identity


def test_refuses_what_is_no_model_folder(tmp_path, manifest):
    with pytest.raises(ValueError, match=r"no config\.json"):
        describe(tmp_path, manifest)
    with pytest.raises(ValueError, match="There is no model folder"):
        describe(tmp_path / "nowhere", manifest)


def test_refuses_a_model_whose_conversion_has_not_completed(saved, manifest):
    (saved / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has not completed"):
        describe(saved, manifest)
    (saved / "COMPLETED").write_text("0")
    assert describe(saved, manifest).config.vocab_size == 512


def test_refuses_weights_that_cannot_be_read(saved, manifest):
    description = describe(saved, manifest)
    (saved / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match="cannot be read"):
        create_model(description, seed=0, special_ids=SPECIAL_IDS)


def test_refuses_weights_that_are_incomplete(saved, manifest):
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack model.layers.1.mlp.up_proj.weight"):
        create_model(describe(saved, manifest), seed=0, special_ids=SPECIAL_IDS)


def test_loads_no_pickles(saved, manifest):
    torch.save(AutoModelForCausalLM.from_pretrained(saved).state_dict(), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        create_model(describe(saved, manifest), seed=0, special_ids=SPECIAL_IDS)


CONFIG_OF_ANOTHER_ARCHITECTURE = {
    "model_type": "gpt2",
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 9,
    "eos_token_id": 8,
    "dtype": "bfloat16",
}


def test_any_config_of_transformers_makes_a_model(manifest, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_OF_ANOTHER_ARCHITECTURE))
    for path in (tmp_path, tmp_path / "config.json"):
        description = describe_model(ModelConfig(init="scratch", config_path=str(path)), manifest=manifest)
        model = create_model(description, seed=0, special_ids=SPECIAL_IDS)
        assert type(model).__name__ == "GPT2LMHeadModel"
        assert (model.config.n_embd, model.config.n_layer, model.config.vocab_size) == (48, 3, 512)
        assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (1, 1)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_single_fields_of_a_preset_can_be_overridden(manifest):
    plain = describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=manifest)
    overrides = {"hidden_size": 32, "num_hidden_layers": 3, "initializer_range": 0.1}
    model = ModelConfig(init="scratch", preset="tiny", config_overrides=overrides)
    changed = describe_model(model, manifest=manifest)
    assert (changed.config.hidden_size, changed.config.num_hidden_layers) == (32, 3)
    # What follows from a field follows.
    assert (plain.config.head_dim, changed.config.head_dim) == (16, 8)
    assert plain.identity != changed.identity
    weights = create_model(changed, seed=0, special_ids=SPECIAL_IDS).model.layers[0].mlp.up_proj.weight
    assert weights.std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_layers": 3}, "'num_layers', which MistralConfig does not know; it knows .*num_hidden_layers"),
        ({"vocab_size": 3}, "vocab_size, which comes from the shards"),
        ({"num_attention_heads": 3}, "No model can be made of preset tiny"),
        ({"hidden_size": "wide"}, "No model can be made of preset tiny"),
        ({"hidden_act": "step"}, "No model can be made of preset tiny"),
    ],
)
def test_refuses_overrides_that_make_no_model(manifest, overrides, message):
    with pytest.raises(ValueError, match=message):
        describe_model(ModelConfig(init="scratch", preset="tiny", config_overrides=overrides), manifest=manifest)


def test_refuses_a_config_that_is_none(manifest, tmp_path):
    with pytest.raises(ValueError, match="There is no config"):
        describe_model(ModelConfig(init="scratch", config_path=str(tmp_path)), manifest=manifest)
    for content in ("{}", "[]", '{"model_type": "abacus"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match="which transformers does not know"):
            describe_model(ModelConfig(init="scratch", config_path=str(tmp_path)), manifest=manifest)


def test_weights_are_drawn_as_documented(manifest):
    model = create_model(
        describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=manifest), seed=0, special_ids=SPECIAL_IDS
    )
    matrices = {name: tensor for name, tensor in model.named_parameters() if tensor.ndim == 2}
    norms = {name: tensor for name, tensor in model.named_parameters() if tensor.ndim == 1}
    assert len(matrices) == 2 + 2 * 7
    assert len(norms) == 1 + 2 * 2
    for name, tensor in matrices.items():
        # Six standard errors of a normal sample's mean and deviation.
        margin = 6 * 0.02 / tensor.numel() ** 0.5
        assert abs(tensor.mean().item()) < margin, name
        assert abs(tensor.std().item() - 0.02) < margin, name
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in norms.values())
    # The end-of-text token pads as well here.
    assert model.config.pad_token_id == SPECIAL_IDS["eos_token_id"] == 1
    assert model.get_input_embeddings().weight[1].abs().max() > 0


@pytest.mark.parametrize("is_continued", [False, True])
def test_the_embedding_of_a_token_that_also_pads_is_trained(saved, manifest, is_continued):
    scratch = ModelConfig(init="scratch", preset="tiny")
    description = describe(saved, manifest) if is_continued else describe_model(scratch, manifest=manifest)
    model = create_model(description, seed=0, special_ids=SPECIAL_IDS)
    model(torch.tensor([[5, 1, 6]])).logits.sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[1].abs().max() > 0
    # As transformers would have it, it is not.
    plain = AutoModelForCausalLM.from_pretrained(saved)
    plain(torch.tensor([[5, 1, 6]])).logits.sum().backward()
    assert plain.get_input_embeddings().weight.grad[1].abs().max() == 0


def larger(manifest, *, vocab_size):
    return dataclasses.replace(manifest, vocab_size=vocab_size)


@pytest.mark.parametrize("is_tied", [False, True])
def test_embeddings_are_added_as_the_mean_and_the_others_stay(manifest, tmp_path, is_tied):
    scratch = ModelConfig(init="scratch", preset="tiny", config_overrides={"tie_word_embeddings": is_tied})
    old = create_model(describe_model(scratch, manifest=manifest), seed=0, special_ids=SPECIAL_IDS)
    old.save_pretrained(tmp_path / "old")
    grown = larger(manifest, vocab_size=520)
    with pytest.raises(ValueError, match=r"520 ids .* embeddings for 512 only.*model\.resize_embeddings"):
        describe(tmp_path / "old", grown)

    config = ModelConfig(name_or_path=str(tmp_path / "old"), resize_embeddings=True, vocab_multiple=64)
    description = describe_model(config, manifest=grown)
    models = [create_model(description, seed=seed, special_ids=SPECIAL_IDS) for seed in (0, 1)]
    new = models[0]
    assert new.config.vocab_size == description.config.vocab_size == 576
    for get in ("get_input_embeddings", "get_output_embeddings"):
        before, after, again = (getattr(model, get)().weight for model in (old, *models))
        assert after.shape == (576, 64)
        assert torch.equal(before, after[:512])
        mean = before.detach().double().mean(dim=0).float()
        assert torch.equal(after[512:], mean.expand(64, 64))
        assert torch.equal(after, again)
    assert (new.get_input_embeddings().weight is new.get_output_embeddings().weight) == is_tied
    ids = torch.arange(30)[None]
    assert torch.equal(old.eval()(ids).logits, new.eval()(ids).logits[..., :512])

    # A checkpoint of it has the new size already.
    with torch.no_grad():
        new.get_input_embeddings().weight[-1] += 1
    new.save_pretrained(tmp_path / "checkpoint")
    resumed = create_model(description, seed=0, special_ids=SPECIAL_IDS, checkpoint=str(tmp_path / "checkpoint"))
    assert torch.equal(resumed.get_input_embeddings().weight, new.get_input_embeddings().weight)


def test_embeddings_are_never_removed(saved, manifest):
    config = ModelConfig(name_or_path=str(saved), resize_embeddings=True, vocab_multiple=64)
    assert describe_model(config, manifest=larger(manifest, vocab_size=300)).config.vocab_size == 512


def test_an_adapter_cannot_add_embeddings(saved, manifest):
    config = ModelConfig(name_or_path=str(saved), resize_embeddings=True, lora=LoraConfig())
    with pytest.raises(ValueError, match="An adapter cannot add them"):
        describe_model(config, manifest=larger(manifest, vocab_size=520))


def test_drawn_embeddings_are_rounded_up_on_request(manifest):
    model = ModelConfig(init="scratch", preset="tiny", vocab_multiple=100)
    assert describe_model(model, manifest=manifest).config.vocab_size == 600


def test_a_text_ends_with_the_tokenizers_token_or_with_the_models_own(saved, manifest):
    settings = {"do_sample": True, "temperature": 0.1, "eos_token_id": [7, 9], "bos_token_id": 3}
    (saved / "generation_config.json").write_text(json.dumps(settings))
    model = create_model(describe(saved, manifest), seed=0, special_ids=SPECIAL_IDS)
    generation = model.generation_config
    assert (generation.eos_token_id, generation.bos_token_id, generation.pad_token_id) == ([1, 7, 9], 3, 1)
    assert generation.temperature is None
    assert not generation.do_sample


@pytest.mark.real_model
def test_new_embeddings_hardly_change_what_the_real_model_says(manifest):
    folder = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; make model converts it")
    config = ModelConfig(name_or_path=str(folder), resize_embeddings=True)
    model = create_model(
        describe_model(config, manifest=larger(manifest, vocab_size=49_160)), seed=0, special_ids=SPECIAL_IDS
    )
    ids = torch.arange(1000, 1040)[None]
    with torch.no_grad():
        logits = model.eval()(ids).logits[0]
    before, after = logits[:, :49_152].log_softmax(-1), logits.log_softmax(-1)
    assert model.get_output_embeddings().weight.shape[0] == 49_160
    # The new ids together take less than the eight most probable ids have.
    assert (after[:, 49_152:].exp().sum(-1) < 0.01).all()
    assert (before - after[:, :49_152]).abs().max() < 0.01


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init": "scratch"}, "model.preset is None"),
        ({"init": "scratch", "preset": "tiny", "config_path": "x"}, "unless model.config_path is"),
        ({"init": "scratch", "preset": "tiny", "resize_embeddings": True}, "model.resize_embeddings is True"),
        ({"init": "scratch", "preset": "tiny", "revision": "main"}, "model.revision is 'main'"),
        ({}, "model.name_or_path is None"),
        ({"name_or_path": "x", "config_overrides": {"hidden_size": 8}}, "model.config_overrides is"),
        ({"name_or_path": "x", "vocab_multiple": 0}, "model.vocab_multiple is 0"),
    ],
)
def test_refuses_settings_that_do_not_go_together(values, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)
