"""The model to train: continued from weights that are there, or drawn from scratch.

A model is first described (its config, without weights), so that everything that does not fit the shards is refused
before any work, and created later. Weights come from safetensors files only, never from pickles; where they are is the
matter of ``model_source``.

From scratch: a preset, or any ``config.json`` of transformers, with single fields overridden by the config. The paper
pre-trains Mistral architectures of 500M and 1.3B parameters; these sizes are the paper's, the layer shapes below are
this project's way to reach them with the 32,000 ids of the Mistral tokenizer (518M and 1.35B parameters). ``tiny`` is
for tests. The vocabulary and the special ids come from the shards.

Initialization: that of the architecture in transformers, which for Mistral and Llama is a normal distribution of mean 0
and standard deviation ``initializer_range`` (0.02 unless overridden) for all matrices and embeddings, the projections
into the residual stream not scaled down by depth, ones for norms and zeros for biases; drawn from a generator seeded by
the run's seed. One thing differs: transformers zeroes the embedding of the padding token and never trains it. Most
tokenizers pad with their end-of-text token, which stands between all the texts of a row, so here that embedding is
drawn and trained like the others; real padding is no target and nothing attends to it.

Embeddings: where the shards' tokenizer has more ids than the model, rows are added, on request, that are the mean of
the rows there are, in the output layer likewise; the old ones stay as they are, bit for bit. With the mean a new token
starts about as likely as the average one and hardly moves the others' probabilities (Hewitt 2021). transformers adds
noise of 1e-9 of the covariance to it, whose decomposition differs between machines; a token's first gradient tells
equal rows apart as well.

Source: Cheng et al. 2024 (arXiv 2406.14491), section 3; Jiang et al. 2023 (arXiv 2310.06825) for the architecture;
Hewitt 2021, Initializing new word embeddings for pretrained language models
(https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from contracts import storage
from contracts.manifest import ShardManifest
from contracts.seeding import stable_hash
from trainer.adapters import add_adapter
from trainer.config import LoraConfig, ModelConfig
from trainer.model_source import find_model

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

_FROM_SHARDS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModelDescription:
    """A model before its weights are there.

    Args:
        name: What to call it in messages and summaries.
        identity: Hash that tells it from other models; the same for the same model in another folder.
        config: Its shape in this run.
        location: The folder or hub name that has its weights; None for a model from scratch.
        revision: The commit of a hub name.
        num_stored_ids: For how many ids the weights there have embeddings; fewer than the config says when rows are to
            be added.
        trust_remote_code: Whether code that comes with it may run.
    """

    name: str
    identity: str
    config: PretrainedConfig
    location: str | None
    revision: str | None = None
    num_stored_ids: int | None = None
    trust_remote_code: bool = False


def describe_model(model: ModelConfig, *, manifest: ShardManifest) -> ModelDescription:
    """Finds the model that a config names and holds it against the shards.

    Raises:
        ValueError: There is no such model or preset, or it does not fit the shards.
    """
    num_ids = -(-manifest.vocab_size // model.vocab_multiple) * model.vocab_multiple
    if model.init == "scratch":
        description = _describe_scratch(model, num_ids=num_ids)
    else:
        description = _describe_pretrained(model)
        if manifest.vocab_size > description.config.vocab_size:
            _check_resizing(description, model=model, manifest=manifest)
            description.config.vocab_size = num_ids
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
        special_ids: The tokenizer's ``bos_token_id`` and so on, for generating; a model from scratch takes them into
            its config too.
        checkpoint: A local model folder to take the weights from instead, when a run goes on; of an adapter's run
            the adapter's.
        lora: An adapter to train beside the weights, which are then the model's own.

    Returns:
        A ``PreTrainedModel``, or with an adapter the ``peft.PeftModel`` around it.

    Raises:
        ValueError: The weights cannot be read.
    """
    config = copy.deepcopy(description.config)
    if description.location is None:
        config.update(dict(special_ids))
    if checkpoint is not None and not lora:
        network = load_weights(checkpoint, config=config, trust_remote_code=description.trust_remote_code)
    elif description.location is None:
        network = _draw(config, seed=seed)
    else:
        network = _load_pretrained(description)
    network.generation_config = _generation_config(network.generation_config, special_ids=special_ids)
    # A row that is marked as padding would get no gradient.
    network.get_input_embeddings().padding_idx = None
    model = add_adapter(network, lora=lora, seed=seed, checkpoint=checkpoint) if lora else network
    model.train()
    return model


def load_weights(
    location: str,
    *,
    config: PretrainedConfig | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model with weights that are there, in float32 on the CPU.

    Args:
        location: A local model folder, or a name on the hub.
        config: Its config; None takes the one beside the weights.
        revision: The commit on the hub.
        trust_remote_code: Whether code that comes with it may run.

    Raises:
        ValueError: The weights are missing, incomplete or damaged, or are no safetensors.
    """
    try:
        network, info = AutoModelForCausalLM.from_pretrained(
            location,
            config=config,
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights of the model in {location} cannot be read: {error}") from error
    if info["missing_keys"]:
        # transformers would draw these at random and only warn.
        raise ValueError(f"The weights of the model in {location} lack {', '.join(sorted(info['missing_keys']))}.")
    return network


def _draw(config: PretrainedConfig, *, seed: int) -> PreTrainedModel:
    torch.manual_seed(stable_hash(seed, "model-initialization"))
    pad_token_id = config.pad_token_id
    # With a padding id the architecture would zero that row.
    config.pad_token_id = None
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.config.pad_token_id = network.generation_config.pad_token_id = pad_token_id
    return network


def _load_pretrained(description: ModelDescription) -> PreTrainedModel:
    assert description.location is not None
    stored = copy.deepcopy(description.config)
    stored.vocab_size = description.num_stored_ids
    network = load_weights(
        description.location,
        config=stored,
        revision=description.revision,
        trust_remote_code=description.trust_remote_code,
    )
    if stored.vocab_size != description.config.vocab_size:
        _add_embeddings(network, num_ids=description.config.vocab_size)
    return network


def _generation_config(stated: GenerationConfig, *, special_ids: Mapping[str, int | None]) -> GenerationConfig:
    """How the model generates: with the tokenizer's special ids, and no sampling settings of the model before it.

    A text ends with the tokenizer's end-of-text token, or with another token that ended one before, such as the end of
    a turn.
    """
    ids = {name: getattr(stated, name) if id_ is None else id_ for name, id_ in special_ids.items()}
    eos = ids.get("eos_token_id")
    if eos is not None and isinstance(stated.eos_token_id, list):
        ids["eos_token_id"] = list(dict.fromkeys([*([eos] if isinstance(eos, int) else eos), *stated.eos_token_id]))
    return GenerationConfig(**ids)


def _add_embeddings(network: PreTrainedModel, *, num_ids: int) -> None:
    """Lengthens the embeddings, and the output layer where it is one of its own, by rows that are the mean."""
    num_old = network.get_input_embeddings().weight.shape[0]
    network.resize_token_embeddings(num_ids, mean_resizing=False)
    with torch.no_grad():
        for module in (network.get_input_embeddings(), network.get_output_embeddings()):
            # Twice the same rows where the two are tied.
            for tensor in (module.weight, getattr(module, "bias", None)):
                if tensor is not None:
                    tensor[num_old:] = tensor[:num_old].double().mean(dim=0).to(tensor.dtype)


def _describe_scratch(model: ModelConfig, *, num_ids: int) -> ModelDescription:
    if model.config_path is not None:
        values = _read_config(model.config_path)
        name = f"config {model.config_path}"
    elif model.preset is not None and model.preset in PRESETS:
        values = {"model_type": "mistral", "sliding_window": None, **PRESETS[model.preset]}
        name = f"preset {model.preset}"
    else:
        raise ValueError(f"model.preset is {model.preset!r}; it must be one of {', '.join(PRESETS)}.")
    config_class = CONFIG_MAPPING[values["model_type"]]
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    for key in model.config_overrides:
        if key in _FROM_SHARDS:
            raise ValueError(f"model.config_overrides has {key}, which comes from the shards; leave it out.")
        if key not in known:
            raise ValueError(
                f"model.config_overrides has {key!r}, which {config_class.__name__} does not know; it knows "
                f"{', '.join(sorted(known - set(_FROM_SHARDS)))}."
            )
    values = {**values, **model.config_overrides, "vocab_size": num_ids}
    try:
        config = config_class.from_dict(values)
        # On no device, so it takes no memory; what is wrong with the shape shows.
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except (StrictDataclassError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"No model can be made of {name} with {model.config_overrides}: {error}") from error
    return ModelDescription(name=name, identity=storage.json_sha256(values), config=config, location=None)


def _read_config(path: str) -> dict[str, Any]:
    """The content of a ``config.json``, given by its path or its folder's, without what belongs to trained weights."""
    url = path if path.endswith(".json") else storage.join(path, "config.json")
    if not storage.exists(url):
        raise ValueError(f"There is no config {url}. Check model.config_path.")
    values = storage.read_json(url)
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{url} has the model_type {model_type!r}, which transformers does not know.")
    left_out = (*_FROM_SHARDS, "dtype", "torch_dtype", "quantization_config", "transformers_version", "_name_or_path")
    return {key: value for key, value in values.items() if key not in left_out}


def _describe_pretrained(model: ModelConfig) -> ModelDescription:
    assert model.name_or_path is not None
    source = find_model(model)
    try:
        config = AutoConfig.from_pretrained(
            source.location, revision=source.revision or "main", trust_remote_code=model.trust_remote_code
        )
    except OSError as error:
        raise ValueError(f"The model {model.name_or_path} cannot be found or reached: {error}") from error
    return ModelDescription(
        name=model.name_or_path,
        identity=source.identity,
        config=config,
        location=source.location,
        revision=source.revision,
        num_stored_ids=config.vocab_size,
        trust_remote_code=model.trust_remote_code,
    )


def _check_resizing(description: ModelDescription, *, model: ModelConfig, manifest: ShardManifest) -> None:
    problem = (
        f"The shards have a vocabulary of {manifest.vocab_size} ids (tokenizer {manifest.tokenizer.name}), but "
        f"{description.name} has embeddings for {description.config.vocab_size} only."
    )
    if not model.resize_embeddings:
        raise ValueError(
            f"{problem} Pack with the model's own tokenizer, choose a model that has these embeddings, or, if the "
            "shards' tokenizer extends the model's, set model.resize_embeddings."
        )
    if model.lora is not None:
        raise ValueError(
            f"{problem} An adapter cannot add them: whoever loads it has the model's own embeddings. Leave out "
            "model.lora, or pack with the model's own tokenizer."
        )
