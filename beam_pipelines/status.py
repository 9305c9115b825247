"""``python -m beam_pipelines status OUT``: how far a synthesis is, from its output folder alone."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from beam_pipelines import journal
from beam_pipelines.progress import watch
from contracts import storage
from contracts.artifact import COMPLETED_FILE, RUN_FILE


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Settings of ``status``.

    Args:
        output: The output folder of a synthesis.
        watch: Follow the run until everything planned is done or the run is complete.
    """

    output: str
    watch: bool = False


def describe_status(output: str) -> str:
    """One line about the run in an output folder.

    Raises:
        ValueError: No run is there.
    """
    if not storage.exists(storage.join(output, RUN_FILE)):
        raise ValueError(f"No run is in {output}; give the output folder of a synthesis.")
    progress = journal.read_progress(output)
    planned = "?" if progress.num_planned is None else str(progress.num_planned)
    state = "completed" if storage.exists(storage.join(output, COMPLETED_FILE)) else "not completed"
    return f"{output}: {progress.num_done}/{planned} texts done, {progress.num_new_tokens} new tokens, {state}"


def main(config: StatusConfig) -> int:
    """Runs the command; returns its exit status."""
    print(describe_status(config.output))
    if config.watch:
        watch(config.output, console=Console())
        print(describe_status(config.output))
    return 0
