"""Progress of a long loop: a bar on a terminal, plain lines in a log file.

The plain lines come at equal parts of the work, by default every 5 %, so that the log of a week's run stays readable.
The time to go is that of the work done since the start of this process, extrapolated; a training run, which stops at
times to validate and to save, keeps its `Pace` for that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

    def show(self, completed: int, *, figures: str = "", seconds_left: float | None = None) -> None:
        """Shows that ``completed`` of the total are done, with figures such as ``"loss 2.31"``.

        The time to go is extrapolated unless it is given, in seconds.
        """
        if not self._is_shown:
            return
        if seconds_left is None:
            elapsed = time.monotonic() - self._started
            seconds_left = elapsed / max(completed - self._first, 1) * (self._total - completed)
        figures = f"{figures}  ETA {describe_duration(seconds_left)}".strip()
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


class Pace:
    """How long the steps of a run take, and what stands between them; with that, how long the rest will take.

    A step counts as the mean of the last hundred, which forgets a slow first one. Each kind of pause counts as the
    mean of those that there have been in this process, and as nothing before the first.

    Args:
        num_steps: Steps of the whole run.
        every_steps: The kinds of pauses, each with the number of steps after which it comes again, or None.
    """

    def __init__(self, *, num_steps: int, every_steps: Mapping[str, int | None]) -> None:
        self._num_steps = num_steps
        self._every_steps = every_steps
        self._steps: deque[float] = deque(maxlen=100)
        self._pauses: dict[str, list[float]] = {kind: [] for kind in every_steps}

    @contextmanager
    def measure_step(self) -> Iterator[None]:
        """Takes the time of a step."""
        started = time.monotonic()
        yield
        self._steps.append(time.monotonic() - started)

    @contextmanager
    def measure_pause(self, kind: str) -> Iterator[None]:
        """Takes the time of a pause of one kind."""
        started = time.monotonic()
        yield
        self._pauses[kind].append(time.monotonic() - started)

    def seconds_left(self, step: int) -> float | None:
        """Seconds from the end of a step to the end of the last one, with the pauses that are due before that."""
        if not self._steps:
            return None
        seconds = (self._num_steps - step) * sum(self._steps) / len(self._steps)
        for kind, pauses in self._pauses.items():
            every = self._every_steps[kind]
            if every and pauses:
                num_due = (self._num_steps - 1) // every - (step - 1) // every
                seconds += max(num_due, 0) * sum(pauses) / len(pauses)
        return seconds


def step_figures(
    *,
    loss: float,
    grad_norm: float,
    learning_rate: float,
    tokens_per_second: float,
    mfu: float | None = None,
    num_skipped: int = 0,
) -> str:
    """The figures of a step as the progress shows them; MFU where it is known, skipped steps where there are any."""
    figures = f"loss {loss:.3f}  grad {grad_norm:.2f}  lr {learning_rate:.2e}  {tokens_per_second:,.0f} tok/s"
    if mfu is not None:
        figures += f"  MFU {mfu:.1%}"
    return figures + (f"  {num_skipped} skipped" if num_skipped else "")


def describe_duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
