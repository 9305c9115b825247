"""Which documents of a corpus are the same text, or nearly so.

*Exact*: two documents have the same text, case and runs of white space aside. *Near*: their sets of word 5-grams
overlap, measured by MinHash signatures of 128 values: the share of equal values estimates the Jaccard index, with a
standard error of at most 0.045. Documents that share a band of their signatures meet in a bucket; in it each is
compared with those that it keeps, in the order of their keys, and goes when it resembles one of them more than the
bound. A document stays when all of its buckets keep it: which ones stay depends on the texts and keys alone.

Only signatures (512 bytes a document and band) meet in buckets, never texts, so that memory follows from the number of
documents that share a band and not from their length. Equal texts are removed first: a million copies of one text
never meet in a bucket.

Cost: about 5 MB of text a second and core for signatures, and the comparisons. Not done here: passages that documents
share; the same content in other words.

Source: Broder 1997 (On the resemblance and containment of documents); Lee et al. 2022 (arXiv 2107.06499) for what
duplicates do to a model; datasketch for the signatures and for how many bands suit a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_pipelines.near_duplicates import NUM_PERMUTATIONS, bands_for, check_available, new_minhash
from contracts.records import Document
from contracts.seeding import stable_hash_hex
from synth_model.text_similarity import normalize
from synth_model.word_ngrams import ngram_hashes, word_hashes

_SHINGLE_WORDS = 5
# A signature is computed from as many n-grams at once as keep the work below 16 MB.
_NGRAMS_AT_ONCE = 1 << 14

DocumentKey = tuple[str, str, str]
"""Source, id and hash of the text: tells documents apart and orders them, the same in every run."""


@dataclass(frozen=True, kw_only=True)
class DeduplicationConfig:
    """Which duplicates among the documents are removed, over all sources.

    Args:
        exact: Whether of documents with the same text (case and white space aside) only the first by source and id
            stays.
        max_similarity: Jaccard index of word 5-grams above which two documents are near-duplicates, such as 0.8; 1
            seeks none. Below 1, exact duplicates go as well.
    """

    exact: bool = False
    max_similarity: float = 1.0

    @property
    def seeks_near_duplicates(self) -> bool:
        """Whether signatures are needed."""
        return self.max_similarity < 1

    @property
    def is_on(self) -> bool:
        """Whether anything is removed."""
        return self.exact or self.seeks_near_duplicates

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: The bound is out of range, or the package for near-duplicates is not installed.
        """
        if not 0.3 <= self.max_similarity <= 1:
            raise ValueError(
                f"deduplication.max_similarity is {self.max_similarity}; it must be from 0.3 to 1. Below that too many "
                "documents that have little in common would be compared."
            )
        if self.seeks_near_duplicates:
            check_available()


def text_key(document: Document) -> str:
    """Equal for documents with the same text."""
    return stable_hash_hex(0, "document text", normalize(document.text))


def document_key(document: Document) -> DocumentKey:
    """What tells a document from others, even from one that shares its id."""
    return document.source, document.doc_id, text_key(document)


def signature(text: str) -> NDArray[np.uint32]:
    """The MinHash signature of a text's word 5-grams, uint32 of shape (128,); a shorter text is one n-gram."""
    words = word_hashes(text)
    hashes = np.unique(ngram_hashes(words, length=max(1, min(_SHINGLE_WORDS, len(words)))))
    minhash = new_minhash(hash_function=int)
    for start in range(0, len(hashes), _NGRAMS_AT_ONCE):
        # The 32 bits that datasketch takes from a hash.
        minhash.update_batch((hashes[start : start + _NGRAMS_AT_ONCE] >> np.uint64(32)).tolist())
    return np.asarray(minhash.hashvalues, dtype=np.uint32)


def band_keys(values: NDArray[np.uint32], *, max_similarity: float) -> Iterator[bytes]:
    """Keys of which the signatures of two texts more similar than the bound are likely to share one.

    Args:
        values: A signature.
        max_similarity: The bound.
    """
    num_bands, num_rows = bands_for(max_similarity)
    for band in range(num_bands):
        yield bytes([band]) + values[band * num_rows : (band + 1) * num_rows].tobytes()


def duplicates_in_bucket(
    members: Iterable[tuple[DocumentKey, bytes]], *, max_similarity: float
) -> Iterator[tuple[DocumentKey, DocumentKey, float]]:
    """The members that a bucket does not keep: key, the kept one most like it, and their similarity.

    Args:
        members: Key and signature of each, in any order.
        max_similarity: The bound; what is above it is a near-duplicate.
    """
    kept = np.empty((16, NUM_PERMUTATIONS), dtype=np.uint32)
    keys: list[DocumentKey] = []
    for key, data in sorted(members):
        values = np.frombuffer(data, dtype=np.uint32)
        similarities = (kept[: len(keys)] == values).mean(axis=1)
        best = int(similarities.argmax()) if keys else -1
        if keys and similarities[best] > max_similarity:
            yield key, keys[best], float(similarities[best])
            continue
        if len(keys) == len(kept):
            kept = np.concatenate([kept, np.empty_like(kept)])
        kept[len(keys)] = values
        keys.append(key)


def describe_key(key: Any) -> str:
    """A document as messages name it."""
    source, doc_id, _ = key
    return f"{source}/{doc_id}"
