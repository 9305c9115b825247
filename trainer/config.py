"""The configuration of a pre-training run: dataclasses, and their reading from YAML and the command line.

A config is read in three layers, the later ones winning: the defaults here, the file of ``--config``, and dotted
options such as ``--optimizer.learning_rate 1e-4``. An unknown key is an error; ``--help`` shows every field with its
description and ``--print_config`` the resolved values. Whatever can be judged from the values alone is judged in
``__post_init__``, before any work; what needs the shards or the model is judged where these are opened.

The classes are not slotted, unlike records: jsonargparse reads defaults of nested dataclasses through ``vars``.

Source: jsonargparse (https://jsonargparse.readthedocs.io).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentParser

TrackerName = Literal["tensorboard", "wandb"]

_Config = TypeVar("_Config")


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}.")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A low-rank adapter to train instead of the model's own weights; see ``trainer.adapters``.

    Args:
        rank: Rank of the products beside the matrices.
        alpha: Their sum is scaled by alpha / rank.
        dropout: Dropout in front of an adapter.
        target_modules: Names of the modules that get one; ``all-linear`` for every linear layer but the output.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        _require(self.rank > 0, "model.lora.rank", self.rank, "positive")
        _require(self.alpha > 0, "model.lora.alpha", self.alpha, "positive")
        _require(0 <= self.dropout < 1, "model.lora.dropout", self.dropout, "from 0 to below 1")
        _require(bool(self.target_modules), "model.lora.target_modules", self.target_modules, "one or more names")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to train.

    Args:
        init: ``continual`` goes on from the weights of name_or_path; ``scratch`` draws new weights for preset or
            config_path.
        name_or_path: For continual: a Hugging Face model folder, local or at a URL; a GGUF file, by path or as
            ``package:NAME/FILE``; or a name on the hub.
        revision: For a name on the hub: its branch, tag or commit.
        preset: For scratch: the shape, one of ``trainer.models.PRESETS``.
        config_path: For scratch, instead of a preset: any transformers ``config.json``, or a folder that has one.
        config_overrides: For scratch: fields to set in the preset or config, such as ``{num_hidden_layers: 12}`` or
            ``{initializer_range: 0.01}``. Vocabulary and special ids come from the shards.
        resize_embeddings: For continual: add embeddings for the ids that the shards' tokenizer has beyond the model's
            own; otherwise such shards are refused.
        vocab_multiple: Of embeddings that are drawn or resized, round their number up to a multiple of this; GPUs
            compute faster with a multiple of 64.
        cache: Folder for models converted from GGUF or copied from a URL, where they are found again.
        license: For the model card: a licence identifier of the hub, such as ``apache-2.0``; null takes that of the
            model continued from, where it states one.
        dtype: Precision of the arithmetic; weights and optimizer stay float32. ``auto`` is bfloat16 on a GPU and
            float32 on a CPU.
        trust_remote_code: Run Python code that comes with the model; leave it off unless you have read that code.
        lora: Train a low-rank adapter beside the model's weights, which stay as they are; null trains all weights.
        document_masks: Keep the texts of a row apart: no attention across them, and positions that start anew with
            each. Off, as in the paper, a text sees those before it in its row.
        attention: The kernel of attention. ``auto`` is flash_attention_2 where document_masks meet a GPU that has the
            flash-attn package, else sdpa.
        compile: How torch.compile compiles the layers and the loss; ``none`` does not. Pays after some minutes.
    """

    init: Literal["continual", "scratch"] = "continual"
    name_or_path: str | None = None
    revision: str | None = None
    preset: str | None = None
    config_path: str | None = None
    config_overrides: dict[str, Any] = field(default_factory=dict)
    resize_embeddings: bool = False
    vocab_multiple: int = 1
    cache: str = ".cache/models"
    license: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False
    lora: LoraConfig | None = None
    document_masks: bool = False
    attention: Literal["auto", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    compile: Literal["none", "default", "max-autotune-no-cudagraphs"] = "none"

    def __post_init__(self) -> None:
        if self.init == "continual":
            unused: dict[str, Any] = {"preset": None, "config_path": None, "config_overrides": {}}
            _require(self.name_or_path is not None, "model.name_or_path", None, "given when model.init is 'continual'")
        else:
            unused = {"name_or_path": None, "revision": None, "resize_embeddings": False}
            _require(
                (self.preset is None) != (self.config_path is None),
                "model.preset",
                self.preset,
                "given when model.init is 'scratch', unless model.config_path is",
            )
        for name, default in unused.items():
            value = getattr(self, name)
            _require(value == default, f"model.{name}", value, f"left out when model.init is {self.init!r}")
        _require(self.vocab_multiple > 0, "model.vocab_multiple", self.vocab_multiple, "positive")
        _require(
            self.lora is None or self.init == "continual", "model.lora", self.lora, "null when model.init is 'scratch'"
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW.

    Args:
        learning_rate: The peak of the schedule.
        weight_decay: Decoupled decay of weight matrices; norms, biases and embeddings are never decayed.
        beta1: Decay of the running mean of gradients.
        beta2: Decay of the running mean of squared gradients.
        epsilon: Added to the denominator.
        max_grad_norm: Gradients are scaled down to this global norm; ``.inf`` never scales.
    """

    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "positive")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "from 0 to below 1")
        _require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "positive")
        _require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "positive (.inf: no clipping)")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the steps; see ``trainer.schedules``.

    Args:
        kind: ``cosine``, or ``wsd``: constant after warm-up, then a decay at the end.
        warmup_steps: Steps of linear warm-up; null takes warmup_fraction.
        warmup_fraction: Warm-up as a fraction of all steps, when warmup_steps is null.
        min_lr_ratio: Where the decay ends, as a fraction of the peak.
        decay_fraction: For wsd: the fraction of all steps that decays.
    """

    kind: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int | None = None
    warmup_fraction: float = 0.01
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        _require(
            self.warmup_steps is None or self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, ">= 0"
        )
        for name in ("warmup_fraction", "min_lr_ratio", "decay_fraction"):
            _require(0 <= getattr(self, name) <= 1, f"schedule.{name}", getattr(self, name), "from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many rows make a step.

    Args:
        rows_per_step: Rows of one optimizer step over all processes together.
        micro_batch_rows: Rows that one process passes through the model at once; a step accumulates the gradients of
            as many micro-batches as it takes. Bounds memory and does not change what a step computes.
        gradient_checkpointing: Keep only what enters each layer and compute the rest again on the way back: a third
            more arithmetic for a fraction of the memory.
    """

    rows_per_step: int = 256
    micro_batch_rows: int = 8
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _require(self.rows_per_step > 0, "batch.rows_per_step", self.rows_per_step, "positive")
        _require(self.micro_batch_rows > 0, "batch.micro_batch_rows", self.micro_batch_rows, "positive")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the loss is computed; see ``trainer.linear_cross_entropy``.

    Args:
        kernel: ``liger`` fuses the output layer with the loss and needs a GPU and the extra ``liger``; ``auto`` takes
            it where it is to be had, else ``torch``.
        chunk_tokens: For torch: compute the logits of so many tokens at a time, and again on the way back; null
            computes those of a micro-batch at once.
        z_loss: Weight of the squared logarithm of the softmax' denominator, which keeps the logits from drifting; the
            losses that are reported do not contain it.
    """

    kernel: Literal["auto", "torch", "liger"] = "auto"
    chunk_tokens: int | None = None
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        _require(self.chunk_tokens is None or self.chunk_tokens > 0, "loss.chunk_tokens", self.chunk_tokens, "positive")
        _require(
            self.chunk_tokens is None or self.kernel != "liger",
            "loss.chunk_tokens",
            self.chunk_tokens,
            "null when loss.kernel is 'liger', which has chunks of its own",
        )
        _require(self.z_loss >= 0, "loss.z_loss", self.z_loss, "0 or more")


@dataclass(frozen=True, kw_only=True)
class SpikesConfig:
    """Which steps are skipped: their rows count as done, the weights stay; see ``trainer.loss_spikes``.

    A step whose loss or gradient is not finite is always skipped.

    Args:
        threshold: Also skip a step whose loss lies so many standard deviations above the mean of the last steps; null
            does not.
        window: How many steps the mean and the deviation are taken of; there is no judgement before there are as many.
        max_consecutive: Stop the run once so many steps in a row were skipped; 1 stops at the first.
    """

    threshold: float | None = 6.0
    window: int = 128
    max_consecutive: int = 10

    def __post_init__(self) -> None:
        _require(self.threshold is None or self.threshold > 0, "spikes.threshold", self.threshold, "positive")
        _require(self.window > 1, "spikes.window", self.window, "2 or more")
        _require(self.max_consecutive > 0, "spikes.max_consecutive", self.max_consecutive, "positive")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How the training rows are read.

    Args:
        component_weights: How many times a row of a component comes in an epoch, by component: ``{raw: 2.5}`` takes
            every raw row twice and half of them a third time. 1 where a component is not named; 0 leaves one out.
            Validation is not weighted.
        cache: Folder on a local disk in which decoded shards, as large as their tokens, are kept and found again by
            other runs. By default they are kept in the output folder until the model is complete, or in the folder for
            temporary files where the output is not on a local disk.
        prefetch_steps: How many steps to read ahead while the model computes; 0 reads each when it is due.
    """

    component_weights: dict[str, float] = field(default_factory=dict)
    cache: str | None = None
    prefetch_steps: int = 2

    def __post_init__(self) -> None:
        for name, weight in self.component_weights.items():
            _require(0 <= weight < math.inf, f"data.component_weights[{name!r}]", weight, "0 or more, and finite")
        _require(self.cache is None or "://" not in self.cache, "data.cache", self.cache, "a folder on a local disk")
        _require(self.prefetch_steps >= 0, "data.prefetch_steps", self.prefetch_steps, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Loss on the validation split, by component.

    Args:
        every_steps: Also validate every so many steps; null does not.
        at_start: Validate before the first step.
        at_end: Validate after the last step.
        max_rows: Use at most so many rows, drawn once by the seed; null uses all.
    """

    every_steps: int | None = None
    at_start: bool = True
    at_end: bool = True
    max_rows: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.every_steps is None or self.every_steps > 0, "validation.every_steps", self.every_steps, "positive"
        )
        _require(self.max_rows is None or self.max_rows > 0, "validation.max_rows", self.max_rows, "positive")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What makes a run safe to kill.

    Args:
        every_steps: Write a checkpoint every so many steps; null writes one only when the run is interrupted.
        keep: How many checkpoints to keep, the newest ones.
        keep_every_steps: Beside them keep every checkpoint of a step that this divides, for good; null keeps none.
        resume: ``auto`` goes on from the newest complete checkpoint of this output, if any; ``never`` starts over and
            removes this output's checkpoints; anything else is the checkpoint folder to start from, which may belong
            to another run on the same shards.
        sharded: Every process writes the weights that it holds, instead of the main process all of them; ``auto`` does
            where FSDP spreads them. A sharded checkpoint becomes a model folder by ``trainer export``.
        save_final_optimizer_state: Also write a full checkpoint after the last step, so that training can be extended
            later; otherwise only the exported model remains of it.
    """

    every_steps: int | None = 1000
    keep: int = 2
    keep_every_steps: int | None = None
    resume: str = "auto"
    sharded: Literal["auto"] | bool = "auto"
    save_final_optimizer_state: bool = False

    def __post_init__(self) -> None:
        _require(
            self.every_steps is None or self.every_steps > 0, "checkpoint.every_steps", self.every_steps, "positive"
        )
        _require(self.keep > 0, "checkpoint.keep", self.keep, "positive")
        _require(
            self.keep_every_steps is None or self.keep_every_steps > 0,
            "checkpoint.keep_every_steps",
            self.keep_every_steps,
            "positive",
        )
        _require(bool(self.resume), "checkpoint.resume", self.resume, "auto, never, or a checkpoint folder")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What goes to ``metrics.jsonl``, and where else.

    Args:
        every_steps: Log one step in so many; the last step is always logged.
        trackers: Also show what is logged in ``tensorboard`` or ``wandb`` (Weights & Biases).
        project: The project on Weights & Biases.
        peak_tflops: The peak of one device in TFLOP/s, which MFU is measured against; null takes that of the GPU where
            it is known, and shows no MFU where it is not.
    """

    every_steps: int = 1
    trackers: tuple[TrackerName, ...] = ()
    project: str = "instruction-pretraining"
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        _require(self.every_steps > 0, "logging.every_steps", self.every_steps, "positive")
        _require(len(set(self.trackers)) == len(self.trackers), "logging.trackers", self.trackers, "without repeats")
        _require(bool(self.project), "logging.project", self.project, "a name")
        _require(self.peak_tflops is None or self.peak_tflops > 0, "logging.peak_tflops", self.peak_tflops, "positive")


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """What a dry run assumes of the machines; see ``trainer.dry_run``.

    Args:
        num_processes: Processes that share a step; null takes those of this launch.
        sharded: Weights, gradients and optimizer are spread over the processes (FSDP) rather than copied (DDP).
        mfu: The share of the peak that the devices will reach, for the hours that the run takes.
        json: Print the estimate as JSON.
    """

    num_processes: int | None = None
    sharded: bool = False
    mfu: float = 0.4
    json: bool = False

    def __post_init__(self) -> None:
        _require(
            self.num_processes is None or self.num_processes > 0, "estimate.num_processes", self.num_processes, "> 0"
        )
        _require(0 < self.mfu <= 1, "estimate.mfu", self.mfu, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-train a causal language model on packed shards.

    Args:
        shards: Folder of completed shards, as written by pack.
        output: Folder for the model, checkpoints and logs; it belongs to this run alone.
        seed: Decides the order of the rows, initial weights and dropout.
        num_epochs: Passes over the training rows.
        max_steps: Stop after so many steps instead, whether that is less or more than one pass.
        device: ``auto`` takes a GPU when there is one; ``cuda`` without a GPU is an error.
        process_timeout_seconds: How long a process waits for one that hangs; longer than writing a checkpoint takes.
        model: The model to train.
        optimizer: AdamW.
        schedule: The learning rate over the steps.
        batch: How many rows make a step.
        loss: How the loss is computed.
        spikes: Which steps are skipped.
        data: How the training rows are read.
        validation: Loss on the validation split.
        checkpoint: What makes a run safe to kill.
        logging: What goes to metrics.jsonl, and where else.
        dry_run: Say what the run would take, and train nothing.
        estimate: What a dry run assumes of the machines.
    """

    shards: str
    output: str
    model: ModelConfig
    seed: int = 0
    num_epochs: int = 1
    max_steps: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    process_timeout_seconds: int = 1800
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    spikes: SpikesConfig = field(default_factory=SpikesConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    dry_run: bool = False
    estimate: EstimateConfig = field(default_factory=EstimateConfig)

    def __post_init__(self) -> None:
        _require(self.num_epochs > 0, "num_epochs", self.num_epochs, "positive")
        _require(self.max_steps is None or self.max_steps > 0, "max_steps", self.max_steps, "positive")
        _require(self.process_timeout_seconds > 0, "process_timeout_seconds", self.process_timeout_seconds, "positive")
        _require(
            self.model.lora is None or self.checkpoint.sharded is not True,
            "checkpoint.sharded",
            True,
            "auto or false with model.lora, since an adapter is small",
        )


def identity_of(config: PretrainConfig) -> dict[str, Any]:
    """The part of a config that decides the result: what two starts of the same run must share.

    Left out are locations (the content behind them is identified by fingerprint), the device, the size of a
    micro-batch, which kernels compute and what is computed twice to save memory, when to give up, and how often to save
    and log: those may change between an interruption and the next start.
    """
    values = asdict(config)
    for name in ("shards", "output", "device", "process_timeout_seconds", "checkpoint", "logging"):
        del values[name]
    del values["dry_run"], values["estimate"]
    for name in ("name_or_path", "revision", "config_path", "cache", "license", "attention", "compile"):
        del values["model"][name]
    del values["batch"]["micro_batch_rows"], values["batch"]["gradient_checkpointing"]
    del values["loss"]["kernel"], values["loss"]["chunk_tokens"], values["spikes"]["max_consecutive"]
    del values["data"]["prefetch_steps"], values["data"]["cache"]
    return values


def parse_config(config_class: type[_Config], *, arguments: Sequence[str], program: str) -> _Config:
    """Reads a config dataclass from command-line arguments, ``--config FILE`` among them.

    A value of a wrong type or an unknown key ends the process with code 2 and a message, as is usual for a command.

    Raises:
        ValueError: A value is of the right type and out of range.
    """
    description = (config_class.__doc__ or "").split("\n", 1)[0]
    parser = ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(config_class)
    values = parser.instantiate(parser.parse_args(list(arguments)))
    return config_class(**{name: value for name, value in vars(values).items() if name != "config"})
