"""Generates with transformers in this process, in batches of prompts of similar length.

Prompts are sorted by length and cut into batches bounded by count and by padded tokens, so that short prompts do not
pay for long ones. A batch is completed by `synth_model.engines.padded_generation`. One that fails is tried again prompt
by prompt, so that one bad prompt costs itself alone; running out of memory halves it instead.

On the CPU the model's linear layers are packed (`synth_model.engines.packed_linear`).

With a temperature each token is drawn by `synth_model.engines.token_drawing`, from a random stream of the prompt's own,
so that a completion does not depend on its batch.

Not done here: paged attention, and taking new prompts into a running batch
(`synth_model.engines.continuous_batching_engine` does both).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from synth_model.engines.log_likelihood import score_continuations
from synth_model.engines.model_loading import load_model
from synth_model.engines.packed_linear import pack_linear_layers
from synth_model.engines.padded_generation import (
    EncodedPrompt,
    PaddedGeneration,
    generate_with_library,
    keeps_only_keys_and_values,
)
from synth_model.engines.prompt_encoding import encode_prompts, make_completion
from synth_model.generation import Failure, Outcome, Prompt, Sampling, prompt_seed
from synth_model.scoring import ScoringOutcome, ScoringRequest

if TYPE_CHECKING:
    from synth_model.engines import EngineConfig


def length_sorted_batches(
    lengths: Sequence[int], *, num_new_tokens: int, max_batch_size: int, max_batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts batch by batch, longest first, so that memory peaks in the first batch and not in the last.

    Args:
        lengths: Tokens of each prompt.
        num_new_tokens: Room for the completion of each prompt.
        max_batch_size: Most prompts a batch.
        max_batch_tokens: Most tokens a batch, each prompt counted as long as the batch's longest.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        longest = lengths[batch[0] if batch else index] + num_new_tokens
        if batch and (len(batch) == max_batch_size or longest * (len(batch) + 1) > max_batch_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class TransformersEngine:
    """A causal language model of the Hugging Face hub, or a folder, as a `synth_model.generation.Engine`.

    Raises:
        ValueError: No such model, no such device, or a context longer than the model's.
    """

    def __init__(self, config: EngineConfig) -> None:
        loaded = load_model(config)
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._device, self._eos_ids = loaded.device, loaded.eos_ids
        self._config = config
        if self._device == "cpu":
            pack_linear_layers(self._model)
        self._padded_generation = (
            PaddedGeneration(self._model, prefix_cache_bytes=config.prefix_cache_bytes)
            if keeps_only_keys_and_values(self._model)
            else None
        )
        # Threads of one process share the engine; a model runs one batch at a time.
        self._lock = threading.Lock()

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order."""
        encoded, outcomes = encode_prompts(
            prompts, tokenizer=self._tokenizer, sampling=sampling, context_length=self._config.context_length
        )
        indices = list(encoded)
        for batch in length_sorted_batches(
            [len(encoded[index]) for index in indices],
            num_new_tokens=sampling.max_new_tokens,
            max_batch_size=self._config.max_batch_size,
            max_batch_tokens=self._config.max_batch_tokens,
        ):
            members = [indices[position] for position in batch]
            completed = self._complete_safely(
                [
                    EncodedPrompt(ids=encoded[index], seed=prompt_seed(prompts[index], sampling=sampling))
                    for index in members
                ],
                sampling,
            )
            outcomes.update(zip(members, completed, strict=True))
        return [outcomes[index] for index in range(len(prompts))]

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringOutcome]:
        """One outcome a request, in the requests' order; see `synth_model.engines.log_likelihood`."""
        with self._lock:
            return score_continuations(
                requests,
                model=self._model,
                tokenizer=self._tokenizer,
                context_length=self._config.context_length,
                max_batch_size=self._config.max_batch_size,
                max_batch_tokens=self._config.max_batch_tokens,
            )

    def _complete_safely(self, batch: list[EncodedPrompt], sampling: Sampling) -> list[Outcome]:
        import torch

        try:
            with self._lock:
                completions = self._generate(batch, sampling)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                return [Failure(reason="out_of_memory", detail=f"{len(batch[0].ids)} tokens: {error}")]
            half = len(batch) // 2
        except (RuntimeError, ValueError, IndexError) as error:
            if len(batch) == 1:
                return [Failure(reason="generation_failed", detail=f"{type(error).__name__}: {error}")]
            return [outcome for prompt in batch for outcome in self._complete_safely([prompt], sampling)]
        else:
            return [
                make_completion(
                    new_ids, num_prompt_tokens=len(prompt.ids), eos_ids=self._eos_ids, tokenizer=self._tokenizer
                )
                for prompt, new_ids in zip(batch, completions, strict=True)
            ]
        # Outside of the handler, whose error keeps the tensors of the failed batch alive.
        if self._device == "cuda":
            torch.cuda.empty_cache()
        return self._complete_safely(batch[:half], sampling) + self._complete_safely(batch[half:], sampling)

    def _generate(self, batch: list[EncodedPrompt], sampling: Sampling) -> list[list[int]]:
        """The new tokens of each prompt."""
        if self._padded_generation is not None:
            return self._padded_generation.generate(batch, sampling=sampling, eos_ids=self._eos_ids)
        return generate_with_library(self._model, batch, sampling=sampling, eos_ids=self._eos_ids)
