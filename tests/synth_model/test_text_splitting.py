import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_model.text_splitting import split_text


def count_words(texts):
    return [len(text.split()) for text in texts]


def without_space(text):
    return re.sub(r"\s", "", text)


def split(text, max_tokens, count_tokens=count_words):
    return split_text(text, max_tokens=max_tokens, count_tokens=count_tokens)


@pytest.mark.parametrize(
    ("text", "max_tokens", "pieces"),
    [
        ("One two three.", 3, ["One two three."]),
        # Space around a text that fits is the text's own.
        ("  One two. \n", 3, ["  One two. \n"]),
        # Paragraphs stay together as long as they fit, and keep what is between them.
        ("a b\n\nc d\n\ne f", 4, ["a b\n\nc d", "e f"]),
        ("a b\n \t\n\n  c d\n\ne f", 4, ["a b\n \t\n\n  c d", "e f"]),
        ("a b\nc d\n\ne f", 4, ["a b\nc d", "e f"]),
        # A paragraph that is too long is split at its sentences, which join what is beside them.
        ("a b. c d! e f? g h… i j", 4, ["a b. c d!", "e f? g h…", "i j"]),
        ("a.\n\nb c. d e. f g.\n\nh.", 3, ["a.\n\nb c.", "d e.", "f g.\n\nh."]),
        # A full stop inside a word ends no sentence; an ideographic one does without a space behind it.
        ("a b 3.5 c. d e", 4, ["a b 3.5 c.", "d e"]),
        # The sentence that is too long.
        ("a b c d e", 4, None),
        ("a b.\n\nc d e f g h. i", 5, None),
        # Nothing but space has no piece.
        (" \n\n ", 1, [" \n\n "]),
    ],
)
def test_where_a_text_is_split(text, max_tokens, pieces):
    assert split(text, max_tokens) == pieces


def test_sentences_without_space_between_them():
    def count_characters(texts):
        return [len(text) for text in texts]

    assert split("潮が満ちる。潮が引く！また満ちる。", 11, count_characters) == [
        "潮が満ちる。潮が引く！",
        "また満ちる。",
    ]
    assert split("潮が満ちる。", 5, count_characters) is None


WORDS = st.sampled_from(["ebb", "tide", "naïve", "潮", "3.5", "<QUE>", "{a}", "x" * 20])
SENTENCES = st.lists(WORDS, min_size=1, max_size=6)
PARAGRAPHS = st.lists(SENTENCES, min_size=1, max_size=5)


@st.composite
def texts(draw):
    """A text, and the numbers of words of its sentences, paragraph by paragraph."""
    document = draw(st.lists(PARAGRAPHS, min_size=1, max_size=5))
    stops = st.sampled_from([". ", "! ", "?\n", "… ", ".   "])
    paragraph_ends = st.sampled_from(["\n\n", "\n \n", "\n\n\n  "])
    text = "".join(
        "".join(" ".join(words) + draw(stops) for words in paragraph) + draw(paragraph_ends) for paragraph in document
    )
    return text, [[len(words) for words in paragraph] for paragraph in document]


def greedy_lengths(lengths, max_tokens):
    """The oracle: numbers of words of the pieces, from the numbers of words alone."""
    units = []
    for sentences in lengths:
        units += [sum(sentences)] if sum(sentences) <= max_tokens else sentences
    pieces = [0]
    for unit in units:
        pieces = [*pieces[:-1], pieces[-1] + unit] if pieces[-1] + unit <= max_tokens else [*pieces, unit]
    return pieces


@given(texts(), st.integers(1, 30))
def test_every_piece_fits_and_nothing_but_space_is_lost(text_and_lengths, max_tokens):
    text, lengths = text_and_lengths
    pieces = split(text, max_tokens)
    # The words of this tokenizer add up, so that only a sentence can be in the way.
    assert (pieces is None) == (max(map(max, lengths)) > max_tokens)
    if pieces is None:
        return
    assert count_words(pieces) == greedy_lengths(lengths, max_tokens)
    assert max(count_words(pieces)) <= max_tokens
    assert pieces == split(text, max_tokens)
    position = 0
    for piece in pieces:
        found = text.index(piece, position)
        assert not text[position:found].strip()
        position = found + len(piece)
    assert not text[position:].strip()


@given(st.text(max_size=60), st.integers(1, 8))
def test_any_text_is_split_without_loss_or_not_at_all(text, max_tokens):
    def count_characters(texts):
        return [len(text.strip()) for text in texts]

    pieces = split(text, max_tokens, count_characters)
    if pieces is not None:
        assert without_space("".join(pieces)) == without_space(text)
        assert all(length <= max_tokens for length in count_characters(pieces))


@pytest.mark.parametrize("max_tokens", [10, 11, 25])
def test_the_property_is_not_vacuous(max_tokens):
    text = "\n\n".join(" ".join(f"Word{index} of {number}." for index in range(5)) for number in range(20))
    pieces = split(text, max_tokens)
    assert len(pieces) >= 300 // max_tokens
    assert len(pieces) > 10


def count_with_joints(texts):
    """Words, and one more for each sentence that another one follows: what is joined is more than its parts."""
    return [len(text.split()) + text.strip().count(". ") for text in texts]


def test_counts_that_grow_by_joining_cost_no_more_than_they_must():
    text = "one two three four. " * 500
    pieces = split(text, 100, count_with_joints)
    assert max(count_with_joints(pieces)) <= 100
    assert without_space("".join(pieces)) == without_space(text)
    # 20 sentences of 4 words with 19 joints are 99 tokens.
    assert 25 <= len(pieces) <= 30


@given(texts(), st.integers(1, 60))
def test_counts_that_grow_with_the_square_of_the_length_are_still_kept_to(text_and_lengths, max_tokens):
    def count_squares(texts):
        return [len(text.split()) ** 2 for text in texts]

    text, lengths = text_and_lengths
    pieces = split(text, max_tokens, count_squares)
    assert (pieces is None) == (max(map(max, lengths)) ** 2 > max_tokens)
    if pieces is not None:
        assert max(count_squares(pieces)) <= max_tokens
        assert without_space("".join(pieces)) == without_space(text)


def test_a_sentence_that_counts_nothing_is_not_lost():
    def count_letters(texts):
        return [len(re.findall("[a-z]+", text)) for text in texts]

    assert split("...\n\na b c.\n\n--\n\nd.\n\n!!", 3, count_letters) == ["...", "a b c.", "--\n\nd.\n\n!!"]


@pytest.mark.parametrize(
    "text",
    [
        "The tide turns. It turns again! Does it?\n\n" * 24_000,
        "The tide turns twice a day here. " * 30_000,
        "tide\n" + " \t" * 500_000 + "\nturns",
        "tide" + "\n " * 500_000 + "turns",
        ". " * 500_000,
        "潮が満ちる。" * 160_000,
    ],
    ids=["paragraphs", "one paragraph", "blanks", "blank lines", "stops", "no spaces"],
)
def test_a_megabyte_is_split(text):
    def count_some(texts):
        return [len(text) // 4 for text in texts]

    pieces = split(text, 500, count_some)
    assert max(count_some(pieces)) <= 500
    assert without_space("".join(pieces)) == without_space(text)
