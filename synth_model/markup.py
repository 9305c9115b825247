"""Markup inside the data is data: a reversible escape for strings that a format or a tokenizer reads as markup.

A corpus may hold ``<QUE>``, ``</s>`` or ``<|im_end|>``. Inside a prompt each such string gets an invisible WORD JOINER
(U+2060) behind its first character, so that it no longer is that string; a string that holds joiners there already
gets one more. Removing one joiner from each is therefore the exact inverse, for any text and any list of tokens whose
members are not joined out of one another. The stored text is never changed; only the prompt sees the escape, and what
a model copies from it is unescaped when its completion is parsed.

Cost: one pass of a regular expression over the text, linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

JOINER = "\u2060"


@lru_cache(maxsize=64)
def _pattern(tokens: tuple[str, ...], num_joiners: str) -> re.Pattern[str]:
    # Longest first, so that a token that begins with another one is seen whole.
    alternatives = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile(
        "|".join(f"{re.escape(token[0])}{JOINER}{num_joiners}{re.escape(token[1:])}" for token in alternatives)
    )


def _checked(tokens: Iterable[str]) -> tuple[str, ...]:
    unique = tuple(sorted(set(tokens)))
    unusable = [token for token in unique if len(token) < 2 or JOINER in token]
    if unusable:
        raise ValueError(f"Markup tokens must be at least two characters long and hold no U+2060; got {unusable!r}.")
    return unique


def escape(text: str, *, tokens: Iterable[str]) -> str:
    """The text with every occurrence of a token defused; equal to the text when it holds none."""
    checked = _checked(tokens)
    if not checked:
        return text
    return _pattern(checked, "*").sub(lambda match: match[0][0] + JOINER + match[0][1:], text)


def unescape(text: str, *, tokens: Iterable[str]) -> str:
    """The inverse of `escape` for the same tokens."""
    checked = _checked(tokens)
    if not checked:
        return text
    return _pattern(checked, "+").sub(lambda match: match[0][0] + match[0][2:], text)
