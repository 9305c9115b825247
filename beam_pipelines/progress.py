"""Shows how far a synthesis is while it runs, from its journal, whatever the runner.

A thread lists the journal twice a second at most and draws a bar with rate and time left; where there is no terminal
it prints a line at every tenth of the work. `watch` does the same for a run that some other process is doing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from beam_pipelines import journal
from contracts import storage
from contracts.artifact import COMPLETED_FILE

_SECONDS_BETWEEN_LISTINGS = 1.0


@contextmanager
def show_progress(output: str, *, console: Console, label: str = "synthesizing") -> Iterator[None]:
    """Shows the progress of the run in ``output`` until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(output, console, label, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def watch(output: str, *, console: Console) -> None:
    """Follows the run in ``output`` until everything planned is done or the run is complete."""
    _follow(output, console, "synthesizing", threading.Event())


def _follow(output: str, console: Console, label: str, stop: threading.Event) -> None:
    start = journal.read_progress(output)
    started = time.monotonic()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=False,
    ) as bar:
        task = bar.add_task(label, total=None, rate="")
        last_tenth = -1
        while True:
            is_last = stop.wait(_SECONDS_BETWEEN_LISTINGS)
            now = journal.read_progress(output)
            seconds = time.monotonic() - started
            rate = f"{(now.num_new_tokens - start.num_new_tokens) / seconds:.0f} tokens/s"
            bar.update(task, completed=now.num_done, total=now.num_planned, rate=rate)
            if now.num_planned and not console.is_terminal:
                tenth = 10 * now.num_done // now.num_planned
                if tenth > last_tenth:
                    done = now.num_done - start.num_done
                    left = (now.num_planned - now.num_done) * seconds / done if done else 0
                    eta = f", about {left:.0f} s left" if left > 0 else ""
                    console.print(f"{label}: {now.num_done}/{now.num_planned} texts, {rate}{eta}")
                    last_tenth = tenth
            # Prompts that failed are planned but never done; what ends such a run is its completion.
            is_done = now.num_planned is not None and now.num_done >= now.num_planned
            if is_last or is_done or storage.exists(storage.join(output, COMPLETED_FILE)):
                return
