"""Small folders of shards, and the tokenizer to go with them, written through the contract."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from contracts import storage
from contracts.manifest import (
    SPLITS,
    ComponentCounts,
    ShardEntry,
    ShardManifest,
    Split,
    TokenizerEntry,
    complete_artifact,
)
from contracts.records import PackedRow
from contracts.schemas import packed_rows_to_table
from contracts.seeding import rng

VOCAB_SIZE = 512
SEQUENCE_LENGTH = 32


def write_tokenizer(folder: str, *, num_words: int = VOCAB_SIZE - 2, prefix: str = "w") -> str:
    """A word-level tokenizer of ``num_words`` words and two special tokens in a folder; returns its hash.

    One with more words and the same prefix extends it.
    """
    from trainer.shard_tokenizer import tokenizer_sha256

    vocabulary = {"<unk>": 0, "<eos>": 1, **{f"{prefix}{index}": index + 2 for index in range(num_words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    return tokenizer_sha256(Tokenizer.from_file(os.path.join(folder, "tokenizer.json")))


def make_rows(
    num_rows: int,
    *,
    component: str,
    seed: int = 0,
    sequence_length: int = SEQUENCE_LENGTH,
    vocab_size: int = VOCAB_SIZE,
    with_loss_spans: bool = False,
) -> list[PackedRow]:
    """Rows of one to three texts, some with padding; the ids count upwards, so that there is something to learn."""
    rows = []
    for index in range(num_rows):
        draw = rng(seed, "row", component, index)
        num_padding = int(draw.integers(0, sequence_length // 4))
        num_segments = int(draw.integers(1, 4))
        cuts = np.sort(draw.choice(np.arange(1, sequence_length - num_padding), num_segments - 1, replace=False))
        lengths = np.diff([0, *cuts, sequence_length - num_padding]).astype(np.int32)
        ids = np.full(sequence_length, 1, np.int64)
        ids[: lengths.sum()] = (int(draw.integers(vocab_size)) + np.arange(lengths.sum())) % vocab_size
        rows.append(
            PackedRow(
                input_ids=ids,
                segment_lengths=lengths,
                component=component,
                text_ids=tuple(f"{component}-{index}-{number}" for number in range(num_segments)),
                loss_spans=np.array([[2, sequence_length // 2]], np.int32) if with_loss_spans else None,
            )
        )
    return rows


def write_shards(
    folder: str,
    rows_by_split: Mapping[Split, Sequence[Sequence[PackedRow]]],
    *,
    tokenizer_folder: str,
    tokenizer_sha256: str,
    vocab_size: int = VOCAB_SIZE,
    sequence_length: int = SEQUENCE_LENGTH,
) -> ShardManifest:
    """Writes and completes a folder of shards: for each split a list of shards, each a list of rows."""
    os.makedirs(folder, exist_ok=True)
    with_loss_spans = any(
        row.loss_spans is not None for shards in rows_by_split.values() for rows in shards for row in rows
    )
    entries: list[ShardEntry] = []
    for split in SPLITS:
        for rows in rows_by_split.get(split, ()):
            path = f"{split}-{len(entries):05d}.parquet"
            table = packed_rows_to_table(
                rows, sequence_length=sequence_length, vocab_size=vocab_size, with_loss_spans=with_loss_spans
            )
            pq.write_table(table, os.path.join(folder, path), row_group_size=3)
            components = sorted({row.component for row in rows})
            entries.append(
                ShardEntry(
                    path=path,
                    split=split,
                    num_rows=len(rows),
                    num_bytes=os.path.getsize(os.path.join(folder, path)),
                    sha256=storage.file_sha256(os.path.join(folder, path)),
                    rows_by_component={name: sum(row.component == name for row in rows) for name in components},
                    tokens_by_component={
                        name: sum(int(row.segment_lengths.sum()) for row in rows if row.component == name)
                        for name in components
                    },
                )
            )
    names = sorted({name for entry in entries for name in entry.rows_by_component})
    no_counts = ComponentCounts(
        num_documents=0,
        num_texts=0,
        num_available_tokens=0,
        epochs=1.0,
        num_rows=0,
        num_tokens=0,
        num_padding_tokens=0,
        num_truncations=0,
    )
    components_by_split: dict[str, dict[Split, ComponentCounts]] = {}
    for name in names:
        for split in SPLITS:
            num_rows = sum(entry.rows_by_component.get(name, 0) for entry in entries if entry.split == split)
            num_tokens = sum(entry.tokens_by_component.get(name, 0) for entry in entries if entry.split == split)
            components_by_split.setdefault(name, {})[split] = replace(
                no_counts,
                num_rows=num_rows,
                num_tokens=num_tokens,
                num_padding_tokens=num_rows * sequence_length - num_tokens,
            )
    return complete_artifact(
        folder,
        ShardManifest(
            sequence_length=sequence_length,
            tokenizer=TokenizerEntry(name=tokenizer_folder, sha256=tokenizer_sha256),
            vocab_size=vocab_size,
            special_ids={"eos": 1, "pad": 1},
            has_loss_spans=with_loss_spans,
            shards=tuple(entries),
            components=components_by_split,
            inputs={},
            config={},
        ),
    )


def write_example_shards(folder: str, *, num_train_rows: int = 21, num_validation_rows: int = 6, seed: int = 0) -> str:
    """Shards of two components in three training shards and one validation shard; returns their folder.

    The tokenizer lies beside them in ``folder/tokenizer``.
    """
    tokenizer_folder = os.path.join(folder, "tokenizer")
    sha256 = write_tokenizer(tokenizer_folder)
    shards = os.path.join(folder, "shards")

    def mixed(num_rows: int, name: str) -> list[PackedRow]:
        raw = make_rows(num_rows - num_rows // 3, component="raw", seed=seed + len(name))
        instructions = make_rows(num_rows // 3, component="instructions", seed=seed + len(name))
        rows = raw + instructions
        return [rows[index] for index in rng(seed, "mix", name).permutation(len(rows))]

    train = mixed(num_train_rows, "train")
    third = -(-len(train) // 3)
    write_shards(
        shards,
        {
            "train": [train[:third], train[third : 2 * third], train[2 * third :]],
            "validation": [mixed(num_validation_rows, "validation")] if num_validation_rows else [],
        },
        tokenizer_folder=tokenizer_folder,
        tokenizer_sha256=sha256,
    )
    return shards
