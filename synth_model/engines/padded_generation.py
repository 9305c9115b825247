"""Completes a batch of prompts: prompts one by one, then a token for all of them at a time.

A prompt is computed alone, so it pays for no padding and needs no mask, and only from where it stops having a beginning
in common with an earlier prompt of the batch or with a sequence that was completed before (`PrefixCache`): the few-shot
examples that all prompts share, and in a chain's later rounds the rounds before. A row that is finished leaves the
batch, and its keys and values go to the prefix cache, completion included. How much of a prompt was known changes its
logits in rounding only, as the size of a batch does.

Tokens are chosen by `synth_model.engines.token_choice`, each row from a random stream of its own.

Cost: a forward pass over each prompt, less what is known of it, and one a token over the rows that are left. Attention
over grouped queries reads each key once for all of its queries and copies none, provided that the library's attention
does so for single tokens, as that of transformers 5.23 does. Not done here: taking new prompts in while others run.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from synth_model.engines.key_value_batch import KeyValueBatch, KeyValues
from synth_model.engines.prefix_cache import PrefixCache, num_common_tokens
from synth_model.engines.token_choice import choose_tokens, token_choice
from synth_model.generation import Sampling

if TYPE_CHECKING:
    import torch

# A shorter beginning is not worth the copies, one or two a layer.
_MIN_KNOWN_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """A prompt's token ids, at least one, and the seed of its draws."""

    ids: list[int]
    seed: int


def keeps_only_keys_and_values(model: Any) -> bool:
    """Whether `PaddedGeneration` can run a model: keys and values are all that its layers keep of earlier tokens."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    takes = inspect.signature(model.forward).parameters
    return {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"} <= takes.keys() and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=model.config).layers
    )


def generate_with_library(
    model: Any, prompts: Sequence[EncodedPrompt], *, sampling: Sampling, eos_ids: Sequence[int]
) -> list[list[int]]:
    """What `PaddedGeneration.generate` gives, for models of any kind: by the library's own loop, padded on the left."""
    import torch

    longest = max(len(prompt.ids) for prompt in prompts)
    padding = [longest - len(prompt.ids) for prompt in prompts]
    pad_id = next(iter(eos_ids), 0)
    choices = [token_choice(sampling, num_prompt_tokens=longest, seed=prompt.seed) for prompt in prompts]

    def leave_only_the_choice(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids`` (batch, length so far), ``scores`` (batch, vocabulary)."""
        return choose_tokens(scores, list(zip(choices, input_ids[:, longest:].tolist(), strict=True)))

    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(
                [[pad_id] * num + prompt.ids for num, prompt in zip(padding, prompts, strict=True)], device=model.device
            ),
            attention_mask=torch.tensor([[0] * num + [1] * (longest - num) for num in padding], device=model.device),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=list(eos_ids) or None,
            pad_token_id=pad_id,
            logits_processor=[leave_only_the_choice],
        )
    new_ids: list[list[int]] = output[:, longest:].tolist()
    return new_ids


class PaddedGeneration:
    """Runs one model; not to be called from two threads at once.

    Args:
        model: A transformers causal language model in evaluation mode; see `keeps_only_keys_and_values`.
        prefix_cache_bytes: Most memory of keys and values kept from one batch to the next, on the model's device.
    """

    def __init__(self, model: Any, *, prefix_cache_bytes: int) -> None:
        self._model = model
        self._keeps_prefixes = prefix_cache_bytes > 0
        self._prefixes: PrefixCache[KeyValues] = PrefixCache(max_bytes=prefix_cache_bytes)
        self._num_layers = model.config.get_text_config(decoder=True).num_hidden_layers

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, sampling: Sampling, eos_ids: Collection[int]
    ) -> list[list[int]]:
        """The new tokens of each prompt, in order; the first of ``eos_ids`` is a completion's last."""
        import torch

        longest = max(len(prompt.ids) for prompt in prompts)
        batch = KeyValueBatch(
            num_layers=self._num_layers,
            num_rows=len(prompts),
            num_prompt_columns=longest,
            # The last token is chosen and never read.
            num_columns=longest + sampling.max_new_tokens - 1,
        )
        choices = [token_choice(sampling, num_prompt_tokens=len(prompt.ids), seed=prompt.seed) for prompt in prompts]
        completions: list[list[int]] = [[] for _ in prompts]
        # Which prompt each row of the batch belongs to.
        active = list(range(len(prompts)))
        with torch.inference_mode():
            logits = self._compute_prompts(prompts, batch)
            while True:
                scores = choose_tokens(logits.float(), [(choices[index], completions[index]) for index in active])
                tokens = scores.argmax(dim=-1).tolist()
                for index, token in zip(active, tokens, strict=True):
                    completions[index].append(token)
                # From the last row to the first: the one that takes the place of a finished row is not finished.
                for row in reversed(range(len(active))):
                    completion = completions[active[row]]
                    if completion[-1] in eos_ids or len(completion) == sampling.max_new_tokens:
                        self._keep(prompts[active[row]].ids + completion[:-1], batch, row)
                        batch.drop_row(row)
                        active[row] = active[-1]
                        active.pop()
                if not active:
                    return completions
                logits = self._next_logits(
                    [completions[index][-1] for index in active],
                    positions=[len(prompts[index].ids) + len(completions[index]) - 1 for index in active],
                    batch=batch,
                )

    def _compute_prompts(self, prompts: Sequence[EncodedPrompt], batch: KeyValueBatch) -> torch.Tensor:
        """Fills the batch; returns the logits behind each prompt, shape (prompts, vocabulary)."""
        import torch

        logits = []
        arrays = [np.array(prompt.ids, dtype=np.int64) for prompt in prompts]
        for row, prompt in enumerate(arrays):
            known = self._known(prompt, arrays[:row], batch)
            batch.add_row(num_prompt_tokens=len(prompt), known=known)
            num_known = known[0][0].shape[1] if known else 0
            output = self._model(
                input_ids=self._tensor([prompt[num_known:].tolist()]),
                past_key_values=batch.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits.append(output.logits[:, -1])
        return torch.cat(logits)

    def _known(self, prompt: np.ndarray, earlier: Sequence[np.ndarray], batch: KeyValueBatch) -> KeyValues:
        """Keys and values of the prompt's longest known beginning, one token of it left to compute."""
        lengths = [num_common_tokens(prompt, other) for other in earlier]
        length, key_values = self._prefixes.find(prompt)
        if lengths and max(lengths) >= length:
            length = max(lengths)
            key_values = batch.row(lengths.index(length), num_tokens=length)
        length = min(length, len(prompt) - 1)
        if key_values is None or length < _MIN_KNOWN_TOKENS:
            return ()
        return [(keys[:, :length], values[:, :length]) for keys, values in key_values]

    def _next_logits(self, tokens: list[int], *, positions: list[int], batch: KeyValueBatch) -> torch.Tensor:
        """The logits behind one new token a row, shape (rows, vocabulary)."""
        mask = batch.next_column()
        logits: torch.Tensor = self._model(
            input_ids=self._tensor(tokens)[:, None],
            attention_mask=mask.to(self._model.device),
            position_ids=self._tensor(positions)[:, None],
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def _keep(self, tokens: list[int], batch: KeyValueBatch, row: int) -> None:
        if self._keeps_prefixes:
            key_values = [(keys.clone(), values.clone()) for keys, values in batch.row(row, num_tokens=len(tokens))]
            num_bytes = sum(tensor.nbytes for layer in key_values for tensor in layer)
            self._prefixes.put(np.array(tokens, dtype=np.int64), key_values, num_bytes=num_bytes)

    def _tensor(self, values: list[Any]) -> torch.Tensor:
        import torch

        return torch.tensor(values, device=self._model.device)
