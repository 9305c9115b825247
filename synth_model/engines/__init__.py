"""Engines: what completes prompts. One interface (`synth_model.generation.Engine`), chosen in the config.

`load_engine` and `load_tokenizer` import what they need when they are called, on the worker.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal

from contracts.storage import json_sha256
from synth_model.engines.continuous_batching_session import ContinuousBatchingOptions
from synth_model.engines.endpoint_engine import EndpointEngine, EndpointOptions
from synth_model.engines.fake_engine import FakeEngine, FakeOptions, FakeTokenizer
from synth_model.engines.openvino_engine import OpenvinoEngine, OpenvinoOptions
from synth_model.engines.vllm_engine import VllmEngine, VllmOptions
from synth_model.generation import Engine, PromptTokenizer

_HOW_IT_RUNS = frozenset(
    {"device", "max_batch_size", "max_batch_tokens", "prefix_cache_bytes", "batching", "continuous", "vllm", "openvino"}
)
_HOW_IT_IS_REACHED = frozenset({"base_url", "api_key_env", "max_concurrency", "max_retries", "timeout_seconds"})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which model runs where.

    Args:
        kind: ``transformers`` (a model in this process), ``vllm`` (the same, by vLLM), ``openvino`` (the same
            on the CPU, a model exported to OpenVINO), ``endpoint`` (a server that speaks OpenAI's protocol) or ``fake``
            (deterministic, no model: tests and rehearsals).
        model: Hub name or folder of the model; for ``endpoint`` the name that it has at the server, for ``openvino``
            the folder of the exported model.
        adapter: Folder or hub name of a LoRA adapter for the model; empty for none.
        device: ``cpu``, ``cuda`` or ``auto`` (CUDA when present). Asked for and absent is an error.
        dtype: ``auto`` (float32 on the CPU, bfloat16 on CUDA), ``float32``, ``bfloat16`` or ``float16``.
        context_length: Tokens of prompt and completion together; at most what the model was made for.
        max_batch_size: Most prompts that are generated together.
        max_batch_tokens: Most tokens, prompts and completions with padding, in one batch.
        prefix_cache_bytes: Most memory, on the model's device, of keys and values that padded batches keep for prompts
            that begin like earlier ones, as those of a chain's later rounds do; 0 keeps none. A token takes two numbers
            for each layer, key-value head and dimension of a head: 46 KB in SmolLM2-135M.
        batching: ``padded`` batches, ``continuous`` ones over a paged cache, or ``auto``: continuous on CUDA, padded
            on the CPU, where it is faster. For ``transformers``.
        continuous: Settings of continuous batching.
        trust_remote_code: Whether code that comes with the model may run.
        vllm: Settings of vLLM.
        openvino: Settings of OpenVINO.
        endpoint: Settings of an endpoint.
        fake: Settings of the fake engine.
    """

    kind: Literal["transformers", "vllm", "openvino", "endpoint", "fake"] = "transformers"
    model: str = ""
    adapter: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context_length: int = 2048
    max_batch_size: int = 32
    max_batch_tokens: int = 32768
    prefix_cache_bytes: int = 2 << 30
    batching: Literal["auto", "padded", "continuous"] = "auto"
    continuous: ContinuousBatchingOptions = field(default_factory=ContinuousBatchingOptions)
    trust_remote_code: bool = False
    vllm: VllmOptions = field(default_factory=VllmOptions)
    openvino: OpenvinoOptions = field(default_factory=OpenvinoOptions)
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    fake: FakeOptions = field(default_factory=FakeOptions)

    @property
    def model_id(self) -> str:
        """What identifies the model in keys and records: its name and its adapter's, or the fake engine's settings."""
        if self.kind == "fake":
            return f"fake-{json_sha256(asdict(self.fake))[:12]}"
        return f"{self.model}+{self.adapter}" if self.adapter else self.model

    def settings_of_the_result(self) -> dict[str, Any]:
        """What decides on completions, as JSON: a run may go on with other batches, on another machine or server."""
        values = {name: value for name, value in asdict(self).items() if name not in _HOW_IT_RUNS}
        values["endpoint"] = {
            name: value for name, value in values["endpoint"].items() if name not in _HOW_IT_IS_REACHED
        }
        return values

    @property
    def pads_batches(self) -> bool:
        """Whether a prompt may be padded to the longest of its batch; with the device left open, as if on the CPU."""
        is_continuous = self.batching == "continuous" or (self.batching == "auto" and self.device == "cuda")
        return self.kind == "fake" or (self.kind == "transformers" and not is_continuous)

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible. Whether the device is there shows on the worker, in `load_engine`.
        """
        if self.kind != "fake" and not self.model:
            raise ValueError("engine.model is empty; give the hub name or the folder of a model.")
        if self.kind == "endpoint":
            self.endpoint.check()
            if self.adapter:
                raise ValueError(
                    f"engine.adapter is {self.adapter!r}, but an endpoint loads its adapters itself: leave it empty "
                    "and give the name that the endpoint has for the model with its adapter as engine.model."
                )
        self.vllm.check()
        self.openvino.check()
        for name in ("context_length", "max_batch_size", "max_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.prefix_cache_bytes < 0:
            raise ValueError(f"engine.prefix_cache_bytes is {self.prefix_cache_bytes}; it must be at least 0 (off).")
        if self.max_batch_tokens < self.context_length:
            raise ValueError(
                f"engine.max_batch_tokens ({self.max_batch_tokens}) is below engine.context_length "
                f"({self.context_length}): the longest prompt would fit no batch."
            )
        self.continuous.check(context_length=self.context_length)


@lru_cache(maxsize=4)
def load_tokenizer(config: EngineConfig) -> PromptTokenizer:
    """The tokenizer of a config's model, loaded once a process, though every step asks for it; needs no torch."""
    if config.kind == "fake":
        return FakeTokenizer()
    from synth_model.prompt_tokenizer import ModelTokenizer

    name = config.endpoint.tokenizer if config.kind == "endpoint" else ""
    return ModelTokenizer(name or config.model, trust_remote_code=config.trust_remote_code)


def load_engine(config: EngineConfig) -> Engine:
    """Loads a config's model; takes seconds to minutes and the memory of the model.

    Raises:
        ValueError: No such model, or the device is absent.
    """
    if config.kind == "fake":
        return FakeEngine(config.fake, context_length=config.context_length)
    if config.kind == "endpoint":
        return EndpointEngine(config)
    if config.kind == "vllm":
        return VllmEngine(config)
    if config.kind == "openvino":
        return OpenvinoEngine(config)
    from synth_model.engines.model_loading import resolve_device

    if config.batching == "continuous" or (config.batching == "auto" and resolve_device(config.device) == "cuda"):
        from synth_model.engines.continuous_batching_engine import ContinuousBatchingEngine

        return ContinuousBatchingEngine(config)
    from synth_model.engines.transformers_engine import TransformersEngine

    return TransformersEngine(config)
