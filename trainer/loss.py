"""Next-token cross-entropy, with its sums by row and by mixture component.

Labels come unshifted: position t holds token t. The one shift of the project happens here: the logits at t - 1 are
held against the label at t.

The z-loss is the squared logarithm of the softmax' denominator, log Z, times a small weight. The softmax does not
change when a constant is added to all logits, so nothing else keeps them from drifting, which half precision suffers
from. It is trained on and logged, and no part of the loss that is reported.

Cost: one softmax over the vocabulary a token, and one more pass over the logits with z-loss. Half-precision logits are
widened to float32 first; sums over rows are kept in float64, since they run over whole splits.

Does not average: a mean over a step or a split is a sum of losses divided by a number of targets, and both may be
spread over micro-batches and processes.

Source: Chowdhery et al. 2022 (arXiv 2204.02311), section 5, for the z-loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses

IGNORED_LABEL = -100


class Losses(NamedTuple):
    """The losses of tokens or of rows, float32, shape (number of these,), in nats.

    A plain tuple, since that is what the wrappers of models pass through.

    Args:
        cross_entropy: What is reported.
        z: The weighted z-loss; zeros without one.
    """

    cross_entropy: torch.Tensor
    z: torch.Tensor


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """What each position predicts: the label of the position behind it, and nothing at the end of a row.

    Args:
        labels: int64, shape (num_rows, sequence_length), unshifted, `IGNORED_LABEL` where a token is no target. The
            first position of a row has nothing before it and never counts.

    Returns:
        int64, shape (num_rows * sequence_length,).
    """
    # The small labels are moved rather than the large logits sliced, which would copy them.
    targets = torch.full_like(labels, IGNORED_LABEL)
    targets[:, :-1] = labels[:, 1:]
    return targets.flatten()


def token_losses(logits: torch.Tensor, *, targets: torch.Tensor, z_loss: float = 0.0) -> Losses:
    """The losses of single tokens, 0 where there is no target.

    Args:
        logits: Floating point, shape (num_tokens, vocab_size).
        targets: int64, shape (num_tokens,), as `next_tokens` gives them.
        z_loss: Weight of the z-loss.
    """
    logits = logits.float()
    cross_entropy = F.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="none")
    if not z_loss:
        return Losses(cross_entropy=cross_entropy, z=torch.zeros_like(cross_entropy))
    z = z_loss * logits.logsumexp(dim=-1).square()
    return Losses(cross_entropy=cross_entropy, z=z.masked_fill(targets == IGNORED_LABEL, 0.0))


def sum_by_row(losses: Losses, *, num_rows: int) -> Losses:
    """The summed losses of each row, from those of its tokens."""
    return Losses(*(values.view(num_rows, -1).sum(dim=1) for values in losses))


def count_targets(labels: torch.Tensor) -> torch.Tensor:
    """Targets in each row: int64, shape (num_rows,), for labels of shape (num_rows, sequence_length)."""
    return (labels[:, 1:] != IGNORED_LABEL).sum(dim=1)


def sums_by_component(
    losses: torch.Tensor, *, labels: torch.Tensor, component_ids: torch.Tensor, num_components: int
) -> torch.Tensor:
    """Loss and number of targets of each component.

    Args:
        losses: Of each row, shape (num_rows,).
        labels: The rows' labels, shape (num_rows, sequence_length).
        component_ids: int64, shape (num_rows,).
        num_components: Number of components.

    Returns:
        float64, shape (num_components, 2): summed loss, number of targets.
    """
    per_row = torch.stack([losses.detach().double(), count_targets(labels).double()], dim=1)
    sums = torch.zeros(num_components, 2, dtype=torch.float64, device=losses.device)
    return sums.index_add_(0, component_ids, per_row)


def mean_losses(sums: torch.Tensor, *, components: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """The mean loss a target over all components, and of each component that has a target.

    Args:
        sums: As `sums_by_component` gives them.
        components: Their names.
    """
    values: list[tuple[float, float]] = [(loss, count) for loss, count in sums.tolist()]
    by_component = {name: loss / count for name, (loss, count) in zip(components, values, strict=True) if count}
    num_targets = sum(count for _, count in values)
    return sum(loss for loss, _ in values) / num_targets, by_component
