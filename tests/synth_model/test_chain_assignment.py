from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document
from contracts.seeding import stable_hash
from synth_model.chain_assignment import DOCUMENTS_PER_BUCKET, bucket_of, form_chains, num_buckets


def document(number, text="text", title=None):
    return Document(doc_id=f"doc-{number}", source="web", text=text, title=title)


DOCUMENTS = [document(number) for number in range(7)]


def ids_of(chains):
    return [[member.doc_id for member in chain.pending] for chain in chains]


def test_chains_are_runs_of_m_in_the_order_of_a_hash():
    chains, rejects = form_chains(DOCUMENTS, chain_length=3, seed=5)
    in_order = sorted((document.doc_id for document in DOCUMENTS), key=lambda id_: stable_hash(5, "chain order", id_))
    assert ids_of(chains) == [in_order[:3], in_order[3:6], in_order[6:]]
    assert rejects == []
    assert {chain.source for chain in chains} == {"web"}
    assert len({chain.chain_id for chain in chains}) == 3


@given(st.permutations(DOCUMENTS), st.integers(1, 9))
def test_the_order_of_arrival_does_not_matter(documents, chain_length):
    expected, _ = form_chains(DOCUMENTS, chain_length=chain_length, seed=0)
    chains, _ = form_chains(documents, chain_length=chain_length, seed=0)
    assert chains == expected
    assert Counter(id_ for chain in ids_of(chains) for id_ in chain) == Counter(
        document.doc_id for document in documents
    )
    assert [len(chain.pending) for chain in chains[:-1]] == [chain_length] * (len(chains) - 1)


def test_another_seed_gives_other_chains():
    assert ids_of(form_chains(DOCUMENTS, chain_length=3, seed=0)[0]) != ids_of(
        form_chains(DOCUMENTS, chain_length=3, seed=1)[0]
    )


@given(st.permutations([document(0, "b"), document(0, "a", "t"), document(0, "a"), document(0, "a"), document(1, "z")]))
def test_a_repeated_id_is_kept_once_whatever_came_first(documents):
    chains, rejects = form_chains(documents, chain_length=2, seed=0)
    assert sorted(member.text for chain in chains for member in chain.pending) == ["a", "z"]
    assert all(member.title is None for chain in chains for member in chain.pending)
    assert sorted(reject.text for reject in rejects) == ["a", "a", "b"]
    assert {(reject.doc_id, reject.stage, reject.reason) for reject in rejects} == {("doc-0", "chain", "duplicate_id")}
    assert Counter("another text" in reject.detail for reject in rejects) == {False: 2, True: 1}


def test_buckets_are_full_but_not_larger_and_even():
    assert [num_buckets(count) for count in (0, 1, DOCUMENTS_PER_BUCKET, DOCUMENTS_PER_BUCKET + 1)] == [1, 1, 1, 2]
    sizes = Counter(bucket_of(f"doc-{number}", num_buckets=4, seed=0) for number in range(4000))
    assert sorted(sizes) == [0, 1, 2, 3]
    assert min(sizes.values()) > 800


def test_no_document_makes_no_chain():
    assert form_chains([], chain_length=2, seed=0) == ([], [])
