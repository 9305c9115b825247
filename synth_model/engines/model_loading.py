"""Loads a model with its tokenizer and, if asked for, a LoRA adapter, for the engines that run it in this process.

What a completion is like is for `synth_model.generation.Sampling` to say alone: the sampling settings that a model
brings along (a repetition penalty, for example) are left out, but for the tokens that end a completion.

An adapter is merged into the weights, so that it costs nothing while generating; over a quantized model, whose weights
cannot take it exactly, it stays beside them. Its weights are read from safetensors only: the other format is a pickle.

Cost: reading the weights once; merging is one product of two thin matrices for each matrix that the adapter changes.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synth_model.prompt_tokenizer import HUB_NAME, ModelTokenizer

if TYPE_CHECKING:
    from synth_model.engines import EngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that is ready to generate.

    Args:
        model: A transformers model in evaluation mode, on its device.
        tokenizer: The model's tokenizer.
        device: ``cpu`` or ``cuda``.
        eos_ids: Tokens that end a completion.
    """

    model: Any
    tokenizer: ModelTokenizer
    device: str
    eos_ids: tuple[int, ...]


def load_model(config: EngineConfig) -> LoadedModel:
    """The model that a config names; takes seconds to minutes and the memory of the model.

    Raises:
        ValueError: No such model or adapter, an adapter made for another model, no such device, or a context longer
            than the model's.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = resolve_device(config.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(
        config.dtype, torch.bfloat16 if device == "cuda" else torch.float32
    )
    tokenizer = ModelTokenizer(config.model, trust_remote_code=config.trust_remote_code)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            config.model, dtype=dtype, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No model could be loaded from {config.model!r}: give a hub name or a folder with a model. "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
    if config.adapter:
        model = add_adapter(model, config.adapter)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and config.context_length > longest:
        raise ValueError(
            f"engine.context_length is {config.context_length}, but {config.model!r} was made for {longest}."
        )
    eos_ids = _eos_ids(model.generation_config.eos_token_id, tokenizer.tokenizer.eos_token_id)
    model.generation_config = GenerationConfig(eos_token_id=list(eos_ids) or None)
    return LoadedModel(model=model.to(device).eval(), tokenizer=tokenizer, device=device, eos_ids=eos_ids)


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda`` for what a config asks.

    Raises:
        ValueError: CUDA is asked for and absent.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "engine.device is 'cuda', but no CUDA device is available to PyTorch on this machine. "
            "Use 'cpu' or 'auto', or run where there is a GPU."
        )
    return device


def find_adapter(name_or_path: str) -> str:
    """The folder of a LoRA adapter, fetched from the hub if it is not one already.

    Raises:
        ValueError: peft is not installed, or there is no such adapter, or it is not a LoRA in safetensors.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"engine.adapter is {name_or_path!r}, but the package peft, which reads adapters, is not installed: "
            "pip install '.[adapters]'"
        )
    from huggingface_hub import snapshot_download
    from peft import PeftConfig

    folder = name_or_path
    if not os.path.isdir(folder):
        if not HUB_NAME.match(name_or_path):
            raise ValueError(f"There is no adapter folder {name_or_path!r}, and it is no hub name (owner/adapter).")
        try:
            folder = snapshot_download(name_or_path, allow_patterns=[_ADAPTER_CONFIG, _ADAPTER_WEIGHTS])
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No adapter could be loaded from {name_or_path!r}: give a hub name or a folder with a LoRA adapter. "
                f"({str(error).strip().splitlines()[0]})"
            ) from error
    missing = [name for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS) if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise ValueError(
            f"The adapter {name_or_path!r} has no {' and no '.join(missing)}: give what peft's save_pretrained writes, "
            "in safetensors."
        )
    kind = PeftConfig.from_pretrained(folder).peft_type
    if kind != "LORA":
        raise ValueError(f"The adapter {name_or_path!r} is of the kind {kind}; only LORA is supported.")
    return folder


def add_adapter(model: Any, name_or_path: str) -> Any:
    """The model with a LoRA adapter in it: merged, or beside the weights of a quantized model.

    Args:
        model: A transformers model; it is changed.
        name_or_path: Folder or hub name of the adapter.

    Raises:
        ValueError: See `find_adapter`; or the adapter was made for another model.
    """
    folder = find_adapter(name_or_path)
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    try:
        adapted = PeftModel(model, config)
        result: Any = set_peft_model_state_dict(adapted, load_file(os.path.join(folder, _ADAPTER_WEIGHTS)))
        # Base weights are not in the adapter; what the adapter adds to the model must be, and nothing else.
        unmatched = result.unexpected_keys or [key for key in result.missing_keys if ".lora_" in key]
        problem = f"no counterpart of {unmatched[0]}" if unmatched else ""
    except (RuntimeError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]
    if problem:
        raise ValueError(
            f"The adapter {name_or_path!r} does not fit engine.model: it was made for "
            f"{config.base_model_name_or_path!r}. ({problem})"
        )
    return adapted.get_base_model() if getattr(model, "is_quantized", False) else adapted.merge_and_unload()


_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def _eos_ids(*sources: Any) -> tuple[int, ...]:
    tokens = (token for source in sources for token in (source if isinstance(source, (list, tuple)) else [source]))
    return tuple(dict.fromkeys(int(token) for token in tokens if token is not None))


# Tokenizers warn when a process forks after they have used threads; workers do fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
