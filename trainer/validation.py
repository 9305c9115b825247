"""Mean loss on the validation split, by mixture component.

Each component's mean weighs tokens equally, not rows; ``all`` is the mean over the tokens of all components. The rows
are dealt to the processes like those of a training step, and losses and counts are summed over all of them, so that
the figure does not depend on the number of processes.

Cost: one forward pass over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from trainer.loss import mean_losses, row_losses, sums_by_component
from trainer.processes import sum_over_processes
from trainer.progress import Progress
from trainer.row_permutation import RowPermutation
from trainer.row_sampler import deal_rows
from trainer.shard_dataset import ShardDataset

ALL_COMPONENTS = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationLoss:
    """Mean loss in nats a token by component, and over all under ``"all"``; and the tokens that it is the mean of."""

    losses: dict[str, float]
    num_targets: dict[str, int]


def choose_validation_rows(num_rows: int, *, max_rows: int | None, seed: int) -> list[int]:
    """The rows to validate on: all, or ``max_rows`` drawn by the seed, the same in every validation of a run."""
    if max_rows is None or max_rows >= num_rows:
        return list(range(num_rows))
    permutation = RowPermutation(num_rows, seed=seed, name="validation", epoch=0)
    return sorted(permutation[position] for position in range(max_rows))


def validate(
    model: torch.nn.Module,
    *,
    dataset: ShardDataset,
    rows: Sequence[int],
    micro_batch_rows: int,
    accelerator: Accelerator,
) -> ValidationLoss:
    """The loss of a model on rows of a dataset; every process must call it. Leaves the model in training mode.

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
        torch.inference_mode(),
        Progress(
            description="validation",
            total=len(micro_batches),
            num_plain_lines=2,
            is_shown=accelerator.is_main_process,
        ) as progress,
    ):
        for num_done, row_numbers in enumerate(micro_batches, start=1):
            batch = dataset.batch(row_numbers).to(accelerator.device)
            losses = row_losses(model(input_ids=batch.input_ids, use_cache=False).logits, labels=batch.labels)
            sums += sums_by_component(
                losses, labels=batch.labels, component_ids=batch.component_ids, num_components=num_components
            )
            progress.show(num_done)
    model.train()
    sums = sum_over_processes(accelerator, sums)
    counts = {name: int(count) for name, (_, count) in zip(dataset.components, sums.tolist(), strict=True) if count}
    if not counts:
        raise ValueError(f"The {len(rows)} validation rows hold no token that counts in the loss.")
    mean, by_component = mean_losses(sums, components=dataset.components)
    return ValidationLoss(losses={**by_component, ALL_COMPONENTS: mean}, num_targets=counts)
