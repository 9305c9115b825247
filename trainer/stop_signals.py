"""Stopping a run between two steps instead of in the middle of one.

SIGTERM (sent by schedulers before they take a machine away) and SIGINT (Ctrl-C) ask the run to stop: it finishes its
step, saves a checkpoint and exits with 128 plus the signal's number, as shells report a death by that signal. A second
signal ends the process at once.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which the two signals are noted instead of ending the process."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._earlier = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for earlier in _SIGNALS:
            signal.signal(earlier, signal.SIG_DFL)
        # No lock and no buffered stream may be touched in a handler, hence no print here.

    @property
    def is_received(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal; that of SIGTERM when only another process received one."""
        return 128 + (self._received or signal.SIGTERM)
