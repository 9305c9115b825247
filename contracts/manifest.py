"""Manifests: how the artifacts (augmented corpus, instruction corpus, shards) describe themselves.

Every number in a manifest is counted from what was written, and the ``check`` of each manifest holds the sums against
each other, so that nothing can disappear silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from contracts import storage
from contracts.artifact import MANIFEST_FILE, completed_fingerprint, mark_completed
from contracts.score_histograms import ScoreHistogram

SCHEMA_VERSION = 2

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A data file of an artifact. ``path`` is relative to the artifact's folder."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentAccounts:
    """Where the input of a synthesis went.

    Args:
        num_records: Records read: lines of JSON Lines, files of text, rows of Parquet.
        num_documents_split: Documents that were cut into parts because they outgrow the context.
        num_parts: Parts that these were cut into.
        num_augmented: Texts with at least one valid pair.
        num_kept_raw: Texts without a valid pair, kept as raw text.
        num_rejected: Records and texts rejected.
        rejected_by_reason: Of those, how many by ``stage/reason``.
    """

    num_records: int
    num_documents_split: int
    num_parts: int
    num_augmented: int
    num_kept_raw: int
    num_rejected: int
    rejected_by_reason: Mapping[str, int]

    @property
    def num_texts(self) -> int:
        """Records after splitting: what must be augmented, kept raw or rejected."""
        return self.num_records - self.num_documents_split + self.num_parts

    def check(self) -> None:
        """Holds the sums against each other.

        Raises:
            ValueError: They differ, so the artifact must not be completed.
        """
        out = self.num_augmented + self.num_kept_raw + self.num_rejected
        if out != self.num_texts or sum(self.rejected_by_reason.values()) != self.num_rejected:
            raise ValueError(
                f"The accounts do not add up: {self.num_texts} texts in ({self.num_records} records, "
                f"{self.num_documents_split} split into {self.num_parts} parts), but {out} out "
                f"({self.num_augmented} augmented + {self.num_kept_raw} kept raw + {self.num_rejected} rejected, "
                f"by reason {dict(self.rejected_by_reason)}). The output is not marked as completed."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentedCorpusManifest:
    """What an augmented corpus holds, how it was made, and where its input went.

    The files of rejects hold the rejected records and texts of the accounts, and the pairs that failed a gate.
    ``pair_scores`` gives by gate how the scores of the pairs are distributed, those that failed included.
    """

    schema_version: int = SCHEMA_VERSION
    synthesizer_id: str
    accounts: DocumentAccounts
    num_chains: int
    num_pairs: int
    rejected_pairs_by_reason: Mapping[str, int] = field(default_factory=dict)
    pair_scores: Mapping[str, ScoreHistogram] = field(default_factory=dict)
    num_prompt_tokens: int
    num_new_tokens: int
    finish_reasons: Mapping[str, int]
    parts: tuple[FileEntry, ...]
    rejects: tuple[FileEntry, ...]
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    fingerprint: str = ""

    def check(self) -> None:
        """Holds the sums against each other; see `DocumentAccounts.check`."""
        self.accounts.check()
        num_chains = sum(entry.num_rows for entry in self.parts)
        num_rejects = sum(entry.num_rows for entry in self.rejects)
        expected = self.accounts.num_rejected + sum(self.rejected_pairs_by_reason.values())
        if num_chains != self.num_chains or num_rejects != expected:
            raise ValueError(
                f"The files hold {num_chains} chains and {num_rejects} rejects, the accounts say "
                f"{self.num_chains} and {expected}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionCorpusManifest:
    """What a corpus of self-made instructions holds and how it was made.

    Args:
        model_id: The model that wrote instructions and responses.
        num_draws: Instructions asked for.
        num_instructions: Of those, how many stand in the corpus, each with its response.
        rejected_by_reason: The others, by ``stage/reason``.
    """

    schema_version: int = SCHEMA_VERSION
    model_id: str
    num_draws: int
    num_instructions: int
    rejected_by_reason: Mapping[str, int]
    parts: tuple[FileEntry, ...]
    rejects: tuple[FileEntry, ...]
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    fingerprint: str = ""

    def check(self) -> None:
        """Holds the sums against each other.

        Raises:
            ValueError: They differ, so the artifact must not be completed.
        """
        num_rejected = sum(self.rejected_by_reason.values())
        if self.num_instructions + num_rejected != self.num_draws:
            raise ValueError(
                f"The accounts do not add up: {self.num_draws} instructions were asked for, but "
                f"{self.num_instructions} kept + {num_rejected} rejected ({dict(self.rejected_by_reason)}) came out. "
                "The output is not marked as completed."
            )
        num_written = sum(entry.num_rows for entry in self.parts), sum(entry.num_rows for entry in self.rejects)
        if num_written != (self.num_instructions, num_rejected):
            raise ValueError(
                f"The files hold {num_written[0]} instructions and {num_written[1]} rejects, the accounts say "
                f"{self.num_instructions} and {num_rejected}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerEntry:
    """The tokenizer of the shards: where it came from and the hash of its whole definition."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentCounts:
    """Totals of one mixture component in one split.

    Args:
        num_documents: Distinct source documents in its texts.
        num_texts: Distinct texts available to it.
        num_available_tokens: Tokens of all those texts once.
        epochs: ``num_tokens / num_available_tokens``: how often each text is seen on average.
        num_rows: Rows written.
        num_tokens: Tokens in those rows, padding not counted.
        num_padding_tokens: Padding in those rows.
        num_truncations: Texts that do not stand whole in one row.
        num_dropped_tokens: Tokens of the selected texts that stand in no row.
        num_requested_tokens: Tokens that the mixture asked for; ``num_tokens`` differs by a row at most, by what was
            dropped of texts longer than a row, and by what ``max_epochs`` leaves of a last row in each shard.
    """

    num_documents: int
    num_texts: int
    num_available_tokens: int
    epochs: float
    num_rows: int
    num_tokens: int
    num_padding_tokens: int
    num_truncations: int
    num_dropped_tokens: int = 0
    num_requested_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """A shard file: its split, and its rows by component."""

    path: str
    split: Split
    num_rows: int
    num_bytes: int
    sha256: str
    rows_by_component: Mapping[str, int]
    tokens_by_component: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardManifest:
    """What a folder of shards holds and how it was made: the whole contract between pack and trainer.

    Global row numbers of a split count through its shards in the order of ``shards``.
    """

    schema_version: int = SCHEMA_VERSION
    sequence_length: int
    tokenizer: TokenizerEntry
    vocab_size: int
    special_ids: Mapping[str, int | None]
    has_loss_spans: bool
    shards: tuple[ShardEntry, ...]
    rejects: tuple[FileEntry, ...] = ()
    rejected_by_reason: Mapping[str, int] = field(default_factory=dict)
    components: Mapping[str, Mapping[Split, ComponentCounts]]
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    fingerprint: str = ""

    def shards_of(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of one split in row order."""
        return tuple(entry for entry in self.shards if entry.split == split)

    def num_rows(self, split: Split) -> int:
        """Rows of one split over all its shards."""
        return sum(entry.num_rows for entry in self.shards_of(split))

    def num_tokens(self, split: Split) -> int:
        """Tokens of one split, padding not counted."""
        return sum(sum(entry.tokens_by_component.values()) for entry in self.shards_of(split))

    def check(self) -> None:
        """Holds the sums over shards against the totals by component.

        Raises:
            ValueError: They differ.
        """
        for split in SPLITS:
            shards = self.shards_of(split)
            # Components that only the shards name count too: their totals are missing.
            names = {name for entry in shards for name in (*entry.rows_by_component, *entry.tokens_by_component)}
            for name in sorted(names.union(self.components)):
                rows = sum(entry.rows_by_component.get(name, 0) for entry in shards)
                tokens = sum(entry.tokens_by_component.get(name, 0) for entry in shards)
                counts = self.components.get(name, {}).get(split)
                total_rows, total_tokens = (counts.num_rows, counts.num_tokens) if counts else (0, 0)
                if (rows, tokens) != (total_rows, total_tokens):
                    raise ValueError(
                        f"Component {name!r} ({split}): the shards hold {rows} rows and {tokens} tokens, the totals "
                        f"say {total_rows} and {total_tokens}."
                    )
                padding = counts.num_padding_tokens if counts else 0
                if rows * self.sequence_length != tokens + padding:
                    raise ValueError(
                        f"Component {name!r} ({split}): {rows} rows of {self.sequence_length} tokens do not hold "
                        f"{tokens} tokens and {padding} of padding."
                    )
        if sum(entry.num_rows for entry in self.rejects) != sum(self.rejected_by_reason.values()):
            raise ValueError(f"The files of rejects do not hold the rejects counted: {dict(self.rejected_by_reason)}.")
        for entry in self.shards:
            if sum(entry.rows_by_component.values()) != entry.num_rows:
                raise ValueError(f"{entry.path}: rows by component do not sum to its {entry.num_rows} rows.")


_Manifest = TypeVar("_Manifest", AugmentedCorpusManifest, InstructionCorpusManifest, ShardManifest)


def manifest_fingerprint(manifest: AugmentedCorpusManifest | InstructionCorpusManifest | ShardManifest) -> str:
    """The hash of everything in a manifest that is not a location.

    Input names and the config's locations are left out, so that the same data packed in another folder or on another
    machine has the same fingerprint; the checksums of the files stand for the content.
    """
    content = asdict(manifest)
    del content["fingerprint"], content["inputs"]
    if isinstance(manifest, ShardManifest):
        content["tokenizer"] = manifest.tokenizer.sha256
    content["config"] = _without_locations(content["config"])
    return storage.json_sha256(content)


_LOCATION_KEYS = frozenset({"output", "input", "inputs", "model", "tokenizer", "cache"})


def _without_locations(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_locations(item) for key, item in value.items() if key not in _LOCATION_KEYS}
    if isinstance(value, (list, tuple)):
        return [_without_locations(item) for item in value]
    return value


def complete_artifact(folder: str, manifest: _Manifest) -> _Manifest:
    """Checks a manifest, writes it with its fingerprint, then writes ``COMPLETED``; returns what was written.

    Raises:
        ValueError: The accounts do not add up; nothing is written then.
    """
    manifest.check()
    values = {item.name: getattr(manifest, item.name) for item in fields(manifest)}
    complete = type(manifest)(**{**values, "fingerprint": manifest_fingerprint(manifest)})
    storage.write_json(storage.join(folder, MANIFEST_FILE), asdict(complete))
    mark_completed(folder, fingerprint=complete.fingerprint)
    return complete


def read_augmented_corpus_manifest(folder: str) -> AugmentedCorpusManifest:
    """Reads the manifest of a completed augmented corpus.

    Raises:
        ValueError: Not completed, of another schema version, damaged, or changed after completion.
    """
    raw = _read_manifest(folder, required="accounts")
    with _naming_damage(folder):
        manifest = AugmentedCorpusManifest(
            **{
                **raw,
                "accounts": DocumentAccounts(**raw["accounts"]),
                "parts": tuple(FileEntry(**entry) for entry in raw["parts"]),
                "rejects": tuple(FileEntry(**entry) for entry in raw["rejects"]),
                "pair_scores": {
                    name: ScoreHistogram(
                        edges=tuple(scores["edges"]), counts=tuple(scores["counts"]), num_failed=scores["num_failed"]
                    )
                    for name, scores in raw["pair_scores"].items()
                },
            }
        )
    return _verified(folder, manifest)


def read_instruction_corpus_manifest(folder: str) -> InstructionCorpusManifest:
    """Reads the manifest of a completed corpus of self-made instructions.

    Raises:
        ValueError: Not completed, of another schema version, damaged, or changed after completion.
    """
    raw = _read_manifest(folder, required="num_draws")
    with _naming_damage(folder):
        manifest = InstructionCorpusManifest(
            **{
                **raw,
                "parts": tuple(FileEntry(**entry) for entry in raw["parts"]),
                "rejects": tuple(FileEntry(**entry) for entry in raw["rejects"]),
            }
        )
    return _verified(folder, manifest)


def read_shard_manifest(folder: str) -> ShardManifest:
    """Reads the manifest of a completed folder of shards.

    Raises:
        ValueError: Not completed, of another schema version, damaged, or changed after completion.
    """
    raw = _read_manifest(folder, required="sequence_length")
    with _naming_damage(folder):
        manifest = ShardManifest(
            **{
                **raw,
                "tokenizer": TokenizerEntry(**raw["tokenizer"]),
                "shards": tuple(ShardEntry(**entry) for entry in raw["shards"]),
                "rejects": tuple(FileEntry(**entry) for entry in raw["rejects"]),
                "components": {
                    name: {split: ComponentCounts(**counts) for split, counts in by_split.items()}
                    for name, by_split in raw["components"].items()
                },
            }
        )
    return _verified(folder, manifest)


def _read_manifest(folder: str, *, required: str) -> dict[str, Any]:
    completed_fingerprint(folder)
    url = storage.join(folder, MANIFEST_FILE)
    if not storage.exists(url):
        raise ValueError(f"{folder} says that it is completed, but its {MANIFEST_FILE} is missing.")
    raw = storage.read_json(url)
    if not isinstance(raw, dict) or required not in raw:
        raise ValueError(f"{url} is not the manifest expected here: it has no {required!r}.")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{url} has schema version {raw.get('schema_version')!r}; this version of the tool reads {SCHEMA_VERSION}."
        )
    return raw


@contextmanager
def _naming_damage(folder: str) -> Iterator[None]:
    """Turns what a missing, unknown or misshapen entry of a manifest raises into a message that names the file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        url = storage.join(folder, MANIFEST_FILE)
        raise ValueError(f"{url} is damaged: {type(error).__name__}: {error}.") from error


def _verified(folder: str, manifest: _Manifest) -> _Manifest:
    expected = completed_fingerprint(folder)
    actual = manifest_fingerprint(manifest)
    if not manifest.fingerprint == expected == actual:
        raise ValueError(
            f"{folder}: the manifest was changed after completion (its content hashes to {actual[:12]}…, it says "
            f"{manifest.fingerprint[:12]}…, COMPLETED says {expected[:12]}…)."
        )
    return manifest
