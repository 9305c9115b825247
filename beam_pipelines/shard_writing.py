"""Makes one shard: packs each component's texts, mixes the rows, writes the file, and reports what it holds.

The texts of a component are taken in a random order, anew in each epoch, until the tokens that the mixture asks for
are there (`beam_pipelines.sequence_packing` says which part of which text goes to which row). Rows of all components
are then put in a random order, so that a shard is mixed through and through. Both orders depend on nothing but the seed
and the data. Ids are gathered row group by row group while the file is written.

Cost: linear in the tokens written, about 10 ns each. Memory: the ids of the shard's texts, every text once, and one row
group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beam_pipelines.component_tokenization import TokenizedUnit
from beam_pipelines.loss_spans import row_loss_spans
from beam_pipelines.mixing import ComponentConfig, has_loss_spans, tokens_by_shard
from beam_pipelines.sequence_packing import LongTexts, PackingStrategy, RowPlan, pack_rows
from beam_pipelines.shard_selection import Holdings, ShardKey, select_texts
from beam_pipelines.text_tokenization import TokenizerDescription
from contracts.manifest import SPLITS, ComponentCounts, ShardEntry, Split
from contracts.parquet_files import part_name, write_packed_rows
from contracts.schemas import PackedColumns, packed_columns_to_table, packed_row_schema, token_dtype
from contracts.seeding import Name, rng

ROW_GROUP_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How texts become rows.

    Args:
        strategy: ``concatenate`` puts texts one behind the other and cuts at every row's end (the paper's);
            ``best_fit`` keeps every text that fits a row whole, for a little padding.
        long_texts: What becomes of a text longer than a row: ``continue`` in another row, or ``cut`` there.
    """

    strategy: PackingStrategy = "concatenate"
    long_texts: LongTexts = "continue"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardLayout:
    """What all shards of a run have in common.

    Args:
        output: The shards' folder.
        components: The mixture.
        sequence_length: Tokens a row.
        packing: How texts become rows.
        tokenizer: For the padding and the vocabulary's size.
        seed: Orders texts and rows.
    """

    output: str
    components: Sequence[ComponentConfig]
    sequence_length: int
    packing: PackingConfig
    tokenizer: TokenizerDescription
    seed: int

    @property
    def max_usable(self) -> int | None:
        """Tokens of one text that may stand in rows; None for all of them."""
        return self.sequence_length if self.packing.long_texts == "cut" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """A written shard and, by component, what went into it."""

    entry: ShardEntry
    counts: Mapping[str, ComponentCounts]


def plan_tokens(
    components: Sequence[ComponentConfig],
    *,
    holdings: Mapping[ShardKey, Mapping[str, Holdings]],
    num_shards: Mapping[Split, int],
    sequence_length: int,
) -> dict[ShardKey, dict[str, int]]:
    """Tokens to take of each component in each shard. Validation holds every text of it once, whatever the mixture.

    Args:
        components: The mixture.
        holdings: What each shard holds, by component; absent means nothing.
        num_shards: Shards by split.
        sequence_length: Tokens a row.

    Raises:
        ValueError: The mixture asks for what is not there.
    """
    plan: dict[ShardKey, dict[str, int]] = {(split, n): {} for split in SPLITS for n in range(num_shards[split])}
    for split in SPLITS:
        held = {
            component.name: [
                held_by_shard[component.name].num_usable_tokens if component.name in held_by_shard else 0
                for held_by_shard in (holdings.get((split, number), {}) for number in range(num_shards[split]))
            ]
            for component in components
        }
        taken = tokens_by_shard(components, tokens=held, sequence_length=sequence_length) if split == "train" else held
        for name, by_shard in taken.items():
            for number, num_tokens in enumerate(by_shard):
                plan[split, number][name] = num_tokens
    return plan


def write_shard(
    shard: ShardKey,
    *,
    count: int,
    num_tokens: Mapping[str, int],
    holdings: Mapping[str, Holdings],
    units: Sequence[TokenizedUnit],
    layout: ShardLayout,
) -> ShardReport:
    """Packs and writes one shard.

    Args:
        shard: Split and number.
        count: Shards in the split.
        num_tokens: Tokens to take of each component.
        holdings: What the shard holds of each component.
        units: All tokenized units.
        layout: What all shards have in common.
    """
    split, number = shard
    packed = [
        _pack_component(
            component.name,
            select_texts(shard, count=count, component=component, components=layout.components, units=units),
            shard=shard,
            num_tokens=num_tokens[component.name],
            layout=layout,
        )
        for component in sorted(layout.components, key=lambda component: component.name)
        if component.name in holdings
    ]
    entry = write_packed_rows(
        layout.output,
        path=part_name("shard" if split == "train" else f"{split}-shard", index=number, count=count),
        schema=packed_row_schema(
            sequence_length=layout.sequence_length,
            vocab_size=layout.tokenizer.vocab_size,
            with_loss_spans=has_loss_spans(layout.components),
        ),
        row_groups=_row_groups(packed, shard=shard, layout=layout),
    )
    counts = {component.name: _counts(holdings[component.name], component.plan) for component in packed}
    return ShardReport(
        entry=ShardEntry(
            path=entry.path,
            split=split,
            num_rows=entry.num_rows,
            num_bytes=entry.num_bytes,
            sha256=entry.sha256,
            rows_by_component={name: count.num_rows for name, count in counts.items() if count.num_rows},
            tokens_by_component={name: count.num_tokens for name, count in counts.items()},
        ),
        counts=counts,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _PackedComponent:
    """The texts of a component in a shard and the rows they make.

    Args:
        name: The component.
        text_ids: Strings, one a text.
        ids: Token ids of all texts, one behind the other.
        text_starts: int64, shape (num_texts,): where each text begins in ``ids``.
        loss_spans: For each text its flat spans; None where every token is a target.
        plan: The rows; ``piece_text`` counts the texts above.
    """

    name: str
    text_ids: pa.Array
    ids: NDArray[Any]
    text_starts: NDArray[np.int64]
    loss_spans: pa.Array | None
    plan: RowPlan

    def spans_of(self, texts: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """The loss spans of some texts, each int32 of shape (num_spans, 2)."""
        if self.loss_spans is None:
            return [np.array([[0, len(self.ids)]], np.int32)] * len(texts)
        return [self.loss_spans[text].values.to_numpy(zero_copy_only=False).reshape(-1, 2) for text in texts.tolist()]


def _pack_component(
    name: str, texts: pa.Table, *, shard: ShardKey, num_tokens: int, layout: ShardLayout
) -> _PackedComponent:
    lengths = texts.column("num_tokens").to_numpy()
    num_usable = int(np.minimum(lengths, layout.max_usable or lengths).sum())
    epochs = [
        _random_order(len(lengths), "text order", name, *shard, epoch, seed=layout.seed)
        for epoch in range(-(-num_tokens // num_usable))
    ]
    stream = np.concatenate([np.zeros(0, np.int64), *epochs])
    plan = pack_rows(
        lengths[stream],
        sequence_length=layout.sequence_length,
        strategy=layout.packing.strategy,
        long_texts=layout.packing.long_texts,
        num_tokens=num_tokens,
    )
    with_spans = "loss_spans" in texts.column_names
    return _PackedComponent(
        name=name,
        text_ids=texts.column("text_id").combine_chunks(),
        ids=_bytes_of(texts.column("ids")).view(token_dtype(layout.tokenizer.vocab_size)),
        text_starts=np.cumsum(lengths) - lengths,
        loss_spans=texts.column("loss_spans").combine_chunks() if with_spans else None,
        plan=replace(plan, piece_text=stream[plan.piece_text]),
    )


def _bytes_of(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """The bytes of all rows of a binary column, one behind the other."""
    array = column.combine_chunks()
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]


def _row_groups(packed: Sequence[_PackedComponent], *, shard: ShardKey, layout: ShardLayout) -> Iterator[pa.Table]:
    """The rows of all components, mixed, in tables of about `ROW_GROUP_TOKENS` tokens."""
    rows_by_component = [component.plan.num_rows for component in packed]
    component_of_row = np.repeat(np.arange(len(packed)), rows_by_component)
    row_in_component = np.arange(len(component_of_row)) - np.repeat(
        np.cumsum(rows_by_component, dtype=np.int64) - rows_by_component, rows_by_component
    )
    order = _random_order(len(component_of_row), "row order", *shard, seed=layout.seed)
    rows_a_group = max(1, ROW_GROUP_TOKENS // layout.sequence_length)
    for begin in range(0, len(order), rows_a_group):
        rows = order[begin : begin + rows_a_group]
        yield packed_columns_to_table(
            _gather_rows(packed, component_of_row[rows], row_in_component[rows], layout=layout),
            sequence_length=layout.sequence_length,
            vocab_size=layout.tokenizer.vocab_size,
        )


def _gather_rows(
    packed: Sequence[_PackedComponent],
    component_of_row: NDArray[np.int64],
    row_in_component: NDArray[np.int64],
    *,
    layout: ShardLayout,
) -> PackedColumns:
    """Some rows in the given order.

    Args:
        packed: The components.
        component_of_row: int64, shape (num_rows,): index of each row's component.
        row_in_component: int64, the same shape: which of its rows.
        layout: What all shards have in common.
    """
    num_rows = len(component_of_row)
    input_ids = np.full(
        (num_rows, layout.sequence_length), layout.tokenizer.pad_id, token_dtype(layout.tokenizer.vocab_size)
    )
    loss_spans = [np.zeros((0, 2), np.int32)] * num_rows if has_loss_spans(layout.components) else None
    segments = []
    for index, component in enumerate(packed):
        positions = np.flatnonzero(component_of_row == index)
        if not len(positions):
            continue
        plan = component.plan
        # The pieces of these rows, one row behind the other.
        rows = row_in_component[positions]
        pieces_a_row = plan.row_offsets[rows + 1] - plan.row_offsets[rows]
        row_of_piece = np.repeat(np.arange(len(rows)), pieces_a_row)
        pieces = (plan.row_offsets[rows] - (np.cumsum(pieces_a_row) - pieces_a_row))[row_of_piece] + np.arange(
            len(row_of_piece)
        )
        texts, lengths = plan.piece_text[pieces], plan.piece_length[pieces]
        starts = component.text_starts[texts] + plan.piece_start[pieces]
        row_lengths = np.bincount(row_of_piece, weights=lengths).astype(np.int64)
        # What is filled of a row stands at its beginning, so the tokens come in the order of the mask.
        is_filled = np.zeros(input_ids.shape, bool)
        is_filled[positions] = np.arange(layout.sequence_length) < row_lengths[:, None]
        input_ids[is_filled] = np.concatenate(
            [component.ids[start:end] for start, end in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
        )
        segments.append((positions[row_of_piece], lengths, component.text_ids.take(pa.array(texts))))
        if loss_spans is not None:
            for row, position in enumerate(positions):
                of_row = slice(*np.searchsorted(row_of_piece, [row, row + 1]))
                loss_spans[position] = row_loss_spans(
                    component.spans_of(texts[of_row]), starts=plan.piece_start[pieces[of_row]], lengths=lengths[of_row]
                )
    row_of_segment = np.concatenate([rows for rows, _, _ in segments])
    by_row = np.argsort(row_of_segment, kind="stable")
    return PackedColumns(
        input_ids=input_ids,
        segment_lengths=np.concatenate([lengths for _, lengths, _ in segments])[by_row].astype(np.int32),
        segment_offsets=np.concatenate([[0], np.cumsum(np.bincount(row_of_segment, minlength=num_rows))]),
        components=pa.array([component.name for component in packed]).take(pa.array(component_of_row)),
        text_ids=pa.concat_arrays([text_ids for _, _, text_ids in segments]).take(pa.array(by_row)),
        loss_spans=loss_spans,
    )


def _random_order(num_items: int, *names: Name, seed: int) -> NDArray[np.int64]:
    """A permutation that depends on the seed and the names alone, int64 of shape (num_items,)."""
    # The raw words of a bit generator stay the same from one NumPy release to the next; permutation() may not.
    return np.argsort(rng(seed, *names).bit_generator.random_raw(num_items), kind="stable")


def _counts(held: Holdings, plan: RowPlan) -> ComponentCounts:
    return ComponentCounts(
        num_documents=held.num_documents,
        num_texts=held.num_texts,
        num_available_tokens=held.num_tokens,
        epochs=plan.num_tokens / held.num_tokens,
        num_rows=plan.num_rows,
        num_tokens=plan.num_tokens,
        num_padding_tokens=plan.num_padding_tokens,
        num_truncations=plan.num_truncations,
        num_dropped_tokens=plan.num_dropped_tokens,
    )


def total_counts(
    reports: Iterable[ShardReport], *, requested: Mapping[str, Fraction]
) -> dict[str, dict[Split, ComponentCounts]]:
    """The counts of all shards added up by component and split.

    Args:
        reports: All shards.
        requested: Tokens that the mixture asks for, by component; of validation everything is asked for.
    """
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
            num_requested_tokens=round(requested[name]) if split == "train" else num_available,
            epochs=round(num_tokens / num_available, 6),
            num_rows=sum(counts.num_rows for counts in members),
            num_tokens=num_tokens,
            num_padding_tokens=sum(counts.num_padding_tokens for counts in members),
            num_truncations=sum(counts.num_truncations for counts in members),
            num_dropped_tokens=sum(counts.num_dropped_tokens for counts in members),
        )
    return dict(totals)
