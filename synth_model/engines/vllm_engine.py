"""Generates with vLLM in this process (`vllm.LLM`), with prefix caching.

Prompts are given as token ids, so that vLLM adds no BOS and applies no template of its own; completions come back as
token ids too and are decoded as those of the other engines. vLLM keeps the keys and values of what it has read, block
by block, and finds them again by the hash of what stands before: round r+1 does not compute round r's prompt anew while
the cache holds it, nor the common start of different chains.

Sampling means the same as in the other engines: the frequency penalty counts the completion alone, comes before the
temperature, and that before top-p; a prompt's draws come from a generator seeded by the prompt's own seed. That
generator is vLLM's, so drawn completions are not those of the transformers engines.

A prompt that vLLM refuses is a failure of its own. When its engine dies (out of memory, a driver error) every prompt
would fail: that is raised.

Cost: a load takes a minute; then batches are as large as the cache allows, whatever ``max_batch_size`` is; that is how
many prompts a call brings, and a call ends with its longest completion. Not done here: several calls at a time (they
wait for each other), vLLM's distributed serving (for that, run its server and use the endpoint engine).

Source: Kwon et al. 2023 (arXiv 2309.06180); vLLM 0.32.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synth_model.engines.model_loading import find_adapter
from synth_model.engines.prompt_encoding import encode_prompts, make_completion
from synth_model.generation import Failure, Outcome, Prompt, Sampling, prompt_seed
from synth_model.prompt_tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from synth_model.engines import EngineConfig

_GIB = 1 << 30
# What vLLM can be told to make room for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """How vLLM runs.

    Args:
        memory_fraction: Share of each GPU's memory (without a GPU: of the machine's) that vLLM takes for weights and
            cache together.
        kv_cache_gib: Size of the cache of keys and values in GiB, instead of what ``memory_fraction`` leaves for it; 0
            is not set. Without a GPU, set it.
        num_gpus: GPUs that the weights are split over (tensor parallelism).
        enforce_eager: Whether to leave out compilation and CUDA graphs: a faster start, slower generation.
    """

    memory_fraction: float = 0.9
    kv_cache_gib: float = 0.0
    num_gpus: int = 1
    enforce_eager: bool = False

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if not 0.0 < self.memory_fraction <= 1.0:
            raise ValueError(
                f"engine.vllm.memory_fraction is {self.memory_fraction}; it must be above 0 and at most 1."
            )
        if self.kv_cache_gib < 0:
            raise ValueError(f"engine.vllm.kv_cache_gib is {self.kv_cache_gib}; it must be at least 0 (not set).")
        if self.num_gpus < 1:
            raise ValueError(f"engine.vllm.num_gpus is {self.num_gpus}; it must be at least 1.")


class VllmEngine:
    """See the module's description. Threads may share it.

    Raises:
        ValueError: vLLM is not installed, or there is no such model, adapter or device, or vLLM refuses the settings.
    """

    def __init__(self, config: EngineConfig) -> None:
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise ValueError(
                "engine.kind 'vllm' needs vLLM: pip install '.[vllm]', or without a GPU see docs/engines.md."
            ) from error
        dtype = _check_device(config)
        self._tokenizer = ModelTokenizer(config.model, trust_remote_code=config.trust_remote_code)
        self._context_length = config.context_length
        arguments: dict[str, Any] = {}
        if config.vllm.kv_cache_gib:
            arguments["kv_cache_memory_bytes"] = int(config.vllm.kv_cache_gib * _GIB)
        self._lora_request: Any = None
        if config.adapter:
            folder = find_adapter(config.adapter)
            self._lora_request = _lora_request(folder)
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room_for_rank(folder)}
        try:
            self._llm: Any = vllm.LLM(
                model=config.model,
                trust_remote_code=config.trust_remote_code,
                tensor_parallel_size=config.vllm.num_gpus,
                dtype=dtype,
                gpu_memory_utilization=config.vllm.memory_fraction,
                enforce_eager=config.vllm.enforce_eager,
                max_model_len=config.context_length,
                enable_prefix_caching=True,
                **arguments,
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"vLLM could not load {config.model!r}: {_one_line(error)}") from error
        if self._lora_request is not None:
            self._load_adapter(config.adapter)
        # Threads of one process share the engine; vLLM's loop over its requests belongs to one caller at a time.
        self._lock = threading.Lock()

    def _load_adapter(self, name: str) -> None:
        # With the first prompts would be too late: each of them would fail by itself.
        try:
            self._llm.llm_engine.add_lora(self._lora_request)
        except Exception as error:
            raise ValueError(f"The adapter {name!r} does not fit engine.model in vLLM: {_one_line(error)}") from error

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order.

        Raises:
            RuntimeError: vLLM's engine has died; a new process has to load it anew.
        """
        encoded, outcomes = encode_prompts(
            prompts, tokenizer=self._tokenizer, sampling=sampling, context_length=self._context_length
        )
        if encoded:
            seeds = [prompt_seed(prompts[index], sampling=sampling) for index in encoded]
            completed = self._complete_safely(list(encoded.values()), seeds, sampling)
            outcomes.update(zip(encoded, completed, strict=True))
        return [outcomes[index] for index in range(len(prompts))]

    def _complete_safely(self, ids: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Outcome]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            with self._lock:
                return self._complete(ids, seeds, sampling)
        except EngineDeadError as error:
            raise RuntimeError(
                "vLLM's engine has died; its own messages above say why. Out of memory: lower "
                "engine.vllm.memory_fraction or engine.context_length. What is done is kept; start the run again to "
                "go on."
            ) from error
        except (VLLMClientError, ValueError) as error:
            # vLLM takes back the whole batch when it refuses one of its prompts.
            if len(ids) == 1:
                return [Failure(reason="generation_failed", detail=f"{type(error).__name__}: {error}")]
            return [
                outcome
                for one, seed in zip(ids, seeds, strict=True)
                for outcome in self._complete_safely([one], [seed], sampling)
            ]

    def _complete(self, ids: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Outcome]:
        outputs = self._llm.generate(
            [{"prompt_token_ids": one} for one in ids],
            [_sampling_params(sampling, seed=seed) for seed in seeds],
            use_tqdm=False,
            lora_request=self._lora_request,
        )
        return [self._outcome(output, num_prompt_tokens=len(one)) for output, one in zip(outputs, ids, strict=True)]

    def _outcome(self, output: Any, *, num_prompt_tokens: int) -> Outcome:
        (completion,) = output.outputs
        if completion.finish_reason not in ("stop", "length"):
            return Failure(reason="generation_failed", detail=f"vLLM gave it up: {completion.finish_reason}")
        ids = list(completion.token_ids)
        return make_completion(
            ids,
            num_prompt_tokens=num_prompt_tokens,
            # vLLM leaves the token that ended the completion in its place, the last one.
            eos_ids=ids[-1:] if completion.finish_reason == "stop" else (),
            tokenizer=self._tokenizer,
        )


def _sampling_params(sampling: Sampling, *, seed: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature else 1.0,
        seed=seed if sampling.temperature else None,
        detokenize=False,
    )


def _check_device(config: EngineConfig) -> str:
    """The dtype for the device that this installation of vLLM runs on, which is built for one kind alone.

    Raises:
        ValueError: That is not the device which the config asks for, or there is none.
    """
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    if not is_cpu and not current_platform.is_cuda_alike():
        raise ValueError(
            f"engine.device is {config.device!r}, but this installation of vLLM finds no device that it can run on: "
            "it is made for GPUs, and none is available. Run where there is a GPU, or install vLLM for CPUs "
            "(docs/engines.md)."
        )
    if config.device == "cuda" and is_cpu:
        raise ValueError(
            "engine.device is 'cuda', but this installation of vLLM runs on the CPU. Use 'cpu' or 'auto', or install "
            "'.[vllm]' where there is a GPU."
        )
    if config.device == "cpu" and not is_cpu:
        raise ValueError(
            "engine.device is 'cpu', but this installation of vLLM is made for GPUs. Use 'cuda' or 'auto', or install "
            "vLLM for CPUs (docs/engines.md)."
        )
    return config.dtype if config.dtype != "auto" else "float32" if is_cpu else "bfloat16"


def _room_for_rank(adapter: str) -> int:
    """The rank that vLLM is to make room for, given an adapter's folder.

    Raises:
        ValueError: The adapter's rank is too high.
    """
    with open(os.path.join(adapter, "adapter_config.json"), encoding="utf-8") as file:
        rank = int(json.load(file)["r"])
    room = next((allowed for allowed in _LORA_RANKS if allowed >= rank), None)
    if room is None:
        raise ValueError(f"The LoRA adapter {adapter!r} has rank {rank}; vLLM takes up to {_LORA_RANKS[-1]}.")
    return room


def _lora_request(folder: str) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name="adapter", lora_int_id=1, lora_path=folder)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
