"""Runs of the trainer in processes of their own: real signals, real collectives.

They are forked from a server that has imported PyTorch, so that a process starts in a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trainer.run", "trainer.export"])


def tiny_arguments(shards, output, *options: str) -> list[str]:
    """The options of the `pretrain` fixture: 12 steps in two epochs, with two micro-batches a step."""
    return [
        *("--shards", str(shards), "--output", str(output), "--model.init", "scratch", "--model.preset", "tiny"),
        *("--batch.rows_per_step", "4", "--batch.micro_batch_rows", "2", "--num_epochs", "2", "--device", "cpu"),
        *("--optimizer.learning_rate", "3e-3", "--checkpoint.every_steps", "2"),
        *options,
    ]


class RunProcesses:
    """One run on one or several processes.

    Args:
        arguments: Those of the command.
        log: Where standard output and error of all processes go.
        num_processes: How many.
        uses_fsdp: Whether the processes share the weights.
        prepare: Is called in each process, before the command, with the process's index.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        num_processes: int = 1,
        uses_fsdp: bool = False,
        prepare: Callable[[int], None] | None = None,
    ) -> None:
        self._log = log
        environment = {}
        if num_processes > 1:
            environment = {
                "WORLD_SIZE": str(num_processes),
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(_free_port()),
                "OMP_NUM_THREADS": "1",
            }
        if uses_fsdp:
            environment |= {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            }
        self.processes = []
        for index in range(num_processes):
            ranks = {"RANK": str(index), "LOCAL_RANK": str(index)} if num_processes > 1 else {}
            process = _CONTEXT.Process(
                target=_enter, args=(list(arguments), str(log), environment | ranks, index, prepare)
            )
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = 90) -> list[int]:
        """The exit codes, once all processes have ended; none may run any longer than that."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [index for index, process in enumerate(self.processes) if process.is_alive()]
        for process in self.processes:
            process.kill()
        assert not hanging, f"processes {hanging} hang:\n{self.output()}"
        return [process.exitcode for process in self.processes]

    def kill_at_step(self, output: Path, step: int) -> None:
        """``kill -9`` to every process once so many steps are logged."""
        metrics = output / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
            assert all(process.is_alive() for process in self.processes), self.output()
            time.sleep(0.002)
        for process in self.processes:
            os.kill(process.pid, signal.SIGKILL)
        assert set(self.wait()) == {-signal.SIGKILL}

    def output(self) -> str:
        """What the processes have printed."""
        return self._log.read_text()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _enter(
    arguments: list[str],
    log: str,
    environment: Mapping[str, str],
    index: int,
    prepare: Callable[[int], None] | None,
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    # The server has left it to its children to end at Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from trainer.pretrain import main

    torch.set_num_threads(1)
    if prepare is not None:
        prepare(index)
    sys.exit(main(arguments))
