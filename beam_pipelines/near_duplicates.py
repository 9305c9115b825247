"""Finds near-duplicates among short texts: which of them to compare by MinHash bands, then exactly.

Two texts are compared by the Jaccard index of their sets of character 5-grams, case and runs of white space aside;
characters, so that texts of few words and scripts without spaces are measured alike. `band_keys` gives each text
a few keys that similar texts are likely to share; only texts that share one meet in a bucket. In a bucket each text is
compared with those before it that the bucket has kept (`duplicates_in_bucket`), so that a thousand variants of one
text cost a thousand comparisons and not a million.

A text stays when every one of its buckets keeps it. Which ones stay therefore depends on the texts and their order by
id alone, and two texts that stay are not similar, unless they share no bucket: at a Jaccard index near the bound that
happens to some pairs, far above it to none.

Cost: 128 hashes a character, and the comparisons. Not done here: similar meaning in other words.

Source: Broder 1997 (On the resemblance and containment of documents); datasketch for the signatures and for how many
bands suit a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

_SHINGLE_CHARACTERS = 5
_NUM_PERMUTATIONS = 128


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


def band_keys(text: str, *, max_similarity: float) -> Iterator[tuple[int, bytes]]:
    """Keys of which two texts that are more similar than the bound are likely to share one.

    Raises:
        ValueError: The package for it is not installed.
    """
    num_bands, num_rows = _bands(max_similarity)
    minhash = _datasketch().MinHash(num_perm=_NUM_PERMUTATIONS, seed=1)
    minhash.update_batch(shingle.encode("utf-8", "surrogatepass") for shingle in sorted(shingles(text)))
    for band in range(num_bands):
        yield band, minhash.hashvalues[band * num_rows : (band + 1) * num_rows].tobytes()


@lru_cache(maxsize=8)
def _bands(max_similarity: float) -> tuple[int, int]:
    # A missed pair costs a duplicate in the corpus, a needless one a comparison: the weights say which is worse.
    lsh = _datasketch().MinHashLSH(threshold=max_similarity, num_perm=_NUM_PERMUTATIONS, weights=(0.1, 0.9))
    return lsh.b, lsh.r


def check_available() -> None:
    """Refuses to start without the package that near-duplicates need.

    Raises:
        ValueError: It is not installed.
    """
    _datasketch()


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise ValueError(
            "Near-duplicates are found with the package datasketch: install this project with its extra self-instruct."
        ) from error
    return datasketch


def duplicates_in_bucket(
    members: Iterable[tuple[int, str]], *, max_similarity: float
) -> Iterator[tuple[int, int, float]]:
    """The members of a bucket that it does not keep: id, the kept one that it resembles, and their Jaccard index.

    Args:
        members: Id and text of each, in any order.
        max_similarity: The bound; what is above it is a near-duplicate.
    """
    kept: list[tuple[int, frozenset[str]]] = []
    for number, text in sorted(members):
        own = shingles(text)
        for other, others in kept:
            similarity = jaccard(own, others)
            if similarity > max_similarity:
                yield number, other, similarity
                break
        else:
            kept.append((number, own))
