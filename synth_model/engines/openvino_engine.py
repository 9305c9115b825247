"""Generates on the CPU with OpenVINO in this process (`openvino_genai.ContinuousBatchingPipeline`), int8 as a rule.

``engine.model`` is the folder that ``optimum-cli export openvino`` wrote, tokenizer and chat template included. Weights
in int8, keys and values in int8 too, and a batch that takes new prompts in while others run make it faster than the
padded engine in float32 (`benchmarks/openvino_generation.py`); what it writes differs from what the model itself would
write, about as well. It keeps the keys and values of what it has read, block by block, so that round r+1 does not
compute round r's prompt anew while the cache holds it.

Prompts are given as token ids, so that OpenVINO adds no BOS and applies no template of its own. A prompt's draws come
from a generator seeded by the prompt's own seed and do not depend on its batch. That generator is OpenVINO's, so drawn
completions are not those of the transformers engines. Its frequency penalty counts the completion alone, as elsewhere,
but it is *added* to logits below zero, where it favours repetition: use it with models whose likely tokens have
positive logits, as most have.

Cost: a load takes seconds; then batches are as large as the cache allows, whatever ``max_batch_size`` is. Not done:
exporting a model, adapters (merge them before the export), several calls at a time (they wait for each other).

Source: openvino-genai 2026.4.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from synth_model.engines.prompt_encoding import encode_prompts, make_completion
from synth_model.generation import Failure, Outcome, Prompt, Sampling, prompt_seed
from synth_model.prompt_tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from synth_model.engines import EngineConfig

_EXPORTED_MODEL = "openvino_model.xml"


@dataclass(frozen=True, kw_only=True)
class OpenvinoOptions:
    """How OpenVINO runs.

    Args:
        kv_cache_gib: Most memory of keys and values, in whole GiB; what is not in use serves later prompts that begin
            alike.
    """

    kv_cache_gib: int = 2

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if self.kv_cache_gib < 1:
            raise ValueError(f"engine.openvino.kv_cache_gib is {self.kv_cache_gib}; it must be at least 1.")


class OpenvinoEngine:
    """See the module's description. Threads may share it.

    Raises:
        ValueError: OpenVINO is not installed, the folder holds no exported model, or a setting does not go with it.
    """

    def __init__(self, config: EngineConfig) -> None:
        try:
            import openvino_genai
        except ModuleNotFoundError as error:
            raise ValueError("engine.kind 'openvino' needs openvino-genai: pip install '.[openvino]'") from error
        from transformers import AutoConfig, GenerationConfig

        if config.device == "cuda" or config.adapter:
            raise ValueError(
                f"engine.device is {config.device!r} and engine.adapter is {config.adapter!r}, but engine.kind "
                "'openvino' runs on the CPU ('cpu' or 'auto') and without adapters: merge one before the export."
            )
        if not os.path.isfile(os.path.join(config.model, _EXPORTED_MODEL)):
            raise ValueError(
                f"engine.model is {config.model!r}, but there is no {_EXPORTED_MODEL} in it: give the folder that "
                "`optimum-cli export openvino --task text-generation-with-past` wrote."
            )
        self._tokenizer = ModelTokenizer(config.model, trust_remote_code=config.trust_remote_code)
        longest = getattr(
            AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code),
            "max_position_embeddings",
            None,
        )
        if longest is not None and config.context_length > longest:
            raise ValueError(
                f"engine.context_length is {config.context_length}, but {config.model!r} was made for {longest}."
            )
        eos_ids = GenerationConfig.from_pretrained(config.model).eos_token_id
        tokens = (*(eos_ids if isinstance(eos_ids, list) else [eos_ids]), self._tokenizer.tokenizer.eos_token_id)
        self._eos_ids = {token for token in tokens if token is not None}
        self._context_length = config.context_length
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = config.openvino.kv_cache_gib
        scheduler.enable_prefix_caching = True
        try:
            self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(config.model, scheduler, "CPU")
        except RuntimeError as error:
            raise ValueError(f"OpenVINO could not load {config.model!r}: {' '.join(str(error).split())}") from error
        # Threads of one process share the engine; the pipeline takes one call at a time.
        self._lock = threading.Lock()

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order."""
        encoded, outcomes = encode_prompts(
            prompts, tokenizer=self._tokenizer, sampling=sampling, context_length=self._context_length
        )
        if encoded:
            seeds = [prompt_seed(prompts[index], sampling=sampling) for index in encoded]
            completed = self._complete_safely(list(encoded.values()), seeds, sampling)
            outcomes.update(zip(encoded, completed, strict=True))
        return [outcomes[index] for index in range(len(prompts))]

    def _complete_safely(self, ids: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Outcome]:
        try:
            with self._lock:
                return self._complete(ids, seeds, sampling)
        except RuntimeError as error:
            if len(ids) == 1:
                return [Failure(reason="generation_failed", detail=f"{type(error).__name__}: {error}")]
            return [
                outcome
                for one, seed in zip(ids, seeds, strict=True)
                for outcome in self._complete_safely([one], [seed], sampling)
            ]

    def _complete(self, ids: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Outcome]:
        import openvino

        results = self._pipeline.generate(
            [openvino.Tensor(np.array([one], dtype=np.int64)) for one in ids],
            [self._generation_config(sampling, seed=seed) for seed in seeds],
        )
        return [self._outcome(result, num_prompt_tokens=len(one)) for result, one in zip(results, ids, strict=True)]

    def _generation_config(self, sampling: Sampling, *, seed: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = sampling.max_new_tokens
        config.stop_token_ids = self._eos_ids
        config.frequency_penalty = sampling.frequency_penalty
        config.presence_penalty = sampling.presence_penalty
        config.do_sample = sampling.temperature > 0
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.rng_seed = seed
        return config

    def _outcome(self, result: Any, *, num_prompt_tokens: int) -> Outcome:
        (new_ids,) = result.m_generation_ids
        if not new_ids:
            return Failure(
                reason="out_of_memory",
                detail=f"{num_prompt_tokens} tokens and their completion do not fit engine.openvino.kv_cache_gib.",
            )
        return make_completion(
            new_ids, num_prompt_tokens=num_prompt_tokens, eos_ids=self._eos_ids, tokenizer=self._tokenizer
        )
