"""The gradients of one step: its micro-batches over all processes, added up and clipped.

The loss of a step is the mean over all its target tokens: every micro-batch adds the sum of its losses divided by the
number of targets of the whole step, so that neither the size of the micro-batches nor the number of processes changes
what is computed, only the rounding. With the z-loss it is the sum of both that is trained on.

Cost: forward and backward pass, one reduction of counts before and one of losses behind; processes exchange gradients
with their last micro-batch only.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from trainer.forward import Forward
from trainer.loss import count_targets, mean_losses, sums_by_component
from trainer.processes import sum_over_processes
from trainer.shard_dataset import Batch
from trainer.step_loader import LoadedStep


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepResult:
    """What a step computed over all processes.

    Args:
        loss: Mean loss in nats a target token.
        loss_by_component: The same for each component that has a target.
        z_loss: Mean weighted z-loss a target token.
        grad_norm: The gradient's norm before clipping.
        num_tokens: Tokens, padding not counted.
        own_losses: Mean loss a target of each row of this process, by micro-batch; 0 for a row without a target.
        own_rows: The numbers of these rows.
        skipped: Why the weights were not updated; None if they were.
        skipped_rows: Of a skipped step, rows with their losses as `skipped_steps` gives them.
    """

    loss: float
    loss_by_component: dict[str, float]
    z_loss: float
    grad_norm: float
    num_tokens: int
    own_losses: list[torch.Tensor]
    own_rows: list[list[int]]
    skipped: str | None = None
    skipped_rows: Sequence[tuple[int, float | None]] = ()


def compute_gradients(
    model: torch.nn.Module,
    *,
    step: LoadedStep,
    forward: Forward,
    components: tuple[str, ...],
    max_grad_norm: float,
    accelerator: Accelerator,
) -> StepResult:
    """Puts the clipped gradient of a step into the parameters' ``grad``; every process must call it.

    Args:
        model: As Accelerate prepared it, without gradients.
        step: The step's rows.
        forward: From a batch to its losses.
        components: Names of the mixture components.
        max_grad_norm: The norm that the gradient is scaled down to.
        accelerator: The processes.

    Raises:
        ValueError: There is no token to predict in the step.
    """
    num_targets, num_tokens = _count(step.batches, accelerator=accelerator)
    if not num_targets:
        raise ValueError(
            f"Step {step.next_position.step} has no token to predict in its rows, of which {step.rows[0]} is one."
        )
    sums = torch.zeros(len(components), 2, dtype=torch.float64, device=accelerator.device)
    z_sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    own_losses: list[torch.Tensor] = []
    for index, batch in enumerate(step.batches):
        is_last = index == len(step.batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(model):
            batch = batch.to(accelerator.device)
            losses = forward(model, batch)
            # Accelerate averages gradients over the processes; the loss is their sum.
            total = losses.cross_entropy.sum() + losses.z.sum()
            accelerator.backward(total * (accelerator.num_processes / num_targets))
        cross_entropy = losses.cross_entropy.detach()
        own_losses.append(cross_entropy / count_targets(batch.labels).clamp(min=1))
        z_sum += losses.z.detach().sum()
        sums += sums_by_component(
            cross_entropy, labels=batch.labels, component_ids=batch.component_ids, num_components=len(sums)
        )
    mean, by_component = mean_losses(sum_over_processes(accelerator, sums), components=components)
    return StepResult(
        loss=mean,
        loss_by_component=by_component,
        z_loss=float(sum_over_processes(accelerator, z_sum)) / num_targets,
        grad_norm=float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)),
        num_tokens=num_tokens,
        own_losses=own_losses,
        own_rows=step.micro_batches,
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: on a GPU its tensors, on a CPU the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "linux":
        # Not getrusage, whose peak a process takes over from the one that started it.
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _count(batches: Sequence[Batch], *, accelerator: Accelerator) -> tuple[int, int]:
    """Target tokens, and tokens without padding, of a whole step over all processes."""
    own = [
        sum(int(count_targets(batch.labels).sum()) for batch in batches),
        sum(batch.num_tokens for batch in batches),
    ]
    num_targets, num_tokens = sum_over_processes(accelerator, torch.tensor(own, device=accelerator.device)).tolist()
    return num_targets, num_tokens
