"""The output layer together with the loss, so that the logits of a whole micro-batch are never held at once.

A vocabulary is some twenty to sixty times as wide as a hidden state, so logits and their gradient are the largest
tensors of a step. Two ways round them, both with the losses of single tokens, of which a step needs the sums by row:

- ``in_chunks``: some tokens at a time; each chunk's logits are thrown away and computed again on the way back.
- ``with_liger``: the same in Triton kernels, which write the gradient over the logits.

Cost: one more product with the output layer than the plain loss, in exchange for memory of one chunk. Both work on any
linear output layer; ``in_chunks`` on any module that takes hidden states to logits, adapters included.

Does not use ``torch.nn.functional.linear_cross_entropy``: in half precision it rounds the losses themselves, and it
knows no z-loss.

Source: Wijmans et al. 2024 (arXiv 2411.09009) for the observation; Hsu et al. 2024 (arXiv 2410.10989) for Liger.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from trainer.loss import IGNORED_LABEL, Losses, token_losses

OutputLayer = Callable[[torch.Tensor], torch.Tensor]
LossFunction = Callable[..., Losses]


def in_chunks(
    hidden: torch.Tensor,
    *,
    output_layer: OutputLayer,
    targets: torch.Tensor,
    z_loss: float,
    chunk_tokens: int,
    loss_function: LossFunction = token_losses,
) -> Losses:
    """The losses of tokens, ``chunk_tokens`` at a time.

    Args:
        hidden: Floating point, shape (num_tokens, hidden_size): what the output layer sees.
        output_layer: From hidden states to logits.
        targets: int64, shape (num_tokens,): the token to predict, or `IGNORED_LABEL`.
        z_loss: As in `trainer.loss.token_losses`.
        chunk_tokens: Tokens of a chunk.
        loss_function: `trainer.loss.token_losses`, or a compiled form of it.
    """

    def chunk_losses(some_hidden: torch.Tensor, some_targets: torch.Tensor) -> Losses:
        return loss_function(output_layer(some_hidden), targets=some_targets, z_loss=z_loss)

    # Nothing in a chunk is random, so there is no random state to keep for the second time.
    chunks = [
        checkpoint(chunk_losses, some_hidden, some_targets, use_reentrant=False, preserve_rng_state=False)
        for some_hidden, some_targets in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    ]
    return Losses(
        cross_entropy=torch.cat([chunk.cross_entropy for chunk in chunks]), z=torch.cat([chunk.z for chunk in chunks])
    )


def with_liger(hidden: torch.Tensor, *, output_layer: torch.nn.Linear, targets: torch.Tensor, z_loss: float) -> Losses:
    """The losses of tokens by Liger's fused kernel; arguments as for `in_chunks`.

    Liger gives the sum of both losses, with its gradient, and the z-loss without one, rounded to the precision of
    ``hidden``. So it is the sum of what is returned that has the right gradient.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    result = liger_fused_linear_cross_entropy(
        hidden,
        output_layer.weight,
        targets,
        bias=output_layer.bias,
        ignore_index=IGNORED_LABEL,
        lse_square_scale=z_loss,
        # Each token's own gradient counts from liger-kernel 0.8.5 on, which the extra asks for.
        reduction="none",
        return_z_loss=True,
    )
    z = result.z_loss.detach().float()
    return Losses(cross_entropy=result.loss - z, z=z)


def require_liger(device: torch.device, *, output_layer: torch.nn.Module | None) -> None:
    """Makes sure that `with_liger` can be used.

    Raises:
        ValueError: There is no GPU, Liger is not installed, or the output layer is not a plain linear layer.
    """
    problem = liger_problem(device, output_layer=output_layer)
    if problem:
        raise ValueError(f"loss.kernel is 'liger', but {problem}. Use --loss.kernel torch with --loss.chunk_tokens.")


def liger_problem(device: torch.device, *, output_layer: torch.nn.Module | None) -> str | None:
    """Why `with_liger` cannot be used; None if it can."""
    if device.type != "cuda":
        return "there is no GPU in use"
    try:
        import liger_kernel.transformers.functional  # noqa: F401
    except ImportError:
        return "Liger is not installed: pip install 'instruction-pretraining[liger]'"
    if type(output_layer) is not torch.nn.Linear:
        return f"the model's output layer is a {type(output_layer).__name__}, not a plain linear layer"
    return None
