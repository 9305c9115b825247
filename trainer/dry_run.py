"""``pretrain --dry-run``: what a run would take, before anything is spent.

Steps and rows come from the sampler's own arithmetic and are exact, and so are parameters. Tokens are those that the
manifest counts; where a run ends within an epoch, or weights repeat a part of a component, in proportion. Memory is
what `memory_estimate` says, hours are the operations of `flops` at a given share of the devices' peak. Where the output
folder has logged steps already, their rate gives the hours that are left.

No weights are read, no data but the shards' manifest, and nothing is written, so that a model of billions of parameters
takes seconds on any machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from contracts import storage
from contracts.manifest import ShardManifest, read_shard_manifest
from trainer.component_weights import rows_per_epoch
from trainer.config import PretrainConfig
from trainer.flops import peak_tokens_per_second, training_flops_per_token
from trainer.memory_estimate import (
    MemoryEstimate,
    ParameterCounts,
    checkpoint_bytes,
    count_parameters,
    estimate_memory,
    model_without_data,
    trace_model,
)
from trainer.metrics_log import read_log
from trainer.models import describe_model
from trainer.row_sampler import Position, RowSampler
from trainer.run_page import METRICS_FILE
from trainer.schedules import num_warmup_steps

_MAX_RATES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentEstimate:
    """What a run sees of a component.

    Args:
        rows: Rows over the whole run, repeated ones counted each time.
        tokens: Their tokens, padding not counted.
        epochs: How often the run sees each row of the shards.
        repetitions: How often it sees each text: what the shards repeat, times the epochs.
    """

    rows: float
    tokens: float
    epochs: float
    repetitions: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunReport:
    """What a run would take.

    Args:
        model: What is trained.
        dtype: The precision of the arithmetic.
        parameters: The model's parameters.
        num_steps: Steps of the run.
        num_warmup_steps: Of these, steps in which the learning rate rises.
        rows_per_epoch: Rows of an epoch.
        epochs: Epochs of the run.
        rows: Rows of the run.
        positions_per_step: Tokens of a full step, padding counted.
        tokens_per_step: Tokens of a full step, padding not counted, on average.
        tokens_per_epoch: Tokens of an epoch likewise.
        tokens: Tokens of the run likewise.
        components: By component.
        num_processes: Processes that share a step.
        is_sharded: They share the model too.
        memory: Bytes of one process by part.
        checkpoint_bytes: Size of a checkpoint.
        checkpoint_disk_bytes: What checkpoints take at most: those that are kept, and the one that is being written.
        flops_per_token: Operations for each token; see `flops`.
        flops: Operations of the run's tokens.
        mfu: The share of the peak that is assumed.
        hours: Hours of the run at that; None when the peak of the devices is not known.
        measured_tokens_per_second: The median of the rates logged last; None when nothing is logged.
        measured_hours_left: Hours that are left at that rate.
    """

    model: str
    dtype: str
    parameters: ParameterCounts
    num_steps: int
    num_warmup_steps: int
    rows_per_epoch: int
    epochs: float
    rows: int
    positions_per_step: int
    tokens_per_step: float
    tokens_per_epoch: float
    tokens: float
    components: Mapping[str, ComponentEstimate]
    num_processes: int
    is_sharded: bool
    memory: MemoryEstimate
    checkpoint_bytes: int
    checkpoint_disk_bytes: int
    flops_per_token: int
    flops: float
    mfu: float
    hours: float | None
    measured_tokens_per_second: float | None
    measured_hours_left: float | None


def dry_run(config: PretrainConfig) -> DryRunReport:
    """Works out what a run would take.

    Raises:
        ValueError: The shards or the model do not allow the run.
    """
    manifest = read_shard_manifest(config.shards)
    description = describe_model(config.model, manifest=manifest)
    dtype = _arithmetic(config)
    estimate = config.estimate
    num_processes = estimate.num_processes or int(os.environ.get("WORLD_SIZE", "1"))
    with model_without_data(description, config=config) as model:
        counts = count_parameters(model)
        kept = trace_model(
            model,
            num_rows=min(config.batch.micro_batch_rows, -(-config.batch.rows_per_step // num_processes)),
            sequence_length=manifest.sequence_length,
            dtype=dtype,
            chunk_tokens=config.loss.chunk_tokens,
        )
    size = checkpoint_bytes(counts, is_adapter=config.model.lora is not None)

    rows_of = rows_per_epoch(_rows_by_component(manifest), weights=config.data.component_weights)
    num_epoch_rows = sum(rows_of.values())
    num_steps, num_rows = _steps_and_rows(config, num_epoch_rows=num_epoch_rows)
    epochs = num_rows / num_epoch_rows
    components = {name: _component(manifest, name, epochs=epochs, rows_of_epoch=rows) for name, rows in rows_of.items()}
    tokens = sum(component.tokens for component in components.values())

    flops_per_token = training_flops_per_token(
        counts.matrices, config=description.config, sequence_length=manifest.sequence_length
    )
    peak = peak_tokens_per_second(
        flops_per_token=flops_per_token,
        peak_tflops=config.logging.peak_tflops,
        device=_device(config),
        dtype=dtype,
        num_devices=num_processes,
    )
    rate, tokens_seen = _measured(config.output)
    return DryRunReport(
        model=description.name,
        dtype=str(dtype).removeprefix("torch."),
        parameters=counts,
        num_steps=num_steps,
        num_warmup_steps=num_warmup_steps(num_steps, schedule=config.schedule),
        rows_per_epoch=num_epoch_rows,
        epochs=epochs,
        rows=num_rows,
        positions_per_step=config.batch.rows_per_step * manifest.sequence_length,
        tokens_per_step=tokens / num_rows * config.batch.rows_per_step,
        tokens_per_epoch=tokens / epochs,
        tokens=tokens,
        components=components,
        num_processes=num_processes,
        is_sharded=estimate.sharded,
        memory=estimate_memory(
            counts,
            kept,
            num_processes=num_processes,
            is_sharded=estimate.sharded,
            has_gradient_checkpointing=config.batch.gradient_checkpointing,
        ),
        checkpoint_bytes=size,
        checkpoint_disk_bytes=size * (config.checkpoint.keep + 1),
        flops_per_token=flops_per_token,
        flops=flops_per_token * tokens,
        mfu=estimate.mfu,
        hours=None if peak is None else tokens / (peak * estimate.mfu) / 3600,
        measured_tokens_per_second=rate,
        measured_hours_left=None if rate is None else max(tokens - tokens_seen, 0.0) / rate / 3600,
    )


def _device(config: PretrainConfig) -> torch.device:
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _arithmetic(config: PretrainConfig) -> torch.dtype:
    """The precision that the run would choose; a GPU that is asked for need not be in this machine."""
    if config.model.dtype != "auto":
        return torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
    return torch.bfloat16 if config.device == "cuda" or _device(config).type == "cuda" else torch.float32


def _rows_by_component(manifest: ShardManifest) -> dict[str, int]:
    counts = {name: by_split["train"].num_rows for name, by_split in manifest.components.items() if "train" in by_split}
    if not any(counts.values()):
        raise ValueError("The shards have no rows to train on.")
    return counts


def _steps_and_rows(config: PretrainConfig, *, num_epoch_rows: int) -> tuple[int, int]:
    """The steps of a run from its beginning, and their rows."""
    sampler = RowSampler(num_epoch_rows, rows_per_step=config.batch.rows_per_step, seed=config.seed)
    num_steps = config.max_steps or sampler.num_steps(num_epochs=config.num_epochs, start=Position())
    num_epochs, num_further_steps = divmod(num_steps, sampler.num_steps(num_epochs=1, start=Position()))
    return num_steps, num_epochs * num_epoch_rows + num_further_steps * config.batch.rows_per_step


def _component(manifest: ShardManifest, name: str, *, epochs: float, rows_of_epoch: int) -> ComponentEstimate:
    counts = manifest.components[name]["train"]
    repeated = epochs * rows_of_epoch / counts.num_rows if counts.num_rows else 0.0
    return ComponentEstimate(
        rows=epochs * rows_of_epoch,
        tokens=repeated * counts.num_tokens,
        epochs=repeated,
        repetitions=repeated * counts.epochs,
    )


def _measured(output: str) -> tuple[float | None, int]:
    """The rate of the last logged steps of a run, if it has any, and the tokens seen so far."""
    records = read_log(storage.join(output, METRICS_FILE))
    if not records:
        return None, 0
    rates = sorted(record["tokens_per_second"] for record in records[-_MAX_RATES:])
    return rates[len(rates) // 2], records[-1]["tokens"]


def describe(report: DryRunReport, config: PretrainConfig) -> str:
    """The report for people."""
    return "\n".join(f"{name:25}{text}" for name, text in _lines(report, config))


def _lines(report: DryRunReport, config: PretrainConfig) -> Iterator[tuple[str, str]]:
    counts = report.parameters
    yield "model", f"{report.model}, computed in {report.dtype}"
    yield (
        "parameters",
        f"{counts.num_parameters:,}, of them {counts.num_trained:,} trained and {counts.num_embeddings:,} embeddings",
    )
    yield (
        "steps",
        f"{report.num_steps:,} of {config.batch.rows_per_step:,} rows, {report.num_warmup_steps:,} of them warm-up",
    )
    yield (
        "tokens",
        f"{_count(report.tokens)} in {report.epochs:.3f} epochs of {_count(report.tokens_per_epoch)}; a step "
        f"{_count(report.tokens_per_step)} (with padding {report.positions_per_step:,})",
    )
    for name, component in report.components.items():
        yield (
            f"  {name}",
            f"{_count(component.tokens)} tokens, {component.epochs:.2f} epochs; each text {component.repetitions:.2f} "
            "times",
        )
    how = f", sharded over {report.num_processes}" if report.is_sharded else ""
    yield "memory", f"{_bytes(report.memory.total)} a process{how}, without what libraries take for themselves"
    for part, size in asdict(report.memory).items():
        if size:
            yield f"  {part.replace('_', ' ')}", _bytes(size)
    yield (
        "checkpoints",
        f"{_bytes(report.checkpoint_bytes)} each, at most {_bytes(report.checkpoint_disk_bytes)} on disk",
    )
    yield "operations", f"{report.flops:.3g} ({report.flops_per_token:.3g} a token)"
    if report.hours is None:
        yield "hours", "unknown: give the peak of a device in TFLOP/s as logging.peak_tflops (and estimate.mfu)"
    else:
        yield "hours", f"{report.hours:,.2f} at {report.mfu:.0%} of the peak of {report.num_processes} devices"
    if report.measured_tokens_per_second is not None:
        yield (
            "measured",
            f"{report.measured_tokens_per_second:,.0f} tokens/s in the output folder's log: "
            f"{report.measured_hours_left:,.2f} hours left",
        )


def _count(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    return f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def main(config: PretrainConfig) -> int:
    """Prints the report; returns the exit code. Of several processes the first one prints."""
    if int(os.environ.get("RANK", "0")):
        return 0
    report = dry_run(config)
    if config.estimate.json:
        values = asdict(report)
        values["memory"]["total"] = report.memory.total
        print(json.dumps(values, indent=2))
    else:
        print(describe(report, config))
    return 0
