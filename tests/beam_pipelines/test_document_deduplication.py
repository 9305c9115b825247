from collections import Counter

import numpy as np
import pytest

from beam_pipelines.document_deduplication import DeduplicationConfig, band_keys, duplicates_in_bucket, signature
from beam_pipelines.transforms.remove_duplicate_documents import RemoveDuplicateDocuments
from contracts.records import Document
from contracts.seeding import rng
from tests.beam_pipelines.pipeline_runs import (
    make_documents,
    outputs_of,
    read_examples,
    read_rejects,
    run_synthesize,
    write_jsonl,
)

EXACT, NEAR = DeduplicationConfig(exact=True), DeduplicationConfig(max_similarity=0.7)


def random_words(name, count):
    return [f"w{number}" for number in rng(0, name).integers(10_000, size=count)]


def with_changes(words, count):
    """The words with some of them replaced, evenly spread."""
    changed = list(words)
    for position in np.linspace(0, len(words) - 1, count, dtype=int) if count else ():
        changed[position] = f"x{position}"
    return changed


def document(doc_id, words, *, source="web"):
    return Document(doc_id=doc_id, source=source, text=words if isinstance(words, str) else " ".join(words))


def remove(documents, config):
    staying, rejects = outputs_of(RemoveDuplicateDocuments(settings=config), documents)
    return sorted((doc.source, doc.doc_id) for doc in staying), sorted(rejects, key=repr)


def exact_jaccard(first, second):
    sets = [{tuple(words[start : start + 5]) for start in range(len(words) - 4)} for words in (first, second)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("num_changes", [0, 1, 4, 12, 60])
def test_signatures_estimate_the_jaccard_index_of_word_5_grams(num_changes):
    words = random_words("estimate", 400)
    changed = with_changes(words, num_changes)
    estimate = (signature(" ".join(words)) == signature(" ".join(changed))).mean()
    # Four standard errors.
    assert abs(estimate - exact_jaccard(words, changed)) < 4 * 0.5 / 128**0.5
    assert num_changes or estimate == 1


def test_the_signature_of_a_long_text_is_that_of_its_parts_together():
    words = random_words("long", 40_000)
    parts = [" ".join(words[start : start + 20_004]) for start in (0, 20_000)]
    assert (signature(" ".join(words)) == np.minimum(*map(signature, parts))).all()


def test_similar_texts_share_a_band_and_strangers_do_not():
    words = random_words("bands", 300)
    keys = [set(band_keys(signature(" ".join(w)), max_similarity=0.7)) for w in (words, with_changes(words, 3))]
    stranger = set(band_keys(signature(" ".join(random_words("other", 300))), max_similarity=0.7))
    assert keys[0] & keys[1]
    assert not keys[0] & stranger


def test_of_equal_texts_the_first_by_source_and_id_stays():
    staying, rejects = remove(
        [
            document("b", "One  text."),
            document("a", "one text."),
            document("z", "ONE TEXT.", source="journal"),
            document("c", "Another text."),
        ],
        EXACT,
    )
    assert staying == [("journal", "z"), ("web", "c")]
    assert [(reject.doc_id, reject.text, reject.reason, reject.detail) for reject in rejects] == [
        ("a", "one text.", "exact_duplicate", "the same text as journal/z"),
        ("b", "One  text.", "exact_duplicate", "the same text as journal/z"),
    ]
    assert {reject.stage for reject in rejects} == {"deduplicate"}


def test_of_records_that_are_equal_in_everything_one_stays():
    staying, rejects = remove([document("a", "One text.")] * 3, EXACT)
    assert (staying, len(rejects)) == ([("web", "a")], 2)


def test_documents_that_share_an_id_but_no_text_both_stay():
    staying, rejects = remove([document("a", random_words("1", 50)), document("a", random_words("2", 50))], NEAR)
    assert (staying, rejects) == ([("web", "a"), ("web", "a")], [])


def test_near_duplicates_go_and_are_told_with_their_similarity():
    words = random_words("near", 400)
    documents = [
        document("a", words),
        document("b", with_changes(words, 4)),
        document("c", words[:200]),
        document("d", [word.upper() for word in words]),
    ]
    staying, rejects = remove(documents, NEAR)
    assert staying == [("web", "a"), ("web", "c")]
    assert [(reject.doc_id, reject.reason) for reject in rejects] == [("b", "near_duplicate"), ("d", "exact_duplicate")]
    similarity = float(rejects[0].detail.split()[1])
    assert similarity == pytest.approx(exact_jaccard(words, with_changes(words, 4)), abs=0.15)
    assert rejects[0].detail.endswith("to web/a")
    # Only near-duplicates are worth that much work: exact ones alone leave the changed text.
    assert remove(documents, EXACT)[0] == [("web", "a"), ("web", "b"), ("web", "c")]


def test_what_stays_does_not_depend_on_order():
    documents = [
        document(f"{number:02}", with_changes(random_words(f"family {number // 4}", 200), number % 4))
        for number in range(12)
    ]
    expected = remove(documents, NEAR)
    assert len(expected[0]) == 3
    assert len(expected[1]) == 9
    for seed in range(2):
        assert remove([documents[number] for number in rng(seed, "order").permutation(12)], NEAR) == expected


def test_a_bucket_compares_with_what_it_keeps_alone():
    words = random_words("bucket", 400)
    members = [
        (("s", f"{number:02}", ""), signature(" ".join(with_changes(words, number))).tobytes()) for number in range(20)
    ] + [
        (("s", f"z{number}", ""), signature(" ".join(random_words(f"z{number}", 50))).tobytes()) for number in range(40)
    ]
    found = {
        key[1]: (other[1], similarity) for key, other, similarity in duplicates_in_bucket(members, max_similarity=0.5)
    }
    by_key = dict(members)
    kept = [key for key, _ in members if key[1] not in found]
    assert found
    assert len(kept) > 32
    for key, data in members:
        similarities = {
            other[1]: (np.frombuffer(data, np.uint32) == np.frombuffer(by_key[other], np.uint32)).mean()
            for other in kept
            if other < key
        }
        if key[1] in found:
            assert found[key[1]][1] == max(similarities.values()) > 0.5
        else:
            assert all(similarity <= 0.5 for similarity in similarities.values())


def test_a_text_without_words_is_a_text():
    assert remove([document("a", "..."), document("b", "!"), document("c", "…")], NEAR)[0][0] == ("web", "a")


@pytest.mark.parametrize("bound", [0.2, 1.5, -1])
def test_a_bound_out_of_range_is_refused(bound):
    with pytest.raises(ValueError, match=r"deduplication\.max_similarity"):
        DeduplicationConfig(max_similarity=bound).check()


def test_a_synthesis_removes_duplicates_and_its_accounts_add_up(tmp_path):
    records = make_documents(6)
    records += [{**records[0], "id": "web-copy", "text": records[0]["text"].upper()}, {**records[1], "source": "books"}]
    corpus = write_jsonl(tmp_path / "in.jsonl", records)
    manifest = run_synthesize([corpus], tmp_path / "out", deduplication=EXACT)
    assert manifest.accounts.num_records == 8
    assert manifest.accounts.rejected_by_reason == {"deduplicate/exact_duplicate": 2}
    assert len(read_examples(tmp_path / "out")) == 6
    assert Counter(reject.doc_id for reject in read_rejects(tmp_path / "out")) == {"web-copy": 1, "web-1": 1}
    # Off by default: the same text may stand there twice.
    assert run_synthesize([corpus], tmp_path / "all").accounts.num_rejected == 0
