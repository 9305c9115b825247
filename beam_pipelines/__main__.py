"""Dispatches the commands; a class defined here could not be decoded on a worker."""

import atexit
import os
import sys

from beam_pipelines.commands import INTERRUPTED, run_command


def _leave_at_once() -> None:
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    status = 0
    # Registered first, it runs last: behind all other cleaning up, but before Python ends the threads. The one in which
    # an interrupted batch is still being computed would abort the process then, with another status.
    atexit.register(_leave_at_once)
    status = run_command(sys.argv[1:])
    sys.exit(status)
