"""The model card of a trained model: what it was trained on and from, how, with what result, and how to do it again.

The text is ``model_card.md.jinja`` filled in with what a run has written down: its provenance, config and logs. So any
checkpoint has a card, as of its step. The metadata at its head are those of the Hugging Face hub; what is not known,
such as a licence, is left out. Names and configs are data: Markdown and HTML in them are escaped, and no code fence
ends inside one.

The same run gives the same card: it has neither dates nor speeds, which stand in ``training.json``.

Source: the hub's specification of model cards (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import torch
import transformers
import yaml
from huggingface_hub import ModelCardData

from contracts import storage
from contracts.markdown import escape_markdown
from trainer.loss_curve import average_stretches, draw_loss_curve
from trainer.provenance import PROVENANCE_FILE
from trainer.run_page import CONFIG_FILE, METRICS_FILE, VALIDATION_FILE

CARD_FILE = "README.md"
LOSS_CURVE_FILE = "loss_curve.svg"
_TEMPLATE = "model_card.md.jinja"
_NUM_TABLE_ROWS = 10
_HUB_DATASET = re.compile(r"^hf://datasets/([^/@]+/[^/@]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecord:
    """What a run has written down up to one of its steps.

    Args:
        provenance: The content of ``provenance.json``.
        config: The run's config.
        steps: The logged steps that updated the weights.
        validations: The validation losses.
    """

    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]


def read_training_record(output: str, *, last_step: int) -> TrainingRecord:
    """Reads what a run has written down, up to a step.

    Args:
        output: The run's output folder.
        last_step: Later steps are left out.

    Raises:
        ValueError: The folder is not that of a run, or something in it is damaged.
    """
    for name in (PROVENANCE_FILE, CONFIG_FILE):
        if not storage.exists(storage.join(output, name)):
            raise ValueError(f"{output} is not the output folder of a training run: it has no {name}.")

    def records(name: str) -> list[dict[str, Any]]:
        lines = storage.read_text(storage.join(output, name), missing="").split("\n")[:-1]
        return [record for record in map(json.loads, lines) if record["step"] <= last_step]

    return TrainingRecord(
        provenance=storage.read_json(storage.join(output, PROVENANCE_FILE)),
        config=storage.read_json(storage.join(output, CONFIG_FILE)),
        steps=[record for record in records(METRICS_FILE) if not record.get("skipped")],
        validations=records(VALIDATION_FILE),
    )


def write_model_card(folder: str, *, record: TrainingRecord, num_parameters: int, is_adapter: bool) -> None:
    """Writes ``README.md`` and, where a step was logged, ``loss_curve.svg``.

    Args:
        folder: The local folder of the model.
        record: What the run has written down.
        num_parameters: Of the model; of an adapter only its own.
        is_adapter: Whether the folder holds an adapter and not a model.
    """
    card = render_model_card(record, num_parameters=num_parameters, is_adapter=is_adapter)
    storage.write_bytes_atomically(os.path.join(folder, CARD_FILE), card.encode())
    if record.steps:
        curve = draw_loss_curve(_training_losses(record), validation=_validation_losses(record))
        storage.write_bytes_atomically(os.path.join(folder, LOSS_CURVE_FILE), curve.encode())


def render_model_card(record: TrainingRecord, *, num_parameters: int, is_adapter: bool) -> str:
    """The text of the model card, metadata included; arguments as for `write_model_card`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer", "."),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    environment.filters["code_block"] = code_block
    environment.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    metadata = describe_for_hub(record, is_adapter=is_adapter)
    provenance = record.provenance
    return environment.get_template(_TEMPLATE).render(
        metadata=metadata.to_yaml(),
        hub_names=metadata.base_model or [],
        is_adapter=is_adapter,
        num_parameters=num_parameters,
        config=record.config,
        base=provenance["base"],
        model=provenance["model"],
        shards=provenance["shards"],
        components=provenance["components"],
        corpora=provenance["corpora"],
        total_tokens=sum(component["num_tokens"] for component in provenance["components"].values()),
        last_step=record.steps[-1] if record.steps else None,
        first_validation=record.validations[0] if record.validations else None,
        last_validation=record.validations[-1] if record.validations else None,
        curve=_curve_table(record),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def describe_for_hub(record: TrainingRecord, *, is_adapter: bool) -> ModelCardData:
    """The metadata that the hub reads: what is unknown is left out."""
    base = record.provenance["base"] or {}
    stated = record.config["model"].get("license")
    hub_names = base.get("hub_names") or None
    inputs = [
        name
        for group in (record.provenance["components"], record.provenance["corpora"])
        for entry in group.values()
        for name in (entry or {}).get("inputs", [])
    ]
    datasets = sorted({found[1] for name in inputs if (found := _HUB_DATASET.match(name))})
    # Only with a name of the hub does the relation mean anything to it.
    relation: dict[str, Any] = {"base_model_relation": "adapter" if is_adapter else "finetune"} if hub_names else {}
    return ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=hub_names,
        **relation,
        license=stated or base.get("license"),
        license_name=None if stated else base.get("license_name"),
        license_link=None if stated else base.get("license_link"),
        datasets=datasets or None,
        tags=["instruction-pre-training", *(["lora"] if is_adapter else [])],
    )


def code_block(text: str, language: str) -> str:
    """A fenced code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _training_losses(record: TrainingRecord) -> list[tuple[int, float]]:
    return [(step["tokens"], step["loss"]) for step in record.steps]


def _validation_losses(record: TrainingRecord) -> list[tuple[int, float]]:
    """By tokens seen, as far as the step of the validation was logged."""
    tokens_at = {0: 0, **{step["step"]: step["tokens"] for step in record.steps}}
    return [
        (tokens_at[validation["step"]], validation["losses"]["all"])
        for validation in record.validations
        if validation["step"] in tokens_at
    ]


def _curve_table(record: TrainingRecord) -> list[tuple[int, float]]:
    return average_stretches(_training_losses(record), num_stretches=_NUM_TABLE_ROWS)
