"""The journal: completions on storage as soon as they are made, so that a killed run has lost nothing it paid for.

Each batch of completions becomes one small file under ``OUT/journal/``, written whole or not at all, whose name tells
how many completions and tokens it holds. Progress is therefore known from a listing alone, and nothing is ever
appended to, which object stores cannot do. Completions are keyed by a hash of model, sampling and prompt: a changed
model, prompt or sampling misses by construction.

``journal/plan.json`` holds how many prompts the run will take.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from contracts import storage
from synth_model.generation import Completion

FOLDER = "journal"
_PLAN_FILE = "plan.json"
_SEGMENT = re.compile(r"completions-n(\d+)-t(\d+)-[0-9a-f]{32}\.jsonl$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a synthesis is. ``num_planned`` is None until the documents are counted."""

    num_done: int
    num_planned: int | None
    num_new_tokens: int


def write_segment(output: str, completions: Iterable[tuple[str, Completion]]) -> None:
    """Writes keyed completions durably; no file for none."""
    entries = list(completions)
    if not entries:
        return
    num_new_tokens = sum(completion.num_new_tokens for _, completion in entries)
    name = f"completions-n{len(entries)}-t{num_new_tokens}-{uuid.uuid4().hex}.jsonl"
    lines = [json.dumps({"key": key, **asdict(completion)}, ensure_ascii=False) for key, completion in entries]
    data = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
    storage.write_bytes_atomically(storage.join(output, FOLDER, name), data)


def list_segments(output: str) -> list[str]:
    """The journal's files, sorted."""
    return [url for url in storage.list_files(storage.join(output, FOLDER)) if _SEGMENT.search(url)]


def read_segment(url: str) -> Iterator[tuple[str, Completion]]:
    """The keyed completions of one file."""
    # Split as bytes: a completion may hold characters, such as U+2028, at which a str would be split too.
    for line in storage.read_bytes(url).splitlines():
        values = json.loads(line)
        yield values.pop("key"), Completion(**values)


def write_plan(output: str, *, num_prompts: int) -> None:
    """Notes how many prompts the run will take."""
    storage.write_json(storage.join(output, FOLDER, _PLAN_FILE), {"num_prompts": num_prompts})


def read_progress(output: str) -> Progress:
    """How far the run in an output folder is, from a listing of its journal."""
    return _progress(storage.list_files(storage.join(output, FOLDER)), _num_planned(output))


def _num_planned(output: str) -> int | None:
    text = storage.read_text(storage.join(output, FOLDER, _PLAN_FILE), missing=None)
    return None if text is None else int(json.loads(text)["num_prompts"])


def _progress(urls: Sequence[str], num_planned: int | None) -> Progress:
    matches = [match for url in urls if (match := _SEGMENT.search(url))]
    return Progress(
        num_done=sum(int(match[1]) for match in matches),
        num_planned=num_planned,
        num_new_tokens=sum(int(match[2]) for match in matches),
    )
