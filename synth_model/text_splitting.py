"""Splits a text that outgrows a limit at paragraph ends, and where a paragraph is too long, at sentence ends.

Pieces are filled greedily from the front; nothing is dropped but the white space between two pieces. A sentence
longer than the limit is never cut: the caller is told, and rejects the text with that reason.

Cost: one batched count of all paragraphs (and of the sentences of long ones) and one verifying count a piece, more only
for a tokenizer whose counts do not add up; linear in the text. Not done: language-specific sentence rules; a sentence
ends at ``. ! ? …`` before white space and at the full stops of Chinese and Japanese.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

CountTokens = Callable[[Sequence[str]], list[int]]

PART_MARK = re.compile(r"#part-\d{4,}$")
"""What stands behind the id of a document in the id of its part."""

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")


def part_id(doc_id: str, *, number: int) -> str:
    """The id of a part of a document, counted from 1: ``ID#part-0001``."""
    return f"{doc_id}#part-{number:04d}"


def whole_id(doc_id: str) -> str:
    """The id of the document that a part is of; any other id as it is."""
    return PART_MARK.sub("", doc_id)


def split_text(text: str, *, max_tokens: int, count_tokens: CountTokens) -> list[str] | None:
    """The text as pieces of at most ``max_tokens`` tokens, or None when one of its sentences is longer.

    Args:
        text: The text; one that fits comes back as the only piece.
        max_tokens: Longest piece, in tokens of ``count_tokens`` (at least 1).
        count_tokens: Counts the tokens of each of several texts.
    """
    assert max_tokens >= 1, max_tokens
    if count_tokens([text])[0] <= max_tokens:
        return [text]
    units = _units(text, max_tokens=max_tokens, count_tokens=count_tokens)
    if units is None:
        return None
    # Token counts need not add up for every tokenizer; filling the pieces less far leaves room for what joining adds.
    limit = max_tokens
    while True:
        pieces = _fill(text, units, limit=limit)
        if all(count <= max_tokens for count in count_tokens(pieces)):
            return pieces
        if not limit:
            return None
        limit = limit * 9 // 10


def _fill(text: str, units: Sequence[tuple[int, int, int]], *, limit: int) -> list[str]:
    """Units joined from the front as long as their tokens sum to at most ``limit``; a longer one stands alone."""
    spans: list[tuple[int, int]] = []
    length = 0
    for start, end, num_tokens in units:
        # A unit counts at least one, so that a limit of 0 leaves each of them alone.
        unit_length = max(1, num_tokens)
        if spans and length + unit_length <= limit:
            spans[-1] = (spans[-1][0], end)
            length += unit_length
        else:
            spans.append((start, end))
            length = unit_length
    return [text[start:end] for start, end in spans]


def _units(text: str, *, max_tokens: int, count_tokens: CountTokens) -> list[tuple[int, int, int]] | None:
    """Paragraphs, or sentences of long paragraphs, as (start, end, tokens) with the space behind them counted in."""
    paragraphs = _spans(text, 0, len(text), _PARAGRAPH_END)
    counts = count_tokens([text[start:next_start] for start, _, next_start in paragraphs])
    units: list[tuple[int, int, int]] = []
    for (start, end, next_start), count in zip(paragraphs, counts, strict=True):
        if count <= max_tokens:
            units.append((start, end, count))
            continue
        sentences = _spans(text, start, end, _SENTENCE_END, last=next_start)
        sentence_counts = count_tokens([text[first:after] for first, _, after in sentences])
        if any(
            length > max_tokens and count_tokens([text[first:stop]])[0] > max_tokens
            for (first, stop, _), length in zip(sentences, sentence_counts, strict=True)
        ):
            return None
        units += [
            (first, stop, min(length, max_tokens))
            for (first, stop, _), length in zip(sentences, sentence_counts, strict=True)
        ]
    return units


def _spans(
    text: str, start: int, end: int, separator: re.Pattern[str], *, last: int | None = None
) -> list[tuple[int, int, int]]:
    """Non-blank spans of ``text[start:end]`` between separators, as (start, end, start of the next)."""
    spans: list[tuple[int, int, int]] = []
    position = start
    for match in separator.finditer(text, start, end):
        if text[position : match.start()].strip():
            spans.append((position, match.start(), match.end()))
        position = match.end()
    if text[position:end].strip():
        spans.append((position, end, end if last is None else last))
    return spans
