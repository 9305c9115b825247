"""What of vLLM the engine calls, with vLLM's own names, signatures and habits, over a small transformers model.

`test_vllm_engine.py` holds the signatures against the real package where that is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMServerError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    pass


class EngineDeadError(VLLMServerError):
    pass


class Platform:
    """A build of vLLM for one kind of device."""

    def __init__(self, kind: str = "cpu") -> None:
        self.kind = kind

    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    def is_cuda_alike(self) -> bool:
        return self.kind == "cuda"


@dataclass
class SamplingParams:
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    detokenize: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass(kw_only=True)
class CompletionOutput:
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None


@dataclass(kw_only=True)
class RequestOutput:
    outputs: list[CompletionOutput]


@dataclass
class LLMEngine:
    loras: list[LoRARequest] = field(default_factory=list)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        if "broken" in lora_request.lora_path:
            raise ValueError("size mismatch")
        self.loras.append(lora_request)
        return True


class LLM:
    """Greedy completions are the model's; drawn ones depend on the seed alone."""

    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        kv_cache_memory_bytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "kwargs")} | kwargs
        if kwargs["max_model_len"] > 512:
            raise ValueError("User-specified max_model_len is greater than\nthe derived max_model_len")
        self.llm_engine = LLMEngine()
        self.calls: list[dict[str, Any]] = []
        self.is_dead = False
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def generate(
        self,
        prompts: Sequence[Any],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        if self.is_dead:
            raise EngineDeadError
        assert len(prompts) == len(sampling_params)
        self.calls.append({"prompts": prompts, "sampling_params": sampling_params, "lora_request": lora_request})
        all_ids = [prompt["prompt_token_ids"] for prompt in prompts]
        for ids in all_ids:
            # vLLM looks at every prompt of a call first, and takes none when one is bad.
            if POISON in ids:
                raise VLLMValidationError("Token id is out of vocabulary")
        return [
            RequestOutput(outputs=[self._complete(ids, params)])
            for ids, params in zip(all_ids, sampling_params, strict=True)
        ]

    def _complete(self, ids: list[int], params: SamplingParams) -> CompletionOutput:
        eos_ids = self._model.generation_config.eos_token_id
        assert not params.detokenize
        if GIVEN_UP in ids:
            return CompletionOutput(text="", token_ids=[7], finish_reason="abort")
        if params.temperature:
            new_ids = np.random.default_rng(params.seed).integers(40, 200, params.max_tokens).tolist()
        else:
            output = self._model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=params.max_tokens)
            new_ids = output[0, len(ids) :].tolist()
        is_stopped = new_ids[-1] in eos_ids
        return CompletionOutput(text="", token_ids=tuple(new_ids), finish_reason="stop" if is_stopped else "length")


# The tiny model's tokens of two characters, which mark prompts that fare ill.
POISON = 5 + ord("~") - ord("!")
GIVEN_UP = 5 + ord("}") - ord("!")

_MODULES: dict[str, dict[str, Any]] = {
    "vllm": {"LLM": LLM, "SamplingParams": SamplingParams},
    "vllm.exceptions": {"VLLMClientError": VLLMClientError},
    "vllm.lora": {},
    "vllm.lora.request": {"LoRARequest": LoRARequest},
    "vllm.platforms": {},
    "vllm.v1": {},
    "vllm.v1.engine": {},
    "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
}


def install(monkeypatch: Any, *, kind: str = "cpu") -> None:
    """Puts the stub in the place of vLLM, whether that is installed or not."""
    for name, content in _MODULES.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["vllm.platforms"])["current_platform"] = Platform(kind)
