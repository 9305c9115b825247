"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a folder ``step-XXXXXXXX``, named after the steps done:

- ``model/``: a Hugging Face model folder, so that any checkpoint can be tried like a finished model; of an adapter's
  run the adapter alone;
- ``optimizer.safetensors``: AdamW's running means, by parameter name;
- ``state.json``: position, counters, and the identity of shards, tokenizer, model and config;
- ``files.json`` and ``COMPLETED``: see ``checkpoint_files``.

Where FSDP spreads weights over processes, none of them need have room for all. A *sharded* checkpoint therefore has
what each process held in ``model/shard-*.safetensors`` and ``optimizer/shard-*.safetensors`` (see ``sharded_tensors``),
goes on on any number of processes, and becomes a model folder by `read_model_folder`.

Neither the learning rate nor the random state is in it: the first is a function of the step, and dropout draws from a
generator that is seeded anew at every step (see ``loop``), so that both are right on any number of processes.

A folder is written aside as ``.partial``, flushed, renamed and completed, and older ones are removed only then, so that
there is a whole checkpoint at every moment. One that could not be written leaves nothing behind.

Cost: three times the size of the float32 weights on disk. A checkpoint is read whole to verify it before it is used,
on other storage than a local disk a second time to load it. Figures: ``python -m benchmarks.checkpoints``.

Does not write in the background: a step waits for the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator, DistributedType
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from contracts import storage
from contracts.artifact import completed_fingerprint
from trainer.adapters import describe_adapter
from trainer.checkpoint_files import (
    FileEntry,
    checkpoint_url,
    complete_checkpoint,
    completed_checkpoints,
    describe_files,
    remove_checkpoint,
    remove_old_checkpoints,
    step_of,
    verify_checkpoint,
    write_file_list,
)
from trainer.config import CheckpointConfig
from trainer.folders import aside_of, fill_folder, free_bytes, publish_folder, read_folder
from trainer.loss_spikes import SpikeHistory
from trainer.processes import on_every_process, on_main_process
from trainer.row_sampler import Position
from trainer.sharded_tensors import gather_shards, own_shard_files, read_shards, write_shards

_log = logging.getLogger(__name__)

MODEL_FOLDER = "model"
_OPTIMIZER_FOLDER = "optimizer"
_OPTIMIZER_FILE = "optimizer.safetensors"
_STATE_FILE = "state.json"

# On saving only the main process needs the optimizer's state, on the CPU; on loading every process needs it.
_SAVE_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)
_LOAD_OPTIONS = StateDictOptions(full_state_dict=True)

# What a checkpoint holds beside tensors is far smaller.
_MARGIN_BYTES = 16 << 20

# What may differ when a run goes on from a checkpoint that it is told to: how long, how fast and in which steps.
_CONFIG_THAT_MAY_DIFFER = ("num_epochs", "max_steps", "optimizer", "schedule", "batch", "spikes", "validation")


class CheckpointNotSavedError(OSError):
    """A checkpoint could not be written; the run can go on, and older checkpoints are whole."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunState:
    """What a run knows between two steps, beside weights and optimizer.

    Args:
        position: The steps and rows done.
        num_tokens_seen: Tokens in these rows, padding not counted.
        seconds: Time spent in steps, without validation and saving.
        seed: The seed that the order of the rows follows.
        shards_fingerprint: The fingerprint of the shards.
        tokenizer_sha256: The hash of the tokenizer that the shards were made with.
        model_identity: The identity of the model that the run started from.
        config: What of the run's config decides the result, as JSON.
        spikes: What is known of the losses of the last steps.
    """

    position: Position
    num_tokens_seen: int = 0
    seconds: float = 0.0
    seed: int
    shards_fingerprint: str
    tokenizer_sha256: str
    model_identity: str
    config: Mapping[str, Any]
    spikes: SpikeHistory = field(default_factory=SpikeHistory)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunState:
        """The state that was written as JSON."""
        position, spikes = Position(**values["position"]), SpikeHistory.from_json(values["spikes"])
        return cls(**{**values, "position": position, "spikes": spikes})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint that has been verified.

    Args:
        url: Its folder.
        fingerprint: The hash of all that is in it.
        is_sharded: Whether each process wrote its own part.
        state: The state of the run.
    """

    url: str
    fingerprint: str
    is_sharded: bool
    state: RunState


def save_checkpoint(
    root: str,
    *,
    state: RunState,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: CheckpointConfig,
) -> str:
    """Writes a checkpoint, then removes those that need not be kept; every process must call it.

    Args:
        root: The folder of the run's checkpoints.
        state: The state after the last step.
        accelerator: The processes.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer, not wrapped.
        config: Which checkpoints to keep, and whether each process writes its own part.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointNotSavedError: The storage failed, for example because it is full; raised on every process.
    """
    url = checkpoint_url(root, step=state.position.step)
    aside = aside_of(url)

    def remove_remains() -> None:
        remove_checkpoint(url)
        remove_checkpoint(aside)

    def complete(files: list[FileEntry]) -> None:
        with fill_folder(aside) as folder:
            storage.write_json(os.path.join(folder, _STATE_FILE), asdict(state))
            fingerprint = write_file_list(folder, [*files, *describe_files(folder, [_STATE_FILE])])
        publish_folder(aside, url)
        complete_checkpoint(url, fingerprint=fingerprint)
        remove_old_checkpoints(root, num_kept=config.keep, keep_every_steps=config.keep_every_steps)

    write = _write_sharded if _is_sharded(model, accelerator=accelerator, config=config) else _write_gathered
    # A damaged checkpoint of this step may lie there, or what a kill left of one.
    on_main_process(accelerator, remove_remains)
    try:
        files = write(aside, accelerator=accelerator, model=model, optimizer=optimizer)
        on_main_process(accelerator, lambda: complete(files))
    except OSError as error:
        on_main_process(accelerator, remove_remains)
        raise CheckpointNotSavedError(
            f"The checkpoint after step {state.position.step} could not be saved: {error}. Nothing is left of it; "
            f"older ones in {root} are as they were."
        ) from error
    return url


def open_checkpoint(url: str) -> Checkpoint:
    """Verifies a checkpoint and reads its state.

    Raises:
        ValueError: There is no checkpoint of that name, it was not completed, or it is not as it was then.
    """
    names = verify_checkpoint(url)
    values = storage.read_json(storage.join(url, _STATE_FILE))
    try:
        state = RunState.from_json(values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"The checkpoint {url} was written by another version of this program: {error}.") from error
    if step_of(url) not in (None, state.position.step):
        raise ValueError(f"The checkpoint {url} has a wrong name: it was saved after step {state.position.step}.")
    return Checkpoint(
        url=url, fingerprint=completed_fingerprint(url), is_sharded=_OPTIMIZER_FILE not in names, state=state
    )


def newest_checkpoint(root: str, *, fresh_state: RunState) -> Checkpoint | None:
    """The newest checkpoint of a run that it can go on from; None when it has not completed any.

    Damaged ones and those of another run are skipped, and named in the log with the reason.

    Args:
        root: The folder of the run's checkpoints.
        fresh_state: The state that the run starts from.

    Raises:
        ValueError: There are checkpoints, and none of them will do.
    """
    urls = completed_checkpoints(root)
    for url in reversed(urls):
        try:
            checkpoint = open_checkpoint(url)
            refuse_other_run(checkpoint, fresh_state=fresh_state)
        except ValueError as error:
            _log.warning("Skipping the checkpoint %s: %s", url.rsplit("/", 1)[-1], error)
        else:
            return checkpoint
    if urls:
        names = ", ".join(url.rsplit("/", 1)[-1] for url in urls)
        raise ValueError(
            f"The run cannot go on from any of its checkpoints in {root}: {names} (the reasons are given above). Put "
            "back a whole one, or start over with --checkpoint.resume never, which removes them."
        )
    return None


def refuse_other_run(checkpoint: Checkpoint, *, fresh_state: RunState, is_named: bool = False) -> None:
    """Makes sure that a run can go on from a checkpoint.

    Args:
        checkpoint: The checkpoint.
        fresh_state: The state that the run starts from.
        is_named: Whether the user has named it. It may then be another run's, with another schedule.

    Raises:
        ValueError: It belongs to another tokenizer, other shards, another model, seed or config; both are named.
    """
    names = ("tokenizer_sha256", "shards_fingerprint", "model_identity", "seed")
    there = {name.replace("_", " "): getattr(checkpoint.state, name) for name in names}
    here = {name.replace("_", " "): getattr(fresh_state, name) for name in names}
    there.update(_leaves(checkpoint.state.config))
    here.update(_leaves(fresh_state.config))
    for name in {**there, **here}:
        may_differ = is_named and name.split(".")[0] in _CONFIG_THAT_MAY_DIFFER
        if there.get(name) != here.get(name) and not may_differ:
            raise ValueError(
                f"The checkpoint {checkpoint.url} cannot be gone on from: its {name} is {there.get(name)}, that of "
                f"this run is {here.get(name)}."
            )


def restore_checkpoint(
    checkpoint: Checkpoint, *, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Puts a checkpoint's running means into an optimizer and, of a sharded one, its weights into the model.

    The weights of any other are those that the model was created with. Learning rate and the like stay the optimizer's
    own. Every process must call it.

    Args:
        checkpoint: The checkpoint.
        accelerator: The processes.
        model: The model that the optimizer belongs to, as Accelerate prepared it.
        optimizer: The optimizer, not wrapped.

    Raises:
        ValueError: The checkpoint belongs to other parameters.
    """
    restore = _restore_sharded if checkpoint.is_sharded else _restore_gathered
    try:
        restore(checkpoint.url, accelerator=accelerator, model=model, optimizer=optimizer)
    except ValueError as error:
        raise ValueError(f"The checkpoint {checkpoint.url} belongs to another model: {error}") from error


@contextmanager
def read_model_folder(url: str) -> Iterator[str]:
    """Gives a local folder that transformers loads, with the model of a checkpoint, sharded or not, or of a whole run.

    Memory: all weights, once, when they are sharded.
    """
    with read_folder(storage.join(url, MODEL_FOLDER)) as stored, ExitStack() as stack:
        if own_shard_files(stored, process_index=0):
            gathered = stack.enter_context(tempfile.TemporaryDirectory())
            shutil.copytree(stored, gathered, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
            save_torch_state_dict(gather_shards(stored), gathered)
            stored = gathered
        yield stored


def _is_sharded(model: torch.nn.Module, *, accelerator: Accelerator, config: CheckpointConfig) -> bool:
    if config.sharded == "auto":
        return accelerator.distributed_type == DistributedType.FSDP and describe_adapter(model) is None
    return config.sharded


def _write_gathered(
    url: str, *, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> list[FileEntry]:
    # These two collect what is spread over processes, so all of them take part.
    weights = accelerator.get_state_dict(model)
    optimizer_state = get_optimizer_state_dict(model, optimizer, options=_SAVE_OPTIONS)
    unwrapped = accelerator.unwrap_model(model, keep_fp32_wrapper=True)

    def write() -> list[FileEntry]:
        tensors = _tensors_of(optimizer_state)
        _refuse_full_disk(url, {**(weights if describe_adapter(model) is None else {}), **tensors})
        with fill_folder(url) as folder:
            try:
                unwrapped.save_pretrained(os.path.join(folder, MODEL_FOLDER), state_dict=weights)
                safetensors.torch.save_file(tensors, os.path.join(folder, _OPTIMIZER_FILE), metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(f"{error}") from error
            return describe_files(folder, storage.relative_names(folder))

    return on_main_process(accelerator, write)


def _restore_gathered(
    url: str, *, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    stored: dict[str, torch.Tensor] = {}

    def read() -> None:
        with read_folder(url) as folder:
            stored.update(safetensors.torch.load_file(os.path.join(folder, _OPTIMIZER_FILE)))

    on_every_process(accelerator, read)
    state = get_optimizer_state_dict(model, optimizer, options=_LOAD_OPTIONS)
    strangers = stored.keys() ^ _tensors_of(state).keys()
    if strangers:
        raise ValueError(f"they differ in {min(strangers)}.")
    for name, tensor in stored.items():
        parameter, key = name.rsplit(".", 1)
        state["state"][parameter][key] = tensor
    set_optimizer_state_dict(model, optimizer, state, options=_LOAD_OPTIONS)


def _write_sharded(
    url: str, *, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> list[FileEntry]:
    unwrapped = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    weights = _weights_of(model, unwrapped=unwrapped)
    means = _tensors_of(get_optimizer_state_dict(model, optimizer))
    on_main_process(accelerator, lambda: _refuse_full_disk(url, {**weights, **means}))
    with ExitStack() as stack:
        folders = on_every_process(accelerator, lambda: stack.enter_context(fill_folder(url)))
        folder = folders[accelerator.process_index]
        model_folder, optimizer_folder = (os.path.join(folder, name) for name in (MODEL_FOLDER, _OPTIMIZER_FOLDER))
        write_shards(model_folder, weights)
        write_shards(optimizer_folder, means)

        def finish() -> list[FileEntry]:
            names = [
                os.path.join(part, name)
                for part in (MODEL_FOLDER, _OPTIMIZER_FOLDER)
                for name in own_shard_files(os.path.join(folder, part), process_index=accelerator.process_index)
            ]
            if accelerator.is_main_process:
                unwrapped.config.save_pretrained(model_folder)
                names.append(os.path.join(MODEL_FOLDER, "config.json"))
                if unwrapped.generation_config is not None:
                    unwrapped.generation_config.save_pretrained(model_folder)
                    names.append(os.path.join(MODEL_FOLDER, "generation_config.json"))
            files = describe_files(folder, names)
            stack.close()
            return files

        return [entry for files in on_every_process(accelerator, finish) for entry in files]


def _restore_sharded(
    url: str, *, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    with ExitStack() as stack:
        folders = on_every_process(accelerator, lambda: stack.enter_context(read_folder(url)))
        folder = folders[accelerator.process_index]
        read_shards(os.path.join(folder, MODEL_FOLDER), _weights_of(model, unwrapped=accelerator.unwrap_model(model)))
        state = get_optimizer_state_dict(model, optimizer)
        read_shards(os.path.join(folder, _OPTIMIZER_FOLDER), _tensors_of(state))
        set_optimizer_state_dict(model, optimizer, state)


def _weights_of(model: torch.nn.Module, *, unwrapped: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights by name, as this process holds them, tied ones once."""
    names = {name for name, _ in unwrapped.named_parameters()} | {name for name, _ in unwrapped.named_buffers()}
    return {name: tensor for name, tensor in get_model_state_dict(model).items() if name in names}


def _tensors_of(optimizer_state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The running means as ``parameter.key``; the hyper-parameters beside them are the config's."""
    return {
        f"{parameter}.{key}": tensor.contiguous()
        for parameter, tensors in optimizer_state["state"].items()
        for key, tensor in tensors.items()
    }


def _refuse_full_disk(url: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises an ``OSError`` when tensors will not fit; otherwise the disk would be full before that is noticed."""
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + _MARGIN_BYTES
    num_free = free_bytes(url)
    if num_free is not None and num_free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{num_bytes / 1e9:.3f} GB are needed and {num_free / 1e9:.3f} GB are free on the disk of {url}",
        )


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config by dotted name."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
