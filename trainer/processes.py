"""The processes of a run: how they start, agree, and leave work to one of them.

Accelerate starts a run on whatever it is launched on: one CPU process, one GPU, many of either. All processes execute
the same program and meet in collective operations; if one of them alone raised an error before such a meeting, the
others would wait for it. So whatever can fail on one process alone is done through `on_every_process` or
`on_main_process`: they send the outcome, an error included, to all. A process that dies without a word ends the others
when they next meet it, at the latest after ``process_timeout_seconds``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object

from trainer.command_line import FailedElsewhereError
from trainer.config import PretrainConfig
from trainer.stop_signals import StopSignals

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome(Generic[_Result]):
    """What work came to on one process: a result or an error's message."""

    result: _Result | None = None
    error: str | None = None
    is_os_error: bool = False


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
    accelerator = Accelerator(
        cpu=not uses_gpu,
        mixed_precision="bf16" if dtype == "bfloat16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout_seconds))],
    )
    if accelerator.distributed_type == DistributedType.MULTI_CPU and _is_asked_for("ACCELERATE_USE_FSDP"):
        _use_fsdp(accelerator)
    return accelerator


def _is_asked_for(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _use_fsdp(accelerator: Accelerator) -> None:
    """Spreads weights over CPU processes as over GPUs, which is how it can be tried and tested.

    PyTorch's FSDP runs on CPUs, but Accelerate looks for it on GPUs only. It reads its settings from the environment,
    where ``accelerate launch`` has put them.
    """
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    for shared_state in (PartialState._shared_state, AcceleratorState._shared_state):
        shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin


def on_every_process(accelerator: Accelerator, work: Callable[[], _Result]) -> list[_Result]:
    """Does work on every process and returns the results of all, by process index.

    Raises:
        OSError: The work raised it on one process; then all raise one.
        FailedElsewhereError: The work raised another error on another process; there the error is raised itself.
    """
    failure: Exception | None = None
    try:
        outcome: _Outcome[_Result] = _Outcome(result=work())
    except Exception as error:  # noqa: BLE001  # raised again once the others know
        failure = error
        outcome = _Outcome(error=f"{error}", is_os_error=isinstance(error, OSError))
    outcomes: list[_Outcome[_Result]] = gather_object([outcome])
    if failure is not None:
        raise failure
    for index, other in enumerate(outcomes):
        if other.error is not None:
            message = f"Process {index} of {len(outcomes)}: {other.error}"
            raise OSError(message) if other.is_os_error else FailedElsewhereError(message)
    return [other.result for other in outcomes]  # type: ignore[misc]  # there is a result where there is no error


def on_main_process(accelerator: Accelerator, work: Callable[[], _Result]) -> _Result:
    """Does work on the main process alone and returns its result on every process; raises as `on_every_process`."""
    results: list[Any] = on_every_process(accelerator, work if accelerator.is_main_process else _nothing)
    result: _Result = results[0]
    return result


def _nothing() -> None:
    return None


def unless_stopped(accelerator: Accelerator, work: Callable[[], _Result], *, stop: StopSignals) -> _Result | None:
    """Does a little work on every process, unless one of them is told to stop: then all of them get None.

    The results stay where they are, so that this costs one small reduction.

    Raises:
        FailedElsewhereError: The work raised an error on another process; there the error is raised itself.
    """
    failure: Exception | None = None
    result: _Result | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001  # raised again once the others know
        failure = error
    flags = torch.tensor([failure is not None, stop.is_received], dtype=torch.int32, device=accelerator.device)
    num_failed, num_stopped = sum_over_processes(accelerator, flags).tolist()
    if failure is not None:
        raise failure
    if num_failed:
        raise FailedElsewhereError
    return None if num_stopped else result


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum of every process's tensor, the same on all of them."""
    total: torch.Tensor = accelerator.reduce(values, reduction="sum")
    return total
