"""``python -m trainer export CHECKPOINT --output DIR``: any checkpoint of a run as a model to use and to publish.

The folder holds the weights as safetensors (several files above 5 GB), the tokenizer with its chat template, the
generation config and the model card; transformers loads it without this project. The source is a checkpoint, or a
completed run, which stands for its trained model. An adapter is exported as an adapter that PEFT loads, or with
``--merge`` added into the weights of the model that it belongs to.

The output is claimed before the work and completed after it, so that an interrupted export is done again and a finished
one is left alone.

Cost: the weights once through memory, in float32.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from contracts import storage
from contracts.artifact import claim_output, completed_fingerprint, describe_run, mark_completed
from trainer.command_line import run_command
from trainer.config import ModelConfig, parse_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trainer.model_card import TrainingRecord

_log = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
_MAX_SHARD_SIZE = "5GB"
_ADAPTER_CONFIG_FILE = "adapter_config.json"
_ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a checkpoint, or the model of a completed run, as a Hugging Face model folder.

    Args:
        source: A checkpoint, ``RUN/checkpoints/step-XXXXXXXX``, or the output folder of a completed run.
        output: Folder for the model; it belongs to this export alone.
        dtype: Precision of the stored weights.
        merge: Add an adapter into the weights of the model that it belongs to, instead of exporting it as one.
        base: For merge: where that model is now; null looks where the run found it.
    """

    source: str
    output: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    merge: bool = False
    base: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments, the first of which may be the source; returns the exit code."""
    given = ["--merge=true" if argument == "--merge" else argument for argument in arguments]
    if given and not given[0].startswith("-"):
        given.insert(0, "--source")

    def work() -> int:
        export(parse_config(ExportConfig, arguments=given, program="python -m trainer export"))
        return 0

    return run_command(work)


def export(config: ExportConfig) -> None:
    """Writes the model folder, unless it is complete already.

    Raises:
        ValueError: The source is no checkpoint and no completed run, it is damaged, or there is nothing to merge.
    """
    # Seconds of imports that --help need not wait for.
    from trainer.checkpoints import read_model_folder
    from trainer.folders import read_folder, write_folder
    from trainer.model_card import read_training_record

    run_folder, num_steps = _find_run(config.source)
    record = read_training_record(run_folder, last_step=num_steps)
    this_run = describe_run(
        command="export",
        config=asdict(config),
        inputs={"source": completed_fingerprint(config.source)},
        location_keys=("source", "output", "base"),
    )
    if claim_output(config.output, run=this_run) == "completed":
        _log.info("The model in %s is complete.", config.output)
        return
    try:
        with (
            read_model_folder(config.source) as stored,
            read_folder(storage.join(run_folder, TOKENIZER_FOLDER)) as tokenizer_folder,
            write_folder(config.output) as folder,
        ):
            _export(stored, folder=folder, tokenizer_folder=tokenizer_folder, record=record, config=config)
    except ValueError:
        # Nothing was made, so the folder is free again for other settings.
        storage.remove_folder(config.output)
        raise
    mark_completed(config.output, fingerprint=storage.json_sha256(this_run))
    _log.info("Wrote the model of step %d to %s", num_steps, config.output)


def write_model(
    folder: str,
    *,
    model: Any,
    weights: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase,
    record: TrainingRecord,
) -> None:
    """Writes a model with its tokenizer and model card.

    Args:
        folder: A local folder.
        model: A ``PreTrainedModel`` or ``peft.PeftModel``.
        weights: Its weights where it does not hold all of them itself.
        tokenizer: The tokenizer of its ids.
        record: What its run has written down.
    """
    from trainer.adapters import is_adapter_folder
    from trainer.model_card import write_model_card

    model.save_pretrained(folder, state_dict=weights, max_shard_size=_MAX_SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    is_adapter = is_adapter_folder(folder)
    num_parameters = model.num_parameters(only_trainable=is_adapter)
    write_model_card(folder, record=record, num_parameters=num_parameters, is_adapter=is_adapter)


def _find_run(source: str) -> tuple[str, int]:
    """The output folder of the run that a source belongs to, and the step whose weights it has."""
    from trainer.checkpoints import open_checkpoint
    from trainer.run_page import TRAINING_FILE

    training = storage.join(source, TRAINING_FILE)
    if storage.exists(training):
        return source, storage.read_json(training)["steps"]
    num_steps = open_checkpoint(source).state.position.step
    return source.rstrip("/").rsplit("/", 2)[0], num_steps


def _export(stored: str, *, folder: str, tokenizer_folder: str, record: TrainingRecord, config: ExportConfig) -> None:
    import torch
    from transformers import AutoTokenizer

    from trainer.adapters import is_adapter_folder
    from trainer.models import load_weights

    dtype = getattr(torch, config.dtype)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if is_adapter_folder(stored) and not config.merge:
        _copy_adapter(stored, folder=folder, dtype=dtype, tokenizer=tokenizer, record=record)
        return
    if is_adapter_folder(stored):
        model = _merge(stored, record=record, base=config.base)
    elif config.merge:
        raise ValueError(f"{config.source} holds a whole model and no adapter; leave out --merge.")
    else:
        model = load_weights(stored, trust_remote_code=record.config["model"]["trust_remote_code"])
    write_model(folder, model=model.to(dtype), tokenizer=tokenizer, record=record)


def _copy_adapter(
    stored: str, *, folder: str, dtype: Any, tokenizer: PreTrainedTokenizerBase, record: TrainingRecord
) -> None:
    import safetensors.torch

    from trainer.model_card import write_model_card

    weights = safetensors.torch.load_file(os.path.join(stored, _ADAPTER_WEIGHTS_FILE))
    safetensors.torch.save_file(
        {name: tensor.to(dtype) for name, tensor in weights.items()},
        os.path.join(folder, _ADAPTER_WEIGHTS_FILE),
        metadata={"format": "pt"},
    )
    shutil.copy(os.path.join(stored, _ADAPTER_CONFIG_FILE), folder)
    tokenizer.save_pretrained(folder)
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    write_model_card(folder, record=record, num_parameters=num_parameters, is_adapter=True)


def _merge(stored: str, *, record: TrainingRecord, base: str | None) -> Any:
    import peft

    from trainer.model_source import find_model
    from trainer.models import load_weights

    names = ("name_or_path", "revision", "cache", "trust_remote_code")
    found = {name: record.config["model"][name] for name in names}
    if base is not None:
        found["name_or_path"] = base
    source = find_model(ModelConfig(**found))
    identity = record.provenance["model"]["identity"]
    if source.identity != identity:
        raise ValueError(
            f"{found['name_or_path']} is not the model that the adapter was trained on: its identity is "
            f"{source.identity}, that of the other {identity}. Say with --base where the other one is."
        )
    model = load_weights(source.location, revision=source.revision, trust_remote_code=found["trust_remote_code"])
    return peft.PeftModel.from_pretrained(model, stored).merge_and_unload()
