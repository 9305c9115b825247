"""``python -m trainer import-model``: turns a GGUF file into a Hugging Face model folder, once.

GGUF is the single-file format of llama.cpp: configuration, tokenizer and quantized weights. transformers can read it,
but it takes long and gives a model that refuses to be saved. So the weights are dequantized to float32, put into a
model that knows nothing of the quantization, and stored as safetensors beside the tokenizer, with a model card that
hands on the licence; the folder needs nothing else afterwards and loads in a fraction of a second.

The folder is claimed before the work and completed after it. A finished one is left as it is; one whose conversion was
killed is converted again.

Cost: about 20 seconds and 1.5 GB of memory for 135 million parameters.

Source: the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contracts import storage
from contracts.artifact import claim_output, describe_run, mark_completed
from trainer.command_line import run_command
from trainer.config import parse_config

_log = logging.getLogger(__name__)

_PACKAGE_SCHEME = "package:"


@dataclass(frozen=True, kw_only=True)
class ImportModelConfig:
    """Convert a GGUF model into a Hugging Face model folder.

    Args:
        gguf: Path of the GGUF file, or ``package:NAME/FILE`` for a file inside an installed Python package.
        output: The model folder to make.
    """

    gguf: str
    output: str


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""

    def work() -> int:
        import_model(parse_config(ImportModelConfig, arguments=arguments, program="python -m trainer import-model"))
        return 0

    return run_command(work)


def import_model(config: ImportModelConfig) -> None:
    """Makes the model folder, unless it is complete already.

    Raises:
        ValueError: The file is missing or no GGUF model, or the folder holds something else.
    """
    import_gguf(config.gguf, sha256=storage.file_sha256(find_gguf(config.gguf)), output=config.output)


def import_gguf(name: str, *, sha256: str, output: str) -> None:
    """As `import_model`, for a file whose hash is known already."""
    this_run = describe_run(command="import-model", config={}, inputs={"gguf": sha256})
    if claim_output(output, run=this_run) == "completed":
        _log.info("The model in %s is complete.", output)
        return
    path = find_gguf(name)
    size = os.path.getsize(path)
    _log.info("Converting %s (%.0f MB) to %s; takes about 20 s for 100 MB", name, size / 1e6, output)
    started = time.monotonic()
    num_parameters = _convert(path, output=output)
    mark_completed(output, fingerprint=sha256)
    _log.info("Converted %s parameters in %.0f s", f"{num_parameters:,}", time.monotonic() - started)


def is_gguf_name(name: str) -> bool:
    """Whether a name means a GGUF file rather than a model folder or a model on the hub."""
    return name.startswith(_PACKAGE_SCHEME) or name.endswith(".gguf")


def find_gguf(name: str) -> str:
    """The path of a GGUF file given by path or as ``package:NAME/FILE``.

    A package is found without importing it, since what it would import need not be installed.

    Raises:
        ValueError: There is no such file or package, or it is not a GGUF file.
    """
    path = name
    if name.startswith(_PACKAGE_SCHEME):
        package, _, file = name[len(_PACKAGE_SCHEME) :].partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"The Python package {package!r} of {name!r} is not installed.")
        path = os.path.join(next(iter(spec.submodule_search_locations)), file)
    if not os.path.isfile(path):
        raise ValueError(f"There is no GGUF file {path}.")
    with open(path, "rb") as content:
        if content.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it does not start with the letters GGUF.")
    return path


def _convert(path: str, *, output: str) -> int:
    """Writes the model folder; returns the number of parameters."""
    # Seconds of imports that a completed folder does not need.
    import torch
    from huggingface_hub import ModelCardData
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.folders import write_folder

    folder, file = os.path.split(os.path.abspath(path))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    values = quantized.config.to_dict()
    # The name is the author's working title, not a place to find the model.
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        values.pop(key, None)
    config = type(quantized.config).from_dict(values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    with write_folder(output) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        card = ModelCardData(library_name="transformers", **_stated_metadata(path))
        storage.write_bytes_atomically(os.path.join(aside, "README.md"), f"---\n{card.to_yaml()}\n---\n".encode())
    num_parameters: int = model.num_parameters()
    return num_parameters


def _stated_metadata(path: str) -> dict[str, Any]:
    """What a GGUF file says of its licence and languages, for the folder's model card; empty when it says nothing."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    stated = {"license": "general.license", "language": "general.languages"}
    return {key: fields[name].contents() for key, name in stated.items() if name in fields}
