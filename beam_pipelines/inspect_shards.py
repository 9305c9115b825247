"""``python -m beam_pipelines inspect SHARDS``: what a folder of shards holds, and one of its rows as text.

Shown are the totals of the manifest, how long the segments of the rows are, and a row with the boundaries of its texts
and, where the shards have them, its loss spans. What the row's texts were made from is `beam_pipelines.trace`'s matter.

Cost: of all shards the lengths of segments, of one shard a row group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from beam_pipelines.pack import describe
from beam_pipelines.shard_rows import open_tokenizer, printable, read_row
from contracts import storage
from contracts.manifest import ShardManifest, Split, read_shard_manifest
from contracts.records import PackedRow

_BAR_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Settings of ``inspect``.

    Args:
        shards: The folder of shards.
        row: Number of the row to show; rows count through the shards of the split in the manifest's order.
        split: ``train`` or ``validation``.
        tokenizer: Where the shards' tokenizer lies now, if not where the manifest says.
    """

    shards: str
    row: int = 0
    split: Split = "train"
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LengthHistogram:
    """How many segments of each component have which length.

    Args:
        first_lengths: int64, shape (num_bins,): least length of each bin, powers of two. A bin ends before the next.
        counts: For each component int64 of shape (num_bins,).
    """

    first_lengths: NDArray[np.int64]
    counts: dict[str, NDArray[np.int64]]


def segment_lengths(folder: str, *, manifest: ShardManifest, split: Split) -> LengthHistogram:
    """The lengths of all segments of a split; a text that goes on in another row counts as one in each."""
    num_bins = int(manifest.sequence_length).bit_length()
    counts = {name: np.zeros(num_bins, np.int64) for name in manifest.components}
    for entry in manifest.shards_of(split):
        url = storage.join(folder, entry.path)
        try:
            with storage.open_input(url) as content:
                table = pq.read_table(content, columns=["component", "segment_lengths"])
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"The shard {url} is missing or damaged ({type(error).__name__}); verify {folder} names what else is. "
                "Pack it again."
            ) from error
        components = table.column("component").cast("string")
        for name in pc.unique(components).to_pylist():
            lengths = pc.list_flatten(table.column("segment_lengths").filter(pc.equal(components, name))).to_numpy()
            # A length of n bits is at least 2 ** (n - 1).
            bins = np.frexp(lengths.astype(np.float64))[1] - 1
            counts[name] += np.bincount(bins, minlength=num_bins)
    return LengthHistogram(first_lengths=1 << np.arange(num_bins, dtype=np.int64), counts=counts)


def print_totals(folder: str, *, manifest: ShardManifest, console: Console) -> None:
    """Prints what the manifest says of the whole."""
    _say(console, describe(manifest, output=folder))
    for split in ("train", "validation"):
        entries = manifest.shards_of(split)
        num_bytes = sum(entry.num_bytes for entry in entries)
        _say(console, f"{split:11} {len(entries)} files, {manifest.num_rows(split)} rows, {num_bytes / 1e6:.1f} MB")
    _say(
        console,
        f"tokenizer   {manifest.tokenizer.name} ({manifest.vocab_size} ids, {manifest.tokenizer.sha256[:12]}…)",
    )
    _say(console, f"loss on     {'the spans that the rows name' if manifest.has_loss_spans else 'every token'}")
    _say(console, f"fingerprint {manifest.fingerprint}")


def print_lengths(histogram: LengthHistogram, *, console: Console) -> None:
    """Prints the histogram: a line a bin, from the shortest segments that there are to the longest."""
    total = sum(histogram.counts.values(), np.zeros(len(histogram.first_lengths), np.int64))
    used = np.flatnonzero(total)
    if not len(used):
        return
    table = Table(box=None, pad_edge=False, title="Lengths of segments in tokens", title_justify="left")
    table.add_column("from", justify="right")
    table.add_column("to", justify="right")
    for name in histogram.counts:
        table.add_column(Text(name), justify="right")
    table.add_column("")
    for index in range(used[0], used[-1] + 1):
        first = int(histogram.first_lengths[index])
        bar = "█" * round(_BAR_CHARACTERS * int(total[index]) / int(total.max()))
        table.add_row(str(first), str(2 * first - 1), *(str(c[index]) for c in histogram.counts.values()), bar)
    console.print(table)


def row_as_text(row: PackedRow, *, tokenizer: Any) -> Iterator[Text]:
    """A row in lines: before each text one that says which it is and where it stands, then the text.

    Where the row has loss spans, tokens that are no target are dim.
    """
    spans = [(0, len(row.input_ids))] if row.loss_spans is None else row.loss_spans.tolist()
    is_target = np.zeros(len(row.input_ids), dtype=bool)
    for start, end in spans:
        is_target[start:end] = True
    position = 0
    for number, (text_id, length) in enumerate(zip(row.text_ids, row.segment_lengths.tolist(), strict=True), start=1):
        end = position + length
        targets = "" if row.loss_spans is None else f", {int(is_target[position:end].sum())} of them targets"
        yield Text(
            f"── text {number} of {len(row.text_ids)}: {printable(text_id)}, tokens {position} to {end - 1}{targets}",
            style="bold",
        )
        shown = Text()
        cuts = [position, *(np.flatnonzero(np.diff(is_target[position:end])) + position + 1).tolist(), end]
        for first, last in itertools.pairwise(cuts):
            decoded = tokenizer.decode(row.input_ids[first:last], clean_up_tokenization_spaces=False)
            shown.append(printable(decoded), style="" if is_target[first] else "dim")
        yield shown
        position = end
    if position < len(row.input_ids):
        yield Text(f"── padding, tokens {position} to {len(row.input_ids) - 1}", style="bold")


def _say(console: Console, line: str | Text) -> None:
    # What stands in a corpus or a path is data: the terminal library reads no markup in it.
    console.print(line if isinstance(line, Text) else Text(line), soft_wrap=True, highlight=False)


def main(config: InspectConfig) -> int:
    """Runs the command; returns its exit status."""
    console = Console()
    manifest = read_shard_manifest(config.shards)
    row = read_row(config.shards, manifest=manifest, split=config.split, row_number=config.row)
    print_totals(config.shards, manifest=manifest, console=console)
    console.print()
    print_lengths(segment_lengths(config.shards, manifest=manifest, split=config.split), console=console)
    console.print()
    _say(console, f"Row {config.row} of {config.split}: component {row.component}")
    tokenizer = open_tokenizer(manifest, name_or_path=config.tokenizer)
    for line in row_as_text(row, tokenizer=tokenizer):
        _say(console, line)
    return 0
