"""``python -m beam_pipelines verify FOLDER``: holds the files of an artifact against its manifest.

Shards, augmented corpora and instruction corpora can be verified. Of each file the manifest lists, size, checksum,
schema, number of rows and what the manifest counts in it are checked; of shards also that every row is whole: ids in
the vocabulary, segments within the row, a text id for each, loss spans within the segments. All findings are collected,
none ends the search, so that one run names every file to be made again or copied again.

Cost: every byte is read once; memory: one file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contracts import storage
from contracts.artifact import MANIFEST_FILE
from contracts.manifest import (
    AugmentedCorpusManifest,
    FileEntry,
    InstructionCorpusManifest,
    ShardEntry,
    ShardManifest,
    read_augmented_corpus_manifest,
    read_instruction_corpus_manifest,
    read_shard_manifest,
)
from contracts.schemas import CHAIN_SCHEMA, INSTRUCTION_SCHEMA, REJECT_SCHEMA, packed_row_schema

Manifest = ShardManifest | AugmentedCorpusManifest | InstructionCorpusManifest
Problem = Literal["manifest", "missing", "truncated", "corrupted", "foreign", "miscounted"]

# By the entry that only a manifest of this kind has.
_READERS: Mapping[str, Callable[[str], Manifest]] = {
    "sequence_length": read_shard_manifest,
    "accounts": read_augmented_corpus_manifest,
    "num_draws": read_instruction_corpus_manifest,
}
_DATA_FOLDERS = ("", "rejects")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Settings of ``verify``.

    Args:
        folder: A folder of shards, an augmented corpus or an instruction corpus.
    """

    folder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something in an artifact that is not as its manifest says.

    Args:
        path: The file, relative to the artifact's folder.
        problem: ``manifest`` (not completed, damaged or changed), ``missing``, ``truncated`` (shorter than it was),
            ``corrupted`` (as long, with another content), ``foreign`` (a whole file that belongs to something else) or
            ``miscounted`` (the very file, which does not hold what the manifest counts).
        detail: What was found and what was expected.
    """

    path: str
    problem: Problem
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was looked at, and what is wrong with it."""

    num_files: int
    num_rows: int
    findings: tuple[Finding, ...]


def verify_artifact(folder: str) -> Verification:
    """Looks at every file of an artifact.

    Raises:
        ValueError: There is no such folder.
    """
    if not storage.is_folder(folder):
        raise ValueError(f"There is no folder {folder}; give a folder of shards or of a corpus.")
    try:
        manifest = _read_manifest(folder)
        manifest.check()
    except ValueError as error:
        # Without a manifest to be trusted there is nothing to hold the files against.
        finding = Finding(path=MANIFEST_FILE, problem="manifest", detail=str(error))
        return Verification(num_files=0, num_rows=0, findings=(finding,))
    entries = _entries(manifest)
    findings = [finding for entry in entries for finding in _verify_file(folder, entry, manifest)]
    return Verification(
        num_files=len(entries),
        num_rows=sum(entry.num_rows for entry in entries),
        findings=(*findings, *_unlisted_files(folder, entries)),
    )


def _read_manifest(folder: str) -> Manifest:
    raw = storage.read_json(url) if storage.exists(url := storage.join(folder, MANIFEST_FILE)) else {}
    raw = raw if isinstance(raw, dict) else {}
    read = next((read for entry, read in _READERS.items() if entry in raw), read_shard_manifest)
    return read(folder)


def _entries(manifest: Manifest) -> list[FileEntry | ShardEntry]:
    return [*(manifest.shards if isinstance(manifest, ShardManifest) else manifest.parts), *manifest.rejects]


def _unlisted_files(folder: str, entries: Sequence[FileEntry | ShardEntry]) -> Iterator[Finding]:
    listed = {entry.path for entry in entries}
    for name in storage.relative_names(folder):
        if name.endswith(".parquet") and name.rpartition("/")[0] in _DATA_FOLDERS and name not in listed:
            yield Finding(path=name, problem="foreign", detail="the manifest does not list it")


def _verify_file(folder: str, entry: FileEntry | ShardEntry, manifest: Manifest) -> list[Finding]:
    def finding(problem: Problem, detail: str) -> Finding:
        return Finding(path=entry.path, problem=problem, detail=detail)

    try:
        content = storage.read_bytes(storage.join(folder, entry.path))
    except FileNotFoundError:
        return [finding("missing", f"{entry.num_rows} rows in {entry.num_bytes} bytes are gone")]
    schema = _schema(entry, manifest)
    table = _read_table(content)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        sizes = f"{len(content)} bytes, {entry.num_bytes} in the manifest"
        if table is not None and (table.num_rows != entry.num_rows or not table.schema.equals(schema)):
            return [finding("foreign", f"a whole Parquet file of {table.num_rows} rows, but another one ({sizes})")]
        if len(content) < entry.num_bytes:
            return [finding("truncated", sizes)]
        return [finding("corrupted", f"the checksum is not the one in the manifest ({sizes})")]
    if table is None:
        return [finding("miscounted", "it is what was written, but no Parquet file")]
    if not table.schema.equals(schema):
        return [finding("miscounted", f"its columns are {table.schema.names}, not the contract's {schema.names}")]
    if table.num_rows != entry.num_rows:
        return [finding("miscounted", f"{table.num_rows} rows, {entry.num_rows} in the manifest")]
    if isinstance(entry, ShardEntry) and isinstance(manifest, ShardManifest):
        return [finding("miscounted", detail) for detail in _shard_errors(table.combine_chunks(), entry, manifest)]
    return []


def _schema(entry: FileEntry | ShardEntry, manifest: Manifest) -> pa.Schema:
    if entry in manifest.rejects:
        return REJECT_SCHEMA
    if isinstance(manifest, ShardManifest):
        return packed_row_schema(
            sequence_length=manifest.sequence_length,
            vocab_size=manifest.vocab_size,
            with_loss_spans=manifest.has_loss_spans,
        )
    return CHAIN_SCHEMA if isinstance(manifest, AugmentedCorpusManifest) else INSTRUCTION_SCHEMA


def _read_table(content: bytes) -> pa.Table | None:
    try:
        return pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        return None


def _shard_errors(table: pa.Table, entry: ShardEntry, manifest: ShardManifest) -> Iterator[str]:
    """What is wrong inside a shard whose columns are right."""
    if not table.num_rows:
        return
    components = table.column("component").to_pylist()
    if Counter(components) != Counter(entry.rows_by_component):
        yield f"rows by component are {dict(Counter(components))}, {dict(entry.rows_by_component)} in the manifest"
    segments, first_segments = _flat(table.column("segment_lengths"))
    ends = np.concatenate([[0], np.cumsum(segments, dtype=np.int64)])
    tokens_of_row = np.diff(ends[first_segments])
    tokens: Counter[str] = Counter()
    for component, num_tokens in zip(components, tokens_of_row.tolist(), strict=True):
        tokens[component] += num_tokens
    if tokens != Counter(entry.tokens_by_component):
        yield f"tokens by component are {dict(tokens)}, {dict(entry.tokens_by_component)} in the manifest"
    # Longer than the row is impossible to read; an empty segment has no text.
    too_long = np.flatnonzero(tokens_of_row > manifest.sequence_length)
    if len(too_long) or (segments < 1).any():
        yield f"segments do not fit their rows (such as row {too_long[0] if len(too_long) else '?'} of the file)"
    if not np.array_equal(np.diff(_flat(table.column("text_ids"))[1]), np.diff(first_segments)):
        yield "some rows do not have a text id for each segment"
    highest = pc.max(table.column("input_ids").combine_chunks().flatten()).as_py()
    if highest >= manifest.vocab_size:
        yield f"a token id is {highest}; the vocabulary has {manifest.vocab_size}"
    if manifest.has_loss_spans:
        spans, first_spans = _flat(table.column("loss_spans"))
        room = np.repeat(tokens_of_row, np.diff(first_spans) // 2)
        starts, stops = spans[0::2], spans[1::2]
        if len(starts) != len(stops) or len(room) != len(starts) or not (starts < stops).all() or (stops > room).any():
            yield "some loss spans are empty or reach beyond the texts of their rows"


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values of a column of lists, and where each list begins in them (with the end of the last one)."""
    lists = column.combine_chunks()
    values = lists.flatten()
    offsets = np.asarray(lists.offsets, dtype=np.int64)
    numbers = np.asarray(values, dtype=np.int64) if pa.types.is_integer(values.type) else np.zeros(0, np.int64)
    return numbers, offsets - offsets[0]


def main(config: VerifyConfig) -> int:
    """Runs the command; returns its exit status: 1 when something is wrong."""
    verification = verify_artifact(config.folder)
    for finding in verification.findings:
        print(f"{finding.problem:11} {finding.path}: {finding.detail}")
    if verification.findings:
        print(f"{config.folder}: {len(verification.findings)} findings in {verification.num_files} files.")
        return 1
    print(f"{config.folder}: {verification.num_files} files with {verification.num_rows} rows, as the manifest says.")
    return 0
