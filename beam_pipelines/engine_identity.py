"""What the submitting process finds out about an engine before a run: whether it can work, and which model it is.

Cost: the tokenizer's load, and at most 1 MiB read of each file of the model.
"""

from __future__ import annotations

import hashlib

from beam_pipelines.command_line import LOCAL_RUNNERS
from contracts import storage
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.engines.endpoint_engine import EndpointEngine
from synth_model.engines.model_loading import find_adapter, resolve_device
from synth_model.generation import ChatMessage, Prompt

_SAMPLE_BYTES = 1 << 16
_NUM_SAMPLES = 16


def check_engine(engine: EngineConfig, *, runner: str, prompt: Prompt | None = None) -> None:
    """With a local runner the worker is this machine, so a missing device or model can be told at once.

    Args:
        engine: Which model runs where.
        runner: Beam's runner; with any but a local one nothing is checked.
        prompt: A prompt to encode, such as one that needs the model's chat template. An endpoint is sent it.

    Raises:
        ValueError: The device, the model, the adapter or the endpoint is not there, or it cannot take the prompt.
    """
    if engine.kind == "fake" or runner not in LOCAL_RUNNERS:
        return
    if engine.kind == "endpoint":
        endpoint = EndpointEngine(engine)
        try:
            endpoint.check(prompt or Prompt(messages=(ChatMessage(role="user", content="Hello"),)))
        finally:
            endpoint.close()
        return
    if engine.device == "cuda":
        resolve_device(engine.device)
    if engine.adapter:
        find_adapter(engine.adapter)
    load_tokenizer(engine).count([] if prompt is None else [prompt])


def identify_model(engine: EngineConfig) -> str:
    """The names of the model and its adapter and, for folders, a hash over their small files and samples of weights.

    What an endpoint serves under a name cannot be seen from here.
    """
    if engine.kind in ("fake", "endpoint"):
        return engine.model_id
    return "+".join(_identify_weights(name) for name in (engine.model, engine.adapter) if name)


def _identify_weights(name_or_folder: str) -> str:
    if not storage.is_folder(name_or_folder):
        return name_or_folder
    digest = hashlib.sha256()
    for url in storage.list_files(name_or_folder):
        name = url.rsplit("/", 1)[-1]
        if not name.endswith((".json", ".jinja", ".safetensors", ".model", ".bin", ".xml")):
            continue
        with storage.open_input(url) as file:
            size = file.seek(0, 2)
            digest.update(f"{name}:{size}".encode())
            for sample in range(_NUM_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"{name_or_folder.rstrip('/').rsplit('/', 1)[-1]}@{digest.hexdigest()[:16]}"
