"""Hashes of the word n-grams of a text, as arrays: what long texts are compared by.

A word is a run of letters and digits, in one case; in scripts that are written without spaces every character counts as
one. Punctuation and white space do not count, so that texts match whatever their layout.

Cost: one look-up a word, then a few operations on arrays; about 5 MB of text a second. Two n-grams share a hash by
chance once in 2^64.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from contracts.seeding import stable_hash

_UNSPACED = "\u0e00-\u0e7f\u2e80-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# An odd multiplier: what it multiplies keeps all of its 64 bits.
_BASE = np.uint64(stable_hash(0, "word n-gram") | 1)


def find_words(text: str) -> list[re.Match[str]]:
    """The words of a text with their places."""
    return list(_WORD.finditer(text))


def word_hashes(text: str) -> NDArray[np.uint64]:
    """A hash of each word, uint64 of shape (num_words,)."""
    return np.fromiter((_word_hash(word) for word in _WORD.findall(text)), dtype=np.uint64)


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return stable_hash(0, "word", word.casefold())


def ngram_hashes(words: NDArray[np.uint64], *, length: int) -> NDArray[np.uint64]:
    """A hash of each run of ``length`` words, uint64 of shape (max(0, num_words - length + 1),).

    Args:
        words: What `word_hashes` gives.
        length: Words of an n-gram, at least 1.
    """
    assert length >= 1, length
    count = max(0, len(words) - length + 1)
    # A polynomial in the words: modulo 2^64, as unsigned integers wrap around.
    hashes = np.zeros(count, dtype=np.uint64)
    for position in range(length):
        hashes = hashes * _BASE + words[position : position + count]
    return hashes
