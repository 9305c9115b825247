"""Makes one shard: takes each component's rows, mixes them, writes the file, and reports what it holds.

Rows of all components are ordered by hash, so that a shard is mixed through and through and its order depends on
nothing but the seed and the data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from beam_pipelines.mixing import ComponentConfig, tokens_by_shard
from beam_pipelines.sequence_packing import PackedComponent, concatenate_and_chunk
from beam_pipelines.text_tokenization import TokenizedText, TokenizerDescription
from contracts.manifest import SPLITS, ComponentCounts, ShardEntry, Split
from contracts.parquet_files import part_name, write_parquet
from contracts.records import PackedRow
from contracts.schemas import packed_rows_to_table
from contracts.seeding import stable_hash

ShardKey = tuple[Split, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """A written shard and, by component, what went into it."""

    entry: ShardEntry
    counts: Mapping[str, ComponentCounts]


def shard_of(text: TokenizedText, *, num_shards: Mapping[Split, int], seed: int) -> ShardKey:
    """The split and number of the shard that a text belongs to."""
    number = stable_hash(seed, "shard", text.component, text.text_id) % num_shards[text.split]
    return text.split, number


def plan_tokens(
    components: list[ComponentConfig],
    *,
    tokens: Mapping[tuple[ShardKey, str], int],
    num_shards: Mapping[Split, int],
    sequence_length: int,
) -> dict[ShardKey, dict[str, int]]:
    """Tokens to take of each component in each shard. Validation holds every text of it once, whatever the mixture.

    Args:
        components: The mixture.
        tokens: Tokens held, by shard and component; absent means none.
        num_shards: Shards by split.
        sequence_length: Tokens a row.

    Raises:
        ValueError: A component has no text to train on.
    """
    plan: dict[ShardKey, dict[str, int]] = {(split, n): {} for split in SPLITS for n in range(num_shards[split])}
    for split in SPLITS:
        held = {
            component.name: [tokens.get(((split, number), component.name), 0) for number in range(num_shards[split])]
            for component in components
        }
        taken = tokens_by_shard(components, tokens=held, sequence_length=sequence_length) if split == "train" else held
        for name, by_shard in taken.items():
            for number, num_tokens in enumerate(by_shard):
                plan[split, number][name] = num_tokens
    return plan


def write_shard(
    key: ShardKey,
    texts: Iterable[TokenizedText],
    *,
    num_tokens: Mapping[str, int],
    output: str,
    num_shards: int,
    sequence_length: int,
    tokenizer: TokenizerDescription,
    seed: int,
) -> ShardReport:
    """Packs and writes one shard; memory: its texts and its rows.

    Args:
        key: Split and number of the shard.
        texts: All texts that belong to it, in any order.
        num_tokens: Tokens to take of each component.
        output: The shards' folder.
        num_shards: Shards in the split, for the file's name.
        sequence_length: Tokens a row.
        tokenizer: For the padding and the vocabulary's size.
        seed: Orders texts and rows.
    """
    split, number = key
    by_component: dict[str, list[TokenizedText]] = defaultdict(list)
    for text in texts:
        by_component[text.component].append(text)
    packed = {
        name: concatenate_and_chunk(
            members,
            num_tokens=num_tokens[name],
            sequence_length=sequence_length,
            pad_id=tokenizer.pad_id,
            seed=seed,
        )
        for name, members in sorted(by_component.items())
    }
    mixed = _mix({name: component.rows for name, component in packed.items()}, key=key, seed=seed)
    stem = "shard" if split == "train" else f"{split}-shard"
    entry = write_parquet(
        output,
        path=part_name(stem, index=number, count=num_shards),
        table=packed_rows_to_table(mixed, sequence_length=sequence_length, vocab_size=tokenizer.vocab_size),
    )
    return ShardReport(
        entry=ShardEntry(
            path=entry.path,
            split=split,
            num_rows=entry.num_rows,
            num_bytes=entry.num_bytes,
            sha256=entry.sha256,
            rows_by_component=dict(sorted(Counter(row.component for row in mixed).items())),
            tokens_by_component={name: component.num_tokens for name, component in packed.items()},
        ),
        counts={name: _counts(by_component[name], component) for name, component in packed.items()},
    )


def _mix(rows: Mapping[str, list[PackedRow]], *, key: ShardKey, seed: int) -> list[PackedRow]:
    keyed = [
        (stable_hash(seed, "row order", *key, name, index), name, index, row)
        for name, members in rows.items()
        for index, row in enumerate(members)
    ]
    return [row for *_, row in sorted(keyed, key=lambda item: item[:3])]


def _counts(texts: list[TokenizedText], packed: PackedComponent) -> ComponentCounts:
    num_available = sum(text.num_tokens for text in texts)
    return ComponentCounts(
        num_documents=sum(text.num_documents for text in texts),
        num_texts=len(texts),
        num_available_tokens=num_available,
        epochs=packed.num_tokens / num_available,
        num_rows=len(packed.rows),
        num_tokens=packed.num_tokens,
        num_padding_tokens=packed.num_padding_tokens,
        num_truncations=packed.num_truncations,
        num_dropped_tokens=packed.num_dropped_tokens,
    )


def total_counts(reports: Iterable[ShardReport]) -> dict[str, dict[Split, ComponentCounts]]:
    """The counts of all shards added up by component and split."""
    parts: dict[tuple[str, Split], list[ComponentCounts]] = defaultdict(list)
    for report in reports:
        for name, counts in report.counts.items():
            parts[name, report.entry.split].append(counts)
    totals: dict[str, dict[Split, ComponentCounts]] = defaultdict(dict)
    for (name, split), members in sorted(parts.items()):
        num_tokens = sum(counts.num_tokens for counts in members)
        num_available = sum(counts.num_available_tokens for counts in members)
        totals[name][split] = ComponentCounts(
            num_documents=sum(counts.num_documents for counts in members),
            num_texts=sum(counts.num_texts for counts in members),
            num_available_tokens=num_available,
            epochs=round(num_tokens / num_available, 6),
            num_rows=sum(counts.num_rows for counts in members),
            num_tokens=num_tokens,
            num_padding_tokens=sum(counts.num_padding_tokens for counts in members),
            num_truncations=sum(counts.num_truncations for counts in members),
            num_dropped_tokens=sum(counts.num_dropped_tokens for counts in members),
        )
    return dict(totals)
