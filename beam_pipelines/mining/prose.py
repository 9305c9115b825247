"""Finds the sentences of a text that tasks may quote, as spans of characters.

A paragraph ends at a blank line; sentences inside it are found by sentencex, which knows the abbreviations of many
languages and prefers not to split when in doubt. A sentence is kept when it begins with a letter, a digit or a quote,
ends with a full stop or the like, and is neither a fragment nor longer than `MAX_CHARACTERS`, which drops headings,
tables and code. What is dropped ends a run, so that neighbours in a run are neighbours in the text.

Cost: linear in the text, however hostile. Not done here: telling prose from code that looks like it.
Source: sentencex (https://github.com/wikimedia/sentencex).
"""

from __future__ import annotations

import re
from typing import TypeAlias

import sentencex

Span: TypeAlias = tuple[int, int]
"""First character of a sentence and the one behind its last."""

MIN_WORDS = 4
MAX_CHARACTERS = 600

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_BEGINNING = re.compile(r"""["'“‘(]?[^\W_]""")
_END = re.compile(r"""[.!?。！？]["'”’)]?$""")


def prose_runs(text: str, *, language: str) -> list[list[Span]]:
    """Runs of neighbouring sentences, each run inside one paragraph, none empty, in the order of the text."""
    runs: list[list[Span]] = []
    start = 0
    for match in _PARAGRAPH_END.finditer(text):
        runs += _runs_of_paragraph(text, start, match.start(), language=language)
        start = match.end()
    return runs + _runs_of_paragraph(text, start, len(text), language=language)


def _runs_of_paragraph(text: str, start: int, end: int, *, language: str) -> list[list[Span]]:
    runs: list[list[Span]] = [[]]
    paragraph = text[start:end]
    position = start
    for piece in sentencex.segment(language, paragraph):
        sentence = piece.strip()
        first = position + len(piece) - len(piece.lstrip())
        position += len(piece)
        if not sentence:
            continue
        if _is_sentence(sentence):
            runs[-1].append((first, first + len(sentence)))
        elif runs[-1]:
            runs.append([])
    assert position == end, (position, end)
    return [run for run in runs if run]


def _is_sentence(sentence: str) -> bool:
    return (
        len(sentence) <= MAX_CHARACTERS
        and _BEGINNING.match(sentence) is not None
        and _END.search(sentence, len(sentence) - 2) is not None
        and len(sentence.split(maxsplit=MIN_WORDS - 1)) >= MIN_WORDS
    )
