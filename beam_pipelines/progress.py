"""Shows how far a run is while its pipeline runs, from its journal, whatever the runner.

A thread looks at the journal and draws a bar with rate and time left; where there is no terminal it prints a line at
every tenth of the work. Listing a journal of many files takes a while, and costs money on an object store: it is done
once a second at most, and for no more than a tenth of the time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from beam_pipelines import journal

_MIN_SECONDS_BETWEEN_LOOKS = 1.0
_SHARE_OF_TIME = 0.1


def follow(output: str, *, stop: threading.Event) -> Iterator[journal.Progress]:
    """The progress of the run in ``output``, again and again; once more after ``stop`` is set, then the end."""
    is_last = False
    while True:
        started = time.monotonic()
        progress = journal.read_progress(output)
        seconds = time.monotonic() - started
        yield progress
        if is_last:
            return
        is_last = stop.wait(max(_MIN_SECONDS_BETWEEN_LOOKS, seconds / _SHARE_OF_TIME))


@contextmanager
def show_progress(output: str, *, console: Console, label: str = "synthesizing") -> Iterator[None]:
    """Shows the progress of the run in ``output`` until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(output, console, label, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(output: str, console: Console, label: str, stop: threading.Event) -> None:
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=False,
    ) as bar:
        task = bar.add_task(label, total=None, speed="")
        last_tenth = -1
        for progress in follow(output, stop=stop):
            num_over = progress.num_done + progress.num_failed
            bar.update(task, completed=num_over, total=progress.num_planned, speed=_speed(progress))
            if progress.num_planned and not console.is_terminal:
                tenth = 10 * num_over // progress.num_planned
                if tenth > last_tenth:
                    speed = f", {_speed(progress)}" if _speed(progress) else ""
                    console.print(f"{label}: {num_over}/{progress.num_planned} prompts{speed}")
                    last_tenth = tenth


def _speed(progress: journal.Progress) -> str:
    if progress.new_tokens_per_second is None:
        return ""
    rate = f"{progress.new_tokens_per_second:.0f} tokens/s"
    return rate if progress.seconds_left is None else f"{rate}, about {describe_seconds(progress.seconds_left)} left"


def describe_seconds(seconds: float) -> str:
    """A time span for people: its two largest units."""
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"
