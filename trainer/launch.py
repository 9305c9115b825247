"""``python -m trainer launch [OPTIONS] -m trainer.pretrain --config FILE``: many processes, one exit code.

Takes what ``accelerate launch`` takes and starts what it starts, with two differences that a scheduler needs:

- the exit code is that of the run (0, 2, 143, 130), where ``accelerate launch`` exits with 1 whatever happened;
- SIGTERM and SIGINT reach every process, also when there is only one, and a run has `SHUTDOWN_SECONDS` to save its
  checkpoint (``TORCH_ELASTIC_SHUTDOWN_TIMEOUT`` sets another time), where it would be killed after 30.

Of processes that fail, the one with a message for the user (2) counts, else the first to fail.

Does not restart a run that failed: ``checkpoint.resume: auto`` goes on where it stopped, so a scheduler may.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from trainer.command_line import EXIT_CODE_ERROR

SHUTDOWN_SECONDS = 600

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str]) -> int:
    """Starts the processes and waits for them; returns the exit code of the run."""
    # Seconds of imports that the other commands need not wait for.
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = launch_command_parser().parse_args(list(arguments))
    # Quiet would hide the exit code.
    options.quiet = False
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    try:
        with _signals_passed_on():
            launch_command(options)
    except subprocess.CalledProcessError as error:
        return _shell_code(error.returncode)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return EXIT_CODE_ERROR if EXIT_CODE_ERROR in codes else _shell_code(error.get_first_failure()[1].exitcode)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Passes signals on to a single process; to several, PyTorch's launcher does, with handlers of its own."""
    import psutil
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def pass_on(number: int, frame: FrameType | None) -> None:
        children = psutil.Process().children()
        for child in children:
            child.send_signal(number)
        if not children:
            # Nothing is started yet, and nothing is to be: schedulers ask only once.
            raise SignalException("Stopped before the start", sigval=signal.Signals(number))

    earlier = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _shell_code(exit_code: int) -> int:
    """The code that a shell reports: 128 plus the signal for a process that died by one."""
    return exit_code if exit_code >= 0 else 128 - exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
