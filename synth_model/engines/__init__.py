"""Engines: what completes prompts. One interface (`synth_model.generation.Engine`), chosen in the config.

`load_engine` and `load_tokenizer` import what they need when they are called, on the worker.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Literal

from contracts.storage import json_sha256
from synth_model.engines.fake_engine import FakeEngine, FakeOptions, FakeTokenizer
from synth_model.generation import Engine, PromptTokenizer


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which model runs where.

    Args:
        kind: ``transformers`` (a model in this process) or ``fake`` (deterministic, no model: tests and rehearsals).
        model: Hub name or folder of the model.
        device: ``cpu``, ``cuda`` or ``auto`` (CUDA when present). Asked for and absent is an error.
        dtype: ``auto`` (float32 on the CPU, bfloat16 on CUDA), ``float32``, ``bfloat16`` or ``float16``.
        context_length: Tokens of prompt and completion together; at most what the model was made for.
        max_batch_size: Most prompts that are generated together.
        max_batch_tokens: Most tokens, prompts and completions with padding, in one batch.
        trust_remote_code: Whether code that comes with the model may run.
        fake: Settings of the fake engine.
    """

    kind: Literal["transformers", "fake"] = "transformers"
    model: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context_length: int = 2048
    max_batch_size: int = 32
    max_batch_tokens: int = 32768
    trust_remote_code: bool = False
    fake: FakeOptions = field(default_factory=FakeOptions)

    @property
    def model_id(self) -> str:
        """What identifies the model in keys and records: its name, or the fake engine's settings."""
        return self.model if self.kind != "fake" else f"fake-{json_sha256(asdict(self.fake))[:12]}"

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible. Whether the device is there shows on the worker, in `load_engine`.
        """
        if self.kind == "transformers" and not self.model:
            raise ValueError("engine.model is empty; give the hub name or the folder of a model.")
        for name in ("context_length", "max_batch_size", "max_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_batch_tokens < self.context_length:
            raise ValueError(
                f"engine.max_batch_tokens ({self.max_batch_tokens}) is below engine.context_length "
                f"({self.context_length}): the longest prompt would fit no batch."
            )


@lru_cache(maxsize=4)
def load_tokenizer(config: EngineConfig) -> PromptTokenizer:
    """The tokenizer of a config's model, loaded once a process, though every step asks for it; needs no torch."""
    if config.kind == "fake":
        return FakeTokenizer()
    from synth_model.prompt_tokenizer import ModelTokenizer

    return ModelTokenizer(config.model, trust_remote_code=config.trust_remote_code)


def load_engine(config: EngineConfig) -> Engine:
    """Loads a config's model; takes seconds to minutes and the memory of the model.

    Raises:
        ValueError: No such model, or the device is absent.
    """
    if config.kind == "fake":
        return FakeEngine(config.fake, context_length=config.context_length)
    from synth_model.engines.transformers_engine import TransformersEngine

    return TransformersEngine(config)
