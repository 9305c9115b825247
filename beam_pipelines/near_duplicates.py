"""Finds near-duplicates among short texts: which of them to compare by MinHash bands, then exactly.

Two texts are compared as `synth_model.text_similarity` does. `band_keys` gives each text a few keys that similar texts
are likely to share; only texts that share one meet in a bucket. In a bucket each text is compared with those before it
that the bucket has kept (`duplicates_in_bucket`), so that a thousand variants of one text cost a thousand comparisons
and not a million. Where a few repeats are welcome, so many texts that resemble one another are kept.

A text stays when every one of its buckets keeps it. Which ones stay therefore depends on the texts and their order by
id alone, and two texts that stay are not similar, unless they share no bucket: at a Jaccard index near the bound that
happens to some pairs, far above it to none.

Cost: 128 hashes a character, and the comparisons. Not done here: similar meaning in other words.

Source: Broder 1997 (On the resemblance and containment of documents); datasketch for the signatures and for how many
bands suit a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from synth_model.text_similarity import jaccard, shingles

NUM_PERMUTATIONS = 128

# Whatever tells texts apart and orders them, the same in every run.
_Id = TypeVar("_Id")


def band_keys(text: str, *, max_similarity: float) -> Iterator[tuple[int, bytes]]:
    """Keys of which two texts that are more similar than the bound are likely to share one.

    Raises:
        ValueError: The package for it is not installed.
    """
    num_bands, num_rows = bands_for(max_similarity)
    minhash = new_minhash()
    minhash.update_batch(shingle.encode("utf-8", "surrogatepass") for shingle in sorted(shingles(text)))
    for band in range(num_bands):
        yield band, minhash.hashvalues[band * num_rows : (band + 1) * num_rows].tobytes()


def new_minhash(*, hash_function: Callable[[Any], int] | None = None) -> Any:
    """An empty MinHash of `NUM_PERMUTATIONS` values, the same permutations in every process.

    Args:
        hash_function: From what it is updated with to 32 bits; by default SHA-1 of bytes.

    Raises:
        ValueError: The package for it is not installed.
    """
    return _datasketch().MinHash(num_perm=NUM_PERMUTATIONS, seed=1, hashfunc=hash_function)


@lru_cache(maxsize=8)
def bands_for(max_similarity: float) -> tuple[int, int]:
    """Into how many bands of how many values a signature is cut, for a bound on the similarity."""
    # A missed pair costs a duplicate in the corpus, a needless one a comparison: the weights say which is worse.
    lsh = _datasketch().MinHashLSH(threshold=max_similarity, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
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
            "Near-duplicates are found with the package datasketch: install this project with its extra filters."
        ) from error
    return datasketch


def duplicates_in_bucket(
    members: Iterable[tuple[_Id, str]], *, max_similarity: float, max_repeats: int = 1
) -> Iterator[tuple[_Id, _Id, float]]:
    """The members of a bucket that it does not keep: id, a kept one that it resembles, and their Jaccard index.

    Args:
        members: Id and text of each, in any order.
        max_similarity: The bound; what is above it is a near-duplicate.
        max_repeats: How many texts that resemble one another the bucket keeps.
    """
    kept: list[tuple[_Id, frozenset[str]]] = []
    for text_id, text in sorted(members):
        own = shingles(text)
        resembled = (
            (other, similarity) for other, others in kept if (similarity := jaccard(own, others)) > max_similarity
        )
        found = list(islice(resembled, max_repeats))
        if len(found) == max_repeats:
            yield text_id, *found[0]
        else:
            kept.append((text_id, own))
