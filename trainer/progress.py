"""Progress of a long loop: a bar on a terminal, plain lines in a log file.

The plain lines come at equal parts of the work, by default every 5 %, so that the log of a week's run stays readable.
The time to go is that of the work done since the start of this process, extrapolated.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

# One console for bars and messages, which keeps a message from being written into a bar.
CONSOLE = Console()


class Progress:
    """A context that shows how far a loop is.

    Args:
        description: What goes on.
        total: How many units it takes.
        completed: How many were done before this process.
        num_plain_lines: How many lines to print over the whole loop where there is no terminal.
        is_shown: False shows nothing: on all processes but the main one.
    """

    def __init__(
        self,
        *,
        description: str,
        total: int,
        completed: int = 0,
        num_plain_lines: int = 20,
        is_shown: bool = True,
    ) -> None:
        self._description = description
        self._total = total
        self._first = completed
        self._started = time.monotonic()
        self._num_plain_lines = num_plain_lines
        self._last_line = self._line_at(completed)
        self._is_shown = is_shown
        self._bar: Bar | None = None
        if is_shown and CONSOLE.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=CONSOLE,
            )
            self._task = self._bar.add_task(description, total=total, completed=completed, figures="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, completed: int, *, figures: str = "") -> None:
        """Shows that ``completed`` of the total are done, with figures such as ``"loss 2.31"``."""
        if not self._is_shown:
            return
        elapsed = time.monotonic() - self._started
        seconds_left = elapsed / max(completed - self._first, 1) * (self._total - completed)
        figures = f"{figures}  ETA {_duration(seconds_left)}".strip()
        if self._bar:
            self._bar.update(self._task, completed=completed, figures=figures)
            return
        line = self._line_at(completed)
        if line > self._last_line:
            self._last_line = line
            print(
                f"{self._description}: {completed}/{self._total} ({completed / self._total:.0%})  {figures}", flush=True
            )

    def _line_at(self, completed: int) -> int:
        return completed * self._num_plain_lines // max(self._total, 1)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
