"""How much two short texts are alike: the Jaccard index of their sets of character 5-grams.

Case and runs of white space aside. Characters and not words, so that texts of few words and scripts without spaces are
measured alike. Cost: linear in the length of the texts.

Source: Broder 1997 (On the resemblance and containment of documents).
"""

from __future__ import annotations

_SHINGLE_CHARACTERS = 5


def normalize(text: str) -> str:
    """The text as it is compared: one case, single spaces."""
    return " ".join(text.casefold().split())


def shingles(text: str) -> frozenset[str]:
    """The character 5-grams of a text, normalized; a shorter text is its own only one."""
    normal = normalize(text)
    count = max(1, len(normal) - _SHINGLE_CHARACTERS + 1)
    return frozenset(normal[start : start + _SHINGLE_CHARACTERS] for start in range(count))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """The size of the intersection over that of the union, from 0 to 1."""
    return len(first & second) / len(first | second)
