"""Counts what is written, file by file, and adds it up into a manifest.

The counts of what came in are taken where records are read, those of what went out where files are written, so that
their equality (`contracts.manifest.DocumentAccounts.check`) says something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.manifest import AugmentedCorpusManifest, DocumentAccounts, FileEntry
from contracts.records import Chain, Reject
from contracts.score_histograms import ScoreHistogram

GATE_STAGE = "gate"
"""The stage of rejects that are pairs: the text that they belong to goes on without them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainsReport:
    """A written file of chains and what is in it."""

    entry: FileEntry
    num_augmented: int
    num_kept_raw: int
    num_pairs: int
    num_prompt_tokens: int
    num_new_tokens: int
    finish_reasons: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectsReport:
    """A written file of rejects and how many of them there are by ``stage/reason``."""

    entry: FileEntry
    by_reason: Mapping[str, int] = field(default_factory=dict)


def report_chains(entry: FileEntry, chains: Iterable[Chain]) -> ChainsReport:
    """Counts the chains of a file."""
    examples = [example for chain in chains for example in chain.examples]
    return ChainsReport(
        entry=entry,
        num_augmented=sum(bool(example.pairs) for example in examples),
        num_kept_raw=sum(not example.pairs for example in examples),
        num_pairs=sum(len(example.pairs) for example in examples),
        num_prompt_tokens=sum(example.num_prompt_tokens for example in examples),
        num_new_tokens=sum(example.num_new_tokens for example in examples),
        finish_reasons=Counter(example.finish_reason for example in examples),
    )


def report_rejects(entry: FileEntry, rejects: Iterable[Reject]) -> RejectsReport:
    """Counts the rejects of a file."""
    return RejectsReport(entry=entry, by_reason=Counter(f"{reject.stage}/{reject.reason}" for reject in rejects))


def sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up key by key, sorted by key."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def augmented_corpus_manifest(
    *,
    num_records: int,
    documents_by_num_parts: Mapping[int, int],
    chains: Sequence[ChainsReport],
    rejects: Sequence[RejectsReport],
    pair_scores: Mapping[str, ScoreHistogram] | None = None,
    synthesizer_id: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
) -> AugmentedCorpusManifest:
    """The manifest of an augmented corpus from the reports of its files and the counts of its input.

    ``documents_by_num_parts`` counts the documents that were split, by how many parts each gave.
    """
    all_rejects = sum_counts(report.by_reason for report in rejects)
    rejected_pairs = {key: count for key, count in all_rejects.items() if key.startswith(f"{GATE_STAGE}/")}
    rejected_by_reason = {key: count for key, count in all_rejects.items() if key not in rejected_pairs}
    return AugmentedCorpusManifest(
        synthesizer_id=synthesizer_id,
        accounts=DocumentAccounts(
            num_records=num_records,
            num_documents_split=sum(documents_by_num_parts.values()),
            num_parts=sum(num_parts * count for num_parts, count in documents_by_num_parts.items()),
            num_augmented=sum(report.num_augmented for report in chains),
            num_kept_raw=sum(report.num_kept_raw for report in chains),
            num_rejected=sum(rejected_by_reason.values()),
            rejected_by_reason=rejected_by_reason,
        ),
        num_chains=sum(report.entry.num_rows for report in chains),
        num_pairs=sum(report.num_pairs for report in chains),
        rejected_pairs_by_reason=rejected_pairs,
        pair_scores=dict(sorted((pair_scores or {}).items())),
        num_prompt_tokens=sum(report.num_prompt_tokens for report in chains),
        num_new_tokens=sum(report.num_new_tokens for report in chains),
        finish_reasons=sum_counts(report.finish_reasons for report in chains),
        parts=tuple(sorted((report.entry for report in chains), key=lambda entry: entry.path)),
        rejects=tuple(sorted((report.entry for report in rejects), key=lambda entry: entry.path)),
        inputs=inputs,
        config=config,
    )
