"""The prompt of a chain's next document, with as many earlier examples as the context holds, counted exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from contracts.records import Example
from synth_model.chain_state import ChainState, fit_prompt, visible_examples
from synth_model.generation import Prompt, PromptTokenizer
from synth_model.synthesizer import Synthesizer


def next_prompt(
    state: ChainState, *, synthesizer: Synthesizer, tokenizer: PromptTokenizer, max_prompt_tokens: int
) -> tuple[Prompt, int]:
    """The prompt, its ``num_tokens`` set, and how many earlier examples it shows.

    Args:
        state: A chain with a pending document, which was split to fit when it was read.
        synthesizer: Builds the prompt.
        tokenizer: Counts its tokens.
        max_prompt_tokens: What the completion leaves of the context.
    """

    def build(examples: Sequence[Example]) -> Prompt:
        prompt = synthesizer.build_prompt(examples, document=state.pending[0], special_tokens=tokenizer.special_tokens)
        return replace(prompt, num_tokens=tokenizer.count([prompt])[0])

    fitted = fit_prompt(
        visible_examples(state), build=build, fits=lambda prompt: (prompt.num_tokens or 0) <= max_prompt_tokens
    )
    assert fitted is not None, f"document {state.pending[0].doc_id} does not fit its prompt"
    return fitted
