"""How a run owns its output folder: claimed before any work, completed last, resumed or refused in between.

``run.json`` says which command with which resolved config on which inputs the folder belongs to; ``COMPLETED`` is
written after everything else and holds the fingerprint of the artifact. A folder is therefore in one of four states:
free, started by this very run (go on), completed by this very run (nothing to do), or somebody else's (refuse).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from contracts import storage

RUN_FILE = "run.json"
MANIFEST_FILE = "manifest.json"
COMPLETED_FILE = "COMPLETED"

OutputState = Literal["fresh", "resume", "completed"]


def describe_run(
    *, command: str, config: Mapping[str, Any], inputs: Mapping[str, str], location_keys: tuple[str, ...] = ("output",)
) -> dict[str, Any]:
    """The content of ``run.json``: what makes two runs the same run.

    Args:
        command: For example ``"synthesize"``.
        config: The resolved config as JSON.
        inputs: For each input its version: an upstream artifact's fingerprint, or size and time of a file.
        location_keys: Top-level config keys that do not change the result and may differ on a second start.
    """
    return {
        "command": command,
        "config": {key: value for key, value in config.items() if key not in location_keys},
        "inputs": dict(inputs),
    }


def claim_output(folder: str, *, run: Mapping[str, Any]) -> OutputState:
    """Takes an output folder for a run, before any work: as `inspect_output`, but a free folder is then the run's."""
    state = inspect_output(folder, run=run)
    if state == "fresh":
        storage.write_json(storage.join(folder, RUN_FILE), run)
    return state


def inspect_output(folder: str, *, run: Mapping[str, Any]) -> OutputState:
    """Whether an output folder can take a run; writes nothing.

    Returns:
        ``"fresh"`` when the folder is free, ``"resume"`` when the same run has started there, ``"completed"`` when the
        same run has finished there.

    Raises:
        ValueError: The folder holds another run, or files of no run; the message says what differs and what to do.
    """
    text = storage.read_text(storage.join(folder, RUN_FILE), missing=None)
    if text is None:
        # A kill in the middle of a write leaves its temporary file; it holds nothing that anybody wants.
        strangers = [url for url in storage.list_files(folder) if not storage.is_partial(url)]
        if strangers:
            raise ValueError(
                f"The output folder {folder} already holds files that belong to no run of this tool "
                f"(such as {strangers[0]}). Choose another folder or empty this one."
            )
        return "fresh"
    try:
        earlier = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{storage.join(folder, RUN_FILE)} is damaged ({error}). Remove the folder or choose another one."
        ) from error
    # Through JSON once, so that tuples and lists compare equal.
    differences = _differences(earlier, json.loads(json.dumps(run)))
    if differences:
        raise ValueError(
            f"The output folder {folder} already holds another run. It differs in: {'; '.join(differences[:6])}. "
            "Choose another output folder, or remove this one to start over."
        )
    return "completed" if storage.exists(storage.join(folder, COMPLETED_FILE)) else "resume"


def _differences(earlier: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted({*earlier, *now})
            for difference in _differences(
                earlier.get(key, "(absent)"), now.get(key, "(absent)"), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if earlier == now else [f"{path} (there {earlier!r}, here {now!r})"]


def mark_completed(folder: str, *, fingerprint: str) -> None:
    """Writes ``COMPLETED``; call it after every other file of the artifact is in place."""
    storage.write_bytes_atomically(storage.join(folder, COMPLETED_FILE), f"{fingerprint}\n".encode())


def completed_fingerprint(folder: str) -> str:
    """The fingerprint of a completed artifact.

    Raises:
        ValueError: There is no such folder, or the run in it has not completed.
    """
    text = storage.read_text(storage.join(folder, COMPLETED_FILE), missing=None)
    if text is None:
        state = "its run has not completed" if storage.exists(storage.join(folder, RUN_FILE)) else "no run is there"
        raise ValueError(f"{folder} is not a completed artifact: {state}. Run the command that makes it (again) first.")
    return text.strip()
