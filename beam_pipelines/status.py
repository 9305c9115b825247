"""``python -m beam_pipelines status OUT``: how far a run is, from its output folder alone.

While the run goes on, everything comes from its journal (`beam_pipelines.journal`), so this works from any machine that
reaches the folder, whatever the runner; of a completed synthesis it comes from the manifest. ``--json`` gives the same
for scripts. Pairs of a run that goes on are counted before gates, failures since its last start.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from beam_pipelines import journal
from beam_pipelines.progress import describe_seconds, follow
from contracts import storage
from contracts.artifact import COMPLETED_FILE, RUN_FILE
from contracts.manifest import (
    AugmentedCorpusManifest,
    read_augmented_corpus_manifest,
    read_instruction_corpus_manifest,
)

# Without a completion for so long, a run is said to stand still.
_IDLE_SECONDS = 300
_FAILURE_STAGE = "synthesize/"


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Settings of ``status``.

    Args:
        output: The output folder of a run.
        watch: Follow the run until it is completed.
        json: Print one line of JSON instead of a table; with ``watch``, one a look.
    """

    output: str
    watch: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """What is known of a run.

    Args:
        output: Its folder.
        command: The command that it is a run of.
        is_completed: Whether everything is written.
        progress: How far it is; ``rejected`` holds all rejects once the run is completed.
        idle_seconds: Since the last completion; None before the first one and once the run is completed.
    """

    output: str
    command: str
    is_completed: bool
    progress: journal.Progress
    idle_seconds: float | None

    @property
    def pairs_per_document(self) -> float | None:
        """Pairs a prompt that was completed; None before the first."""
        return self.progress.num_pairs / self.progress.num_done if self.progress.num_done else None

    @property
    def share_with_pairs(self) -> float | None:
        """The share of completed prompts that brought at least one pair; None before the first."""
        return self.progress.num_with_pairs / self.progress.num_done if self.progress.num_done else None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "output": self.output,
            "command": self.command,
            "is_completed": self.is_completed,
            **asdict(self.progress),
            "num_failed": self.progress.num_failed,
            "pairs_per_document": self.pairs_per_document,
            "share_with_pairs": self.share_with_pairs,
            "seconds_left": self.progress.seconds_left,
            "idle_seconds": self.idle_seconds,
        }


def read_status(output: str, *, progress: journal.Progress | None = None) -> RunStatus:
    """Looks at the run in an output folder.

    Args:
        output: The folder.
        progress: What its journal says, when that was read already.

    Raises:
        ValueError: No run is there.
    """
    text = storage.read_text(storage.join(output, RUN_FILE), missing=None)
    if text is None:
        raise ValueError(f"No run is in {output}; give the output folder of a synthesis.")
    command = str(json.loads(text)["command"])
    is_completed = storage.exists(storage.join(output, COMPLETED_FILE))
    progress = progress or journal.read_progress(output)
    if is_completed:
        progress = _completed_progress(output, command=command, progress=progress)
    idle_seconds = None
    if progress.last_second is not None and not is_completed:
        # The writers' clocks may be ahead of this one.
        idle_seconds = max(0.0, time.time() - progress.last_second)
    return RunStatus(
        output=output, command=command, is_completed=is_completed, progress=progress, idle_seconds=idle_seconds
    )


def _completed_progress(output: str, *, command: str, progress: journal.Progress) -> journal.Progress:
    if command == "synthesize":
        return _manifest_progress(read_augmented_corpus_manifest(output))
    progress = replace(progress, new_tokens_per_second=None, completions_per_second=None)
    if command == "self-instruct":
        # Its manifest counts instructions; what they took stands in the journal.
        return replace(progress, rejected=read_instruction_corpus_manifest(output).rejected_by_reason, failures={})
    return progress


def _manifest_progress(manifest: AugmentedCorpusManifest) -> journal.Progress:
    accounts = manifest.accounts
    failures = {
        reason.removeprefix(_FAILURE_STAGE): count
        for reason, count in accounts.rejected_by_reason.items()
        if reason.startswith(_FAILURE_STAGE)
    }
    others = {
        reason: count for reason, count in accounts.rejected_by_reason.items() if not reason.startswith(_FAILURE_STAGE)
    }
    num_done = accounts.num_augmented + accounts.num_kept_raw
    return journal.Progress(
        num_done=num_done,
        num_planned=num_done + sum(failures.values()),
        failures=failures,
        rejected={**others, **manifest.rejected_pairs_by_reason},
        num_with_pairs=accounts.num_augmented,
        num_pairs=manifest.num_pairs,
        num_prompt_tokens=manifest.num_prompt_tokens,
        num_new_tokens=manifest.num_new_tokens,
    )


def describe_status(status: RunStatus) -> Table:
    """A table for people."""
    progress = status.progress
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("run", f"{status.command} into {status.output}")
    table.add_row("state", _describe_state(status))
    planned = "?" if progress.num_planned is None else f"{progress.num_planned}"
    share = f" ({progress.num_done / progress.num_planned:.1%})" if progress.num_planned else ""
    failed = f", {progress.num_failed} failed" if progress.num_failed else ""
    table.add_row("prompts", f"{progress.num_done} of {planned} done{share}{failed}")
    table.add_row("tokens", f"{progress.num_prompt_tokens} in prompts, {progress.num_new_tokens} new")
    if progress.new_tokens_per_second is not None:
        table.add_row("speed", f"{progress.new_tokens_per_second:.1f} new tokens/s of late")
    if progress.seconds_left is not None and not _is_idle(status):
        table.add_row("left", f"about {describe_seconds(progress.seconds_left)}")
    if progress.num_pairs and status.pairs_per_document is not None and status.share_with_pairs is not None:
        table.add_row(
            "pairs",
            f"{progress.num_pairs}, {status.pairs_per_document:.2f} a document; "
            f"{status.share_with_pairs:.1%} of documents have any",
        )
    for name, counts in (("failed", progress.failures), ("rejected", progress.rejected)):
        if counts:
            table.add_row(name, ", ".join(f"{count} {reason}" for reason, count in counts.items()))
    return table


def _is_idle(status: RunStatus) -> bool:
    return status.idle_seconds is not None and status.idle_seconds >= _IDLE_SECONDS


def _describe_state(status: RunStatus) -> str:
    if status.is_completed:
        return "completed"
    if status.idle_seconds is None:
        return "started, no completion yet"
    since = f"last completion {describe_seconds(status.idle_seconds)} ago"
    if _is_idle(status):
        return f"not completed, nothing seems to run: {since}; the same command goes on"
    return f"not completed, {since}"


def main(config: StatusConfig) -> int:
    """Runs the command; returns its exit status."""
    console = Console()
    if not config.watch:
        status = read_status(config.output)
        if config.json:
            _print_json(status)
        else:
            console.print(describe_status(status))
        return 0
    if config.json:
        for status in _watch(config.output):
            _print_json(status)
        return 0
    # Where there is no terminal, only the last table is printed.
    with Live(console=console, auto_refresh=False) as live:
        for status in _watch(config.output):
            live.update(describe_status(status), refresh=True)
    return 0


def _watch(output: str) -> Iterator[RunStatus]:
    for progress in follow(output, stop=threading.Event()):
        status = read_status(output, progress=progress)
        yield status
        if status.is_completed:
            return


def _print_json(status: RunStatus) -> None:
    print(json.dumps(status.as_json(), ensure_ascii=False), flush=True)
