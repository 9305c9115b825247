"""Stopping a run between two steps instead of in the middle of one.

SIGTERM (sent by schedulers before they take a machine away) and SIGINT (Ctrl-C) ask the run to stop: it finishes its
step, saves a checkpoint and exits with 128 plus the signal's number, as shells report a death by that signal.

A second signal ends the process at once, even when it is stuck in a library. But one request often comes as several
signals: a terminal or a scheduler sends it to launcher and workers alike, and the launcher passes its own on. So what
comes within `SECONDS_OF_ONE_REQUEST` of the first signal counts as the same request.

Python's own handlers run only between two bytecodes of the main thread, which may wait for another process for long.
A thread therefore listens to the file descriptor that the interpreter writes every signal to.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SECONDS_OF_ONE_REQUEST = 2.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which the two signals are noted instead of ending the process; for the main thread only."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._listening, self._written = socket.socketpair()
        self._written.setblocking(False)
        self._earlier_descriptor = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        self._earlier = {number: signal.signal(number, self._note) for number in _SIGNALS}
        self._listener = threading.Thread(target=self._end_at_second_request, name="stop-signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier_descriptor)
        # The listener ends with what it listens to.
        self._written.close()
        self._listener.join()
        self._listening.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # No lock and no buffered stream may be touched in a handler, hence no message here.
        self._received = self._received or number

    def _end_at_second_request(self) -> None:
        first_time: float | None = None
        while numbers := self._listening.recv(64):
            stopping = [number for number in numbers if number in _SIGNALS]
            if not stopping:
                continue
            if first_time is None:
                first_time = time.monotonic()
            elif time.monotonic() - first_time > SECONDS_OF_ONE_REQUEST:
                os._exit(128 + stopping[-1])

    @property
    def is_received(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal; that of SIGTERM when only another process received one."""
        return 128 + (self._received or signal.SIGTERM)
