"""What the commands of this package share: quiet libraries, readable messages, exit codes.

A ``ValueError`` raised by the project's own code is written for the user and shown without a traceback. One that comes
from a library below was not foreseen and keeps its traceback. Of many processes the one that failed says why.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from trainer.progress import CONSOLE

EXIT_CODE_ERROR = 2
EXIT_CODE_INTERRUPTED = 130

_PROJECT_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROJECT_PACKAGES = tuple(os.path.join(_PROJECT_FOLDER, name) + os.sep for name in ("contracts", "trainer"))


class FailedElsewhereError(Exception):
    """Another process of the run has failed, and says why."""


class _TerminatedError(BaseException):
    """SIGTERM where nothing listens to it."""


def run_command(work: Callable[[], int]) -> int:
    """Runs a command's work and returns the exit code, turning errors that are meant for the user into one line."""
    _prepare_output()
    earlier = signal.signal(signal.SIGTERM, _terminate)
    try:
        return work()
    except ValueError as error:
        if not _is_raised_by_project(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE_ERROR
    except FailedElsewhereError:
        return EXIT_CODE_ERROR
    except (KeyboardInterrupt, _TerminatedError) as error:
        print("Interrupted. Run the same command again to go on from what has been saved.", file=sys.stderr)
        return EXIT_CODE_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _TerminatedError


def _prepare_output() -> None:
    """Messages of the project to standard output; bars and advice of the libraries off.

    The environment is read when the libraries are imported, so this runs before.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(format="%(message)s", handlers=[_ConsoleHandler()], level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        CONSOLE.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def _is_raised_by_project(error: ValueError) -> bool:
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(_PROJECT_PACKAGES)
