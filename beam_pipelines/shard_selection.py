"""Which tokenized texts a shard holds of each component.

A shard is a range of keys (`beam_pipelines.tokenized_parts`): every part of every component gives it the texts in that
range, less those that the component's fraction does not draw, and those whose document stands, whole or in parts, in a
text that another component draws and this one excludes. Documents with the same id, and the parts of a document, have
the same key, so the documents to leave out lie in the same range: a shard decides alone, and exactly.

Cost: reading the range, the keys twice: once to count, once to write. Memory: the shard's texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipelines.component_tokenization import TokenizedUnit
from beam_pipelines.mixing import KINDS_WITH_LOSS_SPANS, ComponentConfig
from beam_pipelines.tokenized_parts import DOCUMENT_SCHEMA, is_drawn, key_range, read_range, text_schema
from contracts import storage
from contracts.manifest import SPLITS, Split
from synth_model.text_splitting import PART_MARK

ShardKey = tuple[Split, int]
_COUNTED_COLUMNS = ("key", "text_id", "num_documents", "num_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """What a shard holds of a component, every text once.

    Args:
        num_documents: Documents in the texts.
        num_texts: Texts.
        num_tokens: Their tokens.
        num_usable_tokens: Of these, how many may stand in rows: fewer where long texts are cut.
    """

    num_documents: int
    num_texts: int
    num_tokens: int
    num_usable_tokens: int


def shard_counts(
    units: Sequence[TokenizedUnit], *, num_shards: Mapping[Split, int | None], shard_tokens: int
) -> dict[Split, int]:
    """Shards of each split: as many as asked for, or as many as hold about ``shard_tokens`` tokens each, at least 1."""
    num_tokens = {
        split: sum(part.num_tokens for unit in units for part in unit.index.texts if part.split == split)
        for split in SPLITS
    }
    return {split: num_shards[split] or max(1, -(-num_tokens[split] // shard_tokens)) for split in SPLITS}


def count_holdings(
    shard: ShardKey,
    *,
    count: int,
    components: Sequence[ComponentConfig],
    units: Sequence[TokenizedUnit],
    max_usable: int | None,
) -> dict[str, Holdings]:
    """What a shard holds of each component; one that it holds nothing of is absent.

    Args:
        shard: Split and number.
        count: Shards in the split.
        components: The mixture.
        units: All tokenized units.
        max_usable: Tokens of a text that may stand in rows; None for all.
    """
    holdings = {}
    for component in components:
        table = select_texts(
            shard, count=count, component=component, components=components, units=units, with_tokens=False
        )
        if table.num_rows:
            lengths = table.column("num_tokens").to_numpy()
            holdings[component.name] = Holdings(
                num_documents=int(table.column("num_documents").to_numpy().sum()),
                num_texts=table.num_rows,
                num_tokens=int(lengths.sum()),
                num_usable_tokens=int(np.minimum(lengths, max_usable or lengths).sum()),
            )
    return holdings


def select_texts(
    shard: ShardKey,
    *,
    count: int,
    component: ComponentConfig,
    components: Sequence[ComponentConfig],
    units: Sequence[TokenizedUnit],
    with_tokens: bool = True,
) -> pa.Table:
    """The texts that a shard holds of a component, in an order that depends on nothing but them.

    Args:
        shard: Split and number.
        count: Shards in the split.
        component: The component.
        components: The mixture, which says how much of its texts an excluded component draws.
        units: All tokenized units.
        with_tokens: Whether ids and loss spans are wanted.

    Returns:
        A table of `text_schema`, or of its first four columns. Without tokens the order is any.
    """
    split, number = shard
    keys = key_range(number, count=count)
    schema = text_schema(with_loss_spans=component.kind in KINDS_WITH_LOSS_SPANS)
    if not with_tokens:
        schema = pa.schema([schema.field(name) for name in _COUNTED_COLUMNS])
    parts = _parts_of(component.name, units=units, split=split)
    table = _drawn(_read(parts, keys, schema=schema), fraction=component.fraction, key="key")
    for other in components:
        if other.name in component.exclude_documents_of:
            documents = _documents_of(other.name, units=units)
            excluded = _drawn(_read(documents, keys, schema=DOCUMENT_SCHEMA), fraction=other.fraction, key="text_key")
            # Of the kinds that may exclude, a text is a document, or a part of one, and has its id.
            whole_ids = pc.replace_substring_regex(table.column("text_id"), PART_MARK.pattern, "")
            table = table.filter(pc.invert(pc.is_in(whole_ids, excluded.column("doc_id"))))
    return table.take(pa.array(_canonical_order(table))).combine_chunks() if with_tokens else table


def _parts_of(component: str, *, units: Sequence[TokenizedUnit], split: Split) -> list[str]:
    return [
        storage.join(unit.index.folder, part.path)
        for unit in units
        if unit.component == component
        for part in unit.index.texts
        if part.split == split
    ]


def _documents_of(component: str, *, units: Sequence[TokenizedUnit]) -> list[str]:
    # Of both splits: a document that is validated on in another form must not be trained on either.
    return [
        storage.join(unit.index.folder, path)
        for unit in units
        if unit.component == component
        for path in unit.index.documents
    ]


def _read(urls: Sequence[str], keys: tuple[int, int], *, schema: pa.Schema) -> pa.Table:
    """The rows of several parts in a range of keys, with the columns of a schema."""
    # One after the other: threads would hide the latency of a remote storage, but Arrow keeps memory for each of them.
    return pa.concat_tables([schema.empty_table(), *(read_range(url, keys, columns=schema.names) for url in urls)])


def _drawn(table: pa.Table, *, fraction: float, key: str) -> pa.Table:
    if fraction == 1:
        return table
    return table.filter(pa.array(is_drawn(table.column(key).to_numpy(), fraction=fraction)))


def _canonical_order(table: pa.Table) -> NDArray[np.int64]:
    """By key; texts of the same document by their id, then by their tokens."""
    keys = table.column("key").to_numpy()
    order = np.argsort(keys, kind="stable")
    is_tie = np.diff(keys[order]) == 0
    if is_tie.any():
        # Runs of equal keys, as half-open ranges of positions.
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_tie, [False]]).astype(np.int8)))
        text_ids, ids = table.column("text_id"), table.column("ids")
        for first, last in edges.reshape(-1, 2):
            run = order[first : last + 1]
            named = sorted(run.tolist(), key=lambda row: (text_ids[row].as_py(), ids[row].as_py()))
            order[first : last + 1] = named
    return order
