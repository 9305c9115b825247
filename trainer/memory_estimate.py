"""What a model takes of a device's memory while it trains, part by part, without the model's weights.

The model is made of tensors that have a shape and no data, and a micro-batch is passed through it. What autograd would
keep for the way back is then known exactly, for any architecture, in seconds and without memory: no formula for
activations has to be guessed. Per process:

- weights: 4 bytes a parameter;
- half-precision copies: in bfloat16, 2 bytes an element of every matrix, which autocast keeps through a micro-batch;
- gradients: 4 bytes a trained parameter, kept from one micro-batch to the next;
- gradient buckets: 4 more, where several processes have the whole model and add up their gradients (DDP);
- optimizer: 8 bytes a trained parameter, AdamW's two means;
- activations: what autograd keeps of the layers. With gradient checkpointing, what enters each layer, and everything
  that one of them keeps;
- logits: what autograd keeps of output layer and loss, and the gradients of the logits before and behind the softmax,
  in float32; of one chunk, where they are computed in chunks.

Sharded over n processes (FSDP), weights, gradients and optimizer are divided by n, and two layers are whole at any
time, the one that computes and the one that comes next.

All parts are counted as if they were at their largest together, at the turn from forward to backward. What a library
takes for itself (about 1 GB for CUDA), what an allocator wastes (on a CPU, SmolLM2-135M took up to a fifth more), the
masks of documents, and what torch.compile and Liger save are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.adapters import add_adapter
from trainer.config import PretrainConfig
from trainer.flops import MatrixSizes, matrix_sizes
from trainer.loss import token_losses
from trainer.models import ModelDescription

_ATTENTION = "sdpa_without_mask"
_FLOAT32_BYTES = 4
_ADAMW_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """Parameters of a model.

    Args:
        num_parameters: All of them, with those of an adapter; what is shared counts once.
        num_trained: Those that are trained.
        num_embeddings: Those of the input embeddings, which may be the output layer too.
        num_largest_layer: Those of the largest layer.
        num_layers: Layers.
        num_tensors: Parameters as tensors.
        num_trained_tensors: Those that are trained.
        matrices: What multiplies a token.
    """

    num_parameters: int
    num_trained: int
    num_embeddings: int
    num_largest_layer: int
    num_layers: int
    num_tensors: int
    num_trained_tensors: int
    matrices: MatrixSizes


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptForBackward:
    """Bytes that autograd keeps of one micro-batch; see `trace_model`.

    Args:
        layers: Of all layers.
        layer_inputs: Of that, what enters the layers.
        half_precision_copies: Of the matrices.
        logits: Of output layer and loss, with the gradients of the logits.
    """

    layers: int
    layer_inputs: int
    half_precision_copies: int
    logits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one process by part; see the module."""

    weights: int
    half_precision_copies: int
    gradients: int
    gradient_buckets: int
    optimizer: int
    activations: int
    logits: int
    whole_layers: int = field(default=0)

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, part.name) for part in fields(self))


@contextmanager
def model_without_data(description: ModelDescription, *, config: PretrainConfig) -> Iterator[PreTrainedModel]:
    """The model of a run, with its adapter, whose tensors have no data; to be used inside the context."""
    # transformers draws a mask for tensors without data, whose values it cannot look at, but none for attention
    # functions that are not its own.
    AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            description.config,
            dtype=torch.float32,
            attn_implementation=_ATTENTION,
            trust_remote_code=description.trust_remote_code,
        )
        if config.model.lora is not None:
            model = add_adapter(model, lora=config.model.lora, seed=config.seed)
    # Autocast knows devices that compute, and not the meta device.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        _without_adapter(model).tie_weights()
        model.train()
        yield model


def count_parameters(model: PreTrainedModel) -> ParameterCounts:
    """The parameters of a model, which may have no data."""
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    layers = _layers(model)
    return ParameterCounts(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trained=sum(parameter.numel() for parameter in trained),
        num_embeddings=model.get_input_embeddings().weight.numel(),
        num_largest_layer=max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers),
        num_layers=len(layers),
        num_tensors=len(parameters),
        num_trained_tensors=len(trained),
        matrices=matrix_sizes(model),
    )


def _without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder's layers: the longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len)


def trace_model(
    model: PreTrainedModel,
    *,
    num_rows: int,
    sequence_length: int,
    dtype: torch.dtype,
    chunk_tokens: int | None,
) -> KeptForBackward:
    """Passes a micro-batch through a model without data and counts what autograd keeps.

    Args:
        model: From `model_without_data`, inside its context.
        num_rows: Rows of the micro-batch.
        sequence_length: Positions of a row.
        dtype: Of the arithmetic.
        chunk_tokens: Of how many tokens logits are computed at a time; None for all at once.
    """
    causal_lm = _without_adapter(model)
    output_layer = causal_lm.get_output_embeddings()
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def kept_by(work: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
        storages: dict[int, torch.UntypedStorage] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            # Kept in the dict as well, so that no later storage takes its place.
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            result = work()
        return sum(kept.nbytes() for key, kept in storages.items() if key not in weights), result

    def run_layers(rows: int) -> tuple[int, torch.Tensor]:
        ids = torch.zeros(rows, sequence_length, dtype=torch.int64)
        return kept_by(lambda: causal_lm.base_model(input_ids=ids, use_cache=False).last_hidden_state)

    # What does not grow with the rows are the copies of the matrices.
    of_one_row, _ = run_layers(1)
    of_two_rows, hidden = run_layers(2)
    of_a_row = of_two_rows - of_one_row
    of_no_row = of_one_row - of_a_row
    output_copy = 0 if dtype == torch.float32 else dtype.itemsize * output_layer.weight.numel()

    num_tokens = num_rows * sequence_length
    num_logit_tokens = min(num_tokens, chunk_tokens or num_tokens)
    some_hidden = hidden.flatten(0, 1)[:1].detach().expand(num_logit_tokens, -1).contiguous().requires_grad_()
    targets = torch.zeros(num_logit_tokens, dtype=torch.int64)
    of_logits, _ = kept_by(lambda: token_losses(output_layer(some_hidden), targets=targets).cross_entropy)
    gradients = 2 * num_logit_tokens * output_layer.weight.shape[0] * _FLOAT32_BYTES
    return KeptForBackward(
        layers=num_rows * of_a_row,
        layer_inputs=num_tokens * hidden.shape[-1] * hidden.element_size() * len(_layers(model)),
        half_precision_copies=of_no_row + output_copy,
        logits=of_logits - output_copy + gradients,
    )


def estimate_memory(
    counts: ParameterCounts,
    kept: KeptForBackward,
    *,
    num_processes: int,
    is_sharded: bool,
    has_gradient_checkpointing: bool,
) -> MemoryEstimate:
    """The memory of one process.

    Args:
        counts: The model's parameters.
        kept: What autograd keeps of a micro-batch.
        num_processes: Processes that share a step.
        is_sharded: The model is spread over them rather than copied.
        has_gradient_checkpointing: Only what enters a layer is kept.
    """
    share = num_processes if is_sharded else 1
    activations = kept.layers
    if has_gradient_checkpointing:
        activations = kept.layer_inputs + kept.layers // counts.num_layers
    return MemoryEstimate(
        weights=_FLOAT32_BYTES * counts.num_parameters // share,
        half_precision_copies=0 if is_sharded else kept.half_precision_copies,
        gradients=_FLOAT32_BYTES * counts.num_trained // share,
        gradient_buckets=_FLOAT32_BYTES * counts.num_trained if num_processes > 1 and not is_sharded else 0,
        optimizer=_ADAMW_BYTES * counts.num_trained // share,
        activations=activations,
        logits=kept.logits,
        whole_layers=2 * _FLOAT32_BYTES * counts.num_largest_layer if is_sharded else 0,
    )


def checkpoint_bytes(counts: ParameterCounts, *, is_adapter: bool) -> int:
    """The size of a checkpoint on disk: float32 weights, or an adapter's alone, and the optimizer's two means.

    Names and shapes take about a hundred bytes a tensor, of which a trained one has three or, with the optimizer's
    count of steps, four.
    """
    num_weights = counts.num_trained if is_adapter else counts.num_parameters
    num_tensors = (counts.num_trained_tensors if is_adapter else counts.num_tensors) + 3 * counts.num_trained_tensors
    return _FLOAT32_BYTES * num_weights + _ADAMW_BYTES * counts.num_trained + 100 * num_tensors
