"""Tensors that are spread over processes, as files that each process writes and reads for itself.

Every process writes what it holds into ``shard-*.safetensors``, with the offsets of its parts; what several hold alike
is written once. Any number of processes reads them back: each finds the parts that it needs by their offsets.

Cost: every process writes its share and reads its own; PyTorch copies the share in memory while it writes it, at about
a third of the speed of a plain file. No process holds more than that.

Does not reach other storage than a local or mounted folder; see ``folders`` for that.

Source: torch.distributed.checkpoint with its Hugging Face storage: safetensors, no pickle.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException


def write_shards(folder: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes this process's part of tensors; every process must call it with the same names.

    Args:
        folder: A local folder; the same one for all processes of a machine.
        tensors: DTensors, or tensors that are alike on all processes.

    Raises:
        OSError: One of the processes could not write; raised on all.
    """
    writer = HuggingFaceStorageWriter(folder, save_distributed=True)
    with _plain_errors():
        distributed_checkpoint.save(
            dict(tensors), storage_writer=writer, no_dist=not torch.distributed.is_initialized()
        )


def own_shard_files(folder: str, *, process_index: int) -> list[str]:
    """The names of the files in a folder that a process has written."""
    return [name for name in sorted(os.listdir(folder)) if name.startswith(f"shard-{process_index + 1:05d}-")]


def read_shards(folder: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fills tensors, in place, from what any number of processes wrote; every process must call it.

    Raises:
        ValueError: The files hold other tensors, or of other shapes.
        OSError: One of the processes could not read; raised on all.
    """
    stored = _stored_tensors(folder)
    strangers = stored.keys() ^ tensors.keys()
    if strangers:
        raise ValueError(f"they differ in {min(strangers)}.")
    for name, tensor in tensors.items():
        if stored[name][0] != tuple(tensor.shape):
            raise ValueError(f"{name} has the shape {stored[name][0]} there and {tuple(tensor.shape)} here.")
    reader = HuggingFaceStorageReader(folder)
    with _plain_errors():
        distributed_checkpoint.load(
            dict(tensors), storage_reader=reader, no_dist=not torch.distributed.is_initialized()
        )


def gather_shards(folder: str) -> dict[str, torch.Tensor]:
    """The whole tensors in a folder of shards, on the CPU; for one process alone."""
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in _stored_tensors(folder).items()}
    with _plain_errors():
        distributed_checkpoint.load(tensors, storage_reader=HuggingFaceStorageReader(folder), no_dist=True)
    return tensors


def _stored_tensors(folder: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of the whole tensors in a folder of shards."""
    content = HuggingFaceStorageReader(folder).read_metadata().state_dict_metadata
    return {name: (tuple(tensor.size), tensor.properties.dtype) for name, tensor in content.items()}


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Says what happened on which process, without tracebacks, and nothing about a process that is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            causes = [f"process {index}: {cause}" for index, (cause, _) in sorted(error.failures.items())]
            raise OSError("; ".join(causes)) from error
