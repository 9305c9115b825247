"""Generates with transformers in this process, in batches of prompts of similar length.

Prompts are sorted by length and cut into batches bounded by count and by padded tokens, so that short prompts do not
pay for long ones; a batch is padded on the left. What all prompts of a batch begin with (system
message, few-shot examples) is computed once and its keys and values are repeated for each of them. A batch that fails
is tried again prompt by prompt, so that one bad prompt costs itself alone; running out of memory halves it instead.

With a temperature each token is drawn by `synth_model.engines.token_drawing`, from a random stream of the prompt's own,
so that a completion does not depend on its batch.

Cost: a forward pass over the common prefix, one over the padded rest of the prompts, then one a token for the whole
batch. Not done here: paged attention, sharing prefixes among some prompts of a batch or between batches.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contracts.seeding import rng
from synth_model.engines.token_drawing import draw_tokens
from synth_model.generation import Completion, Failure, Outcome, Prompt, Sampling, prompt_seed
from synth_model.prompt_tokenizer import ModelTokenizer

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


def common_prefix_length(prompts: Sequence[list[int]]) -> int:
    """How many leading tokens all prompts share, leaving each at least one token of its own."""
    first, last = min(prompts), max(prompts)
    # Whatever the least and the greatest in lexicographic order share, everything between them shares.
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((index for index in range(limit) if first[index] != last[index]), limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """An encoded prompt and the seed of its draws."""

    ids: list[int]
    seed: int


class TransformersEngine:
    """A causal language model of the Hugging Face hub, or a folder, as a `synth_model.generation.Engine`.

    Raises:
        ValueError: No such model, no such device, or a context longer than the model's.
    """

    def __init__(self, config: EngineConfig) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._device = _resolve_device(config.device)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(
            config.dtype, torch.bfloat16 if self._device == "cuda" else torch.float32
        )
        self._tokenizer = ModelTokenizer(config.model, trust_remote_code=config.trust_remote_code)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                config.model, dtype=dtype, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No model could be loaded from {config.model!r}: give a hub name or a folder with a model. "
                f"({str(error).strip().splitlines()[0]})"
            ) from error
        self._model = model.to(self._device).eval()
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and config.context_length > longest:
            raise ValueError(
                f"engine.context_length is {config.context_length}, but {config.model!r} was made for {longest}."
            )
        self._config = config
        # Threads of one process share the engine; a model runs one batch at a time.
        self._lock = threading.Lock()

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order."""
        outcomes: dict[int, Outcome] = {}
        encoded: dict[int, list[int]] = {}
        for index, prompt in enumerate(prompts):
            try:
                ids = self._tokenizer.encode([prompt])[0]
            except ValueError as error:
                outcomes[index] = Failure(reason="prompt_not_encodable", detail=str(error))
                continue
            if not ids:
                outcomes[index] = Failure(reason="prompt_not_encodable", detail="The prompt has no tokens.")
            elif len(ids) + sampling.max_new_tokens > self._config.context_length:
                outcomes[index] = Failure(
                    reason="prompt_too_long",
                    detail=f"{len(ids)} tokens and {sampling.max_new_tokens} new exceed the context of "
                    f"{self._config.context_length}.",
                )
            else:
                encoded[index] = ids
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
                    _Request(ids=encoded[index], seed=prompt_seed(prompts[index], sampling=sampling))
                    for index in members
                ],
                sampling,
            )
            outcomes.update(zip(members, completed, strict=True))
        return [outcomes[index] for index in range(len(prompts))]

    def _complete_safely(self, batch: list[_Request], sampling: Sampling) -> list[Outcome]:
        import torch

        try:
            with self._lock:
                return self._complete(batch, sampling)
        except torch.OutOfMemoryError as error:
            if self._device == "cuda":
                torch.cuda.empty_cache()
            if len(batch) == 1:
                return [Failure(reason="out_of_memory", detail=f"{len(batch[0].ids)} tokens: {error}")]
            half = len(batch) // 2
            return self._complete_safely(batch[:half], sampling) + self._complete_safely(batch[half:], sampling)
        except (RuntimeError, ValueError, IndexError) as error:
            if len(batch) == 1:
                return [Failure(reason="generation_failed", detail=f"{type(error).__name__}: {error}")]
            return [outcome for request in batch for outcome in self._complete_safely([request], sampling)]

    def _complete(self, batch: list[_Request], sampling: Sampling) -> list[Outcome]:
        import torch

        tokenizer = self._tokenizer.tokenizer
        eos_ids = _eos_ids(self._model.generation_config.eos_token_id, tokenizer.eos_token_id)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos_ids or [0])[0]
        prompts = [request.ids for request in batch]
        longest = max(len(ids) for ids in prompts)
        num_shared = common_prefix_length(prompts) if len(prompts) > 1 else 0
        # Padding stands between the shared prefix and the rest; positions are counted by the attention mask.
        input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(prompts):
            own = ids[num_shared:]
            for columns, tokens in ((slice(num_shared), ids[:num_shared]), (slice(longest - len(own), None), own)):
                input_ids[row, columns] = torch.tensor(tokens, dtype=torch.long)
                attention_mask[row, columns] = 1
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=input_ids.to(self._device),
                attention_mask=attention_mask.to(self._device),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=eos_ids or None,
                pad_token_id=pad_id,
                past_key_values=self._prefix_cache(prompts[0][:num_shared], num_prompts=len(prompts)),
                logits_processor=_logits_processors(
                    sampling, prompt_length=longest, seeds=[request.seed for request in batch]
                ),
            )
        outcomes: list[Outcome] = []
        for ids, row in zip(prompts, output[:, longest:].tolist(), strict=True):
            end = next((position for position, token in enumerate(row) if token in eos_ids), None)
            new_ids = row if end is None else row[:end]
            outcomes.append(
                Completion(
                    text=tokenizer.decode(new_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
                    finish_reason="length" if end is None else "stop",
                    num_prompt_tokens=len(ids),
                    num_new_tokens=len(new_ids),
                )
            )
        return outcomes

    def _prefix_cache(self, prefix: list[int], *, num_prompts: int) -> Any:
        """Keys and values of a prefix, computed once and repeated for each prompt; None for a short one."""
        import torch

        if len(prefix) < _MIN_SHARED_TOKENS:
            return None
        output = self._model(torch.tensor([prefix], device=self._device), use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(num_prompts)
        return cache


# A shorter prefix saves less than the extra forward pass costs.
_MIN_SHARED_TOKENS = 16


def _eos_ids(*sources: Any) -> list[int]:
    ids: list[int] = []
    for source in sources:
        for token in source if isinstance(source, (list, tuple)) else [source]:
            if token is not None and token not in ids:
                ids.append(int(token))
    return ids


def _logits_processors(sampling: Sampling, *, prompt_length: int, seeds: Sequence[int]) -> list[Any]:
    import torch

    processors: list[Any] = []

    def subtract_frequency_penalty(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids`` (batch, length so far), ``scores`` (batch, vocabulary): lowers what the completion holds."""
        new_ids = input_ids[:, prompt_length:]
        penalties = torch.full_like(new_ids, sampling.frequency_penalty, dtype=scores.dtype)
        return scores.scatter_add(1, new_ids, -penalties)

    if sampling.frequency_penalty:
        processors.append(subtract_frequency_penalty)
    if sampling.temperature:
        streams = [rng(seed, "tokens") for seed in seeds]

        def leave_only_the_drawn_token(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """``scores`` (batch, vocabulary): all but one of each row become impossible, so that greedy takes that."""
            uniforms = torch.tensor([stream.random() for stream in streams], dtype=torch.float64)
            tokens = draw_tokens(
                scores, temperature=sampling.temperature, top_p=sampling.top_p, uniforms=uniforms.to(scores.device)
            )
            return torch.full_like(scores, float("-inf")).scatter_(1, tokens, 0.0)

        processors.append(leave_only_the_drawn_token)
    return processors


def _resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "engine.device is 'cuda', but no CUDA device is available to PyTorch on this machine. "
            "Use 'cpu' or 'auto', or run where there is a GPU."
        )
    return device


# Tokenizers warn when a process forks after they have used threads; workers do fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
