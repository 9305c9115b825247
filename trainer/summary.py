"""``python -m trainer summarize --config FILE``: what a run read, made and learnt, traced back from its model.

Every figure comes from the artifacts' own manifests, found by following the run backwards: the training run names its
shards, the shards name the augmented corpora that they were packed from. Nothing is computed again and nothing is
written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contracts import storage
from contracts.artifact import completed_fingerprint
from contracts.manifest import (
    AugmentedCorpusManifest,
    ShardManifest,
    read_augmented_corpus_manifest,
    read_shard_manifest,
)
from contracts.records import Document, InstructionPair
from contracts.schemas import chain_from_row
from contracts.seeding import stable_hash
from trainer.command_line import run_command
from trainer.config import PretrainConfig, parse_config
from trainer.metrics_log import read_log
from trainer.run_page import METRICS_FILE, TRAINING_FILE

_NUM_SAMPLE_PAIRS = 3
_MAX_SAMPLE_CHARACTERS = 320


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """The manifests of a run, from its corpora to its model.

    Args:
        corpora: The augmented corpora by folder.
        shards: The shards' manifest.
        training: The content of ``training.json``.
        config: The config of the training.
        metrics: The logged steps.
    """

    corpora: Mapping[str, AugmentedCorpusManifest]
    shards: ShardManifest
    training: Mapping[str, Any]
    config: PretrainConfig
    metrics: Sequence[Mapping[str, Any]]


def read_summary(config: PretrainConfig) -> RunSummary:
    """Follows a completed run back to its corpora.

    Raises:
        ValueError: A stage of the run is missing, not completed, or was changed afterwards.
    """
    completed_fingerprint(config.output)
    training = storage.read_json(storage.join(config.output, TRAINING_FILE))
    shards = read_shard_manifest(config.shards)
    if training["shards_fingerprint"] != shards.fingerprint:
        raise ValueError(
            f"The model in {config.output} was trained on other shards than those that are now in {config.shards}."
        )
    folders = {
        folder
        for component in shards.config.get("components", [])
        if component["kind"] in ("chains", "chain_documents")
        for folder in component["input"]
    }
    corpora = {folder: read_augmented_corpus_manifest(folder) for folder in sorted(folders)}
    return RunSummary(
        corpora=corpora,
        shards=shards,
        training=training,
        config=config,
        metrics=read_log(storage.join(config.output, METRICS_FILE)),
    )


def sample_pairs(
    folder: str, manifest: AugmentedCorpusManifest, *, num_pairs: int
) -> list[tuple[Document, InstructionPair]]:
    """A few pairs of an augmented corpus with the documents they are about, of different chains, drawn by hash.

    Reads one file of the corpus.
    """
    if not manifest.parts:
        return []
    with storage.open_input(storage.join(folder, manifest.parts[0].path)) as file:
        chains = [chain_from_row(row) for batch in pq.ParquetFile(file).iter_batches() for row in batch.to_pylist()]
    chains.sort(key=lambda chain: stable_hash(0, "sample", chain.chain_id))
    found = (
        next(((example.document, example.pairs[0]) for example in reversed(chain.examples) if example.pairs), None)
        for chain in chains
    )
    return [sample for sample in found if sample is not None][:num_pairs]


def print_summary(summary: RunSummary, *, console: Console) -> None:
    """Prints the summary for a person."""
    for folder, corpus in summary.corpora.items():
        _print_corpus(folder, corpus, console)
    _print_shards(summary.shards, console)
    _print_losses(summary.training, summary.metrics, console)
    for folder, corpus in summary.corpora.items():
        _print_samples(sample_pairs(folder, corpus, num_pairs=_NUM_SAMPLE_PAIRS), console)
    _print_paths(summary, console)


def _heading(text: str, console: Console) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _print_corpus(folder: str, corpus: AugmentedCorpusManifest, console: Console) -> None:
    accounts = corpus.accounts
    _heading("Documents", console)
    split = (
        f" ({accounts.num_documents_split} long ones split into {accounts.num_parts} parts)"
        if accounts.num_documents_split
        else ""
    )
    _say(
        f"{accounts.num_texts} texts in{split} = {accounts.num_augmented} augmented + {accounts.num_kept_raw} kept raw "
        f"+ {accounts.num_rejected} rejected",
        console,
    )
    for reason, count in accounts.rejected_by_reason.items():
        _say(f"  rejected: {count} {reason}", console)
    for reason, count in corpus.rejected_pairs_by_reason.items():
        _say(f"  rejected: {count} pairs, {reason}", console)
    _say(
        f"{corpus.num_pairs} instruction-response pairs, {corpus.num_pairs / max(1, accounts.num_augmented):.2f} "
        f"an augmented document, written by {corpus.synthesizer_id}",
        console,
    )


def _print_shards(shards: ShardManifest, console: Console) -> None:
    _heading(f"Training rows of {shards.sequence_length} tokens", console)
    table = Table(box=None, pad_edge=False)
    table.add_column("component")
    table.add_column("split")
    for name in ("texts", "epochs", "rows", "tokens", "padding", "cut by a row's end"):
        table.add_column(name, justify="right")
    for name, by_split in shards.components.items():
        for split, counts in by_split.items():
            table.add_row(
                Text(name),
                split,
                f"{counts.num_texts}",
                f"{counts.epochs:.2f}",
                f"{counts.num_rows}",
                f"{counts.num_tokens}",
                f"{counts.num_padding_tokens}",
                f"{counts.num_truncations}",
            )
    console.print(table)


def _print_losses(training: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], console: Console) -> None:
    _heading("Loss on held-out texts (nats a token)", console)
    before, after = training["validation"]["before"], training["validation"]["after"]
    if not before or not after:
        _say("not measured: the shards have no validation split, or validation is off", console)
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column("component")
        for name in ("before", "after", "change", "perplexity"):
            table.add_column(name, justify="right")
        for name in before:
            table.add_row(
                Text(name),
                f"{before[name]:.4f}",
                f"{after[name]:.4f}",
                f"{after[name] - before[name]:+.4f}",
                f"{_perplexity(before[name])} -> {_perplexity(after[name])}",
            )
        console.print(table)
    _say(
        f"{training['steps']} steps, {training['tokens_seen']} tokens at {training['tokens_per_second']:.0f} tokens/s",
        console,
    )
    for line in _speed(metrics):
        _say(line, console)


def _speed(metrics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the log says beyond the rate: MFU where it is known, the wait for data, skipped steps if any."""
    utilizations = [record["mfu"] for record in metrics if record.get("mfu") is not None]
    if utilizations:
        yield f"{sum(utilizations) / len(utilizations):.1%} of the devices' peak (MFU)"
    if metrics and metrics[-1]["seconds"]:
        waited = sum(record["data_seconds"] for record in metrics) / metrics[-1]["seconds"]
        yield f"{waited:.2%} of the time waited for data"
    skipped = [record["step"] for record in metrics if record.get("skipped")]
    if skipped:
        yield f"{len(skipped)} steps skipped, the last one step {skipped[-1]}: see {METRICS_FILE}"


def _perplexity(loss: float) -> str:
    return f"{2.718281828459045**loss:.1f}" if loss < 20 else "over 1e8"


def _print_samples(samples: Sequence[tuple[Document, InstructionPair]], console: Console) -> None:
    if samples:
        _heading("Some of the pairs", console)
    for document, pair in samples:
        title = f" ({document.title})" if document.title else ""
        _say(f"about {document.doc_id}{title} of {document.source}: {_shortened(document.text)}", console, style="dim")
        _say(f"  Q: {_shortened(pair.instruction)}", console)
        _say(f"  A: {_shortened(pair.response)}", console)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SAMPLE_CHARACTERS else f"{line[: _MAX_SAMPLE_CHARACTERS - 1]}…"


def _print_paths(summary: RunSummary, console: Console) -> None:
    _heading("Where everything is", console)
    for label, path in _paths(summary):
        _say(f"{label:18}{path}", console)
    _heading("What to try next", console)
    _say("your own corpus (.jsonl, .txt, .parquet), with the same model and recipe:", console)
    _say(
        "  .venv/bin/python -m beam_pipelines synthesize --config configs/synthesize/quickstart.yaml \\\n"
        "      --input '[my-corpus/]' --output runs/mine/augmented",
        console,
    )
    _say("the trained model in transformers:", console)
    _say(f"  AutoModelForCausalLM.from_pretrained({summary.training['outputs']['model']!r})", console)


def _paths(summary: RunSummary) -> Iterator[tuple[str, str]]:
    for folder, corpus in summary.corpora.items():
        for name in corpus.inputs:
            if name != "model":
                yield "corpus", name
        yield "augmented corpus", folder
    yield "shards", summary.config.shards
    yield "model", summary.training["outputs"]["model"]
    yield "checkpoints", summary.training["outputs"]["checkpoints"]
    yield "metrics", summary.training["outputs"]["metrics"]
    yield "report", summary.training["outputs"]["report"]


def _say(text: str, console: Console, *, style: str = "") -> None:
    # Corpus text is data: no markup of the terminal library is read in it, and no emoji codes.
    console.print(Text(text, style=style), soft_wrap=True, highlight=False)


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""

    def work() -> int:
        config = parse_config(PretrainConfig, arguments=arguments, program="python -m trainer summarize")
        print_summary(read_summary(config), console=Console())
        return 0

    return run_command(work)
