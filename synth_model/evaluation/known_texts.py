"""Which texts a system has read in tuning: the same ones, and ones that stand for the greater part in those tuned on.

Texts are the same when their words are, whatever their case, layout and punctuation. Of others it is asked how many of
their runs of 13 words stand in any text tuned on; task datasets share their sources, so one set's list of sentences is
another's paragraph. Texts of fewer words are only compared as wholes.

Cost: that of `synth_model.word_ngrams` for both sides, and a binary search for each run of words. Memory: 8 bytes for
each run of the texts in question; those tuned on are read one by one.

Source: Brown et al. 2020 (arXiv 2005.14165), appendix C, for runs of 13 words.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from contracts.seeding import stable_hash
from synth_model.text_similarity import normalize
from synth_model.word_ngrams import find_words, ngram_hashes, word_hashes

NUM_WORDS = 13
MAX_KNOWN_SHARE = 0.5


def text_key(text: str) -> int:
    """What is equal for texts of the same words; for texts without a word, of the same characters but white space."""
    words = " ".join(match.group().casefold() for match in find_words(text))
    return stable_hash(0, "evaluation text", words or normalize(text))


def find_known_texts(texts: Iterable[str], *, tuned_on: Iterable[str]) -> frozenset[int]:
    """`text_key` of those texts that were tuned on, wholly or for more than `MAX_KNOWN_SHARE` of their runs of words.

    Args:
        texts: The texts in question.
        tuned_on: The texts tuned on, read once.
    """
    runs = {text_key(text): ngram_hashes(word_hashes(text), length=NUM_WORDS) for text in texts}
    asked = np.unique(np.concatenate([np.empty(0, np.uint64), *runs.values()]))
    is_known = np.zeros(len(asked), dtype=bool)
    keys: set[int] = set()
    for text in tuned_on:
        keys.add(text_key(text))
        if len(asked):
            own = ngram_hashes(word_hashes(text), length=NUM_WORDS)
            places = np.minimum(np.searchsorted(asked, own), len(asked) - 1)
            is_known[places[asked[places] == own]] = True
    return frozenset(
        key
        for key, own in runs.items()
        if key in keys or (len(own) and is_known[np.searchsorted(asked, own)].mean() > MAX_KNOWN_SHARE)
    )
