"""Where models to be continued are found: folders, URLs, the hub, GGUF files."""

import fsspec
import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from contracts.manifest import TokenizerEntry, read_shard_manifest
from tests.shard_fixtures import make_rows, write_shards, write_tokenizer
from tests.trainer.test_import_model import write_gguf
from trainer.config import ModelConfig
from trainer.model_source import find_model
from trainer.models import create_model, describe_model
from trainer.shard_tokenizer import open_shard_tokenizer, tokenizer_sha256

SPECIAL_IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
COMMIT, OTHER_COMMIT = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture
def manifest(shards):
    return read_shard_manifest(shards)


def save_tiny(folder, manifest, *, seed=0):
    description = describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=manifest)
    model = create_model(description, seed=seed, special_ids=SPECIAL_IDS)
    model.save_pretrained(folder)
    write_tokenizer(str(folder))
    return model


def embeddings(config, manifest):
    description = describe_model(config, manifest=manifest)
    return create_model(description, seed=5, special_ids=SPECIAL_IDS).get_input_embeddings().weight


def test_a_folder_at_a_url_is_copied_once(tmp_path, manifest):
    model = save_tiny(tmp_path / "model", manifest)
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/model/", "/models/tiny/", recursive=True)
    config = ModelConfig(name_or_path="memory://models/tiny", cache=str(tmp_path / "cache"))
    assert torch.equal(embeddings(config, manifest), model.get_input_embeddings().weight)
    source = find_model(config)
    # In another place it is the same model.
    assert source.identity == find_model(ModelConfig(name_or_path=str(tmp_path / "model"))).identity
    (tmp_path / "cache").joinpath(source.location.rsplit("/", 1)[-1], "mark").write_text("")
    assert find_model(config).location == source.location
    assert [folder.joinpath("mark").exists() for folder in (tmp_path / "cache").iterdir()] == [True]

    # Another one under the same name is another one.
    other = save_tiny(tmp_path / "other", manifest, seed=1)
    fs.put(f"{tmp_path}/other/", "/models/tiny/", recursive=True)
    assert torch.equal(embeddings(config, manifest), other.get_input_embeddings().weight)
    assert find_model(config).identity != source.identity
    fs.rm("/models", recursive=True)
    with pytest.raises(ValueError, match="There is no model folder memory://models/tiny"):
        find_model(config)


def test_a_hub_name_stands_for_a_commit(tmp_path, manifest, monkeypatch):
    """On the cache that the hub's library keeps, without a network."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    models = {}
    for seed, commit in enumerate((COMMIT, OTHER_COMMIT)):
        models[commit] = save_tiny(repository / "snapshots" / commit, manifest, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v2").write_text(OTHER_COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision, commit in ((None, COMMIT), ("v2", OTHER_COMMIT), (OTHER_COMMIT, OTHER_COMMIT)):
        config = ModelConfig(name_or_path="someone/tiny", revision=revision)
        source = find_model(config)
        assert (source.location, source.revision) == ("someone/tiny", commit)
        assert source.identity == f"someone/tiny@{commit}"
        assert torch.equal(embeddings(config, manifest), models[commit].get_input_embeddings().weight)
        entry = TokenizerEntry(name="nowhere", sha256=manifest.tokenizer.sha256)
        assert len(open_shard_tokenizer(entry, model_location=source.location, revision=source.revision)) == 512
    with pytest.raises(ValueError, match="someone/absent cannot be found or reached"):
        find_model(ModelConfig(name_or_path="someone/absent"))


def test_a_gguf_file_is_converted_once_and_known_by_its_content(tmp_path, pretrain, capsys):
    write_gguf(tmp_path / "tiny.gguf")
    config = ModelConfig(name_or_path=str(tmp_path / "tiny.gguf"), cache=str(tmp_path / "cache"))
    source = find_model(config)
    write_shards(
        str(tmp_path / "shards"),
        {"train": [make_rows(4, component="raw", vocab_size=12)]},
        tokenizer_folder=source.location,
        tokenizer_sha256=tokenizer_sha256(Tokenizer.from_file(f"{source.location}/tokenizer.json")),
        vocab_size=12,
    )
    (tmp_path / "tiny.gguf").rename(tmp_path / "moved.gguf")
    options = ("--shards", tmp_path / "shards", "--model.cache", tmp_path / "cache", "--model.init", "continual")
    options += ("--model.name_or_path", tmp_path / "moved.gguf", "--model.preset", "null", "--num_epochs", "1")
    assert pretrain(tmp_path / "output", *map(str, options)) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "output" / "model")
    assert exported.config.vocab_size == 12
    moved = ModelConfig(name_or_path=str(tmp_path / "moved.gguf"), cache=str(tmp_path / "cache"))
    assert find_model(moved).identity == source.identity
    assert source.identity.startswith("gguf:")
    (tmp_path / "moved.gguf").write_bytes((tmp_path / "moved.gguf").read_bytes() + b"\0")
    assert find_model(moved).identity != source.identity
