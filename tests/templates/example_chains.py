"""Chains that the tests of the templates share."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.records import Chain, Document, Example, InstructionPair

FREE_FORM = InstructionPair(
    instruction="Why do tide pools change twice a day?", response="Because the tide comes in and goes out twice a day."
)
SECOND_FREE_FORM = InstructionPair(
    instruction="Name an animal of the tide pool.", response="A hermit crab; it lives in an empty snail shell."
)
MULTIPLE_CHOICE = InstructionPair(
    instruction="What does the crab carry?\nOptions:\n- A pebble\n- A snail shell\n- A fish", response="A snail shell"
)
CHAIN_OF_THOUGHT = InstructionPair(
    instruction="How often is the pool flooded in three days?\nLet's think step by step.",
    response="The tide comes in twice a day.\nThree days times two is six.\nTherefore, the answer is six times",
)
MULTIPLE_CHOICE_CHAIN_OF_THOUGHT = InstructionPair(
    instruction="Which rock is oldest?\nOptions:\n- Basalt\n- Granite\n- Chalk\nLet's think step by step.",
    response="Granite lies under the other two.\nWhat lies deeper was there before.\nTherefore, the answer is Granite",
)
TEXTS = (
    "Tide pools fill and empty twice a day. The hermit crab in them carries a snail shell.",
    "Lichens grow a millimetre a year.\n\nSome are older than {any} book; 100% of this text is kept.",
    "Granite cools deep below the ground.",
)


def make_chain(pairs_of_examples: Sequence[Sequence[InstructionPair]], *, chain_id: str = "chain") -> Chain:
    """A chain with the given pairs for each of its texts."""
    return Chain(
        chain_id=chain_id,
        source="test",
        examples=tuple(
            Example(
                document=Document(doc_id=f"{chain_id}-doc-{index}", source="test", text=TEXTS[index % len(TEXTS)]),
                pairs=tuple(pairs),
            )
            for index, pairs in enumerate(pairs_of_examples)
        ),
        synthesizer_id="test",
    )


EVERY_KIND = make_chain(
    (
        (FREE_FORM, MULTIPLE_CHOICE, CHAIN_OF_THOUGHT),
        (SECOND_FREE_FORM, MULTIPLE_CHOICE_CHAIN_OF_THOUGHT, MULTIPLE_CHOICE),
        (),
    )
)
TWO_PAIRS_EACH = make_chain(((FREE_FORM, MULTIPLE_CHOICE), (CHAIN_OF_THOUGHT, SECOND_FREE_FORM)))
ONE_PAIR = make_chain(((FREE_FORM,),))
NO_PAIRS = make_chain(((), ()))
