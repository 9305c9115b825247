"""The folder of a tuned synthesizer: weights as the trainer exported them, the settings to use them with, a card.

``synthesizer.yaml`` holds the sections ``engine`` and ``synthesizer`` as a config of ``synthesize`` takes them; the
card is ``README.md``, and the trainer's own card stays beside it as ``TRAINING.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import yaml

from contracts import storage
from contracts.markdown import escape_markdown
from synth_model.evaluation.report import HEADLINE, TITLES, figure_rows, format_value, shots_text
from synth_model.tasks import DATASETS_FILE
from synth_model.tuning.config import FinetuneConfig, tuned_engine
from synth_model.tuning.data_counts import count_data

SETTINGS_FILE, CARD_FILE, TRAINING_CARD_FILE = "synthesizer.yaml", "README.md", "TRAINING.md"
_ADAPTER_CONFIG_FILE = "adapter_config.json"


def complete_weights(config: FinetuneConfig, *, steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds to the exported weights what the trainer cannot know: the name of the base model, and how to ask.

    Before the evaluation, which identifies the weights by these files too.
    """
    folder = config.synthesizer_folder
    if config.tunes_adapter and config.base_model_name:
        url = storage.join(folder, _ADAPTER_CONFIG_FILE)
        values = storage.read_json(url)
        if values["base_model_name_or_path"] != config.base_model_name:
            storage.write_json(url, {**values, "base_model_name_or_path": config.base_model_name})
    settings = {
        "engine": {
            **tuned_engine(config),
            **({"model": config.base_model_name} if config.tunes_adapter and config.base_model_name else {}),
        },
        "synthesizer": {"kind": "wire_format", "marks": dict(steps["pack"]["marks"])},
    }
    content = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    storage.write_bytes_atomically(storage.join(folder, SETTINGS_FILE), content.encode())


def write_card(config: FinetuneConfig, *, steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the card from what the steps left behind; called again, it writes the same."""
    from huggingface_hub import ModelCard

    folder = config.synthesizer_folder
    training_card_url = storage.join(folder, TRAINING_CARD_FILE)
    if not storage.exists(training_card_url):
        training_card = storage.read_text(storage.join(folder, CARD_FILE))
        storage.write_bytes_atomically(training_card_url, training_card.encode())
    metadata = ModelCard(storage.read_text(training_card_url)).data
    metadata["tags"] = sorted({*(metadata.get("tags") or []), "instruction-synthesizer"})
    card = _template().render(
        metadata=metadata.to_yaml(),
        base=config.base_model_name or config.model,
        is_adapter=config.tunes_adapter,
        settings=storage.read_text(storage.join(folder, SETTINGS_FILE)).strip(),
        marks=steps["pack"]["marks"],
        sequence_length=steps["pack"]["sequence_length"],
        datasets=storage.read_json(storage.join(config.output, "tasks", DATASETS_FILE)),
        counts=count_data(tasks=steps["tasks"]["output"], shards=steps["pack"]["output"]),
        training=storage.read_json(storage.join(config.output, "training", "training.json")),
        recipe=yaml.safe_dump(_recipe(config), sort_keys=False, allow_unicode=True).strip(),
        **_evaluation(config),
    )
    storage.write_bytes_atomically(storage.join(folder, CARD_FILE), card.encode())


def _recipe(config: FinetuneConfig) -> dict[str, Any]:
    """The config without what only this machine knows."""
    values = asdict(config)
    del values["launcher"]
    return {name: value for name, value in values.items() if value is not None}


def _evaluation(config: FinetuneConfig) -> dict[str, Any]:
    if config.evaluate is None:
        return {"figures": [], "differences": [], "measures": []}
    results = storage.read_json(storage.join(config.output, "evaluation", "results.json"))

    def lines(*, is_difference: bool) -> list[dict[str, Any]]:
        found = []
        for row in figure_rows(results, is_difference=is_difference, by_dataset=False):
            for split in dict.fromkeys(split for split, _ in row.figures):
                cells = [_cell(row.figures.get((split, name)), name, sign="+" * is_difference) for name in HEADLINE]
                found.append({"row": row, "split": split, "shots": shots_text(row, split), "cells": cells})
        return found

    return {
        "measures": [TITLES[name] for name in HEADLINE],
        "figures": lines(is_difference=False),
        "differences": lines(is_difference=True),
        "accounts": results["datasets"],
        "confidence": results["config"]["confidence"],
    }


def _cell(figure: Mapping[str, Any] | None, measure: str, *, sign: str) -> str:
    if figure is None:
        return ""
    if figure["low"] is None:
        return format_value(measure, figure["mean"], sign=sign)
    mean, low, high = (format_value(measure, figure[name], sign=sign) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=False,  # Markdown, for which the filter md escapes what comes from the data
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["md"] = escape_markdown
    template = resources.files("synth_model.tuning").joinpath("card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(template)
