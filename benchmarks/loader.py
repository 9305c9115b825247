"""What reading the training rows costs: to decode the shards, to fetch rows, in memory, and of a step.

``python -m benchmarks.loader MODEL_FOLDER`` makes shards of its own in a temporary folder, two components of rows of
``--sequence_length`` tokens drawn from a Zipf distribution over the model's vocabulary, 2^23 tokens a shard as ``pack``
has them, and then measures, each in a process of its own:

- *decoding*: what the first start of a run waits for, from Parquet to the mapped files, on a cold disk and a warm one;
- *rows alone*: steps of ``--rows_per_step`` rows and nothing else, without and with reading ahead, after the pages of
  the files were dropped from memory, and again; with weights as well, which look rows up by component;
- *memory*: what the process holds of its own after those steps, with the tokens and with ten times as many. Pages of
  mapped files are not in it: the system takes them back whenever it needs them;
- *of a step*: training of the model itself, ``--steps`` steps of one row of 512 tokens, and the part of the time in
  steps that it waited for rows, without and with reading ahead; the first step, for which nothing can have been read
  ahead, also by itself.

Cost: disk space of about 6 bytes a token, ten times that with ``--growth``; a minute or two on two cores, and the
training, about a second a step and ten for each of its starts.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from contracts.manifest import (
    ComponentCounts,
    ShardEntry,
    ShardManifest,
    TokenizerEntry,
    complete_artifact,
    read_shard_manifest,
)
from contracts.parquet_files import part_name, write_packed_rows
from contracts.schemas import PackedColumns, packed_columns_to_table, packed_row_schema
from contracts.seeding import rng

SHARD_TOKENS = 1 << 23
ROW_GROUP_TOKENS = 1 << 20
TOKENS_A_TEXT = 400
COMPONENTS = ("augmented", "raw")
WEIGHTS = {"raw": 2.5, "augmented": 0.5}
MAX_SHARE = 0.01


def write_shards(folder: str, *, model: str, num_shards: int, shard_tokens: int, sequence_length: int) -> None:
    """Full rows of texts of about the same length, in shards as ``pack`` writes them."""
    from tokenizers import Tokenizer

    from trainer.shard_tokenizer import tokenizer_sha256

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    vocab_size = tokenizer.get_vocab_size()
    os.makedirs(folder)
    schema = packed_row_schema(sequence_length=sequence_length, vocab_size=vocab_size)
    num_texts = max(1, sequence_length // TOKENS_A_TEXT)
    lengths = np.diff(np.linspace(0, sequence_length, num_texts + 1).astype(np.int32))

    def row_group(shard: int, number: int, num_rows: int) -> pa.Table:
        draw = rng(0, "tokens", shard, number)
        ids = np.minimum(draw.zipf(1.2, (num_rows, sequence_length)), vocab_size) - 1
        components = np.array(COMPONENTS)[draw.integers(0, len(COMPONENTS), num_rows)]
        return packed_columns_to_table(
            PackedColumns(
                input_ids=ids,
                segment_lengths=np.tile(lengths, num_rows),
                segment_offsets=np.arange(num_rows + 1) * num_texts,
                components=pa.array(components),
                text_ids=pa.array([f"{shard}-{number}-{text}" for text in range(num_rows * num_texts)]),
            ),
            sequence_length=sequence_length,
            vocab_size=vocab_size,
        )

    rows_a_shard, rows_a_group = shard_tokens // sequence_length, max(1, ROW_GROUP_TOKENS // sequence_length)
    entries = []
    for shard in range(num_shards):
        sizes = [min(rows_a_group, rows_a_shard - begin) for begin in range(0, rows_a_shard, rows_a_group)]
        groups = [row_group(shard, number, size) for number, size in enumerate(sizes)]
        path = part_name("shard", index=shard, count=num_shards)
        file = write_packed_rows(folder, path=path, schema=schema, row_groups=groups)
        counts = pa.concat_tables(groups).column("component").cast(pa.string()).value_counts().to_pylist()
        rows_by_component = {item["values"]: item["counts"] for item in counts}
        entries.append(
            ShardEntry(
                path=path,
                split="train",
                num_rows=file.num_rows,
                num_bytes=file.num_bytes,
                sha256=file.sha256,
                rows_by_component=rows_by_component,
                tokens_by_component={name: count * sequence_length for name, count in rows_by_component.items()},
            )
        )

    def totals(name: str, *, is_train: bool) -> ComponentCounts:
        num_rows = sum(entry.rows_by_component.get(name, 0) for entry in entries) * is_train
        return ComponentCounts(
            num_documents=num_rows * num_texts,
            num_texts=num_rows * num_texts,
            num_available_tokens=num_rows * sequence_length,
            epochs=1.0,
            num_rows=num_rows,
            num_tokens=num_rows * sequence_length,
            num_padding_tokens=0,
            num_truncations=0,
        )

    complete_artifact(
        folder,
        ShardManifest(
            sequence_length=sequence_length,
            tokenizer=TokenizerEntry(name=model, sha256=tokenizer_sha256(tokenizer)),
            vocab_size=vocab_size,
            special_ids={},
            has_loss_spans=False,
            shards=tuple(entries),
            components={
                name: {"train": totals(name, is_train=True), "validation": totals(name, is_train=False)}
                for name in COMPONENTS
            },
            inputs={},
            config={},
        ),
    )


def drop_pages(folder: str) -> None:
    """Makes the system forget what it holds in memory of the files of a folder."""
    for path in glob.glob(f"{folder}/*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def private_megabytes() -> float:
    """Memory of this process without mapped files, in 10^6 bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("RssAnon"))


def decode(args: argparse.Namespace) -> dict[str, float]:
    """Seconds and bytes of decoding all shards; the cache stays for what is measured next."""
    from trainer.shard_dataset import ShardDataset

    manifest = read_shard_manifest(args.shards)
    start = time.perf_counter()
    ShardDataset(args.shards, manifest=manifest, split="train", cache=args.cache)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    ShardDataset(args.shards, manifest=manifest, split="train", cache=args.cache)
    return {
        "seconds": seconds,
        "bytes": sum(os.path.getsize(path) for path in glob.glob(f"{args.cache}/*.arrow")),
        "parquet_bytes": sum(entry.num_bytes for entry in manifest.shards),
        "opening_seconds": time.perf_counter() - start,
        "num_shards": len(manifest.shards),
    }


def read(args: argparse.Namespace) -> dict[str, float]:
    """Rows and tokens a second of a number of steps, and the memory after them."""
    import torch

    from trainer.row_sampler import Position
    from trainer.shard_dataset import ShardDataset
    from trainer.step_loader import StepLoader

    torch.set_num_threads(1)
    manifest = read_shard_manifest(args.shards)
    dataset = ShardDataset(args.shards, manifest=manifest, split="train", cache=args.cache)
    before = private_megabytes()
    loader = StepLoader(
        dataset,
        rows_per_step=args.rows_per_step,
        seed=0,
        component_weights=WEIGHTS if args.weighted else {},
        process_index=0,
        num_processes=1,
        micro_batch_rows=8,
        num_prefetched_steps=args.prefetch,
    )
    num_steps = max(1, 4096 // args.rows_per_step)
    position = Position()
    with loader:
        start = time.perf_counter()
        for _ in range(num_steps):
            position = loader.step(position).next_position
        seconds = time.perf_counter() - start
    rows_per_second = num_steps * args.rows_per_step / seconds
    return {
        "rows_per_second": rows_per_second,
        "tokens_per_second": rows_per_second * manifest.sequence_length,
        "megabytes": private_megabytes(),
        "megabytes_more": private_megabytes() - before,
    }


def train(args: argparse.Namespace) -> dict[str, float]:
    """Trains on rows of 512 tokens; seconds in steps, and seconds waited for rows in all steps and in the first."""
    from trainer.pretrain import main as pretrain

    with tempfile.TemporaryDirectory() as output:
        arguments = [
            *("--shards", args.shards, "--output", output, "--data.cache", args.cache, "--device", "cpu"),
            *("--model.name_or_path", args.model, "--data.prefetch_steps", str(args.prefetch)),
            *("--max_steps", str(args.steps), "--batch.rows_per_step", "1", "--checkpoint.every_steps", "null"),
            *("--validation.at_start", "false", "--validation.at_end", "false"),
        ]
        if status := pretrain(arguments):
            raise SystemExit(f"Training ended with status {status}.")
        records = [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": records[-1]["seconds"],
        "data_seconds": sum(record["data_seconds"] for record in records),
        "first_data_seconds": records[0]["data_seconds"],
    }


_WORK = {"decode": decode, "read": read, "train": train}


def measure(work: str, *, model: str, **settings: Any) -> dict[str, float]:
    """One measurement in a process of its own."""
    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.loader", model, "--work", work, *options]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{work}: status {process.returncode}\n{process.stderr[-2000:]}")
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def show_decoding(label: str, result: dict[str, float]) -> None:
    """One line about decoding."""
    gigabytes = result["bytes"] / 1e9
    print(
        f"decoding, {label}: {gigabytes:.2f} GB from {result['parquet_bytes'] / 1e9:.2f} GB of Parquet in "
        f"{result['seconds']:.2f} s, {gigabytes / result['seconds'] * 60:.1f} GB/min; opening again "
        f"{result['opening_seconds'] * 1e3 / result['num_shards']:.2f} ms a shard",
        flush=True,
    )


def compare(folder: str, *, args: argparse.Namespace) -> None:
    """Everything but training."""
    names = ["shards"] + (["ten-times"] if args.growth else [])
    megabytes = {}
    for name in names:
        shards, cache = f"{folder}/{name}", f"{folder}/{name}-rows"
        write_shards(
            shards,
            model=args.model,
            num_shards=args.num_shards * (10 if name == "ten-times" else 1),
            shard_tokens=SHARD_TOKENS,
            sequence_length=args.sequence_length,
        )
        drop_pages(shards)
        show_decoding("cold", measure("decode", model=args.model, shards=shards, cache=cache))
        if name == "shards":
            show_decoding("warm", measure("decode", model=args.model, shards=shards, cache=f"{cache}-again"))
            print("\nrows alone       prefetch   pages    rows/s   Mtokens/s     MB")
        for weighted in (0, 1) if name == "shards" else (0,):
            for prefetch in (0, 2):
                for pages in ("cold", "warm"):
                    if pages == "cold":
                        drop_pages(cache)
                    result = measure(
                        "read",
                        model=args.model,
                        shards=shards,
                        cache=cache,
                        prefetch=prefetch,
                        rows_per_step=args.rows_per_step,
                        weighted=weighted,
                    )
                    megabytes[name] = result["megabytes"]
                    print(
                        f"{'weighted' if weighted else 'plain':15}  {prefetch:8}   {pages:5}  "
                        f"{result['rows_per_second']:8.0f}  {result['tokens_per_second'] / 1e6:10.1f}  "
                        f"{result['megabytes']:5.0f}",
                        flush=True,
                    )
    if args.growth:
        print(f"\nten times the tokens: {megabytes['ten-times'] / megabytes['shards']:.3f} times the memory")


def show_shares(folder: str, *, args: argparse.Namespace) -> None:
    """Training with and without reading ahead, in turn."""
    shards = f"{folder}/short"
    write_shards(shards, model=args.model, num_shards=2, shard_tokens=1 << 20, sequence_length=512)
    print(f"\nof a step        prefetch   seconds   waited   share (at most {MAX_SHARE:.0%})   first step")
    for _ in range(args.turns):
        for prefetch in (0, 2):
            result = measure(
                "train", model=args.model, shards=shards, cache=f"{shards}-rows", prefetch=prefetch, steps=args.steps
            )
            print(
                f"{args.steps} steps of 512   {prefetch:8}  {result['seconds']:7.2f}s  {result['data_seconds']:6.4f}s  "
                f"{result['data_seconds'] / result['seconds']:20.4%}   {result['first_data_seconds']:9.4f}s",
                flush=True,
            )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader")
    parser.add_argument("model", help="model folder with tokenizer.json")
    parser.add_argument("--num_shards", type=int, default=8, help="shards of 2^23 tokens")
    parser.add_argument("--sequence_length", type=int, default=2048)
    parser.add_argument("--rows_per_step", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="steps of training; 0 leaves it out")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--growth", action="store_true", help="with ten times the tokens as well")
    parser.add_argument("--folder", help="where to make the shards; by default where temporary files go")
    for name in ("work", "shards", "cache"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("prefetch", "weighted"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(_WORK[args.work](args)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(folder, args=args)
        if args.steps:
            show_shares(folder, args=args)


if __name__ == "__main__":
    main()
