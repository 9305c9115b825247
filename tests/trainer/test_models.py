import pytest
import safetensors.torch
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from contracts.manifest import read_shard_manifest
from trainer.config import ModelConfig
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
