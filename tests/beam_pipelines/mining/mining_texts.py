"""Texts written for the tests of mining, and a strategy that composes more of them."""

from __future__ import annotations

from hypothesis import strategies as st

from contracts.records import Document

HARBOUR = (
    "The harbour lies in a narrow bay. Therefore, the waves inside are small. However, a storm from the west can raise "
    "them. In other words, no wind is safe for every ship.\n\n"
    "Large ships wait outside because the bay is shallow. As a result, small boats carry their freight. A pilot is "
    "defined as a guide who knows the local waters. In contrast, a captain knows the ship. Moreover, the pilots keep "
    "the old charts of the bay."
)

_SUBJECTS = ("The tide", "A ship", "Every pilot", "The old chart", "{first}", "100 %s of them", "<s> The mark", "It")
_VERBS = (
    "rises at noon",
    "waits outside the bay",
    "is defined as a guide for ships",
    "sank because the bay is \\n shallow",
)
_STARTS = (
    "",
    "",
    "Therefore, ",
    "However, ",
    "Moreover, ",
    "As a result, ",
    "In other words, ",
    "By contrast, ",
    "So, ",
)
_ENDS = (".", ".", "!", "?", ".”")
_BETWEEN = (" ", "  ", "\n", "\n\n", " \n \n", "\n- ", " | ")


def sentences() -> st.SearchStrategy[str]:
    """Sentences with connectives and what looks like fields, formats and markup."""
    parts = st.tuples(*map(st.sampled_from, (_STARTS, _SUBJECTS, _VERBS, _ENDS)))
    return parts.map(lambda part: f"{part[0]}{part[1]} {part[2]}{part[3]}") | st.text(max_size=30)


def texts() -> st.SearchStrategy[str]:
    """Texts of up to thirty such sentences."""
    return st.lists(st.tuples(sentences(), st.sampled_from(_BETWEEN)).map("".join), max_size=30).map("".join)


def documents() -> st.SearchStrategy[Document]:
    """Documents of such texts, with and without a title."""
    title = st.none() | st.sampled_from(["The bay", "  A title {title} of %d  ", "", "x" * 500]) | st.text(max_size=20)
    return st.builds(Document, doc_id=st.text(max_size=8), source=st.just("web"), text=texts(), title=title)
