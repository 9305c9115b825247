"""The config of a tuning: the options of the commands it runs, without those that follow from one another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from contracts import storage
from synth_model.prompt_tokenizer import ModelTokenizer
from synth_model.wire_format import RELEASED_MARKS, SequenceMarks

Options = dict[str, Any]

# The options of each section that follow from the rest of the config.
_DECIDED: Mapping[str, tuple[str, ...]] = {
    "tasks": ("output", "take"),
    "unseen": ("output", "take", "held_out_fraction"),
    "pack": ("output", "tokenizer", "components", "marks", "add_bos", "add_eos"),
    "pretrain": ("shards", "output"),
    "evaluate": ("output", "systems", "seen", "unseen", "tuning_corpora"),
}
_COMPARISONS = ("untuned", "chat")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Tunes an instruction synthesizer on context-based tasks, evaluates it and writes its card.

    Args:
        output: Folder for all that is made; belongs to this tuning alone.
        model: Hub name or folder of the model to tune.
        tasks: Options of ``python -m synth_model tasks``: the datasets to tune on. With ``held_out_fraction`` the
            evaluation has unseen texts of seen datasets.
        pack: Options of ``python -m beam_pipelines pack``: at least ``sequence_length``.
        pretrain: Options of ``python -m trainer.pretrain``; ``model: {lora: ...}`` tunes an adapter.
        unseen: Options of ``tasks`` again: datasets to evaluate on that are left out of tuning; null for none.
        evaluate: Options of ``python -m synth_model evaluate``; null does not evaluate.
        engine: How the evaluation runs the models: options of its engines but the model and the adapter.
        compare_with: What the tuned model is held against: ``untuned``, the same model in the same format, and
            ``chat``, the same model asked by a chat prompt.
        marks: BOS and EOS of the wire format. By default those of the released weights where the tokenizer reads both
            as special tokens, else the tokenizer's own.
        dtype: Precision of the exported weights; evaluated is what is exported.
        base_model_name: What the exported adapter calls its base model, if that is not ``model``: a hub name for a
            model that lies in a folder here.
        launcher: What starts the trainer: ``[accelerate, launch, --config_file, configs/accelerate/...]`` for several
            processes.
        beam_arguments: Pipeline options of ``pack``.
    """

    output: str
    model: str
    tasks: Options
    pack: Options
    pretrain: Options = field(default_factory=dict)
    unseen: Options | None = None
    evaluate: Options | None = field(default_factory=dict)
    engine: Options = field(default_factory=dict)
    compare_with: list[Literal["untuned", "chat"]] = field(default_factory=lambda: ["untuned", "chat"])
    marks: SequenceMarks | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    base_model_name: str | None = None
    launcher: list[str] = field(default_factory=lambda: [sys.executable])
    beam_arguments: list[str] = field(default_factory=lambda: ["--runner=DirectRunner"])

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A section has an option that follows from the rest, or one that it needs is missing.
        """
        for section, decided in _DECIDED.items():
            given = [name for name in getattr(self, section) or {} if name in decided]
            if given:
                raise ValueError(f"{section}.{given[0]} follows from the rest of the config; leave it out.")
        if "sequence_length" not in self.pack:
            raise ValueError("pack.sequence_length is missing; give the tokens of a row, such as 4096.")
        if {"init", "name_or_path", "preset"} & set(self.pretrain.get("model", {})):
            raise ValueError("pretrain.model may not choose the model; that is the option model.")
        if {"model", "adapter"} & set(self.engine):
            raise ValueError("engine.model and engine.adapter follow from the rest of the config; leave them out.")
        if not self.launcher:
            raise ValueError("launcher is empty; give the command that starts Python, such as [accelerate, launch].")
        if self.evaluate is not None and not self.unseen and not self.tasks.get("held_out_fraction"):
            raise ValueError(
                "There is nothing to evaluate on: give tasks.held_out_fraction, or datasets under unseen, or set "
                "evaluate to null."
            )

    @property
    def tunes_adapter(self) -> bool:
        """Whether an adapter is tuned rather than the model's own weights."""
        return self.pretrain.get("model", {}).get("lora") is not None

    @property
    def synthesizer_folder(self) -> str:
        """Where the tuned synthesizer is exported to."""
        return storage.join(self.output, "synthesizer")


def sequence_marks(model: str) -> SequenceMarks:
    """The marks that a model can be tuned with: the released weights', or those of its own tokenizer.

    Raises:
        ValueError: There is no such tokenizer, or it has neither.
    """
    tokenizer = ModelTokenizer(model)
    if {RELEASED_MARKS.bos, RELEASED_MARKS.eos} <= set(tokenizer.special_tokens):
        return RELEASED_MARKS
    bos, eos = tokenizer.tokenizer.bos_token, tokenizer.tokenizer.eos_token
    if not eos:
        raise ValueError(f"The tokenizer of {model} has no EOS, so a model could not end a completion; give marks.")
    return SequenceMarks(bos=bos or RELEASED_MARKS.bos, eos=eos)


def step_configs(config: FinetuneConfig) -> dict[str, Options]:
    """The config of every step in order, under the step's name."""
    marks = asdict(config.marks or sequence_marks(config.model))

    def folder(name: str) -> str:
        return storage.join(config.output, name)

    steps: dict[str, Options] = {"tasks": {**config.tasks, "output": folder("tasks")}}
    if config.tasks.get("held_out_fraction"):
        steps["held_out"] = {**config.tasks, "take": "held_out", "output": folder("held_out")}
    if config.unseen:
        steps["unseen"] = {**config.unseen, "output": folder("unseen")}
    steps["pack"] = {
        "packing": {"strategy": "best_fit"},
        **config.pack,
        "output": folder("shards"),
        "tokenizer": config.model,
        "add_bos": False,
        "add_eos": False,
        "marks": marks,
        "components": [{"name": "tuning", "kind": "synthesizer_tuning", "input": [folder("tasks")]}],
    }
    steps["pretrain"] = {
        **config.pretrain,
        "model": {**config.pretrain.get("model", {}), "init": "continual", "name_or_path": config.model},
        "shards": folder("shards"),
        "output": folder("training"),
    }
    if config.evaluate is not None:
        tuned = tuned_engine(config)
        synthesizer = {"kind": "wire_format", "marks": marks}
        systems = [{"name": "tuned", "engine": {**config.engine, **tuned}, "synthesizer": synthesizer}]
        untuned = {**config.engine, "model": config.model}
        for name in _COMPARISONS:
            if name in config.compare_with:
                asked = synthesizer if name == "untuned" else {"kind": "chat"}
                systems.append({"name": name, "engine": untuned, "synthesizer": asked})
        steps["evaluate"] = {
            **config.evaluate,
            "systems": systems,
            "seen": [folder("held_out")] if "held_out" in steps else [],
            "unseen": [folder("unseen")] if "unseen" in steps else [],
            "tuning_corpora": [folder("tasks")],
            "output": folder("evaluation"),
        }
    return steps


def tuned_engine(config: FinetuneConfig) -> dict[str, str]:
    """The options of an engine that name the tuned weights."""
    if config.tunes_adapter:
        return {"model": config.model, "adapter": config.synthesizer_folder}
    return {"model": config.synthesizer_folder}
