"""Low-rank adapters: training a few million weights beside a model that stays as it is.

Each chosen matrix W gets a product B A of rank r beside it; only A and B are trained, and W + (alpha / r) B A is what
the model computes. A is drawn at random and B is zero, so that training starts from the model's own output.

Checkpoints and the exported model hold the adapter alone, in the format of the PEFT library, with the name of the model
that it belongs to.

Cost: no gradient and no optimizer state for the model's own weights; about two thirds of the arithmetic of a step of
full training.

Source: Hu et al. 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from contracts.seeding import stable_hash
from trainer.config import LoraConfig


def require_peft() -> None:
    """Refuses an adapter where PEFT is missing, before any work.

    Raises:
        ValueError: It is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("model.lora needs PEFT: pip install 'instruction-pretraining[adapters]'.")


def add_adapter(model: PreTrainedModel, *, lora: LoraConfig, seed: int, checkpoint: str | None = None) -> Any:
    """A ``peft.PeftModel`` around a model: everything frozen but the adapter.

    Args:
        model: The model; it is changed in place.
        lora: Shape of the adapter.
        seed: Decides the adapter's first weights.
        checkpoint: A local adapter folder to take the weights from instead, when a run goes on.

    Raises:
        ValueError: PEFT is not installed, the model has no such modules, or the checkpoint cannot be read.
    """
    require_peft()
    import peft

    if checkpoint is not None:
        try:
            return peft.PeftModel.from_pretrained(model, checkpoint, is_trainable=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"The adapter in {checkpoint} cannot be read: {error}") from error
    torch.manual_seed(stable_hash(seed, "adapter-initialization"))
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"model.lora does not fit the model: {error}") from error


def describe_adapter(model: torch.nn.Module) -> Mapping[str, int] | None:
    """Parameters of the adapter and of the model under it; None for a model without an adapter."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    return None if trained == total else {"num_adapter_parameters": trained, "num_base_parameters": total - trained}


def is_adapter_folder(folder: str) -> bool:
    """Whether a local folder holds an adapter rather than a model."""
    return os.path.isfile(os.path.join(folder, "adapter_config.json"))
