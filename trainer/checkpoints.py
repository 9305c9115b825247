"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a folder ``step-XXXXXXXX``, named after the steps done:

- ``model/``: a Hugging Face model folder, so that any checkpoint can be tried like a finished model;
- ``optimizer.safetensors``: AdamW's running means, by parameter name;
- ``state.json``: position, counters, and the identity of the shards and the model;
- ``COMPLETED``: the hash of ``state.json`` and of the names and sizes of all files, written last.

Neither the learning rate nor the random state is in it: the first is a function of the step, and dropout draws from a
generator that is seeded anew at every step (see ``loop``), so that both are right on any number of processes.

A folder is written aside as ``.partial`` and renamed; one that is partial, has no ``COMPLETED`` or does not match it
is never picked up. Names and sizes find torn files, not flipped bits.

Cost: three times the size of the float32 weights on disk, written by the main process.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel

from contracts import storage
from contracts.artifact import COMPLETED_FILE, completed_fingerprint, mark_completed
from trainer.folders import child_folders, file_sizes, read_folder, write_folder
from trainer.processes import on_main_process
from trainer.row_sampler import Position

_log = logging.getLogger(__name__)

MODEL_FOLDER = "model"
_OPTIMIZER_FILE = "optimizer.safetensors"
_STATE_FILE = "state.json"
_NAME_PREFIX = "step-"

# On saving only the main process needs the optimizer's state, on the CPU; on loading every process needs it.
_SAVE_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)
_LOAD_OPTIONS = StateDictOptions(full_state_dict=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """What a run knows between two steps, beside weights and optimizer.

    Args:
        position: The steps and rows done.
        num_tokens_seen: Tokens in these rows, padding not counted.
        seconds: Time spent in steps, without validation and saving.
        seed: The seed that the order of the rows follows.
        shards_fingerprint: The fingerprint of the shards.
        model_identity: The identity of the model that the run started from.
    """

    position: Position
    num_tokens_seen: int = 0
    seconds: float = 0.0
    seed: int
    shards_fingerprint: str
    model_identity: str


def save_checkpoint(
    root: str,
    *,
    state: RunState,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    num_kept: int,
) -> str:
    """Writes a checkpoint, then removes all but the newest ``num_kept``; every process must call it.

    Args:
        root: The folder of the run's checkpoints.
        state: The state after the last step.
        accelerator: The processes.
        model: The model as Accelerate prepared it.
        optimizer: The optimizer, not wrapped.
        num_kept: How many complete checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.
    """
    # These two collect what is spread over processes, so all of them take part.
    weights = accelerator.get_state_dict(model)
    optimizer_state = get_optimizer_state_dict(model, optimizer, options=_SAVE_OPTIONS)
    unwrapped: PreTrainedModel = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    url = storage.join(root, f"{_NAME_PREFIX}{state.position.step:08d}")

    def write() -> None:
        with write_folder(url) as folder:
            unwrapped.save_pretrained(os.path.join(folder, MODEL_FOLDER), state_dict=weights)
            safetensors.torch.save_file(
                _tensors_of(optimizer_state), os.path.join(folder, _OPTIMIZER_FILE), metadata={"format": "pt"}
            )
            storage.write_json(os.path.join(folder, _STATE_FILE), asdict(state))
        mark_completed(url, fingerprint=_fingerprint(url))
        _remove_all_but_newest(root, num_kept=num_kept)

    on_main_process(accelerator, write)
    return url


def read_state(url: str) -> RunState:
    """The state of a complete checkpoint.

    Raises:
        ValueError: There is no checkpoint of that name, it was not completed, or it has been damaged since.
    """
    expected = completed_fingerprint(url)
    try:
        actual = _fingerprint(url)
    except FileNotFoundError as error:
        raise ValueError(f"The checkpoint {url} is damaged: it has no {_STATE_FILE}.") from error
    if actual != expected:
        raise ValueError(f"The checkpoint {url} is damaged: its files are not those it was completed with.")
    values = storage.read_json(storage.join(url, _STATE_FILE))
    return RunState(**{**values, "position": Position(**values["position"])})


def newest_complete(root: str) -> str | None:
    """The newest checkpoint below a folder that can be gone on from; others are named in the log."""
    for url in reversed(_checkpoints(root)):
        try:
            read_state(url)
        except ValueError as error:
            _log.info("Skipping the checkpoint %s: %s", url.rsplit("/", 1)[-1], error)
        else:
            return url
    return None


def restore_optimizer(url: str, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's running means into an optimizer; learning rate and the like stay the optimizer's own.

    Args:
        url: The checkpoint.
        model: The model that the optimizer belongs to, as Accelerate prepared it.
        optimizer: The optimizer, not wrapped.

    Raises:
        ValueError: The file is damaged, or belongs to other parameters.
    """
    with read_folder(url) as folder:
        try:
            stored = safetensors.torch.load_file(os.path.join(folder, _OPTIMIZER_FILE))
        except SafetensorError as error:
            raise ValueError(f"The optimizer state of the checkpoint {url} is damaged: {error}.") from error
    state = get_optimizer_state_dict(model, optimizer, options=_LOAD_OPTIONS)
    strange = stored.keys() ^ _tensors_of(state).keys()
    if strange:
        raise ValueError(f"The checkpoint {url} belongs to another model: they differ in {min(strange)}.")
    for name, tensor in stored.items():
        parameter, key = name.rsplit(".", 1)
        state["state"][parameter][key] = tensor
    set_optimizer_state_dict(model, optimizer, state, options=_LOAD_OPTIONS)


def _tensors_of(optimizer_state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The running means as ``parameter.key``; the hyper-parameters beside them are the config's."""
    return {
        f"{parameter}.{key}": tensor.contiguous()
        for parameter, tensors in optimizer_state["state"].items()
        for key, tensor in tensors.items()
    }


def _fingerprint(url: str) -> str:
    sizes = {name: size for name, size in file_sizes(url).items() if name != COMPLETED_FILE}
    return storage.json_sha256([storage.read_json(storage.join(url, _STATE_FILE)), sizes])


def _checkpoints(root: str) -> list[str]:
    """The checkpoints below a folder, whole or not, oldest first: their names sort as their steps do."""
    return [storage.join(root, name) for name in child_folders(root) if name.startswith(_NAME_PREFIX)]


def _remove_all_but_newest(root: str, *, num_kept: int) -> None:
    """Removes older checkpoints, and unfinished ones along with them."""
    unfinished = [url for url in _checkpoints(root) if not storage.exists(storage.join(url, COMPLETED_FILE))]
    finished = [url for url in _checkpoints(root) if url not in unfinished]
    for url in unfinished + finished[:-num_kept]:
        storage.remove_folder(url)
