"""Waits for a call, but not for ever.

What hangs in a driver or a library cannot be stopped from within its process; it can only be left behind. The call
runs in a thread of its own that does not keep the process alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

_Result = TypeVar("_Result")


def call_within(seconds: float, call: Callable[[], _Result], *, message: str) -> _Result:
    """What a call returns, or raises.

    Args:
        seconds: Longest wait; 0 waits for ever, in the caller's own thread.
        call: What to do.
        message: Of the error.

    Raises:
        TimeoutError: The call is not done; it goes on in its thread, and whatever it gives is dropped.
    """
    if not seconds:
        return call()
    answers: SimpleQueue[tuple[_Result | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            answers.put((None, error))

    threading.Thread(target=work, name="time-limited", daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(message) from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
