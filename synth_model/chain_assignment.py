"""Groups documents into chains by hash, never by order of arrival.

Documents of one source are spread over buckets by the hash of their id, so that each bucket fits in memory; inside a
bucket they are sorted by another hash and cut into chains of M. The last chain of a bucket may be shorter. A document
id that appears twice is kept once (the one whose text sorts first) and rejected otherwise: two texts of one id could
not be told apart in the accounts.

Cost: O(n log n) comparisons a bucket; a bucket holds about `DOCUMENTS_PER_BUCKET` documents.
"""

from __future__ import annotations

from collections.abc import Iterable

from contracts.records import Document, Reject
from contracts.seeding import stable_hash, stable_hash_hex
from synth_model.chain_state import ChainState

DOCUMENTS_PER_BUCKET = 8192


def num_buckets(num_documents: int) -> int:
    """Buckets for a source with so many documents: one for each `DOCUMENTS_PER_BUCKET`, at least one."""
    return max(1, -(-num_documents // DOCUMENTS_PER_BUCKET))


def bucket_of(doc_id: str, *, num_buckets: int, seed: int) -> int:
    """The bucket of a document."""
    return stable_hash(seed, "chain bucket", doc_id) % num_buckets


def form_chains(
    documents: Iterable[Document], *, chain_length: int, seed: int
) -> tuple[list[ChainState], list[Reject]]:
    """Chains of one bucket of one source, and rejects for ids that appear more than once.

    Args:
        documents: The bucket's documents in any order.
        chain_length: M, the number of documents in a chain.
        seed: Another seed gives other chains.
    """
    assert chain_length >= 1, chain_length
    kept: dict[str, Document] = {}
    rejects: list[Reject] = []
    for document in sorted(documents, key=lambda document: (document.doc_id, document.text, document.title or "")):
        first = kept.setdefault(document.doc_id, document)
        if first is not document:
            same = "the same text" if first.text == document.text else "another text"
            rejects.append(
                Reject(
                    doc_id=document.doc_id,
                    source=document.source,
                    stage="chain",
                    reason="duplicate_id",
                    detail=f"id {document.doc_id!r} appears again with {same}",
                    text=document.text,
                )
            )
    ordered = sorted(
        kept.values(), key=lambda document: (stable_hash(seed, "chain order", document.doc_id), document.doc_id)
    )
    chains = []
    for start in range(0, len(ordered), chain_length):
        members = tuple(ordered[start : start + chain_length])
        chain_id = stable_hash_hex(seed, "chain", *(document.doc_id for document in members))
        chains.append(ChainState(chain_id=chain_id, source=members[0].source, pending=members))
    return chains, rejects
