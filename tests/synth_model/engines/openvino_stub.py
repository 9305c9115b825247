"""Stands in for openvino and openvino-genai 2026.4: the same names and call signatures, over a transformers model.

A config takes only the attributes that the real one has, and a prompt that holds ``POISON_ID`` is refused as OpenVINO
refuses: by an error for the whole call.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM

POISON_ID = 33


class Tensor:
    def __init__(self, array):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.int64
        assert array.shape[0] == 1
        self.data = array


class SchedulerConfig:
    __slots__ = ("cache_size", "enable_prefix_caching")


class GenerationConfig:
    __slots__ = (
        "do_sample",
        "frequency_penalty",
        "max_new_tokens",
        "presence_penalty",
        "rng_seed",
        "stop_token_ids",
        "temperature",
        "top_p",
    )


class ContinuousBatchingPipeline:
    def __init__(self, models_path, scheduler_config, device, properties=None):
        if "broken" in models_path:
            raise RuntimeError("Check failed at somewhere.cpp:1:\nno such layer")
        self.scheduler_config, self.device = scheduler_config, device
        self.calls = []
        self.fits = True
        self._model = AutoModelForCausalLM.from_pretrained(models_path, dtype=torch.float32).eval()

    def generate(self, input_ids, generation_config, streamer=None):
        assert len(input_ids) == len(generation_config)
        prompts = [tensor.data[0].tolist() for tensor in input_ids]
        self.calls.append((prompts, generation_config))
        if any(POISON_ID in prompt for prompt in prompts):
            raise RuntimeError("Check 'input_id < vocab_size' failed")
        return [
            SimpleNamespace(m_generation_ids=[self._complete(prompt, config) if self.fits else []])
            for prompt, config in zip(prompts, generation_config, strict=True)
        ]

    def _complete(self, prompt, config):
        output = self._model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=sorted(config.stop_token_ids),
        )
        return output[0, len(prompt) :].tolist()


def install(monkeypatch):
    openvino, genai = ModuleType("openvino"), ModuleType("openvino_genai")
    openvino.Tensor = Tensor
    for stub in (SchedulerConfig, GenerationConfig, ContinuousBatchingPipeline):
        setattr(genai, stub.__name__, stub)
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    monkeypatch.setitem(sys.modules, "openvino_genai", genai)
