"""The journal: what a model was paid for, on storage as soon as it is made, so that a killed run has lost nothing.

Each batch becomes one small file, a segment, under ``OUT/journal/completions/``, written whole or not at all; nothing
is ever appended to, which object stores cannot do. Entries are keyed by a hash of model, sampling and prompt: a changed
model, prompt or sampling misses by construction. A segment is JSON Lines under zstd, so ``zstdcat`` shows it.

A segment's name tells which batches of which writer it holds, what they count up to, and when they were written.
Progress is therefore known from a listing alone, from any machine, on any runner.

Files are kept few: a writer that has 64 segments of one size merges them into one, twice over, so that two hundred
million completions in batches of 32 are some 1,500 files. What a killed writer left unmerged, the next start merges
(`roll_up`). Merging is concatenating, since zstd frames may follow each other. The merged segment is whole before the
first that it replaces is removed; a kill in between leaves both, and because the name of the merged one covers the
batches of the others, nothing is counted or read twice.

Two starts of one run at the same time would pay for the same prompts. The last one wins: it leaves its id in
``start.json``, and a writer of an earlier start that finds another id there finishes its batch and stops.

``plan.json`` holds how many prompts the run will take and what was rejected before; ``failures/`` holds a small file a
writer with the failures that it met, which are no entries: the next start tries those prompts again.

Cost: one write and one small read a batch, each byte copied twice by merging, and 64 batches of one writer to read and
to remove at each merge. A listing, and so a look at the progress, is proportional to the number of files.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa

from contracts import storage
from synth_model.generation import Completion, Failure

FOLDER = "journal"
COMPLETIONS = "completions"
_FAILURES = "failures"
_PLAN_FILE, _START_FILE = "plan.json", "start.json"
# Segments that are merged into one, and how often what was merged is merged again.
_FAN_IN = 64
_NUM_LEVELS = 2
_WINDOW_SECONDS = 600
_NAME = re.compile(
    r"(?P<writer_id>[0-9a-f]{32})-b(?P<first_batch>\d+)-(?P<last_batch>\d+)-n(?P<num_entries>\d+)"
    r"-d(?P<num_with_pairs>\d+)-p(?P<num_pairs>\d+)-i(?P<num_prompt_tokens>\d+)-o(?P<num_new_tokens>\d+)"
    r"-s(?P<first_second>\d+)-(?P<last_second>\d+)\.jsonl\.zst"
)
_COUNTS = tuple(_NAME.groupindex)[1:]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A file of the journal, as its name describes it.

    Args:
        folder: Where it lies.
        writer_id: Who wrote it: 32 hexadecimal characters.
        first_batch: The number of its first batch among all batches of the writer.
        last_batch: The number of its last batch.
        num_entries: Entries in it.
        num_with_pairs: Completions with at least one pair, before gates.
        num_pairs: Pairs in all of them.
        num_prompt_tokens: Tokens of their prompts.
        num_new_tokens: Tokens of the completions.
        first_second: When its first batch was written, in seconds since 1970 by the writer's clock.
        last_second: When its last batch was written.
    """

    folder: str
    writer_id: str
    first_batch: int
    last_batch: int
    num_entries: int
    num_with_pairs: int
    num_pairs: int
    num_prompt_tokens: int
    num_new_tokens: int
    first_second: int
    last_second: int

    @property
    def url(self) -> str:
        """The file."""
        return storage.join(
            self.folder,
            f"{self.writer_id}-b{self.first_batch}-{self.last_batch}-n{self.num_entries}-d{self.num_with_pairs}"
            f"-p{self.num_pairs}-i{self.num_prompt_tokens}-o{self.num_new_tokens}"
            f"-s{self.first_second}-{self.last_second}.jsonl.zst",
        )

    @property
    def num_batches(self) -> int:
        """Batches that it holds."""
        return self.last_batch - self.first_batch + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    start_id: str
    started_second: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is, by its journal.

    Args:
        num_done: Prompts with a completion.
        num_planned: Prompts that the run will take; None until the documents are counted.
        failures: Prompts that failed since the last start, by reason.
        rejected: Documents rejected before any prompt, by ``stage/reason``.
        num_with_pairs: Completions with at least one pair, before gates.
        num_pairs: Pairs in all of them.
        num_prompt_tokens: Tokens of the prompts of what is done.
        num_new_tokens: Tokens of the completions.
        new_tokens_per_second: Over the ten minutes before the last batch, or since the last start when that is less;
            None when no batch was written since.
        completions_per_second: Likewise.
        last_second: When the last batch was written, in seconds since 1970; None before the first.
    """

    num_done: int
    num_planned: int | None
    failures: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    num_with_pairs: int = 0
    num_pairs: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    new_tokens_per_second: float | None = None
    completions_per_second: float | None = None
    last_second: int | None = None

    @property
    def num_failed(self) -> int:
        """Prompts that failed since the last start."""
        return sum(self.failures.values())

    @property
    def num_left(self) -> int | None:
        """Prompts that are neither done nor failed; None until the documents are counted."""
        return None if self.num_planned is None else max(0, self.num_planned - self.num_done - self.num_failed)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the recent rate; None when that is not known."""
        if self.num_left is None or not self.completions_per_second:
            return None
        return self.num_left / self.completions_per_second


def begin(output: str) -> str:
    """Takes a run's journal for the start that is being made, and from earlier starts; returns the start's id."""
    start = _Start(start_id=uuid.uuid4().hex, started_second=int(time.time()))
    storage.write_json(storage.join(output, FOLDER, _START_FILE), asdict(start))
    return start.start_id


def check_start(output: str, *, start_id: str) -> None:
    """Refuses to go on where another start of the same run has begun since.

    Raises:
        ValueError: It has, or the folder was removed.
    """
    start = _last_start(output)
    if start is None or start.start_id != start_id:
        raise ValueError(
            f"Another start of this run has taken over {output}, or the folder was removed, so this one stops. "
            "What it finished is in the journal, and the other one goes on from there."
        )


def _last_start(output: str) -> _Start | None:
    text = storage.read_text(storage.join(output, FOLDER, _START_FILE), missing=None)
    return None if text is None else _Start(**json.loads(text))


class JournalWriter:
    """Writes the batches of one worker thread; a copy made by pickling before the first batch is a writer of its own.

    Args:
        output: The run's folder.
        start_id: The start that this writer belongs to.
        kind: What the entries are: the folder of their segments.
        count_pairs: How many pairs an entry holds; without it they count as none.
    """

    def __init__(
        self,
        output: str,
        *,
        start_id: str,
        kind: str = COMPLETIONS,
        count_pairs: Callable[[Any], int] | None = None,
    ) -> None:
        self._output = output
        self._kind = kind
        self._start_id = start_id
        self._count_pairs = count_pairs
        self._writer_id = ""
        self._num_batches = 0
        # Segments not merged yet, by how often what they hold was merged already.
        self._levels: list[list[Segment]] = [[] for _ in range(_NUM_LEVELS)]
        self._failures: dict[str, dict[str, int | str]] = {}

    def write(self, entries: Sequence[tuple[str, Any]], *, failures: Sequence[Failure] = ()) -> None:
        """Makes a batch durable: completions (or other dataclasses) by key, and the failures beside them.

        Raises:
            ValueError: Another start of this run has begun; what was given is written all the same.
        """
        self._writer_id = self._writer_id or uuid.uuid4().hex
        if entries:
            segment = self._write_segment(entries)
        if failures:
            self._write_failures(failures)
        # After writing, so that nothing is lost; before merging, which is the last start's business.
        check_start(self._output, start_id=self._start_id)
        if entries:
            self._merge_behind(segment)

    def _write_segment(self, entries: Sequence[tuple[str, Any]]) -> Segment:
        now = int(time.time())
        num_pairs = [self._count_pairs(record) if self._count_pairs else 0 for _, record in entries]
        segment = Segment(
            folder=storage.join(self._output, FOLDER, self._kind),
            writer_id=self._writer_id,
            first_batch=self._num_batches,
            last_batch=self._num_batches,
            num_entries=len(entries),
            num_with_pairs=sum(num > 0 for num in num_pairs),
            num_pairs=sum(num_pairs),
            num_prompt_tokens=sum(getattr(record, "num_prompt_tokens", 0) for _, record in entries),
            num_new_tokens=sum(getattr(record, "num_new_tokens", 0) for _, record in entries),
            first_second=now,
            last_second=now,
        )
        # Counted first: a write that failed may have left a file, whose number must not be used again.
        self._num_batches += 1
        lines = [json.dumps({"key": key, **asdict(record)}, ensure_ascii=False) for key, record in entries]
        # A lone surrogate becomes the escape that JSON has for it.
        data = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
        storage.write_bytes_atomically(segment.url, pa.Codec("zstd").compress(data, asbytes=True))
        return segment

    def _write_failures(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            entry = self._failures.setdefault(failure.reason, {"num_failures": 0, "example": failure.detail[:500]})
            entry["num_failures"] = int(entry["num_failures"]) + 1
        url = storage.join(self._output, FOLDER, _FAILURES, self._start_id, self._kind, f"{self._writer_id}.json")
        storage.write_json(url, self._failures)

    def _merge_behind(self, segment: Segment) -> None:
        for level in self._levels:
            level.append(segment)
            if len(level) < _FAN_IN:
                return
            segment = merge(level)
            level.clear()


def merge(segments: Sequence[Segment]) -> Segment:
    """One segment instead of several of the same writer; doing it again after it was cut short ends it."""
    first, last = segments[0], segments[-1]
    assert all(before.last_batch < after.first_batch for before, after in pairwise(segments))
    assert len({segment.writer_id for segment in segments}) == 1, segments
    merged = replace(
        first,
        last_batch=last.last_batch,
        num_entries=sum(segment.num_entries for segment in segments),
        num_with_pairs=sum(segment.num_with_pairs for segment in segments),
        num_pairs=sum(segment.num_pairs for segment in segments),
        num_prompt_tokens=sum(segment.num_prompt_tokens for segment in segments),
        num_new_tokens=sum(segment.num_new_tokens for segment in segments),
        last_second=last.last_second,
    )
    if not storage.exists(merged.url):
        with storage.open_atomic_output(merged.url) as file:
            for segment in segments:
                file.write(storage.read_bytes(segment.url))
    for segment in segments:
        storage.remove_file(segment.url)
    return merged


def roll_up(segments: Sequence[Segment]) -> list[Segment]:
    """Brings the segments of one writer that writes no more to few; returns what is left, each batch once."""
    kept = without_covered(segments)
    for segment in set(segments).difference(kept):
        storage.remove_file(segment.url)
    small = [segment for segment in kept if segment.num_batches < _FAN_IN**_NUM_LEVELS]
    large = [segment for segment in kept if segment not in small]
    return [*large, merge(small) if len(small) > 1 else small[0]] if small else large


def without_covered(segments: Iterable[Segment]) -> list[Segment]:
    """Those whose batches no merged segment of the same writer holds as well, by writer and batch."""
    kept: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: (segment.writer_id, segment.first_batch, -segment.last_batch)):
        if kept and kept[-1].writer_id == segment.writer_id and segment.last_batch <= kept[-1].last_batch:
            continue
        kept.append(segment)
    return kept


def list_segments(output: str, *, kind: str = COMPLETIONS) -> list[Segment]:
    """The segments of a run's journal, without those whose batches a merged one holds as well."""
    return without_covered(list_files(output, kind=kind))


def list_files(output: str, *, kind: str = COMPLETIONS) -> list[Segment]:
    """All files of segments, in no order that means anything."""
    folder = storage.join(output, FOLDER, kind)
    segments = []
    for url in storage.list_files(folder):
        if match := _NAME.fullmatch(url.rsplit("/", 1)[-1]):
            writer_id, *numbers = match.groups()
            counts = {name: int(number) for name, number in zip(_COUNTS, numbers, strict=True)}
            segments.append(Segment(folder=folder, writer_id=writer_id, **counts))
    return segments


def read_segment(segment: Segment, *, record: Callable[..., Any] = Completion) -> Iterator[tuple[str, Any]]:
    """The entries of one segment by key, each made anew as a ``record``; memory of one line."""
    with storage.open_input(segment.url) as file:
        for line in file:
            values = json.loads(line)
            yield values.pop("key"), record(**values)


def write_plan(output: str, *, num_prompts: int, rejected: Mapping[str, int] | None = None) -> None:
    """Notes how many prompts the run will take, and what was rejected before, by ``stage/reason``."""
    values = {"num_prompts": num_prompts, "rejected": dict(sorted((rejected or {}).items()))}
    storage.write_json(storage.join(output, FOLDER, _PLAN_FILE), values)


def read_progress(output: str) -> Progress:
    """How far the run in an output folder is: one listing, and one small file a writer that met failures."""
    segments = list_segments(output)
    start = _last_start(output)
    plan = json.loads(storage.read_text(storage.join(output, FOLDER, _PLAN_FILE), missing="{}"))
    return Progress(
        num_done=sum(segment.num_entries for segment in segments),
        num_planned=plan.get("num_prompts"),
        failures={} if start is None else _read_failures(output, start_id=start.start_id),
        rejected=plan.get("rejected", {}),
        num_with_pairs=sum(segment.num_with_pairs for segment in segments),
        num_pairs=sum(segment.num_pairs for segment in segments),
        num_prompt_tokens=sum(segment.num_prompt_tokens for segment in segments),
        num_new_tokens=sum(segment.num_new_tokens for segment in segments),
        new_tokens_per_second=_recent_rate(segments, "num_new_tokens", start=start),
        completions_per_second=_recent_rate(segments, "num_entries", start=start),
        last_second=max((segment.last_second for segment in segments), default=None),
    )


def _read_failures(output: str, *, start_id: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    folder = storage.join(output, FOLDER, _FAILURES, start_id, COMPLETIONS)
    for url in storage.list_files(folder, suffixes=(".json",)):
        counts.update({reason: entry["num_failures"] for reason, entry in storage.read_json(url).items()})
    return dict(sorted(counts.items()))


def _recent_rate(segments: Sequence[Segment], count: str, *, start: _Start | None) -> float | None:
    """What a second brought in the window before the last batch; a merged segment counts as spread over its time."""
    end = max((segment.last_second for segment in segments), default=0)
    begin = end - _WINDOW_SECONDS if start is None else max(end - _WINDOW_SECONDS, start.started_second)
    if not segments or end <= begin:
        return None
    total = 0.0
    for segment in segments:
        seconds = segment.last_second - segment.first_second
        inside = segment.last_second - max(begin, segment.first_second)
        share = max(0, inside) / seconds if seconds else float(segment.last_second > begin)
        total += share * getattr(segment, count)
    return total / (end - begin)
