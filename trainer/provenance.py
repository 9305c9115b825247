"""What a model is trained on and from, written down when its run starts: ``provenance.json``.

The shards are described by their manifest, and the corpora behind them by theirs as far as these can be read where the
training runs; one that cannot, or that has changed since packing, is named with its fingerprint alone. Of the model
continued from, what its own card states is kept. Nothing of it depends on the clock or on where a folder lies, beside
the names that the configs give.

Cost: reading a few manifests. Does not read texts.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers.utils.hub import cached_file

from contracts import storage
from contracts.artifact import RUN_FILE
from contracts.manifest import ShardManifest, read_augmented_corpus_manifest, read_instruction_corpus_manifest
from trainer.models import ModelDescription

_log = logging.getLogger(__name__)

PROVENANCE_FILE = "provenance.json"
_CARD_FILE = "README.md"
_DATASETS_FILE = "datasets.json"
_FINGERPRINT = re.compile("[0-9a-f]{64}")


def describe_provenance(manifest: ShardManifest, *, description: ModelDescription) -> dict[str, Any]:
    """The content of ``provenance.json``.

    Returns:
        JSON with ``base`` (the model continued from; None for one from scratch), ``shards``, ``components`` by name
        and ``corpora`` by folder, where None stands for a corpus that cannot be read here.
    """
    stated = {component["name"]: component for component in manifest.config.get("components", [])}
    return {
        "model": {"name": description.name, "identity": description.identity},
        "base": None if description.location is None else _describe_base(description),
        "shards": {
            "fingerprint": manifest.fingerprint,
            "sequence_length": manifest.sequence_length,
            "vocab_size": manifest.vocab_size,
            "tokenizer": {"name": manifest.tokenizer.name, "sha256": manifest.tokenizer.sha256},
            "template_bank": manifest.inputs.get("templates"),
            "config": dict(manifest.config),
        },
        "components": {
            name: {
                "kind": stated.get(name, {}).get("kind"),
                "inputs": list(stated.get(name, {}).get("input", [])),
                "num_documents": by_split["train"].num_documents,
                "num_texts": by_split["train"].num_texts,
                "num_tokens": by_split["train"].num_tokens,
                "epochs": by_split["train"].epochs,
            }
            for name, by_split in sorted(manifest.components.items())
            if "train" in by_split
        },
        "corpora": dict(_describe_corpora(manifest)),
    }


def _describe_base(description: ModelDescription) -> dict[str, Any]:
    assert description.location is not None
    is_folder = os.path.isdir(description.location)
    card = _own_card(description.location, revision=description.revision)
    named = card.get("base_model") or []
    return {
        "name": description.name,
        "revision": description.revision,
        # What the hub knows under this name: the model itself, or what a folder says that it was made from.
        "hub_names": ([named] if isinstance(named, str) else list(named)) if is_folder else [description.location],
        **{key: card.get(key) for key in ("license", "license_name", "license_link")},
    }


def _own_card(location: str, *, revision: str | None) -> Mapping[str, Any]:
    """The metadata of a model's card; empty when there is no card, or none that can be read."""
    if os.path.isdir(location):
        path: str | None = os.path.join(location, _CARD_FILE)
    else:
        path = cached_file(
            location,
            _CARD_FILE,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if path is None or not os.path.isfile(path):
        return {}
    try:
        card: Mapping[str, Any] = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        _log.info("The model card of %s cannot be read, so its licence is not known: %s", location, error)
        return {}
    return card


def _describe_corpora(manifest: ShardManifest) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each folder among the components' inputs that a command of this project wrote, in order, each once."""
    folders = dict.fromkeys(
        folder
        for component in manifest.config.get("components", [])
        for folder in component["input"]
        # Of a file the manifest has size and time instead.
        if _FINGERPRINT.fullmatch(manifest.inputs.get(folder, ""))
    )
    for folder in folders:
        try:
            yield folder, _describe_corpus(folder, fingerprint=manifest.inputs[folder])
        except (ValueError, OSError, ImportError) as error:
            _log.info("The model card will not describe the corpus %s, which cannot be read here: %s", folder, error)
            yield folder, None


def _describe_corpus(folder: str, *, fingerprint: str) -> dict[str, Any]:
    run = storage.read_json(storage.join(folder, RUN_FILE))
    command: str = run["command"]
    if command == "self-instruct":
        instructions = read_instruction_corpus_manifest(folder)
        found, inputs = instructions.fingerprint, []
        counts = {"num_texts": 0, "num_pairs": instructions.num_instructions}
        synthesizer_id, config = instructions.model_id, dict(instructions.config)
    else:
        corpus = read_augmented_corpus_manifest(folder)
        found, inputs = corpus.fingerprint, corpus.config.get("input", [])
        counts = {"num_texts": corpus.accounts.num_texts, "num_pairs": corpus.num_pairs}
        synthesizer_id, config = corpus.synthesizer_id, dict(corpus.config)
    if found != fingerprint:
        raise ValueError(f"it has the fingerprint {found[:12]}…, the packed one had {fingerprint[:12]}…")
    datasets = storage.join(folder, _DATASETS_FILE)
    return {
        "command": command,
        "fingerprint": fingerprint,
        "synthesizer_id": synthesizer_id,
        "inputs": [inputs] if isinstance(inputs, str) else list(inputs),
        **counts,
        "datasets": storage.read_json(datasets) if storage.exists(datasets) else {},
        "config": config,
    }
