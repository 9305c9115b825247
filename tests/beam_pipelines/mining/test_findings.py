"""What a text says about itself: by hand, against a slow reading of the same rules, and under hostile input."""

import time
from itertools import pairwise

import pytest
from hypothesis import given

from beam_pipelines.mining.bank import FORMS, RELATIONS, load_mining_bank
from beam_pipelines.mining.findings import MAX_KEYWORDS, MIN_KEYWORDS, FindingExtractor
from beam_pipelines.mining.prose import MIN_WORDS, prose_runs
from contracts.records import Document
from tests.beam_pipelines.mining.mining_texts import HARBOUR, documents

BANK = load_mining_bank("english")
EXTRACTOR = FindingExtractor(BANK)


def extract(text, *, title=None, keywords=frozenset()):
    document = Document(doc_id="d", source="web", text=text, title=title)
    return [(finding.relation, dict(finding.values)) for finding in EXTRACTOR.extract(document, keywords=keywords)]


def test_every_relation_of_a_text_worked_by_hand():
    assert extract(HARBOUR, title=" The harbour ", keywords=frozenset({"pilots", "charts", "bay", "moon"})) == [
        (
            "title",
            {
                "title": "The harbour",
                "opening": "The harbour lies in a narrow bay. Therefore, the waves inside are small.",
            },
        ),
        ("entailment", {"first": "The harbour lies in a narrow bay.", "second": "the waves inside are small."}),
        (
            "contradiction",
            {"first": "Therefore, the waves inside are small.", "second": "a storm from the west can raise them."},
        ),
        (
            "restatement",
            {"first": "However, a storm from the west can raise them.", "second": "no wind is safe for every ship."},
        ),
        (
            "ending",
            {
                "passage": "Therefore, the waves inside are small. However, a storm from the west can raise them.",
                "ending": "In other words, no wind is safe for every ship.",
            },
        ),
        ("causation", {"cause": "the bay is shallow.", "effect": "Large ships wait outside"}),
        (
            "causation",
            {
                "cause": "Large ships wait outside because the bay is shallow.",
                "effect": "small boats carry their freight.",
            },
        ),
        ("definition", {"term": "A pilot", "definition": "a guide who knows the local waters."}),
        (
            "difference",
            {
                "first": "A pilot is defined as a guide who knows the local waters.",
                "second": "a captain knows the ship.",
            },
        ),
        (
            "neutral",
            {
                "first": "In contrast, a captain knows the ship.",
                "second": "the pilots keep the old charts of the bay.",
            },
        ),
        (
            "keywords",
            {"keywords": "pilots, charts, bay", "sentence": "Moreover, the pilots keep the old charts of the bay."},
        ),
        (
            "ending",
            {
                "passage": "A pilot is defined as a guide who knows the local waters. In contrast, a captain knows the "
                "ship.",
                "ending": "Moreover, the pilots keep the old charts of the bay.",
            },
        ),
    ]


@pytest.mark.parametrize(
    "text",
    [
        # No comma where the phrase needs one, no sentence before it, or a fragment behind it.
        "The bay is narrow there. However hard it blows, it is calm.",
        "Therefore, the waves inside are small.",
        "The bay is narrow there. Therefore, it is.",
        "The bay is narrow there.\n\nTherefore, the waves inside are small.",
        # Two connectives, a negated cause, no clause before the connective.
        "Large ships wait outside because the bay is shallow and because of storms.",
        "The large ships wait not because the bay is shallow.",
        "Because the bay is shallow, large ships wait outside.",
        # No term: a pronoun, a clause, too many words.
        "It is defined as a guide who knows the waters.",
        "In every bay, a pilot is defined as a guide for ships.",
        "The second man on the right bridge is defined as a guide for ships.",
        # Letters that only look like a connective.
        "The ships wait outside becausewise the bay is shallow.",
    ],
)
def test_what_only_looks_like_a_relation_is_not_taken(text):
    assert extract(text) == []


def test_of_two_phrases_that_begin_alike_the_longer_is_taken():
    assert extract("The boats came in late mainly because of the storm.") == [
        ("causation", {"cause": "the storm.", "effect": "The boats came in late"})
    ]


def test_a_title_that_the_text_repeats_is_no_opening():
    assert extract("How the tide was measured. Two of them measured it.", title="How the tide was measured") == [
        ("title", {"title": "How the tide was measured", "opening": "Two of them measured it."})
    ]
    assert extract("How the tide was measured.", title="How the tide was measured.") == [
        ("title", {"title": "How the tide was measured."})
    ]
    assert extract("Two of them measured it.", title="A very long title " * 20) == []


def test_a_line_break_inside_a_connective_is_a_space():
    assert extract("The boats came in late as a\nresult of the storm.") == [
        ("causation", {"cause": "the storm.", "effect": "The boats came in late"})
    ]


def test_a_sentence_takes_its_keywords_once_and_only_so_many():
    words = [f"{letter}word" for letter in "abcdefgh"]
    sentence = f"There are {' '.join(words)} and {words[0]} again."
    ((relation, values),) = extract(sentence, keywords=frozenset(words))
    assert (relation, values["keywords"].split(", ")) == ("keywords", words[:MAX_KEYWORDS])
    assert extract(sentence, keywords=frozenset(words[: MIN_KEYWORDS - 1])) == []


@given(documents())
def test_every_value_is_a_slice_of_its_document(document):
    for finding in EXTRACTOR.extract(document, keywords=frozenset({"tide", "pilot", "guide", "bay"})):
        for form in RELATIONS[finding.relation].forms:
            assert set(FORMS[form].needed) <= {*finding.values, "opening"}
        for name, value in finding.values.items():
            assert value.strip() == value != ""
            if name == "keywords":
                assert all(word in document.text for word in value.split(", "))
            else:
                assert value in (document.title if name == "title" else document.text)


def naive_between(text):
    """Relations between sentences read the slow way: each phrase is tried on each sentence."""
    found = set()
    for run in prose_runs(text, language="en"):
        for (first_start, first_end), (start, end) in pairwise(run):
            sentence, best = text[start:end], ""
            for name in ("entailment", "neutral", "contradiction", "effect", "restatement", "difference"):
                for phrase in BANK.connectives[name]:
                    if len(phrase) > len(best) and sentence.startswith(phrase):
                        rest = sentence.removeprefix(phrase)
                        rest = rest.removeprefix(",")
                        if rest[:1].isspace():
                            best, relation, second = phrase, name, rest.lstrip()
            words = second.split() if best else []
            if len(words) >= MIN_WORDS and words[-1].lower() not in BANK.unfinished_ends:
                found.add((relation, text[first_start:first_end], second))
    return found


@given(documents())
def test_relations_as_a_slow_reading_finds_them(document):
    text = document.text
    between, causes = set(), set()
    for finding in EXTRACTOR.extract(Document(doc_id="d", source="web", text=text)):
        if finding.relation == "causation":
            causes.add((finding.values["cause"], finding.values["effect"]))
        elif "first" in finding.values:
            between.add((finding.relation, finding.values["first"], finding.values["second"]))
    naive = naive_between(text)
    assert between == {item for item in naive if item[0] != "effect"}
    effects = {(first, second) for relation, first, second in naive if relation == "effect"}
    assert effects <= causes
    # The other causes stand in one sentence with their effects, around a connective.
    sentences = [text[start:end] for run in prose_runs(text, language="en") for start, end in run]
    for cause, effect in causes - effects:
        whole = [sentence for sentence in sentences if sentence.startswith(effect) and sentence.endswith(cause)]
        assert any("because" in sentence[len(effect) : len(sentence) - len(cause)] for sentence in whole)


HOSTILE = {
    "one sentence": "word " * 200_000,
    "no spaces": "becauseof" * 110_000,
    "connectives that begin": "Therefore, " * 90_000,
    "connectives inside": "because of " * 90_000,
    "connectives in sentences": "It sank because of it. Thus, it sank as a result of it. " * 17_000,
    "half connectives": "as a as a result as a as " * 40_000,
    "blanks in connectives": ("as" + " " * 500 + "a" + " " * 90 + "b. ") * 1600,
    "keywords": "tide bay guide. " * 60_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_megabyte_is_read_in_linear_time(name):
    started = time.process_time()
    extract(HOSTILE[name], title="T", keywords=frozenset({"tide", "bay", "guide"}))
    assert time.process_time() - started < 4.0
