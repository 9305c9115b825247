"""Texts and pairs that are full of what a format or a tokenizer reads as markup."""

from __future__ import annotations

from hypothesis import strategies as st

from contracts.records import InstructionPair

SPECIAL_TOKENS = ("<|im_end|>", "<|im_start|>")
_FRAGMENTS = (
    *("<QUE>", "<ANS>", "</END>", "<CON>", "</CON>", "<s>", "</s>", *SPECIAL_TOKENS),
    *("<\u2060QUE>", "<\u2060\u2060s>", "<\u2060/END>", "<|\u2060im_end|>", "\u2060", "<", ">", "</", "END>", "<|"),
    *("{", "}", "{text}", "{0}", "%s", "\\", "$1", " ", "\n", "\n\n", "é", "漢字", "\U0001f642", "İ", "word"),
)


def hostile_texts() -> st.SearchStrategy[str]:
    """Texts of any characters with markup, joiners and braces among them."""
    pieces = st.sampled_from(_FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
    return st.lists(pieces, max_size=10).map("".join)


def hostile_pairs(*, min_size: int = 0) -> st.SearchStrategy[list[InstructionPair]]:
    """Pairs as a parser may give them: stripped, filled, no instruction twice whatever the case of its letters."""
    sides = hostile_texts().map(str.strip).filter(bool)
    return st.lists(
        st.builds(InstructionPair, instruction=sides, response=sides),
        min_size=min_size,
        max_size=4,
        unique_by=lambda pair: pair.instruction.lower(),
    )
