"""Floating-point operations of training, and how much of a device's peak they use.

A multiplication and an addition are two operations. For a token, a weight matrix of n elements takes 2n of them in the
forward pass, 2n in the backward pass for the gradient of its input, and 2n more for its own gradient if it is trained.
Attention takes 2 T H Q for the scores and as many for the weighted sum, in each of L layers of H heads of Q dimensions
over T positions, and twice that backwards. Per token:

    4 N + 2 N_trained + 12 L H Q T

N counts the elements of every weight that multiplies a token: all matrices, the output layer among them even where it
shares its weights with the embeddings. Embeddings, which are looked up, norms and biases are left out. A model that is
trained as a whole has N_trained = N, and the sum is the 6 N + 12 L H Q T of the PaLM paper; with LoRA, N_trained are
the adapters and the frozen matrices take 4 N.

By the convention of that paper, which other reports follow, T is the whole row: a causal kernel that skips what is
masked computes about half of the attention term, and document masks save more. What gradient checkpointing computes
again does not count either. Model FLOPs utilization (MFU) is then the tokens a second, padding not counted, divided by
those that the devices would pass through at their peak.

Does not know mixtures of experts: it counts every expert for every token. Peaks of devices that are not in the table
are not guessed.

Source: Chowdhery et al. 2022 (arXiv 2204.02311), appendix B; peaks from the makers' data sheets, without sparsity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

_TERA = 1e12

# TFLOP/s by name, the first that matches: bfloat16 on tensor cores with float32 sums and without sparsity, and float32
# outside them, which is what PyTorch uses unless TF32 is switched on.
_PEAK_TFLOPS: Mapping[str, Mapping[torch.dtype, float]] = {
    # https://resources.nvidia.com/en-us-blackwell-architecture
    r"\bB200\b": {torch.bfloat16: 2250.0, torch.float32: 75.0},
    # https://www.nvidia.com/en-us/data-center/h200/
    r"\bH200\b": {torch.bfloat16: 989.4, torch.float32: 66.9},
    # https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet
    r"\bH100 NVL\b": {torch.bfloat16: 835.5, torch.float32: 60.0},
    r"\bH100 PCIe\b": {torch.bfloat16: 756.0, torch.float32: 51.2},
    r"\bH100\b": {torch.bfloat16: 989.4, torch.float32: 66.9},
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    r"\bA100\b": {torch.bfloat16: 312.0, torch.float32: 19.5},
    # https://www.nvidia.com/en-us/data-center/l40s/ and /l4/
    r"\bL40S\b": {torch.bfloat16: 362.0, torch.float32: 91.6},
    r"\bL4\b": {torch.bfloat16: 121.0, torch.float32: 30.3},
    # https://www.nvidia.com/en-us/data-center/products/a10-gpu/
    r"\bA10\b": {torch.bfloat16: 125.0, torch.float32: 31.2},
    # https://www.nvidia.com/en-us/data-center/a40/ and /en-us/design-visualization/rtx-a6000/
    r"\bA40\b": {torch.bfloat16: 149.7, torch.float32: 37.4},
    r"\bRTX A6000\b": {torch.bfloat16: 154.8, torch.float32: 38.7},
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf
    r"\bRTX 4090$": {torch.bfloat16: 165.2, torch.float32: 82.6},
    # https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf
    r"\bRTX 3090$": {torch.bfloat16: 71.0, torch.float32: 35.6},
}

# A slice of a GPU bears the whole one's name.
_SLICE = re.compile(r"\bMIG\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSizes:
    """Elements of the weights that multiply a token: all of them, and those that are trained."""

    num_elements: int
    num_trained: int


def matrix_sizes(model: torch.nn.Module) -> MatrixSizes:
    """Counts a model's matrices; its weights may be on the meta device."""
    weights = [
        parameter
        for module in model.modules()
        if not isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim >= 2
    ]
    return MatrixSizes(
        num_elements=sum(weight.numel() for weight in weights),
        num_trained=sum(weight.numel() for weight in weights if weight.requires_grad),
    )


def training_flops_per_token(sizes: MatrixSizes, *, config: PretrainedConfig, sequence_length: int) -> int:
    """Operations that training takes for each token of a row.

    Args:
        sizes: Of the model, as `matrix_sizes` gives them.
        config: The model's config: layers, heads and their size.
        sequence_length: Positions of a row.
    """
    head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention: int = 12 * config.num_hidden_layers * config.num_attention_heads * head_size * sequence_length
    return 4 * sizes.num_elements + 2 * sizes.num_trained + attention


def peak_flops_of(device_name: str, *, dtype: torch.dtype) -> float | None:
    """The peak of a device in operations a second, or None when the table does not have it.

    Args:
        device_name: As ``torch.cuda.get_device_name`` gives it.
        dtype: Of the arithmetic.
    """
    if _SLICE.search(device_name):
        return None
    for pattern, peaks in _PEAK_TFLOPS.items():
        if re.search(pattern, device_name):
            return peaks[dtype] * _TERA if dtype in peaks else None
    return None


def peak_tokens_per_second(
    *, flops_per_token: int, peak_tflops: float | None, device: torch.device, dtype: torch.dtype, num_devices: int
) -> float | None:
    """Tokens a second at which the devices would be at their peak: what MFU is measured against.

    Args:
        flops_per_token: As `training_flops_per_token` gives it.
        peak_tflops: The peak of one device in TFLOP/s; None looks the device up.
        device: One of the devices, which are all of a kind.
        dtype: Of the arithmetic.
        num_devices: How many there are.

    Returns:
        None when the peak is not known, as on a CPU.
    """
    peak = None if peak_tflops is None else peak_tflops * _TERA
    if peak is None and device.type == "cuda":
        peak = peak_flops_of(torch.cuda.get_device_name(device), dtype=dtype)
    return None if peak is None else peak * num_devices / flops_per_token
