"""A pre-training run from its config to its exported model.

Everything that can be refused is refused first: shards, model, tokenizer and device are looked at, then the output
folder is claimed, and only then does work begin. The same command on the same output goes on where it stopped, or says
that there is nothing left to do.

``output/`` then holds:

- ``run.json``: whose folder it is;
- ``checkpoints/``: see ``checkpoints``;
- ``metrics.jsonl``, ``validation.jsonl``: the logged steps, and the validation losses;
- ``model/``: the trained model with its tokenizer, as transformers loads it;
- ``training.json``: what was trained on what, how long, and the validation losses before and after;
- ``COMPLETED``: written last.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from contracts import storage
from contracts.artifact import claim_output, completed_fingerprint, describe_run, mark_completed
from contracts.manifest import SPLITS, ShardManifest, Split, read_shard_manifest
from trainer.checkpoints import MODEL_FOLDER, RunState, newest_complete, read_state, restore_optimizer
from trainer.config import PretrainConfig, identity_of
from trainer.folders import read_folder, write_folder
from trainer.loop import TrainingLoop
from trainer.metrics_log import MetricsLog
from trainer.models import ModelDescription, create_model, describe_model
from trainer.optimizer import create_optimizer
from trainer.processes import on_main_process, start_processes
from trainer.row_sampler import Position
from trainer.shard_dataset import ShardDataset
from trainer.shard_tokenizer import open_shard_tokenizer
from trainer.stop_signals import StopSignals

_log = logging.getLogger(__name__)

CHECKPOINTS_FOLDER = "checkpoints"
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
TRAINING_FILE = "training.json"


def run(config: PretrainConfig) -> int:
    """Trains and exports; returns the exit code: 0, or that of the signal which stopped the run.

    Raises:
        ValueError: The run cannot start or go on; the message says why and what to do.
    """
    accelerator = start_processes(config)
    if not accelerator.is_main_process:
        logging.getLogger("trainer").setLevel(logging.WARNING)
    manifest = read_shard_manifest(config.shards)
    if not manifest.num_rows("train"):
        raise ValueError(f"The shards in {config.shards} have no rows to train on.")
    description = describe_model(config.model, manifest=manifest)
    tokenizer = open_shard_tokenizer(manifest.tokenizer, model_location=description.location)
    fresh_state = RunState(
        position=Position(),
        seed=config.seed,
        shards_fingerprint=manifest.fingerprint,
        model_identity=description.identity,
    )
    this_run = _describe_run(config, state=fresh_state)
    if on_main_process(accelerator, lambda: claim_output(config.output, run=this_run)) == "completed":
        _log.info("The run in %s has completed earlier; there is nothing left to do.", config.output)
        return 0

    checkpoint = on_main_process(accelerator, lambda: _find_checkpoint(config))
    state = fresh_state if checkpoint is None else _state_of(checkpoint, fresh_state=fresh_state)
    splits = {split: ShardDataset(config.shards, manifest=manifest, split=split) for split in SPLITS}
    model = _create_model(description, config=config, tokenizer=tokenizer, checkpoint=checkpoint)
    loop = _create_loop(config, accelerator=accelerator, splits=splits, model=model, state=state, checkpoint=checkpoint)
    _announce(loop, accelerator=accelerator, manifest=manifest, model=model, name=description.name)
    with StopSignals() as stop:
        if not loop.run(stop):
            _log.info(
                "Stopped after step %d by a signal. Run the same command again to go on.", loop.state.position.step
            )
            return stop.exit_code

    weights = accelerator.get_state_dict(loop.model)
    summary = _summarize(loop, config=config, manifest=manifest, description=description, model=model)

    def export() -> None:
        with write_folder(storage.join(config.output, MODEL_FOLDER)) as folder:
            model.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)
        storage.write_json(storage.join(config.output, TRAINING_FILE), summary)
        mark_completed(config.output, fingerprint=storage.json_sha256(summary))

    on_main_process(accelerator, export)
    _log.info("Wrote the model to %s", storage.join(config.output, MODEL_FOLDER))
    return 0


def _describe_run(config: PretrainConfig, *, state: RunState) -> dict[str, Any]:
    inputs = {"shards": state.shards_fingerprint, "model": state.model_identity}
    if config.checkpoint.resume not in ("auto", "never"):
        # The state is checked before the folder is claimed for it.
        _state_of(config.checkpoint.resume, fresh_state=state)
        inputs["checkpoint"] = completed_fingerprint(config.checkpoint.resume)
    return describe_run(command="pretrain", config=identity_of(config), inputs=inputs)


def _find_checkpoint(config: PretrainConfig) -> str | None:
    """The checkpoint to go on from: this output's newest; failing that, the one that the config names."""
    root = storage.join(config.output, CHECKPOINTS_FOLDER)
    if config.checkpoint.resume == "never":
        storage.remove_folder(root)
        return None
    named = None if config.checkpoint.resume == "auto" else config.checkpoint.resume
    return newest_complete(root) or named


def _state_of(checkpoint: str, *, fresh_state: RunState) -> RunState:
    """The state in a checkpoint, provided that it belongs to these shards, this model and this seed."""
    state = read_state(checkpoint)
    for name in ("shards_fingerprint", "model_identity", "seed"):
        there, here = getattr(state, name), getattr(fresh_state, name)
        if there != here:
            raise ValueError(
                f"The checkpoint {checkpoint} cannot be gone on from: its {name.replace('_', ' ')} is {there}, that of "
                f"this run is {here}."
            )
    return state


def _create_model(
    description: ModelDescription, *, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, checkpoint: str | None
) -> PreTrainedModel:
    special_ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if checkpoint is None:
        return create_model(description, seed=config.seed, special_ids=special_ids, lora=config.model.lora)
    with read_folder(storage.join(checkpoint, MODEL_FOLDER)) as folder:
        return create_model(
            description, seed=config.seed, special_ids=special_ids, checkpoint=folder, lora=config.model.lora
        )


def _create_loop(
    config: PretrainConfig,
    *,
    accelerator: Accelerator,
    splits: Mapping[Split, ShardDataset],
    model: PreTrainedModel,
    state: RunState,
    checkpoint: str | None,
) -> TrainingLoop:
    prepared_model, wrapped_optimizer = accelerator.prepare(model, create_optimizer(model, optimizer=config.optimizer))
    # Accelerate's wrapper skips updates while it accumulates gradients, which the loop does itself.
    optimizer = wrapped_optimizer.optimizer
    if checkpoint is not None:
        restore_optimizer(checkpoint, model=prepared_model, optimizer=optimizer)

    def open_log(name: str, last_step: int) -> MetricsLog:
        url = storage.join(config.output, name)
        return MetricsLog(url, last_step=last_step, is_writer=accelerator.is_main_process)

    return TrainingLoop(
        config=config,
        accelerator=accelerator,
        model=prepared_model,
        optimizer=optimizer,
        train_rows=splits["train"],
        validation_rows=splits["validation"],
        metrics=open_log(METRICS_FILE, state.position.step),
        validations=open_log(VALIDATION_FILE, state.position.step),
        checkpoint_root=storage.join(config.output, CHECKPOINTS_FOLDER),
        state=state,
    )


def _announce(
    loop: TrainingLoop, *, accelerator: Accelerator, manifest: ShardManifest, model: PreTrainedModel, name: str
) -> None:
    _log.info(
        "Training %s (%s parameters) on %d rows of %d tokens: %d steps on %d x %s",
        name,
        f"{model.num_parameters():,}",
        manifest.num_rows("train"),
        manifest.sequence_length,
        loop.num_steps,
        accelerator.num_processes,
        accelerator.device.type,
    )
    if loop.state.position.step:
        _log.info("Going on after step %d", loop.state.position.step)
    num_cores, num_threads = os.cpu_count() or 1, torch.get_num_threads() * accelerator.num_processes
    if accelerator.device.type == "cpu" and num_threads < num_cores:
        # accelerate launch sets one thread a process unless it is told otherwise.
        _log.info(
            "Only %d of %d cores are in use; set OMP_NUM_THREADS=%d for all of them.",
            num_threads,
            num_cores,
            num_cores // accelerator.num_processes,
        )


def _summarize(
    loop: TrainingLoop,
    *,
    config: PretrainConfig,
    manifest: ShardManifest,
    description: ModelDescription,
    model: PreTrainedModel,
) -> dict[str, Any]:
    """The content of ``training.json``. Losses are in nats a token, times in seconds."""
    state, validations = loop.state, loop.validations.records()
    num_rows = state.position.epoch * manifest.num_rows("train") + state.position.rows_consumed
    before = validations[0] if validations and config.validation.at_start else {}
    after = validations[-1] if validations and config.validation.at_end else {}
    return {
        "shards_fingerprint": manifest.fingerprint,
        "model": {
            "name": description.name,
            "identity": description.identity,
            "num_parameters": model.num_parameters(),
        },
        "steps": state.position.step,
        "epochs": num_rows / manifest.num_rows("train"),
        "rows": num_rows,
        "tokens_seen": state.num_tokens_seen,
        "seconds": state.seconds,
        "tokens_per_second": state.num_tokens_seen / max(state.seconds, 1e-9),
        "validation": {
            "before": before.get("losses", {}),
            "after": after.get("losses", {}),
            "tokens": (after or before).get("num_targets", {}),
        },
        "config": asdict(config),
        "outputs": {
            "model": storage.join(config.output, MODEL_FOLDER),
            "checkpoints": storage.join(config.output, CHECKPOINTS_FOLDER),
            "metrics": storage.join(config.output, METRICS_FILE),
            "validation": storage.join(config.output, VALIDATION_FILE),
        },
    }
