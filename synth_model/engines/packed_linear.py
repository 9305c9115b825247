"""Multiplies by weights that are laid out for this CPU once, instead of at every call.

A linear layer in float32 goes through PyTorch's BLAS library, which lays the weights out anew in every call and, on
processors other than its maker's, leaves the widest vector instructions unused. oneDNN, which PyTorch carries too, does
neither: `pack_linear_layers` keeps each weight matrix in oneDNN's own layout and lets the layer multiply by that.

Results differ from before in rounding only. The dense weights of a packed layer are freed, those it shares with the
embedding excepted, so the model must not be trained, saved or moved to another device afterwards.

Cost: one copy of the weights, matrix by matrix. Not done here: other dtypes, whose products go through oneDNN already,
and layers that are more than `torch.nn.Linear` (quantized ones, adapters kept beside the weights).

Source: the operators that PyTorch's own compiler freezes linear layers to (torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def pack_linear_layers(model: Any) -> int:
    """Packs the linear layers of a model on the CPU, in float32, in place.

    Args:
        model: A `torch.nn.Module` in evaluation mode.

    Returns:
        How many layers were packed; 0 where PyTorch has no oneDNN for this processor.
    """
    import torch

    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return 0
    layers = [
        layer
        for layer in model.modules()
        # A subclass may do more than multiply.
        if type(layer) is torch.nn.Linear and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
    ]
    for layer in layers:
        _pack(layer)
    return len(layers)


def _pack(layer: torch.nn.Linear) -> None:
    import torch

    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = None if layer.bias is None else layer.bias.detach()

    def multiply(inputs: torch.Tensor) -> torch.Tensor:
        """``inputs`` float32, shape (..., in_features); the result has shape (..., out_features)."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
        return product

    # The attribute stays, since others ask for its shape; as no parameter it is not counted as a dense weight.
    del layer.weight
    layer.weight = packed
    layer.forward = multiply
