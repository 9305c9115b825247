"""Sentences are slices of the text, neighbours are neighbours, and hostile texts cost no more than others."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.mining.prose import MAX_CHARACTERS, MIN_WORDS, prose_runs


def sentences(text):
    return [[text[start:end] for start, end in run] for run in prose_runs(text, language="en")]


def test_paragraphs_and_sentences():
    text = (
        "A Heading\n\n"
        "Dr. Weber measured the tide at 3.5 metres.  It was high that day (cf. Fig. 2).\n \n\n"
        "- a list, its items\n- and no full stop\n\n"
        "“Was it the moon?” asked the harbour master. Yes. They looked it up\nin the old tables!"
    )
    assert sentences(text) == [
        ["Dr. Weber measured the tide at 3.5 metres.", "It was high that day (cf. Fig. 2)."],
        ["“Was it the moon?” asked the harbour master."],
        ["They looked it up\nin the old tables!"],
    ]


def test_what_is_dropped_ends_a_run():
    long = "It " + "very " * (MAX_CHARACTERS // 5) + "much rained."
    assert sentences(f"The first one is short. {long} The last one is short.") == [
        ["The first one is short."],
        ["The last one is short."],
    ]


PIECES = st.sampled_from(
    [
        *("The tide is high. ", "Is it? ", "e.g. ", "(a) ", "Dr. ", '"So it is!" ', "3. ", "…", "。", "😀 "),
        *("\n", "\n\n", "\r\n", "\t", "\x00", "\x1c", "\x85", "\u2028", "\ufeff"),
    ]
)


@given(st.lists(PIECES | st.text(max_size=12), max_size=40).map("".join))
def test_spans_are_whole_ordered_and_apart(text):
    position = 0
    for run in prose_runs(text, language="en"):
        assert run
        for index, (start, end) in enumerate(run):
            sentence = text[start:end]
            assert sentence == sentence.strip()
            assert len(sentence.split()) >= MIN_WORDS
            assert len(sentence) <= MAX_CHARACTERS
            assert "\n\n" not in sentence
            assert start >= position
            if index:
                assert not text[position:start].strip()
            position = end


HOSTILE = {
    "one sentence": "word " * 200_000,
    "no spaces": "a" * 1_000_000,
    "no spaces, full stops": "a." * 500_000,
    "full stops": ". " * 500_000,
    "blank lines": "\n" * 1_000_000,
    "blanks": " " * 1_000_000,
    "lines of blanks": ("\n" + " " * 999) * 1000,
    "abbreviations": "Dr. " * 250_000,
    "brackets": "(" * 500_000 + ")" * 500_000,
    "quotes": '"' * 1_000_000,
    "short sentences": "It is so now. " * 71_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_megabyte_is_read_in_linear_time(name):
    text = HOSTILE[name]
    started = time.process_time()
    prose_runs(text, language="en")
    assert time.process_time() - started < 3.0
