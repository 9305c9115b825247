"""Mean loss on the validation split, by mixture component.

Each component's mean weighs tokens equally, not rows; ``all`` is the mean over the tokens of all components. The rows
are dealt to the processes like those of a training step, and losses and counts are summed over all of them, so that
the figure does not depend on the number of processes.

Cost: one forward pass over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator

from trainer.forward import Forward
from trainer.loss import mean_losses, sums_by_component
from trainer.processes import sum_over_processes, unless_stopped
from trainer.progress import Progress
from trainer.row_permutation import RowPermutation
from trainer.row_sampler import deal_rows
from trainer.shard_dataset import ShardDataset
from trainer.stop_signals import StopSignals

ALL_COMPONENTS = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationLoss:
    """Mean loss in nats a token by component, and over all under ``"all"``; and the tokens that it is the mean of."""

    losses: dict[str, float]
    num_targets: dict[str, int]


def choose_validation_rows(dataset: ShardDataset, *, max_rows: int | None, seed: int) -> list[int]:
    """The rows to validate on: all, or ``max_rows`` drawn by the seed, the same in every validation of a run.

    Each component gives its share of the rows, to one row, but never fewer than a quarter of an equal share, so that
    the loss of a small component is not that of a few rows; the mean over all components leans to it by that much.

    Raises:
        ValueError: There are more components than rows asked for.
    """
    if max_rows is None or max_rows >= len(dataset):
        return list(range(len(dataset)))
    available = {name: num_rows for name, num_rows in dataset.num_rows_by_component.items() if num_rows}
    if max_rows < len(available):
        raise ValueError(
            f"validation.max_rows is {max_rows}, but there are {len(available)} components to validate on: "
            f"{', '.join(available)}. Give at least one row for each."
        )
    fewest = max(1, max_rows // (4 * len(available)))
    counts = {name: min(num_rows, fewest) for name, num_rows in available.items()}
    for _ in range(max_rows - sum(counts.values())):
        behind = min(available, key=lambda name: (counts[name] + 1) / available[name])
        counts[behind] += 1
    return sorted(
        dataset.row_number_in(name, order[position])
        for name, count in counts.items()
        for order in [RowPermutation(available[name], seed=seed, name=f"validation of {name}", epoch=0)]
        for position in range(count)
    )


def validate(
    model: torch.nn.Module,
    *,
    forward: Forward,
    dataset: ShardDataset,
    rows: Sequence[int],
    micro_batch_rows: int,
    accelerator: Accelerator,
    stop: StopSignals,
) -> ValidationLoss | None:
    """The loss of a model on rows of a dataset; every process must call it. Leaves the model in training mode.

    Returns:
        The loss; None when a process was told to stop before it was known.

    Raises:
        ValueError: There is no target token in the rows.
    """
    micro_batches = deal_rows(
        rows,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        micro_batch_rows=micro_batch_rows,
    )
    num_components = len(dataset.components)
    sums = torch.zeros(num_components, 2, dtype=torch.float64, device=accelerator.device)
    model.eval()
    with (
        torch.no_grad(),  # and not inference mode: what FSDP gathers is written again in training
        Progress(
            description="validation",
            total=len(micro_batches),
            num_plain_lines=2,
            is_shown=accelerator.is_main_process,
        ) as progress,
    ):
        for num_done, row_numbers in enumerate(micro_batches, start=1):
            batch = unless_stopped(accelerator, partial(dataset.batch, row_numbers), stop=stop)
            if batch is None:
                break
            batch = batch.to(accelerator.device)
            losses = forward(model, batch).cross_entropy
            sums += sums_by_component(
                losses, labels=batch.labels, component_ids=batch.component_ids, num_components=num_components
            )
            progress.show(num_done)
    model.train()
    if batch is None:
        return None
    sums = sum_over_processes(accelerator, sums)
    counts = {name: int(count) for name, (_, count) in zip(dataset.components, sums.tolist(), strict=True) if count}
    if not counts:
        raise ValueError(f"The {len(rows)} validation rows hold no token that counts in the loss.")
    mean, by_component = mean_losses(sums, components=dataset.components)
    return ValidationLoss(losses={**by_component, ALL_COMPONENTS: mean}, num_targets=counts)
