"""Next-token cross-entropy, with its sums by row and by mixture component.

Labels come unshifted: position t holds token t. The one shift of the project happens here: the logits at t - 1 are
held against the label at t.

Cost: one softmax over the vocabulary a token. Half-precision logits are widened to float32 first; sums over rows are
kept in float64, since they run over whole splits.

Does not average: a mean over a step or a split is a sum of losses divided by a number of targets, and both may be
spread over micro-batches and processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses

IGNORED_LABEL = -100


def row_losses(logits: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
    """The summed loss of each row's targets.

    Args:
        logits: Floating point, shape (num_rows, sequence_length, vocab_size).
        labels: int64, shape (num_rows, sequence_length), unshifted, `IGNORED_LABEL` where a token is no target. The
            first position of a row has nothing before it and never counts.

    Returns:
        float32, shape (num_rows,), in nats.
    """
    # The small labels are moved rather than the large logits sliced, which would copy them.
    targets = torch.full_like(labels, IGNORED_LABEL)
    targets[:, :-1] = labels[:, 1:]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return losses.view_as(labels).sum(dim=1)


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
