"""Keywords: whole words of the domain's vocabulary that the general one lacks, whatever the order of the words."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.mining.keywords import (
    MAX_LETTERS,
    MIN_LETTERS,
    KeywordConfig,
    count_words,
    select_keywords,
    whole_words,
    words_of,
)

# Words over so few letters that many share their beginnings. Every letter is frequent in one word, since
# training leaves out the rarest letters.
WORDS = st.text(alphabet="abé", min_size=1, max_size=9)
COUNTS = st.dictionaries(WORDS, st.integers(1, 20), max_size=40).map(lambda counts: {**counts, "abé": 50})
ROOM_FOR_ALL = 4000


def test_words_are_runs_of_letters():
    assert words_of("Don't wash the p53-rich café_au lait, naïve О'нил 2nd") == [
        *("Don", "t", "wash", "the", "p", "rich", "café", "au", "lait", "naïve", "О", "нил", "nd")
    ]
    assert count_words(["a tide, a tide", "the " + "x" * (MAX_LETTERS + 1)]) == {"a": 2, "tide": 2, "the": 1}


@settings(max_examples=30)
@given(COUNTS)
def test_with_room_for_all_every_word_is_whole(counts):
    assert whole_words(counts.items(), vocab_size=ROOM_FOR_ALL) == sorted(counts)


def test_with_little_room_the_frequent_words_are_whole():
    counts = {"angiogenesis": 900, "apoptosis": 700, "rarely": 2, "seldom": 1}
    assert whole_words(counts.items(), vocab_size=40) == ["angiogenesis", "apoptosis"]


def test_the_order_of_the_words_does_not_matter():
    counts = count_words([f"word{'abcdefghij'[n % 10]}{'klmnop'[n % 6]} tide bay" for n in range(500)])
    backwards = list(reversed(counts.items()))
    assert whole_words(counts.items(), vocab_size=60) == whole_words(backwards, vocab_size=60)


# A general tokenizer by hand: these strings are one token, all others two.
GENERAL = st.sets(WORDS.flatmap(lambda word: st.sampled_from([word, " " + word, word.capitalize(), word.upper()])))


@settings(max_examples=60)
@given(COUNTS, GENERAL)
def test_selection_against_a_brute_force_oracle(counts, general):
    selected = select_keywords(
        counts.items(), vocab_size=ROOM_FOR_ALL, count_tokens=lambda texts: [2 - (text in general) for text in texts]
    )
    expected = set()
    for word in counts:
        is_general = False
        for form in (word, word.lower(), word.capitalize()):
            is_general = is_general or form in general or f" {form}" in general
        if len(word) >= MIN_LETTERS and not is_general:
            expected.add(word)
    assert selected == expected


def test_without_words_there_are_no_keywords():
    assert select_keywords([], vocab_size=4000, count_tokens=lambda texts: [2] * len(texts)) == frozenset()


def test_a_vocabulary_too_small_for_the_letters_is_refused():
    counts = [("".join(map(chr, range(start, start + 8))), 9) for start in range(0x4E00, 0x4E00 + 4000, 8)]
    with pytest.raises(ValueError, match=r"No vocabulary of keywords\.vocab_size = 300 pieces .* Give a larger one"):
        whole_words(counts, vocab_size=300)


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 255), ("min_count", 0)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"keywords\.{name} is {value}"):
        KeywordConfig(**{name: value}).check()


def test_a_hostile_megabyte_is_counted_in_linear_time():
    started = time.process_time()
    assert count_words(["x" * 1_000_000, "x " * 500_000, "1x" * 500_000]) == {"x": 1_000_000}
    assert time.process_time() - started < 3.0
