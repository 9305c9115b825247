"""The processes of a run: how they start, agree, and leave work to one of them.

Accelerate starts a run on whatever it is launched on: one CPU process, one GPU, many of either. All processes execute
the same program and meet in collective operations; if one of them alone raised an error before such a meeting, the
others would wait for it. So what only the main process does is sent with its outcome, an error included, to all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from trainer.config import PretrainConfig

_Result = TypeVar("_Result")


def start_processes(config: PretrainConfig) -> Accelerator:
    """Takes this process's device and joins the others.

    Raises:
        ValueError: A GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("device is 'cuda', but PyTorch sees no GPU here. Use --device auto or --device cpu.")
    uses_gpu = has_gpu and config.device != "cpu"
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if uses_gpu else "float32"
    return Accelerator(cpu=not uses_gpu, mixed_precision="bf16" if dtype == "bfloat16" else "no")


def on_main_process(accelerator: Accelerator, work: Callable[[], _Result]) -> _Result:
    """Does work on the main process alone and returns its result on every process.

    Raises:
        ValueError, OSError: The work raised it; then it is raised on every process.
    """
    outcome: list[_Result | ValueError | OSError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [work()]
        except (ValueError, OSError) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], (ValueError, OSError)):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]  # the main process has replaced the None


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum of every process's tensor, the same on all of them."""
    total: torch.Tensor = accelerator.reduce(values, reduction="sum")
    return total


def any_process(accelerator: Accelerator, condition: bool) -> bool:
    """Whether the condition holds on at least one process."""
    if accelerator.num_processes == 1:
        return condition
    return bool(sum_over_processes(accelerator, torch.tensor(int(condition), device=accelerator.device)).item())
