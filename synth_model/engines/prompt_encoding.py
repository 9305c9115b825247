"""From prompts to token ids and back: what every engine does that runs a model in this process."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from synth_model.generation import Completion, Failure, Outcome, Prompt, Sampling
from synth_model.prompt_tokenizer import ModelTokenizer


def encode_prompt(
    prompt: Prompt, *, tokenizer: ModelTokenizer, sampling: Sampling, context_length: int
) -> list[int] | Failure:
    """A prompt's token ids, at least one, or why it cannot be completed.

    Args:
        prompt: The prompt.
        tokenizer: The model's tokenizer.
        sampling: How many new tokens need room.
        context_length: Tokens of prompt and completion together.
    """
    try:
        ids = tokenizer.encode([prompt])[0]
    except ValueError as error:
        return Failure(reason="prompt_not_encodable", detail=str(error))
    if not ids:
        return Failure(reason="prompt_not_encodable", detail="The prompt has no tokens.")
    if len(ids) + sampling.max_new_tokens > context_length:
        return Failure(
            reason="prompt_too_long",
            detail=f"{len(ids)} tokens and {sampling.max_new_tokens} new exceed the context of {context_length}.",
        )
    return ids


def encode_prompts(
    prompts: Sequence[Prompt], *, tokenizer: ModelTokenizer, sampling: Sampling, context_length: int
) -> tuple[dict[int, list[int]], dict[int, Outcome]]:
    """Token ids of the prompts that can be completed, and the failures of the others, both by the prompt's index.

    Args:
        prompts: The prompts.
        tokenizer: The model's tokenizer.
        sampling: How many new tokens need room.
        context_length: Tokens of prompt and completion together.
    """
    encoded: dict[int, list[int]] = {}
    outcomes: dict[int, Outcome] = {}
    for index, prompt in enumerate(prompts):
        ids = encode_prompt(prompt, tokenizer=tokenizer, sampling=sampling, context_length=context_length)
        if isinstance(ids, Failure):
            outcomes[index] = ids
        else:
            encoded[index] = ids
    return encoded, outcomes


def make_completion(
    new_ids: Sequence[int], *, num_prompt_tokens: int, eos_ids: Collection[int], tokenizer: ModelTokenizer
) -> Completion:
    """A completion from generated token ids, up to the first that ends it, which is left out with all behind it."""
    end = next((position for position, token in enumerate(new_ids) if token in eos_ids), None)
    kept = list(new_ids[:end])
    return Completion(
        text=tokenizer.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False),
        finish_reason="length" if end is None else "stop",
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=len(kept),
    )
