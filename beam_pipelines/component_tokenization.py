"""Tokenizes a component unit by unit into files that are kept and found again.

A component is cut into units of about `UNIT_BYTES`, neighbouring files together and large ones by ranges of bytes where
their format allows it (`contracts.record_files.byte_ranges`). A unit is read, rendered and tokenized into parts
(`beam_pipelines.tokenized_parts`) of a bounded number of tokens. Its index, written last, says that it is done: another
packing with the same tokenizer, rendering and inputs, or the same one after an interruption, reads the index and does
nothing else. Where a component is kept follows from a fingerprint of all that its tokens depend on, so nothing stale is
ever found.

One thread reads and renders; as many as there are cores tokenize, each a batch at a time. Most of that happens outside
of Python's lock, so that reading, and moving ids into arrays, costs hardly any time of its own. The tokenizer's own
threads stay out of it: they would share each batch and wait for its last text, which left 5 % of two cores idle.

Cost: what the tokenizer takes, plus a few per cent. Memory: the tokens of a part twice, and two batches a thread.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.component_reading import Rendering, rendering_inputs
from beam_pipelines.mixing import ComponentKind
from beam_pipelines.text_tokenization import TextTokenizer, Tokenization, TokenizedTexts
from beam_pipelines.tokenized_parts import DOCUMENT_SCHEMA, document_key, text_schema, write_part
from contracts import storage
from contracts.manifest import SPLITS, Split
from contracts.parquet_files import write_parquet
from contracts.record_files import ByteRange, byte_ranges
from contracts.records import Reject, RenderedText
from contracts.schemas import rejects_to_table, token_dtype
from contracts.seeding import hash_fraction
from contracts.storage import InputFile
from synth_model.text_splitting import whole_id

UNIT_BYTES = 64 << 20
BATCH_CHARACTERS = 1 << 19
_BATCH_TEXTS = 4096
_REJECTS_PER_FILE = 65536
_REJECT_CHARACTERS_PER_FILE = 1 << 23
_INDEX_FILE = "unit.json"
_PART_SUFFIX = ".arrow"
_LAYOUT_VERSION = 2
TOKENIZE_STAGE = "tokenize"
_LOGGER = logging.getLogger(__name__)
_LIBRARY_THREADS = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeping:
    """How tokenized texts are laid out.

    Args:
        part_tokens: Tokens after which a part is written; decides memory, not results.
        validation_fraction: Share of the groups that go to validation, drawn by the hash of ``group_id``.
        seed: Decides which ones, and every key.
    """

    part_tokens: int
    validation_fraction: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What is tokenized together of a component.

    Args:
        components: Names of the component, and of others that take the same texts in another proportion.
        kind: Their kind.
        folder: Where its parts are kept.
        files: URLs in order, each with the bytes to read of it.
    """

    components: tuple[str, ...]
    kind: ComponentKind
    folder: str
    files: tuple[tuple[str, ByteRange], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextsPart:
    """A part of texts of one split; ``path`` is relative to the unit's folder."""

    path: str
    split: Split
    num_texts: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitIndex:
    """What a tokenized unit holds; paths are relative to ``folder``.

    Args:
        folder: Where it is kept.
        texts: Its parts of texts.
        documents: Its parts of documents.
        rejects: Its files of rejects.
        files: The SHA-256 of each of these files.
    """

    folder: str
    texts: tuple[TextsPart, ...]
    documents: tuple[str, ...]
    rejects: tuple[str, ...]
    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedUnit:
    """A tokenized unit of a component."""

    component: str
    index: UnitIndex


def component_identity(
    kind: ComponentKind,
    *,
    files: Sequence[InputFile],
    rendering: Rendering,
    tokenization: Tokenization,
    keeping: Keeping,
) -> dict[str, Any]:
    """As JSON what a tokenized component is found again by: everything that its parts depend on, and nothing else.

    Neither its name nor how much of it is taken is among that.
    """
    return {
        "layout_version": _LAYOUT_VERSION,
        "kind": kind,
        "files": [asdict(file) for file in files],
        # Decides, with the files, which texts stand in which unit.
        "unit_bytes": UNIT_BYTES,
        "rendering": rendering_inputs(kind, rendering=rendering),
        # Named by their hashes: what transformers makes of the same files may change from one release to the next.
        "tokenizer": [
            url.rpartition("/")[2] for url in (tokenization.definition_url, tokenization.plain_definition_url)
        ],
        "special_ids": tokenization.tokenizer.special_ids,
        "add_bos": tokenization.add_bos,
        "add_eos": tokenization.add_eos,
        "validation_fraction": keeping.validation_fraction,
        "seed": keeping.seed,
    }


def plan_units(
    components: Sequence[str], *, kind: ComponentKind, files: Sequence[InputFile], folder: str
) -> list[Unit]:
    """The units of components with the same texts, each with a folder of its own below ``folder``."""
    groups: list[list[tuple[str, ByteRange]]] = []
    num_bytes = UNIT_BYTES
    for file in files:
        for start, end in byte_ranges(file, target_bytes=UNIT_BYTES):
            if num_bytes >= UNIT_BYTES:
                groups.append([])
                num_bytes = 0
            groups[-1].append((file.url, (start, end)))
            num_bytes += (file.size_bytes if end is None else end) - start
    return [
        Unit(
            components=tuple(components),
            kind=kind,
            folder=storage.join(folder, f"unit-{number:05d}"),
            files=tuple(group),
        )
        for number, group in enumerate(groups)
    ]


def find_unit(folder: str) -> UnitIndex | None:
    """The index of a unit that is kept in a folder; None when there is none, or not all of it as it was written.

    Every file is read once and held against its sum, which costs a hundredth of tokenizing it again.
    """
    url = storage.join(folder, _INDEX_FILE)
    if not storage.exists(url):
        return None
    raw = storage.read_json(url)
    index = UnitIndex(
        folder=folder,
        texts=tuple(TextsPart(**part) for part in raw["texts"]),
        documents=tuple(raw["documents"]),
        rejects=tuple(raw["rejects"]),
        files=raw["files"],
    )
    for path, sha256 in index.files.items():
        url = storage.join(folder, path)
        if not storage.exists(url) or storage.file_sha256(url) != sha256:
            _LOGGER.warning("%s is damaged; its unit is tokenized again.", url)
            return None
    return index


def holds_texts(folder: str) -> bool:
    """Whether any texts are kept in a folder of tokenized components."""
    return any(name.endswith(_PART_SUFFIX) for name in storage.relative_names(folder))


def tokenize_unit(
    folder: str,
    texts: Iterable[RenderedText | Reject],
    *,
    tokenizer: TextTokenizer,
    keeping: Keeping,
) -> UnitIndex:
    """Tokenizes the texts of a unit and keeps them in a folder.

    Args:
        folder: The unit's own.
        texts: Its texts, and what could not be used.
        tokenizer: Encodes them.
        keeping: How they are laid out.
    """
    writer = _UnitWriter(folder, vocab_size=tokenizer.description.vocab_size, keeping=keeping)
    for tokenized in _tokenized_batches(writer.keep_rejects(texts), tokenizer=tokenizer):
        writer.add(tokenized)
    return writer.close()


def read_rejects(index: UnitIndex) -> Iterator[pa.Table]:
    """The rejects of a unit in the order of its files, some at a time."""
    for path in index.rejects:
        with storage.open_input(storage.join(index.folder, path)) as file:
            yield pq.read_table(file)


def _tokenized_batches(texts: Iterable[RenderedText], *, tokenizer: TextTokenizer) -> Iterator[TokenizedTexts]:
    """Batches in the order of the texts; two a thread are under way at any time."""
    num_threads = os.cpu_count() or 1
    pending: deque[Future[TokenizedTexts]] = deque()
    with _one_thread_a_batch(), ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize") as pool:
        for batch in _batches(texts):
            pending.append(pool.submit(tokenizer.encode, batch))
            while len(pending) > 2 * num_threads or (pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def _one_thread_a_batch() -> Iterator[None]:
    """Keeps the tokenizer's library from dealing a batch out to threads of its own, by its environment variable.

    That holds for the whole process, and decides speed alone: where two units are tokenized in a process at a time,
    what the first one to end restores holds for the other.
    """
    before = os.environ.get(_LIBRARY_THREADS)
    os.environ[_LIBRARY_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_LIBRARY_THREADS, None)
        else:
            os.environ[_LIBRARY_THREADS] = before


def _batches(texts: Iterable[RenderedText]) -> Iterator[list[RenderedText]]:
    batch: list[RenderedText] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text.text)
        if num_characters >= BATCH_CHARACTERS or len(batch) == _BATCH_TEXTS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


class _UnitWriter:
    """Gathers tokenized texts and writes a part whenever there are enough of them."""

    def __init__(self, folder: str, *, vocab_size: int, keeping: Keeping) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._keeping = keeping
        self._texts: dict[Split, list[pa.Table]] = {split: [] for split in SPLITS}
        self._documents: list[pa.Table] = []
        self._num_tokens = 0
        self._texts_parts: list[TextsPart] = []
        self._documents_parts: list[str] = []
        self._files: dict[str, str] = {}
        # Apart, since how far reading is ahead of tokenizing depends on the moment, and no order may.
        self._unusable = _RejectFiles(folder, stem="rejects")
        self._empty = _RejectFiles(folder, stem="rejects-without-token")

    def keep_rejects(self, texts: Iterable[RenderedText | Reject]) -> Iterator[RenderedText]:
        """The texts; rejects are taken out and written."""
        for text in texts:
            if isinstance(text, RenderedText):
                yield text
                continue
            self._unusable.add(text)

    def add(self, tokenized: TokenizedTexts) -> None:
        """Takes a batch of tokenized texts."""
        for text in tokenized.empty:
            self._empty.add(_reject_empty(text))
        if not tokenized.texts:
            return
        keys = [document_key(whole_id(text.doc_ids[0]), seed=self._keeping.seed) for text in tokenized.texts]
        is_held_out = np.array([self._is_held_out(text.group_id) for text in tokenized.texts])
        table = _texts_table(tokenized, keys=keys, vocab_size=self._vocab_size)
        if self._keeping.validation_fraction:
            self._texts["validation"].append(table.filter(pa.array(is_held_out)))
            table = table.filter(pa.array(~is_held_out))
        self._texts["train"].append(table)
        self._documents.append(_documents_table(tokenized.texts, keys=keys, seed=self._keeping.seed))
        self._num_tokens += len(tokenized.ids)
        if self._num_tokens >= self._keeping.part_tokens:
            self._flush()

    def close(self) -> UnitIndex:
        """Writes what is left, then the index."""
        self._flush()
        rejects = self._unusable.close() | self._empty.close()
        files = self._files | rejects
        content = {
            "texts": [asdict(part) for part in self._texts_parts],
            "documents": self._documents_parts,
            "rejects": list(rejects),
            "files": files,
        }
        storage.write_json(storage.join(self._folder, _INDEX_FILE), content)
        return UnitIndex(
            folder=self._folder,
            texts=tuple(self._texts_parts),
            documents=tuple(self._documents_parts),
            rejects=tuple(rejects),
            files=files,
        )

    def _is_held_out(self, group_id: str) -> bool:
        if not self._keeping.validation_fraction:
            return False
        return hash_fraction(self._keeping.seed, "validation", group_id) < self._keeping.validation_fraction

    def _flush(self) -> None:
        if not self._documents:
            return
        number = len(self._documents_parts)
        for split in SPLITS:
            tables, self._texts[split] = self._texts[split], []
            table = pa.concat_tables(tables) if tables else None
            if table is None or not table.num_rows:
                continue
            path = self._part_path(split, number=number)
            self._files[path] = write_part(storage.join(self._folder, path), table)
            num_tokens = int(table.column("num_tokens").to_numpy().sum())
            self._texts_parts.append(TextsPart(path=path, split=split, num_texts=table.num_rows, num_tokens=num_tokens))
        path = self._part_path("documents", number=number)
        self._files[path] = write_part(storage.join(self._folder, path), pa.concat_tables(self._documents))
        self._documents_parts.append(path)
        self._documents = []
        self._num_tokens = 0

    def _part_path(self, stem: str, *, number: int) -> str:
        """Two packings with parts of another size may tokenize a unit at the same time: each names its own parts."""
        return f"{stem}-by-{self._keeping.part_tokens}-{number:05d}{_PART_SUFFIX}"


class _RejectFiles:
    """Writes rejects to files whenever there are enough of them."""

    def __init__(self, folder: str, *, stem: str) -> None:
        self._folder = folder
        self._stem = stem
        self._rejects: list[Reject] = []
        self._num_characters = 0
        self._files: dict[str, str] = {}

    def add(self, reject: Reject) -> None:
        """Takes a reject."""
        self._rejects.append(reject)
        self._num_characters += len(reject.text) + len(reject.detail)
        if len(self._rejects) >= _REJECTS_PER_FILE or self._num_characters >= _REJECT_CHARACTERS_PER_FILE:
            self._write()

    def close(self) -> dict[str, str]:
        """Writes what is left; the SHA-256 of each file by its path."""
        self._write()
        return self._files

    def _write(self) -> None:
        if self._rejects:
            path = f"{self._stem}-{len(self._files):05d}.parquet"
            entry = write_parquet(self._folder, path=path, table=rejects_to_table(self._rejects))
            self._files[path] = entry.sha256
            self._rejects, self._num_characters = [], 0


def _reject_empty(text: RenderedText) -> Reject:
    return Reject(
        # Not its component: another packing may find this again under another name.
        doc_id=text.doc_ids[0] if text.doc_ids else text.text_id,
        source="",
        stage=TOKENIZE_STAGE,
        reason="no_token",
        detail="the tokenizer makes no token of it",
        text=text.text,
    )


def _texts_table(tokenized: TokenizedTexts, *, keys: Sequence[int], vocab_size: int) -> pa.Table:
    schema = text_schema(with_loss_spans=tokenized.loss_spans is not None)
    # A narrower integer would take the rest of a larger id, without a word.
    assert not len(tokenized.ids) or int(tokenized.ids.max()) < vocab_size, (tokenized.ids.max(), vocab_size)
    ids = tokenized.ids.astype(token_dtype(vocab_size), copy=False)
    offsets = np.concatenate([[0], np.cumsum(tokenized.lengths)]) * ids.itemsize
    columns: list[pa.Array] = [
        pa.array(keys, pa.uint64()),
        pa.array([text.text_id for text in tokenized.texts], pa.large_string()),
        pa.array([len(text.doc_ids) for text in tokenized.texts], pa.int32()),
        pa.array(tokenized.lengths),
        pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(tokenized.texts), [None, pa.py_buffer(offsets), pa.py_buffer(ids)]
        ),
    ]
    if tokenized.loss_spans is not None:
        flat = [spans.reshape(-1).tolist() for spans in tokenized.loss_spans]
        columns.append(pa.array(flat, schema.field("loss_spans").type))
    return pa.Table.from_arrays(columns, schema=schema)


def _documents_table(texts: Sequence[RenderedText], *, keys: Sequence[int], seed: int) -> pa.Table:
    """The documents of texts by the ids of the whole ones: a part stands for the document that it was split from."""
    doc_keys, doc_ids, text_keys = [], [], []
    for text, text_key in zip(texts, keys, strict=True):
        for number, doc_id in enumerate(map(whole_id, text.doc_ids)):
            doc_keys.append(document_key(doc_id, seed=seed) if number else text_key)
            doc_ids.append(doc_id)
            text_keys.append(text_key)
    return pa.Table.from_arrays(
        [pa.array(doc_keys, pa.uint64()), pa.array(doc_ids, pa.large_string()), pa.array(text_keys, pa.uint64())],
        schema=DOCUMENT_SCHEMA,
    )
