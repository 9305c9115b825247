"""From a batch of rows to their losses: the one place where the trainer calls the model.

The loss is computed inside the model's ``forward``, so that whatever wraps the model (data parallelism, sharding, mixed
precision, adapters) sees one call that takes tokens and gives losses: the logits never leave it, and sharded output
layers are whole while they are in use.

**Document masks.** Position ids that start anew with each text are all that it takes: transformers builds the mask, or
the lengths for flash attention, from them. Flash attention wants all rows in one, which changes nothing else.

**Targets only.** Where most tokens of a micro-batch are no targets, as contexts in a synthesizer's tuning data, the
logits of the others alone are computed; for a small model with a large vocabulary that is a fifth of a step.

No position looks at later ones, so what stands behind the last target of a micro-batch, padding above all, is left out.

**Compilation** is by layer, in place: all layers share one compiled form, which takes seconds where compiling the whole
model takes minutes, and no name in the state changes. A compiled form is for one shape, and a different one could be
compiled or not according to what came before; so every batch is filled up with empty rows to the size of a full one,
and a run that goes on computes exactly as one that never stopped.

Does not support models whose own ``forward`` does more than applying the output layer, where logits are computed in
chunks or by Liger: a few tokens are passed through both at the start, and a difference is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_flash_attn_2_available

from trainer.config import LossConfig, ModelConfig, PretrainConfig
from trainer.linear_cross_entropy import in_chunks, liger_problem, require_liger, with_liger
from trainer.loss import IGNORED_LABEL, Losses, next_tokens, sum_by_row, token_losses
from trainer.shard_dataset import Batch

_NUM_PROBE_TOKENS = 8
# Above this share of targets, picking them out saves less than it costs.
_MAX_PICKED_SHARE = 0.8


class Forward:
    """Computes the losses of rows with a model that was prepared for it.

    Args:
        config: The run's config.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self._uses_document_masks = config.model.document_masks
        # What is compiled sees one shape only.
        self._num_rows = config.batch.micro_batch_rows if config.model.compile != "none" else 0

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Losses:
        """The summed losses of each row's targets.

        Args:
            model: As Accelerate prepared it, after `prepare_model`.
            batch: On the model's device.
        """
        num_missing = max(0, self._num_rows - len(batch.input_ids))
        length = batch.labels.shape[1] if self._num_rows else used_length(batch.labels)
        input_ids, labels = batch.input_ids[:, :length], batch.labels[:, :length]
        position_ids = batch.position_ids[:, :length]
        losses: Losses = model(
            input_ids=F.pad(input_ids, (0, 0, 0, num_missing)),
            position_ids=F.pad(position_ids, (0, 0, 0, num_missing)) if self._uses_document_masks else None,
            labels=F.pad(labels, (0, 0, 0, num_missing), value=IGNORED_LABEL),
            use_cache=False,
        )
        return Losses(*(values[: len(batch.input_ids)] for values in losses))


def prepare_model(model: PreTrainedModel, *, config: PretrainConfig, device: torch.device) -> None:
    """Makes a model's ``forward`` give losses when it is given labels; sets up checkpointing and compilation.

    To be called before Accelerate wraps the model. Without labels the model answers as ever.

    Args:
        model: The model, with or without an adapter.
        config: The run's config.
        device: Where it will compute.

    Raises:
        ValueError: The model or the machine does not allow what the config asks for.
    """
    causal_lm = _without_adapter(model)
    _set_attention(causal_lm, config=config.model, device=device)
    if config.batch.gradient_checkpointing:
        causal_lm.activation_checkpointing_enable()
    loss_function: Callable[..., Losses] = token_losses
    if config.model.compile != "none":
        _compile_layers(model, mode=config.model.compile)
        loss_function = torch.compile(token_losses, mode=config.model.compile, dynamic=False)
    causal_lm.forward = _loss_forward(causal_lm, loss=config.loss, device=device, loss_function=loss_function)


def _loss_forward(
    model: PreTrainedModel, *, loss: LossConfig, device: torch.device, loss_function: Callable[..., Losses]
) -> Callable[..., Any]:
    """A ``forward`` for a causal language model."""
    own_forward = model.forward
    output_layer = model.get_output_embeddings()
    flattens_rows = str(model.config._attn_implementation).startswith("flash_attention")
    if loss.kernel == "liger":
        require_liger(device, output_layer=output_layer)
    uses_liger = loss.kernel == "liger" or (
        loss.kernel == "auto" and loss.chunk_tokens is None and not liger_problem(device, output_layer=output_layer)
    )
    is_plain = _has_plain_output(model)
    if (uses_liger or loss.chunk_tokens is not None) and not is_plain:
        raise ValueError(
            f"A {type(model).__name__} does more to its logits than to apply its output layer, so they cannot be "
            "computed in chunks or by Liger. Use --loss.kernel torch and leave out loss.chunk_tokens."
        )

    def losses_of_hidden(hidden: torch.Tensor, targets: torch.Tensor) -> Losses:
        if uses_liger:
            return with_liger(hidden, output_layer=output_layer, targets=targets, z_loss=loss.z_loss)
        if loss.chunk_tokens is None:
            return loss_function(output_layer(hidden), targets=targets, z_loss=loss.z_loss)
        return in_chunks(
            hidden,
            output_layer=output_layer,
            targets=targets,
            z_loss=loss.z_loss,
            chunk_tokens=loss.chunk_tokens,
            loss_function=loss_function,
        )

    def losses_of_tokens(arguments: dict[str, Any], targets: torch.Tensor) -> Losses:
        # A compiled loss is for one number of tokens.
        picked = picked_targets(targets) if is_plain and loss_function is token_losses else None
        if picked is None and not uses_liger and loss.chunk_tokens is None:
            logits = own_forward(**arguments).logits.flatten(0, 1)
            return loss_function(logits, targets=targets, z_loss=loss.z_loss)
        hidden = model.base_model(**arguments).last_hidden_state.flatten(0, 1)
        if picked is None:
            return losses_of_hidden(hidden, targets)
        losses = losses_of_hidden(hidden[picked], targets[picked])
        return Losses(*(values.new_zeros(len(targets)).index_copy(0, picked, values) for values in losses))

    def forward(
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **arguments: Any,
    ) -> Any:
        if labels is None:
            return own_forward(input_ids=input_ids, position_ids=position_ids, **arguments)
        assert input_ids is not None
        if flattens_rows and position_ids is not None:
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        # Adapters pass on what they were not given.
        given = {name: value for name, value in arguments.items() if value is not None}
        given |= {"input_ids": input_ids, "position_ids": position_ids}
        return sum_by_row(losses_of_tokens(given, next_tokens(labels)), num_rows=len(labels))

    return forward


def used_length(labels: torch.Tensor) -> int:
    """How many of the first positions of each row matter to any of the losses.

    Args:
        labels: int64, shape (num_rows, sequence_length), unshifted.
    """
    columns = (labels != IGNORED_LABEL).any(dim=0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else labels.shape[1]


def picked_targets(targets: torch.Tensor) -> torch.Tensor | None:
    """The positions of the targets, if they alone are worth computing; None to compute all positions.

    Args:
        targets: int64, shape (num_tokens,), as `next_tokens` gives them.

    Returns:
        int64, shape (number of targets,).
    """
    picked = (targets != IGNORED_LABEL).nonzero().squeeze(1)
    return picked if 0 < len(picked) <= _MAX_PICKED_SHARE * len(targets) else None


def _set_attention(model: PreTrainedModel, *, config: ModelConfig, device: torch.device) -> None:
    has_flash = device.type == "cuda" and is_flash_attn_2_available()
    name = config.attention
    if name == "auto":
        if not (config.document_masks and has_flash):
            return  # what transformers chose: sdpa, where the model knows it
        name = "flash_attention_2"
    if name == "flash_attention_2" and not has_flash:
        raise ValueError(
            "model.attention is 'flash_attention_2', but there is no GPU in use or no flash-attn package. Use "
            "--model.attention auto."
        )
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"model.attention is {name!r}: {error}") from error
    if model.config._attn_implementation != name:
        raise ValueError(f"model.attention is {name!r}, which a {type(model).__name__} does not have.")


def _compile_layers(model: PreTrainedModel, *, mode: str) -> None:
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"model.compile is {mode!r}, but transformers knows no layers of a {type(model).__name__} that could be "
            "compiled. Use --model.compile none."
        )
    for layer in layers:
        layer.compile(mode=mode, dynamic=False)


def _has_plain_output(model: PreTrainedModel) -> bool:
    """Whether the logits are the output layer over the hidden states and nothing else, tried on a few tokens."""
    output_layer = model.get_output_embeddings()
    if output_layer is None:
        return False
    input_ids = torch.arange(_NUM_PROBE_TOKENS, device=model.device).unsqueeze(0)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=input_ids, use_cache=False).logits
        hidden = getattr(model.base_model(input_ids=input_ids, use_cache=False), "last_hidden_state", None)
        actual = None if hidden is None else output_layer(hidden)
    model.train(was_training)
    return actual is not None and torch.allclose(expected, actual, rtol=1e-4, atol=1e-4)


def _without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model itself, under an adapter or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
