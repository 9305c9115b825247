"""Trackers beside the run's own log: TensorBoard and Weights & Biases.

The log (``metrics_log``) is the record of a run; trackers are told of each of its records as it is written and show it
elsewhere. Whether a tracker can start is found out before any work. Once the run is under way a tracker that fails,
since the disk is full or the network gone, is named in a warning and left out from then on: it must not end days of
training.

A run that goes on from a checkpoint repeats the steps after it. TensorBoard is told to forget what it has of them; for
Weights & Biases the run keeps its id (in ``trackers.json``), and that service takes no step a second time.

Names: ``train/loss``, ``train/loss_by_component/raw``, ``validation/losses/all`` and so on, after the log's own keys.
Texts and lists are left to the log.

Cost: TensorBoard flushes at every record; Weights & Biases sends from a process of its own. Only the main process has
trackers.

Source: the trackers of Accelerate.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import fsspec
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from fsspec.implementations.local import LocalFileSystem

from contracts import storage
from trainer.config import TrackerName

_log = logging.getLogger(__name__)

TRACKERS_FILE = "trackers.json"
TENSORBOARD_FOLDER = "tensorboard"

# Shorter than the other processes wait for this one.
_MAX_FINISH_SECONDS = 60.0


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Refuses trackers that are not installed.

    Raises:
        ValueError: One of them is not; the message says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"logging.trackers names {name!r}, which is not installed: pip install "
                f"'instruction-pretraining[{name}]', or leave it out (metrics.jsonl is always written)."
            )


class Trackers:
    """The trackers of a run, a context manager; before `start`, and without names, it does nothing.

    Args:
        names: Which trackers.
        output: The run's folder.
        project: The project on Weights & Biases.
        description: What to show with the run: its config and what identifies it, as JSON values.
        last_step: The run goes on after this step; 0 when it begins.
    """

    def __init__(
        self,
        names: Sequence[TrackerName],
        *,
        output: str,
        project: str,
        description: Mapping[str, Any],
        last_step: int,
    ) -> None:
        self._names = names
        self._output = output
        self._project = project
        self._description = description
        self._last_step = last_step
        self._running: dict[str, GeneralTracker] = {}

    def start(self) -> None:
        """Starts the trackers, on the main process alone.

        Raises:
            ValueError: One of them cannot start.
        """
        for name in self._names:
            try:
                self._running[name] = self._start_tensorboard() if name == "tensorboard" else self._start_wandb()
            # What these libraries raise is not declared by them; here it all means that the tracker cannot be had.
            except Exception as error:
                hint = " Log in with `wandb login`, or set WANDB_MODE=offline." if name == "wandb" else ""
                raise ValueError(
                    f"The tracker {name!r} cannot start: {error}.{hint} Or leave it out of logging.trackers."
                ) from error

    def log(self, record: Mapping[str, Any], *, group: str) -> None:
        """Passes on the numbers of a record of the log, under names that begin with ``group``."""
        values = dict(_numbers(record, prefix=group))
        for name, tracker in list(self._running.items()):
            try:
                tracker.log(values, step=record["step"])
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the training
                del self._running[name]
                _log.warning("The tracker %r failed and is left out from now on: %s", name, error)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, tracker in self._running.items():
            try:
                tracker.finish()
            except Exception as failure:  # noqa: BLE001 - as in `log`
                _log.warning("The tracker %r did not finish: %s", name, failure)

    def _start_tensorboard(self) -> GeneralTracker:
        tracker = TensorBoardTracker(TENSORBOARD_FOLDER, self._output, purge_step=self._last_step + 1)
        tracker.start()
        if not self._last_step:
            text = json.dumps(self._description, ensure_ascii=False, indent=2)
            tracker.writer.add_text("run", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        return tracker

    def _start_wandb(self) -> GeneralTracker:
        import wandb

        is_local = isinstance(fsspec.core.url_to_fs(self._output)[0], LocalFileSystem)
        tracker = WandBTracker(
            self._project,
            id=self._run_id(),
            name=self._output.rstrip("/").rsplit("/", 1)[-1],
            resume="allow",
            # On other storage it keeps its files where WANDB_DIR says.
            dir=self._output if is_local else None,
            config=dict(self._description),
            # The progress bar is not to be copied line by line. What is not sent by the end can be sent later.
            settings=wandb.Settings(console="off", finish_timeout=_MAX_FINISH_SECONDS),
        )
        tracker.start()
        return tracker

    def _run_id(self) -> str:
        """The id of this folder's run: an address, drawn once, which no result depends on."""
        url = storage.join(self._output, TRACKERS_FILE)
        if not storage.exists(url):
            storage.write_json(url, {"wandb_run_id": uuid.uuid4().hex[:12]})
        run_id: str = storage.read_json(url)["wandb_run_id"]
        return run_id


def _numbers(values: Mapping[str, Any], *, prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, prefix=name)
        elif isinstance(value, (int, float)) and key != "step":
            yield name, value
