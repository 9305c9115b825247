import pickle
import tempfile
from collections import Counter

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.near_duplicates import band_keys, duplicates_in_bucket
from beam_pipelines.transforms.remove_near_duplicates import Duplicate, RemoveNearDuplicates
from contracts.seeding import rng
from synth_model.text_similarity import jaccard, normalize, shingles
from tests.beam_pipelines.pipeline_runs import IN_MEMORY

WORDS = ("river", "stone", "engine", "paper", "winter", "garden", "signal", "copper", "market", "letter", "shadow")


def make_texts(num_texts, *, seed=0):
    """Numbered texts by fours: two equal ones, one with a word changed and one with three."""
    texts = []
    for number in range(num_texts):
        draw = rng(seed, "text", number // 4)
        words = [WORDS[int(draw.integers(len(WORDS)))] for _ in range(12)]
        change = rng(seed, "change", number)
        for _ in range((0, 0, 1, 3)[number % 4]):
            words[int(change.integers(12))] = WORDS[int(change.integers(len(WORDS)))]
        text = " ".join(words)
        texts.append((number, text.capitalize() if number % 2 else f" {text}"))
    return texts


def remove_near_duplicates(texts, *, max_similarity=0.7):
    """What stays, and who is refused for whom, both by number."""
    with tempfile.TemporaryDirectory() as folder:
        with beam.Pipeline(options=PipelineOptions(list(IN_MEMORY))) as pipeline:
            outputs = (
                pipeline | beam.Create(texts) | beam.Reshuffle() | RemoveNearDuplicates(max_similarity=max_similarity)
            )
            for name, output in zip(("staying", "refused"), outputs, strict=True):
                _ = (
                    output
                    | f"List {name}" >> beam.combiners.ToList()
                    | f"Write {name}" >> beam.Map(write, folder, name)
                )
        return tuple(sorted(read(folder, name), key=number_of) for name in ("staying", "refused"))


def write(elements, folder, name):
    with open(f"{folder}/{name}", "wb") as file:
        pickle.dump(elements, file)


def read(folder, name):
    with open(f"{folder}/{name}", "rb") as file:
        return pickle.load(file)


def number_of(element):
    return element.text_id if isinstance(element, Duplicate) else element[0]


@pytest.mark.parametrize(
    ("first", "second", "similarity"),
    [
        ("abcdef", "abcdef", 1.0),
        ("AbCdEf", "abcdef", 1.0),
        ("a  b\tc", "A b c", 1.0),
        ("abcdefg", "abcdefh", 1 / 2),
        ("abc", "abd", 0.0),
        ("", "", 1.0),
    ],
)
def test_the_similarity_of_texts_by_hand(first, second, similarity):
    assert jaccard(shingles(first), shingles(second)) == pytest.approx(similarity)


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_similarity_is_that_of_the_sets_of_5_grams(first, second):
    sets = [
        {normal[start : start + 5] for start in range(max(1, len(normal) - 4))}
        for normal in (" ".join(text.casefold().split()) for text in (first, second))
    ]
    assert jaccard(shingles(first), shingles(second)) == len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_similar_texts_share_a_band_and_others_do_not():
    texts = [text for _, text in make_texts(160)]
    keys = [set(band_keys(text, max_similarity=0.7)) for text in texts]
    meetings = Counter()
    for first in range(len(texts)):
        for second in range(first):
            similarity = jaccard(shingles(texts[first]), shingles(texts[second]))
            kind = "similar" if similarity > 0.75 else "far" if similarity < 0.3 else "between"
            meetings[kind, bool(keys[first] & keys[second])] += 1
    assert meetings["similar", True] > 40
    assert meetings["similar", False] <= 0.02 * meetings["similar", True]
    assert meetings["far", True] <= 0.02 * meetings["far", False]


@given(st.lists(st.sampled_from([text for _, text in make_texts(24)]), max_size=12), st.floats(0.2, 0.9))
def test_a_bucket_keeps_what_resembles_nothing_kept_before(texts, max_similarity):
    members = list(enumerate(texts))
    found = {number: other for number, other, _ in duplicates_in_bucket(members[::-1], max_similarity=max_similarity)}
    kept = []
    for number, text in members:
        similar = [other for other in kept if jaccard(shingles(text), shingles(texts[other])) > max_similarity]
        assert found.get(number) == (similar[0] if similar else None)
        if not similar:
            kept.append(number)


def test_a_bucket_of_variants_of_one_text_costs_one_comparison_each(monkeypatch):
    comparisons = []
    monkeypatch.setattr("beam_pipelines.near_duplicates.jaccard", lambda *pair: comparisons.append(pair) or 1.0)
    assert len(list(duplicates_in_bucket([(n, "same") for n in range(500)], max_similarity=0.7))) == 499
    assert len(comparisons) == 499


@pytest.fixture(scope="module")
def outcome():
    return remove_near_duplicates(make_texts(120))


def test_every_text_stays_or_is_refused_for_one_before_it_that_it_resembles(outcome):
    texts = dict(make_texts(120))
    staying, refused = outcome
    assert sorted([number for number, _ in staying] + [duplicate.text_id for duplicate in refused]) == sorted(texts)
    assert dict(staying).items() <= texts.items()
    assert 20 < len(refused) < 100
    for duplicate in refused:
        similarity = jaccard(shingles(texts[duplicate.text_id]), shingles(texts[duplicate.other_id]))
        assert duplicate.other_id < duplicate.text_id
        assert duplicate.text == texts[duplicate.text_id]
        assert duplicate.similarity == pytest.approx(similarity)
        assert similarity > 0.7


def test_texts_that_stay_do_not_resemble_each_other(outcome):
    staying, _ = outcome
    similar = [
        (first, second)
        for first, text in staying
        for second, other in staying
        if second < first and jaccard(shingles(text), shingles(other)) > 0.75
    ]
    assert similar == []


def test_what_stays_does_not_depend_on_order(outcome):
    assert remove_near_duplicates(make_texts(120)[::-1]) == outcome


def test_at_a_bound_of_one_only_equal_texts_are_refused():
    texts = make_texts(60)
    staying, refused = remove_near_duplicates(texts, max_similarity=1.0)
    assert len(staying) == len({normalize(text) for _, text in texts}) < 60
    first = {normalize(text): number for number, text in reversed(texts)}
    assert all(duplicate.other_id == first[normalize(duplicate.text)] for duplicate in refused)


@settings(max_examples=5)
@given(st.lists(st.text(max_size=6), max_size=20))
def test_any_text_can_be_compared(texts):
    for text in texts:
        assert len(set(band_keys(text, max_similarity=0.7))) == len(list(band_keys(text, max_similarity=0.7))) > 0
