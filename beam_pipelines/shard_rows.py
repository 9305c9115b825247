"""Single rows of shards, read and made readable: for looking inside, not for training.

Cost: a row is found by the counts of the manifest, and of its file only the row group that it stands in is read.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from beam_pipelines.tokenizer_loading import load_tokenizer
from contracts import storage
from contracts.manifest import ShardManifest, Split
from contracts.records import PackedRow
from contracts.schemas import packed_rows_from_batch


def read_row(folder: str, *, manifest: ShardManifest, split: Split, row_number: int) -> PackedRow:
    """The row with a global number: rows of a split count through its shards in the order of the manifest.

    Raises:
        ValueError: There is no such row, or its shard is missing.
    """
    num_rows = manifest.num_rows(split)
    if not 0 <= row_number < num_rows:
        allowed = f"give a row from 0 to {num_rows - 1}" if num_rows else "there is none"
        raise ValueError(f"Row {row_number} is not in {folder}: the split {split!r} has {num_rows} rows; {allowed}.")
    for entry in manifest.shards_of(split):
        if row_number < entry.num_rows:
            break
        row_number -= entry.num_rows
    url = storage.join(folder, entry.path)
    if not storage.exists(url):
        raise ValueError(f"The shard {url} is missing, though the manifest lists it.")
    with storage.open_input(url) as content:
        file = pq.ParquetFile(content)
        group = 0
        while row_number >= (num_rows_of_group := file.metadata.row_group(group).num_rows):
            row_number -= num_rows_of_group
            group += 1
        (batch,) = file.read_row_group(group).slice(row_number, 1).combine_chunks().to_batches()
    return next(packed_rows_from_batch(batch))


def open_tokenizer(manifest: ShardManifest, *, name_or_path: str | None = None) -> Any:
    """The Hugging Face tokenizer that the shards were packed with, to decode their rows.

    Args:
        manifest: The shards' manifest.
        name_or_path: Where it lies now, if not where the manifest says.

    Raises:
        ValueError: There is none, or it is another one.
    """
    from synth_model.prompt_tokenizer import ModelTokenizer

    place = name_or_path or manifest.tokenizer.name
    description = load_tokenizer(place, add_bos=False, add_eos=False).description
    if description.sha256 != manifest.tokenizer.sha256:
        raise ValueError(
            f"The tokenizer {place} is another one ({description.sha256[:12]}…) than the shards were packed with "
            f"({manifest.tokenizer.sha256[:12]}…). Name theirs by --tokenizer."
        )
    return ModelTokenizer(place).tokenizer


# Every control character but line feed and tab, as the sign that stands for it.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """A text of a corpus for a terminal, which would obey its control characters."""
    return text.translate({**_CONTROL_PICTURES, 0x7F: 0x2421})
