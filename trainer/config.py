"""The configuration of a pre-training run: dataclasses, and their reading from YAML and the command line.

A config is read in three layers, the later ones winning: the defaults here, the file of ``--config``, and dotted
options such as ``--optimizer.learning_rate 1e-4``. An unknown key is an error; ``--help`` shows every field with its
description and ``--print_config`` the resolved values. Whatever can be judged from the values alone is judged in
``__post_init__``, before any work; what needs the shards or the model is judged where these are opened.

The classes are not slotted, unlike records: jsonargparse reads defaults of nested dataclasses through ``vars``.

Source: jsonargparse (https://jsonargparse.readthedocs.io).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentParser

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
        init: ``continual`` goes on from the weights of name_or_path; ``scratch`` draws new weights for preset.
        name_or_path: For continual: a Hugging Face model folder, or a name on the hub.
        preset: For scratch: the shape, one of ``trainer.models.PRESETS``.
        dtype: Precision of the arithmetic; weights and optimizer stay float32. ``auto`` is bfloat16 on a GPU and
            float32 on a CPU.
        trust_remote_code: Run Python code that comes with the model; leave it off unless you have read that code.
        lora: Train a low-rank adapter beside the model's weights, which stay as they are; null trains all weights.
    """

    init: Literal["continual", "scratch"] = "continual"
    name_or_path: str | None = None
    preset: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        needed, unused = ("name_or_path", "preset") if self.init == "continual" else ("preset", "name_or_path")
        _require(getattr(self, needed) is not None, f"model.{needed}", None, f"given when model.init is {self.init!r}")
        _require(
            getattr(self, unused) is None,
            f"model.{unused}",
            getattr(self, unused),
            f"left out when model.init is {self.init!r}",
        )
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
    """

    rows_per_step: int = 256
    micro_batch_rows: int = 8

    def __post_init__(self) -> None:
        _require(self.rows_per_step > 0, "batch.rows_per_step", self.rows_per_step, "positive")
        _require(self.micro_batch_rows > 0, "batch.micro_batch_rows", self.micro_batch_rows, "positive")


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
        resume: ``auto`` goes on from the newest complete checkpoint of this output, if any; ``never`` starts over and
            removes this output's checkpoints; anything else is the checkpoint folder to start from, which may belong
            to another run on the same shards.
        save_final_optimizer_state: Also write a full checkpoint after the last step, so that training can be extended
            later; otherwise only the exported model remains of it.
    """

    every_steps: int | None = 1000
    keep: int = 2
    resume: str = "auto"
    save_final_optimizer_state: bool = False

    def __post_init__(self) -> None:
        _require(
            self.every_steps is None or self.every_steps > 0, "checkpoint.every_steps", self.every_steps, "positive"
        )
        _require(self.keep > 0, "checkpoint.keep", self.keep, "positive")
        _require(bool(self.resume), "checkpoint.resume", self.resume, "auto, never, or a checkpoint folder")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What goes to ``metrics.jsonl``.

    Args:
        every_steps: Log one step in so many; the last step is always logged.
    """

    every_steps: int = 1

    def __post_init__(self) -> None:
        _require(self.every_steps > 0, "logging.every_steps", self.every_steps, "positive")


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
        model: The model to train.
        optimizer: AdamW.
        schedule: The learning rate over the steps.
        batch: How many rows make a step.
        validation: Loss on the validation split.
        checkpoint: What makes a run safe to kill.
        logging: What goes to metrics.jsonl.
    """

    shards: str
    output: str
    model: ModelConfig
    seed: int = 0
    num_epochs: int = 1
    max_steps: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        _require(self.num_epochs > 0, "num_epochs", self.num_epochs, "positive")
        _require(self.max_steps is None or self.max_steps > 0, "max_steps", self.max_steps, "positive")


def identity_of(config: PretrainConfig) -> dict[str, Any]:
    """The part of a config that decides the result: what two starts of the same run must share.

    Left out are locations (the content behind them is identified by fingerprint), the device, the size of a
    micro-batch, and how often to save and log: those may change between an interruption and the next start.
    """
    values = asdict(config)
    for name in ("shards", "output", "device", "checkpoint", "logging"):
        del values[name]
    del values["model"]["name_or_path"], values["batch"]["micro_batch_rows"]
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
