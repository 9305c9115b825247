"""The model to evaluate: found by what a run leaves behind, and loaded as lm-eval asks for it.

A model is named by a model folder, a GGUF file, a folder at a URL or a name on the hub (see ``model_source``), by the
output folder of a run, which has completed, or by any of its checkpoints; each of them may be an adapter, which is put
on the model that it was trained beside. A checkpoint has no tokenizer; it takes that of its run.

Does not spread a model over several GPUs, and does not quantize.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from contracts import storage
from contracts.artifact import completed_fingerprint

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]

_MODEL_FOLDER = "model"
_TOKENIZER_FOLDER = "tokenizer"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Of a checkpoint that every process wrote a part of; `sharded_tensors` has it from PyTorch.
_SHARD_PREFIX = "shard-"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedModel:
    """A model that can be loaded.

    Args:
        name: What it was asked for by.
        identity: Hash of its content, or name and commit on the hub; the same in every place.
        location: Where transformers finds its weights, or those under the adapter.
        container: The run or checkpoint that location is the model of; None for any other model.
        revision: The commit on the hub; None for a folder.
        adapter: The folder of the adapter; None where there is none.
        tokenizer: Where transformers finds the tokenizer.
    """

    name: str
    identity: str
    location: str
    container: str | None
    revision: str | None
    adapter: str | None
    tokenizer: str


def find_evaluated_model(
    name: str, *, base_model: str | None, tokenizer: str | None, cache: str, trust_remote_code: bool
) -> EvaluatedModel:
    """Finds what a config calls a model, without loading it.

    Args:
        name: Model folder, output folder of a run, checkpoint, adapter folder, GGUF file, URL or name on the hub.
        base_model: For an adapter, the model under it; None takes the one that the adapter names.
        tokenizer: Folder or hub name of another tokenizer than the model's own.
        cache: Folder for models that are converted or copied.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ValueError: There is no such model or tokenizer, or the run that makes it has not completed.
    """
    from trainer.config import ModelConfig
    from trainer.model_source import find_model

    folder = _folder_of(name)
    has_adapter = storage.exists(storage.join(folder, _ADAPTER_CONFIG))
    if base_model is not None and not has_adapter:
        raise ValueError(f"base_model is {base_model!r}, but {name} is no adapter: it has no {_ADAPTER_CONFIG}.")
    weights = folder if not has_adapter else base_model or _base_of(folder)
    source = find_model(ModelConfig(name_or_path=weights, cache=cache, trust_remote_code=trust_remote_code))
    identity = source.identity
    if has_adapter:
        config = storage.read_json(storage.join(folder, _ADAPTER_CONFIG))
        # Where its base lies is no part of what an adapter is.
        config.pop("base_model_name_or_path", None)
        identity = storage.json_sha256([identity, config, _sha256_of_adapter(folder)])
    return EvaluatedModel(
        name=name,
        identity=identity,
        location=source.location,
        container=None if has_adapter or folder == name else name,
        revision=source.revision,
        adapter=folder if has_adapter else None,
        tokenizer=tokenizer or _tokenizer_of(name, folder=folder, location=source.location),
    )


def _folder_of(name: str) -> str:
    """The model folder inside of a run's output or a checkpoint; any other name as it is."""
    inside = storage.join(name, _MODEL_FOLDER)
    if not any(storage.exists(storage.join(inside, file)) for file in ("config.json", _ADAPTER_CONFIG)):
        return name
    # Says of a run that goes on, and of a checkpoint that was cut short, that it is not complete.
    completed_fingerprint(name)
    if any(os.path.basename(url).startswith(_SHARD_PREFIX) for url in storage.list_files(inside)):
        raise ValueError(
            f"The checkpoint {name} is spread over files by process. Make a model folder of it first: "
            f"python -m trainer export {name} --output DIR, and evaluate DIR."
        )
    return inside


def _base_of(adapter: str) -> str:
    name = storage.read_json(storage.join(adapter, _ADAPTER_CONFIG)).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"The adapter {adapter} does not say which model it belongs to; give base_model.")
    return str(name)


def _sha256_of_adapter(folder: str) -> str:
    url = storage.join(folder, _ADAPTER_WEIGHTS)
    if "://" in folder:
        raise ValueError(f"The adapter {folder} is not on this machine; copy its folder here first.")
    if not storage.exists(url):
        raise ValueError(f"The adapter {folder} has no {_ADAPTER_WEIGHTS}; weights are read from safetensors only.")
    return storage.file_sha256(url)


def _tokenizer_of(name: str, *, folder: str, location: str) -> str:
    """The first of the model's folder, of a checkpoint its run's tokenizer, and what an adapter is put on."""
    candidates = [folder, location]
    if folder != name:
        run = os.path.dirname(os.path.dirname(name.rstrip("/")))
        candidates.insert(1, storage.join(run, _TOKENIZER_FOLDER))
    for candidate in candidates:
        if any(storage.exists(storage.join(candidate, file)) for file in _TOKENIZER_FILES):
            return candidate
    if storage.is_folder(location):
        raise ValueError(
            f"There is no tokenizer in {folder}; give the folder or hub name of its tokenizer as tokenizer."
        )
    return location


def _with_adapter(model: Any, folder: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError("An adapter needs PEFT: pip install 'instruction-pretraining[adapters]'.") from error
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def load_for_lm_eval(
    model: EvaluatedModel, *, device: Device, dtype: Dtype, batch_size: int, trust_remote_code: bool
) -> Any:
    """The model with its tokenizer as an object of lm-eval, in evaluation mode on its device.

    Raises:
        ValueError: A GPU is asked for and there is none, or weights or tokenizer cannot be read.
    """
    import torch
    from lm_eval.models.huggingface import HFLM
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.checkpoints import read_model_folder

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ValueError("device is 'cuda', but PyTorch sees no GPU here. Use --device auto or --device cpu.")
    place = "cuda" if has_gpu and device != "cpu" else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if place == "cuda" else "float32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=trust_remote_code)
        with nullcontext(model.location) if model.container is None else read_model_folder(model.container) as location:
            loaded = AutoModelForCausalLM.from_pretrained(
                location,
                revision=model.revision or "main",
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        if model.adapter is not None:
            loaded = _with_adapter(loaded, model.adapter)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The model {model.name} cannot be loaded: {error}") from error
    num_embeddings = loaded.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise ValueError(
            f"The tokenizer of {model.tokenizer} has {len(tokenizer)} ids, the model {model.name} embeddings for "
            f"{num_embeddings} only: they do not belong together."
        )
    # As an object: of a name or path lm-eval would ask the hub what it knows about it.
    return HFLM(pretrained=loaded.to(place).eval(), tokenizer=tokenizer, backend="causal", batch_size=batch_size)
