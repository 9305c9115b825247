"""A pre-training run from its config to its exported model.

Everything that can be refused is refused first: shards, model, tokenizer and device are looked at, then the output
folder is claimed, and only then does work begin. The same command on the same output goes on where it stopped, or says
that there is nothing left to do.

``output/`` then holds:

- ``run.json``: whose folder it is; ``resolved_config.json``: the config of its last start;
- ``checkpoints/``: see ``checkpoints``; ``rows/``: see ``row_cache``, removed in the end;
- ``metrics.jsonl``, ``validation.jsonl``: the logged steps, and the validation losses;
- ``model/``: the trained model with its tokenizer and model card, as transformers loads it;
- ``training.json``: what was trained on what, how long, and the validation losses before and after;
- ``report.html``: curves and provenance, see ``run_page``;
- ``COMPLETED``: written last.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from contracts import storage
from contracts.artifact import claim_output, describe_run, mark_completed
from contracts.manifest import SPLITS, ShardManifest, Split, read_shard_manifest
from trainer.adapters import require_peft
from trainer.checkpoints import (
    MODEL_FOLDER,
    Checkpoint,
    RunState,
    newest_checkpoint,
    open_checkpoint,
    refuse_other_run,
    restore_checkpoint,
)
from trainer.config import PretrainConfig, identity_of
from trainer.export import TOKENIZER_FOLDER, write_model
from trainer.flops import matrix_sizes, peak_tokens_per_second, training_flops_per_token
from trainer.folders import read_folder, write_folder
from trainer.forward import prepare_model
from trainer.loop import TrainingLoop
from trainer.memory_allocation import keep_freed_memory
from trainer.metrics_log import MetricsLog
from trainer.model_card import read_training_record
from trainer.model_source import find_model
from trainer.models import ModelDescription, create_model, describe_model
from trainer.optimizer import create_optimizer
from trainer.processes import on_main_process, start_processes
from trainer.provenance import PROVENANCE_FILE, describe_provenance
from trainer.row_cache import default_cache_folder
from trainer.row_sampler import Position
from trainer.run_page import CONFIG_FILE, METRICS_FILE, REPORT_FILE, TRAINING_FILE, VALIDATION_FILE, write_run_page
from trainer.shard_dataset import ShardDataset
from trainer.shard_tokenizer import open_shard_tokenizer
from trainer.stop_signals import StopSignals
from trainer.trackers import Trackers, require_trackers

_log = logging.getLogger(__name__)

CHECKPOINTS_FOLDER = "checkpoints"


def run(config: PretrainConfig) -> int:
    """Trains and exports; returns the exit code: 0, or that of the signal which stopped the run.

    Raises:
        ValueError: The run cannot start or go on; the message says why and what to do.
    """
    require_trackers(config.logging.trackers)
    if config.model.lora:
        require_peft()
    accelerator = start_processes(config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if not accelerator.is_main_process:
        logging.getLogger("trainer").setLevel(logging.WARNING)
    manifest = read_shard_manifest(config.shards)
    if not manifest.num_rows("train"):
        raise ValueError(f"The shards in {config.shards} have no rows to train on.")
    if config.model.init == "continual":
        # What has to be converted or copied is there when the others look.
        on_main_process(accelerator, lambda: find_model(config.model))
    description = describe_model(config.model, manifest=manifest)
    tokenizer = open_shard_tokenizer(
        manifest.tokenizer, model_location=description.location, revision=description.revision
    )
    fresh_state = RunState(
        position=Position(),
        seed=config.seed,
        shards_fingerprint=manifest.fingerprint,
        tokenizer_sha256=manifest.tokenizer.sha256,
        model_identity=description.identity,
        # As it is read back: JSON has no tuples.
        config=json.loads(json.dumps(identity_of(config))),
    )
    named = on_main_process(accelerator, lambda: _open_named_checkpoint(config, fresh_state=fresh_state))
    this_run = _describe_run(config, state=fresh_state, named=named)
    if on_main_process(accelerator, lambda: claim_output(config.output, run=this_run)) == "completed":
        _log.info("The run in %s has completed earlier; there is nothing left to do.", config.output)
        return 0

    on_main_process(accelerator, lambda: storage.write_json(storage.join(config.output, CONFIG_FILE), asdict(config)))
    on_main_process(
        accelerator,
        lambda: _record_start(config, manifest=manifest, description=description, tokenizer=tokenizer),
    )

    checkpoint = on_main_process(accelerator, lambda: _find_checkpoint(config, fresh_state=fresh_state)) or named
    state = checkpoint.state if checkpoint else fresh_state
    row_cache = config.data.cache or default_cache_folder(config.output)
    splits = {split: ShardDataset(config.shards, manifest=manifest, split=split, cache=row_cache) for split in SPLITS}
    model = _create_model(description, config=config, tokenizer=tokenizer, checkpoint=checkpoint)
    trackers = Trackers(
        config.logging.trackers,
        output=config.output,
        project=config.logging.project,
        description={"config": asdict(config), "inputs": this_run["inputs"]},
        last_step=state.position.step,
    )
    loop = _create_loop(
        config,
        accelerator=accelerator,
        splits=splits,
        model=model,
        state=state,
        checkpoint=checkpoint,
        sequence_length=manifest.sequence_length,
        trackers=trackers,
    )
    _announce(loop, accelerator=accelerator, manifest=manifest, model=model, name=description.name)
    on_main_process(accelerator, trackers.start)
    with trackers, StopSignals() as stop:
        if not loop.run(stop):
            _log.info(
                "Stopped after step %d by a signal. Run the same command again to go on.", loop.state.position.step
            )
            return stop.exit_code
    if config.data.cache is None and accelerator.is_local_main_process:
        # Still mapped where another process is not yet here; what is mapped stays readable.
        storage.remove_folder(row_cache)

    weights = accelerator.get_state_dict(loop.model)
    summary = _summarize(loop, config=config, manifest=manifest, description=description, model=model)

    def export() -> None:
        with write_folder(storage.join(config.output, MODEL_FOLDER)) as folder:
            record = read_training_record(config.output, last_step=loop.state.position.step)
            write_model(folder, model=model, weights=weights, tokenizer=tokenizer, record=record)
        storage.write_json(storage.join(config.output, TRAINING_FILE), summary)
        write_run_page([config.output], url=storage.join(config.output, REPORT_FILE))
        mark_completed(config.output, fingerprint=storage.json_sha256(summary))

    on_main_process(accelerator, export)
    _log.info("Waited for rows during %.2f %% of the steps", 100 * summary["data_seconds"] / summary["seconds"])
    _log.info("Wrote the model to %s", storage.join(config.output, MODEL_FOLDER))
    return 0


def _describe_run(config: PretrainConfig, *, state: RunState, named: Checkpoint | None) -> dict[str, Any]:
    inputs = {"shards": state.shards_fingerprint, "model": state.model_identity}
    if named is not None:
        inputs["checkpoint"] = named.fingerprint
    return describe_run(command="pretrain", config=identity_of(config), inputs=inputs)


def _record_start(
    config: PretrainConfig,
    *,
    manifest: ShardManifest,
    description: ModelDescription,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Writes down, when a run first starts, what exporting its model and checkpoints takes beside their weights."""
    provenance = storage.join(config.output, PROVENANCE_FILE)
    if storage.exists(provenance):
        return
    with write_folder(storage.join(config.output, TOKENIZER_FOLDER)) as folder:
        tokenizer.save_pretrained(folder)
    storage.write_json(provenance, describe_provenance(manifest, description=description))


def _open_named_checkpoint(config: PretrainConfig, *, fresh_state: RunState) -> Checkpoint | None:
    """The checkpoint that the config names, if it does; it is looked at before the output is claimed for it."""
    if config.checkpoint.resume in ("auto", "never"):
        return None
    checkpoint = open_checkpoint(config.checkpoint.resume)
    refuse_other_run(checkpoint, fresh_state=fresh_state, is_named=True)
    return checkpoint


def _find_checkpoint(config: PretrainConfig, *, fresh_state: RunState) -> Checkpoint | None:
    """This output's newest checkpoint, if it has one."""
    root = storage.join(config.output, CHECKPOINTS_FOLDER)
    if config.checkpoint.resume == "never":
        storage.remove_folder(root)
    return newest_checkpoint(root, fresh_state=fresh_state)


def _create_model(
    description: ModelDescription,
    *,
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Checkpoint | None,
) -> PreTrainedModel:
    special_ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # The weights of a sharded checkpoint are read once the model is spread over the processes.
    if checkpoint is None or checkpoint.is_sharded:
        return create_model(description, seed=config.seed, special_ids=special_ids, lora=config.model.lora)
    with read_folder(storage.join(checkpoint.url, MODEL_FOLDER)) as folder:
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
    checkpoint: Checkpoint | None,
    sequence_length: int,
    trackers: Trackers,
) -> TrainingLoop:
    flops_per_token = training_flops_per_token(
        matrix_sizes(model), config=model.config, sequence_length=sequence_length
    )
    prepare_model(model, config=config, device=accelerator.device)
    prepared_model, wrapped_optimizer = accelerator.prepare(model, create_optimizer(model, optimizer=config.optimizer))
    # Accelerate's wrapper skips updates while it accumulates gradients, which the loop does itself.
    optimizer = wrapped_optimizer.optimizer
    if checkpoint is not None:
        restore_checkpoint(checkpoint, accelerator=accelerator, model=prepared_model, optimizer=optimizer)

    def open_log(name: str, *, group: str) -> MetricsLog:
        return MetricsLog(
            storage.join(config.output, name),
            last_step=state.position.step,
            is_writer=accelerator.is_main_process,
            on_append=partial(trackers.log, group=group),
        )

    return TrainingLoop(
        config=config,
        accelerator=accelerator,
        model=prepared_model,
        optimizer=optimizer,
        train_rows=splits["train"],
        validation_rows=splits["validation"],
        metrics=open_log(METRICS_FILE, group="train"),
        validations=open_log(VALIDATION_FILE, group="validation"),
        checkpoint_root=storage.join(config.output, CHECKPOINTS_FOLDER),
        state=state,
        peak_tokens_per_second=peak_tokens_per_second(
            flops_per_token=flops_per_token,
            peak_tflops=config.logging.peak_tflops,
            device=accelerator.device,
            dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32,
            num_devices=accelerator.num_processes,
        ),
    )


def _announce(
    loop: TrainingLoop, *, accelerator: Accelerator, manifest: ShardManifest, model: PreTrainedModel, name: str
) -> None:
    _log.info(
        "Training %s (%s parameters) on %d rows of %d tokens: %d steps on %d x %s",
        name,
        f"{model.num_parameters():,}",
        loop.num_rows_per_epoch,
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
        "epochs": loop.num_rows_seen / loop.num_rows_per_epoch,
        "rows": loop.num_rows_seen,
        "tokens_seen": state.num_tokens_seen,
        "seconds": state.seconds,
        "data_seconds": sum(record["data_seconds"] for record in loop.metrics.records()),
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
            "report": storage.join(config.output, REPORT_FILE),
        },
    }
