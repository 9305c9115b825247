"""The model to train: continued from a folder or the hub, or drawn from scratch after a preset.

A model is first described (its config, without weights), so that everything that does not fit the shards is refused
before any work, and created later. Weights come from safetensors files only, never from pickles.

Presets: the paper pre-trains Mistral architectures of 500M and 1.3B parameters from scratch. The sizes and the
architecture are the paper's; the layer shapes below are this project's way to reach these sizes with the 32,000 ids of
the Mistral tokenizer (518M and 1.35B parameters). ``tiny`` is for tests. The vocabulary comes from the shards.

Initialization: that of the architecture in transformers, which for Mistral is a normal distribution of standard
deviation 0.02 for matrices and embeddings and ones for norms, drawn from a generator seeded by the run's seed.

Does not resize embeddings: a model with fewer ids than the shards' vocabulary is refused.

Source: Cheng et al. 2024 (arXiv 2406.14491), section 3; Jiang et al. 2023 (arXiv 2310.06825) for the architecture.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, PretrainedConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from contracts import storage
from contracts.artifact import COMPLETED_FILE, RUN_FILE
from contracts.manifest import ShardManifest
from contracts.seeding import stable_hash
from trainer.adapters import add_adapter
from trainer.config import LoraConfig, ModelConfig

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "500m": {
        "hidden_size": 1536,
        "intermediate_size": 4320,
        "num_hidden_layers": 16,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    },
    "1.3b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 20,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    },
}

# Of a weights file, this much of its head (names and shapes) and tail (weights) goes into a model's identity.
_NUM_IDENTITY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelDescription:
    """A model before its weights are there.

    Args:
        name: What to call it in messages and summaries.
        identity: Hash that tells it from other models; the same for the same model in another folder.
        config: Its shape.
        location: The folder or hub name that has its weights; None for a model from scratch.
        trust_remote_code: Whether code that comes with it may run.
    """

    name: str
    identity: str
    config: PretrainedConfig
    location: str | None
    trust_remote_code: bool


def describe_model(model: ModelConfig, *, manifest: ShardManifest) -> ModelDescription:
    """Finds the model that a config names and holds it against the shards.

    Raises:
        ValueError: There is no such model or preset, or it does not fit the shards.
    """
    if model.init == "scratch":
        assert model.preset is not None
        description = _describe_preset(model.preset, vocab_size=manifest.vocab_size)
    else:
        assert model.name_or_path is not None
        description = _describe_pretrained(model.name_or_path, trust_remote_code=model.trust_remote_code)
    if manifest.vocab_size > description.config.vocab_size:
        raise ValueError(
            f"The shards have a vocabulary of {manifest.vocab_size} ids (tokenizer {manifest.tokenizer.name}), but "
            f"{description.name} has embeddings for {description.config.vocab_size} only. Pack with the model's own "
            "tokenizer, or choose a model that has these embeddings."
        )
    max_length = getattr(description.config, "max_position_embeddings", None)
    if max_length is not None and manifest.sequence_length > max_length:
        raise ValueError(
            f"The shards have rows of {manifest.sequence_length} tokens, but {description.name} takes at most "
            f"{max_length}. Pack with a sequence_length of at most {max_length}."
        )
    return description


def create_model(
    description: ModelDescription,
    *,
    seed: int,
    special_ids: Mapping[str, int | None],
    checkpoint: str | None = None,
    lora: LoraConfig | None = None,
) -> Any:
    """The model with its weights in float32 on the CPU, in training mode.

    Args:
        description: What `describe_model` gave.
        seed: Decides the weights of a model from scratch.
        special_ids: The tokenizer's ``bos_token_id`` and so on; a model from scratch takes them over, since they end
            a generation.
        checkpoint: A local model folder to take the weights from instead, when a run goes on; of an adapter's run
            the adapter's.
        lora: An adapter to train beside the weights, which are then the model's own.

    Returns:
        A ``PreTrainedModel``, or with an adapter the ``peft.PeftModel`` around it.

    Raises:
        ValueError: The weights cannot be read.
    """
    if description.location is None:
        description.config.update(dict(special_ids))
    location = (None if lora else checkpoint) or description.location
    if location is None:
        torch.manual_seed(stable_hash(seed, "model-initialization"))
        model = AutoModelForCausalLM.from_config(description.config, dtype=torch.float32)
    else:
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                location,
                config=description.config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=description.trust_remote_code,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"The weights of the model in {location} cannot be read: {error}") from error
        if info["missing_keys"]:
            # transformers would draw these at random and only warn.
            raise ValueError(f"The weights of the model in {location} lack {', '.join(sorted(info['missing_keys']))}.")
    if lora:
        model = add_adapter(model, lora=lora, seed=seed, checkpoint=checkpoint)
    model.train()
    return model


def _describe_preset(preset: str, *, vocab_size: int) -> ModelDescription:
    if preset not in PRESETS:
        raise ValueError(f"model.preset is {preset!r}; it must be one of {', '.join(PRESETS)}.")
    config = MistralConfig(**PRESETS[preset], vocab_size=vocab_size, sliding_window=None)
    return ModelDescription(
        name=f"preset {preset}",
        identity=storage.json_sha256({"preset": preset, "vocab_size": vocab_size, **PRESETS[preset]}),
        config=config,
        location=None,
        trust_remote_code=False,
    )


def _describe_pretrained(name_or_path: str, *, trust_remote_code: bool) -> ModelDescription:
    is_folder = os.path.isdir(name_or_path)
    if not is_folder and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise ValueError(f"There is no model folder {name_or_path}. Check model.name_or_path.")
    if is_folder:
        if not os.path.isfile(os.path.join(name_or_path, "config.json")):
            raise ValueError(f"{name_or_path} is no Hugging Face model folder: it has no config.json.")
        if storage.exists(storage.join(name_or_path, RUN_FILE)) and not storage.exists(
            storage.join(name_or_path, COMPLETED_FILE)
        ):
            raise ValueError(f"The run that makes the model {name_or_path} has not completed. Start it again first.")
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        identity = (
            _folder_identity(name_or_path)
            if is_folder
            else f"{name_or_path}@{extract_commit_hash(cached_file(name_or_path, 'config.json'), None)}"
        )
    except OSError as error:
        raise ValueError(f"The model {name_or_path} cannot be found or reached: {error}") from error
    return ModelDescription(
        name=name_or_path,
        identity=identity,
        config=config,
        location=name_or_path,
        trust_remote_code=trust_remote_code,
    )


def _folder_identity(folder: str) -> str:
    """Hash of a model folder's config and of the names, sizes, heads and tails of its weights files.

    The whole of the weights is not read, which would take longer than loading them; training changes every tensor, so
    two models with the same tail are the same model.
    """
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        parts: list[Any] = [json.load(file)]
    for url in storage.list_files(folder, suffixes=(".safetensors",)):
        with fsspec.open(url, "rb") as weights:
            digest = hashlib.sha256(weights.read(_NUM_IDENTITY_BYTES))
            size = weights.seek(0, os.SEEK_END)
            weights.seek(max(0, size - _NUM_IDENTITY_BYTES))
            digest.update(weights.read())
        parts.append([os.path.relpath(url, os.path.abspath(folder)), size, digest.hexdigest()])
    return storage.json_sha256(parts)
