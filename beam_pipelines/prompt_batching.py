"""Which prompts go through the model together.

Beam's BatchElements gathers prompts up to a weight in tokens. For an engine that pads, that is several batches' worth:
they are sorted by length and cut into batches, each bounded by count and by padded tokens, so that a short prompt is
rarely padded to a long one. An engine that schedules by itself gets what was gathered, one batch's worth, as it comes.
A batch is what the engine is given at once and what the journal takes at once.

A prompt weighs its tokens with room for the completion, and at least its share of a batch that is full by count: a
weight of one batch is therefore what one batch holds by either bound.

Four batches' worth, over 3,000 lengths from 50 to 900 tokens, in batches of at most 32 prompts and 32,768 tokens:
18 % of the prompt tokens are padding, against 45 % in order of arrival, 30 % with two and 10 % with eight. Where the
bound on tokens is the tighter one (16,384), batches are 86 % full instead of 78 %, and there are 18 % fewer of them
(``benchmarks/synthesis.py``).

Not done here: length buckets that outlive a bundle. BatchElements has them (``batch_length_fn``), but by keyed state
and timers: each round would wait for a shuffle, only the worker that owns a bucket's key would hold its prompts, and a
round's prompts would no longer follow those of the round before while an engine's cache still holds their texts. Within
a bundle, sorting a bounded number of prompts leaves less padding than fixed bucket borders, and one tail, not one a
bucket.

Source: apache_beam.transforms.util, BatchElements and SortAndBatchElements (Beam 2.77); the latter sorts too, but
holds a whole bundle, which on some runners is the whole corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synth_model.engines.transformers_engine import length_sorted_batches
from synth_model.generation import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchBounds:
    """What a batch may hold.

    Args:
        max_prompts: Most prompts.
        max_tokens: Most tokens, prompts and completions with padding.
        num_new_tokens: Room for the completion of each prompt.
        is_padded: Whether the engine pads prompts to the longest of their batch.
    """

    max_prompts: int
    max_tokens: int
    num_new_tokens: int
    is_padded: bool

    def weight(self, prompt: Prompt) -> int:
        """What share of ``max_tokens`` a prompt takes up in a batch, by its length or by being one of ``max_prompts``.

        At most ``max_tokens``: BatchElements would put an empty batch before an element that is heavier than a batch.
        """
        return min(self.max_tokens, max(_length(prompt) + self.num_new_tokens, self.max_tokens // self.max_prompts))

    def gathered_weight(self, *, sorted_batches: int) -> int:
        """What prompts weigh together that are gathered before they are cut."""
        return self.max_tokens * (sorted_batches if self.is_padded else 1)

    def cut(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Indices of gathered prompts batch by batch, longest first where they are padded."""
        if not self.is_padded:
            return [list(range(len(prompts)))]
        return list(
            length_sorted_batches(
                [_length(prompt) for prompt in prompts],
                num_new_tokens=self.num_new_tokens,
                max_batch_size=self.max_prompts,
                max_batch_tokens=self.max_tokens,
            )
        )

    def fill(self, batch: Sequence[Prompt]) -> float:
        """How full a batch is, from 0 to 1 (above it for a prompt that fits no batch), by the bound it is closer to."""
        num_prompt_tokens = sum(map(_length, batch)) / (1 - self.padding_share(batch))
        num_tokens = num_prompt_tokens + len(batch) * self.num_new_tokens
        return max(len(batch) / self.max_prompts, num_tokens / self.max_tokens)

    def padding_share(self, batch: Sequence[Prompt]) -> float:
        """How much of a batch's prompt tokens is padding."""
        if not self.is_padded:
            return 0.0
        lengths = [_length(prompt) for prompt in batch]
        return 1 - sum(lengths) / max(1, len(lengths) * max(lengths))


def keyed_prompt_weight(keyed_prompt: tuple[Any, Prompt], *, bounds: BatchBounds) -> int:
    """`BatchBounds.weight` of what RunInference batches: a prompt behind a key."""
    return bounds.weight(keyed_prompt[1])


def _length(prompt: Prompt) -> int:
    assert prompt.num_tokens is not None, "prompts are counted where they are built"
    return prompt.num_tokens
