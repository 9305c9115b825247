"""What of the tuning data the training rows hold, and what became of the rest.

Of the texts that ``tasks`` takes, those that are longer than a row are rejected by ``pack``, and whole chains are drawn
for the validation loss. A card that gave the former count would claim more data than the weights have seen.

Cost: one pass over the corpus, and over one column of the shards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import storage
from contracts.manifest import ShardManifest, Split, read_shard_manifest
from synth_model.evaluation.text_selection import read_gold_examples_of_chains
from synth_model.tuning_sequences import chain_id_of_sequence


@dataclass(kw_only=True, slots=True)
class DataCounts:
    """Where the texts of a dataset went.

    Args:
        num_texts: Texts in the rows that are trained on.
        num_pairs: Their pairs.
        num_validation: Texts in the rows of the validation loss.
        num_rejected: Texts that ``pack`` rejected: those longer than a row.
    """

    num_texts: int = 0
    num_pairs: int = 0
    num_validation: int = 0
    num_rejected: int = 0


def count_data(*, tasks: str, shards: str) -> dict[str, DataCounts]:
    """The counts by dataset, in the order of their names.

    Args:
        tasks: The augmented corpus of the tuning data.
        shards: What ``pack`` made of it.

    Raises:
        ValueError: A folder is missing, not completed or damaged.
    """
    manifest = read_shard_manifest(shards)
    trained = set(_chain_ids(manifest, folder=shards, split="train"))
    validated = set(_chain_ids(manifest, folder=shards, split="validation"))
    rejected = set(_rejected_ids(manifest, folder=shards))
    counts: defaultdict[str, DataCounts] = defaultdict(DataCounts)
    for chain_id, example in read_gold_examples_of_chains(tasks):
        of_dataset = counts[example.document.source]
        if example.document.doc_id in rejected:
            of_dataset.num_rejected += 1
        elif chain_id in validated:
            of_dataset.num_validation += 1
        elif chain_id in trained:
            of_dataset.num_texts += 1
            of_dataset.num_pairs += len(example.pairs)
    return dict(sorted(counts.items()))


def _chain_ids(manifest: ShardManifest, *, folder: str, split: Split) -> Iterator[str]:
    for entry in manifest.shards_of(split):
        with storage.open_input(storage.join(folder, entry.path)) as file:
            column = pq.read_table(file, columns=["text_ids"])["text_ids"]
        yield from map(chain_id_of_sequence, pc.unique(pc.list_flatten(column)).to_pylist())


def _rejected_ids(manifest: ShardManifest, *, folder: str) -> Iterator[str]:
    for entry in manifest.rejects:
        with storage.open_input(storage.join(folder, entry.path)) as file:
            yield from pq.read_table(file, columns=["doc_id"])["doc_id"].to_pylist()
