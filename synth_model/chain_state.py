"""The state of a chain between two rounds of synthesis: which examples are done, which document is next.

A chain takes M documents of one source through M rounds. In each round the next document's prompt shows the earlier
examples of the chain, the completion is parsed, and the document becomes an example. A text without a valid pair is
kept as raw text and breaks the chain: what comes after it does not see what came before. When the prompt would outgrow
the context, the earliest examples go first.

Pure functions over immutable values; nothing here knows Beam, engines or files.

Source: Cheng et al. 2024 (arXiv 2406.14491), section 2.2 (multi-round inference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from contracts.records import Chain, Document, Example, InstructionPair, Reject
from synth_model.generation import Completion, Failure, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainState:
    """A chain on its way through the rounds.

    Args:
        chain_id: The chain's identity.
        source: The source that all its documents share.
        pending: Documents not yet synthesized, next first.
        examples: Finished examples, oldest first.
        rejects: Documents of the chain that got no completion, and pairs that failed a gate.
        is_broken: Whether the last finished document had no valid pair or no completion.
    """

    chain_id: str
    source: str
    pending: tuple[Document, ...]
    examples: tuple[Example, ...] = ()
    rejects: tuple[Reject, ...] = ()
    is_broken: bool = False


def visible_examples(state: ChainState) -> tuple[Example, ...]:
    """The earlier examples that the next document may see: those with pairs since the last break, oldest first."""
    if state.is_broken:
        return ()
    visible: list[Example] = []
    for example in reversed(state.examples):
        if not example.pairs:
            break
        visible.append(example)
        if not example.inherits_previous:
            # It was written without earlier examples in view, so those belong to another run of the chain.
            break
    return tuple(reversed(visible))


def fit_prompt(
    examples: Sequence[Example], *, build: Callable[[Sequence[Example]], Prompt], fits: Callable[[Prompt], bool]
) -> tuple[Prompt, int] | None:
    """The prompt with as many of the latest examples as fit, and their number; None when not even the text alone fits.

    Args:
        examples: Examples that may be shown, oldest first.
        build: Makes the prompt that shows the given examples before the current text.
        fits: Whether a prompt leaves room for the completion in the context.
    """
    for first in range(len(examples) + 1):
        prompt = build(examples[first:])
        if fits(prompt):
            return prompt, len(examples) - first
    return None


def add_completion(
    state: ChainState,
    *,
    pairs: Sequence[InstructionPair],
    completion: Completion,
    num_visible: int,
    rejected_pairs: Sequence[Reject] = (),
) -> ChainState:
    """The state after the next document got a completion.

    Args:
        state: The state before.
        pairs: The completion's valid pairs; none keeps the text raw and breaks the chain.
        completion: For the token counts and the finish reason.
        num_visible: How many earlier examples the prompt showed.
        rejected_pairs: Pairs of the completion that failed a gate.
    """
    example = Example(
        document=state.pending[0],
        pairs=tuple(pairs),
        inherits_previous=bool(pairs) and num_visible > 0,
        finish_reason=completion.finish_reason,
        num_prompt_tokens=completion.num_prompt_tokens,
        num_new_tokens=completion.num_new_tokens,
    )
    return replace(
        state,
        pending=state.pending[1:],
        examples=(*state.examples, example),
        rejects=(*state.rejects, *rejected_pairs),
        is_broken=not pairs,
    )


def add_failure(state: ChainState, *, failure: Failure) -> ChainState:
    """The state after the next document got no completion: it is rejected, with its text, and breaks the chain."""
    document = state.pending[0]
    reject = Reject(
        doc_id=document.doc_id,
        source=document.source,
        stage="synthesize",
        reason=failure.reason,
        detail=failure.detail,
        text=document.text,
    )
    return replace(state, pending=state.pending[1:], rejects=(*state.rejects, reject), is_broken=True)


def finished_chain(state: ChainState, *, synthesizer_id: str) -> Chain | None:
    """The chain of a state without pending documents, or None when every document was rejected."""
    assert not state.pending, f"chain {state.chain_id} has {len(state.pending)} documents left"
    if not state.examples:
        return None
    return Chain(chain_id=state.chain_id, source=state.source, examples=state.examples, synthesizer_id=synthesizer_id)
