"""Splits a long document into parts of so many words, so that mined tasks stand near the passages they are about.

Parts end at paragraph ends, and where a paragraph is too long, at sentence ends (`synth_model.text_splitting`). A
document with a sentence longer than the limit stays whole: no model has to read it, so nothing forces a cut.

Cost: linear in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from contracts.records import Document
from synth_model.text_splitting import part_id, split_text


def split_document(document: Document, *, max_words: int) -> list[Document]:
    """The document alone, or its parts with ``#part-0001`` and so on behind its id; only the first keeps the title.

    Args:
        document: Any document.
        max_words: Most words of a part; 0 never splits.
    """
    texts = split_text(document.text, max_tokens=max_words, count_tokens=_count_words) if max_words else None
    if texts is None or len(texts) == 1:
        return [document]
    return [
        replace(
            document,
            doc_id=part_id(document.doc_id, number=number),
            text=text,
            title=document.title if number == 1 else None,
        )
        for number, text in enumerate(texts, start=1)
    ]


def _count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]
