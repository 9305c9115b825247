"""What the submitting process finds out about an engine before a run: whether it can work, and which model it is.

Cost: the tokenizer's load, and at most 1 MiB read of each file of the model.
"""

from __future__ import annotations

import hashlib

from beam_pipelines.command_line import LOCAL_RUNNERS
from contracts import storage
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import Prompt

_SAMPLE_BYTES = 1 << 16
_NUM_SAMPLES = 16


def check_engine(engine: EngineConfig, *, runner: str, prompt: Prompt | None = None) -> None:
    """With a local runner the worker is this machine, so a missing device or model can be told at once.

    Args:
        engine: Which model runs where.
        runner: Beam's runner; with any but a local one nothing is checked.
        prompt: A prompt to encode, such as one that needs the model's chat template.

    Raises:
        ValueError: The device or the model is not there, or the model cannot take the prompt.
    """
    if engine.kind == "fake" or runner not in LOCAL_RUNNERS:
        return
    if engine.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "engine.device is 'cuda', but no CUDA device is available to PyTorch on this machine. "
                "Use 'cpu' or 'auto', or run where there is a GPU."
            )
    load_tokenizer(engine).count([] if prompt is None else [prompt])


def identify_model(engine: EngineConfig) -> str:
    """The model's name and, for a folder, a hash over its small files and samples of its weights."""
    if engine.kind == "fake" or not storage.is_folder(engine.model):
        return engine.model_id
    digest = hashlib.sha256()
    for url in storage.list_files(engine.model):
        name = url.rsplit("/", 1)[-1]
        if not name.endswith((".json", ".jinja", ".safetensors", ".model")):
            continue
        with storage.open_input(url) as file:
            size = file.seek(0, 2)
            digest.update(f"{name}:{size}".encode())
            for sample in range(_NUM_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"{engine.model.rstrip('/').rsplit('/', 1)[-1]}@{digest.hexdigest()[:16]}"
