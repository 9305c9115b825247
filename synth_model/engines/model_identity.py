"""Which model an engine runs, told without loading it: what makes two runs' completions comparable.

Cost: at most 1 MiB read of each file of the model.
"""

from __future__ import annotations

import hashlib

from contracts import storage
from synth_model.engines import EngineConfig

_SAMPLE_BYTES = 1 << 16
_NUM_SAMPLES = 16


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
