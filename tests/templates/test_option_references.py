import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templates.option_references import refers_to_labels, refers_to_order

HARMLESS = [
    "The hermit crab",
    "A fish",
    "a",
    "I do not know",
    "Vitamin C",
    "All rivers run dry",
    "None but the brave",
    "Both parents",
    "Above the clouds",
    "At first light",
    "The ball of these",
    "3.5 metres",
    "42",
    "Yes",
    "It is either a crab or a snail",
    "In case of fire, answer at once",
    "(for an hour)",
    "",
]


def lists(option: str) -> list[tuple[Sequence[str], str]]:
    """The option among others, in each place, and the same words in what stands around them."""
    others = ["The tide", "The moon", "The sun"]
    return [((*others[:place], option, *others[place:]), "Why?") for place in range(4)]


@pytest.mark.parametrize("text", [text for text in HARMLESS if text != "a"])
def test_other_words_refer_to_nothing(text: str) -> None:
    for options, question in [*lists(text), (("The tide", "The moon"), text)]:
        assert not refers_to_order(options, words_around=question)
        assert not refers_to_labels(options, words_around=question)


@pytest.mark.parametrize(
    "text",
    ["The first two", "Only the last one", "The former answer", "the second option is wrong", "(the previous choices)"],
)
def test_words_that_refer_to_a_place(text: str) -> None:
    for options, question in [*lists(text), (("The tide", "The moon"), text)]:
        assert refers_to_order(options, words_around=question)


@pytest.mark.parametrize(
    "text",
    [
        "All of the above",
        "all the above.",
        "None of the above",
        "NONE OF THESE",
        "Neither of them",
        "Any of these",
        "Two of the above are right",
        "Both of the preceding",
        "All the other options",
        "It is (none of the above)",
        "“All of these”",
    ],
)
def test_an_option_that_sums_up_others(text: str) -> None:
    assert all(refers_to_order(options, words_around=question) for options, question in lists(text))
    assert not refers_to_order(("The tide", "The moon"), words_around=text)


@pytest.mark.parametrize("option", ["Both", "both.", "Neither", "All", "None"])
def test_an_option_that_is_one_such_word(option: str) -> None:
    assert all(refers_to_order(options, words_around=question) for options, question in lists(option))
    assert not refers_to_order(("The tide", f"{option} sides"), words_around="Why?")


@pytest.mark.parametrize(
    "text",
    [
        "Both A and B",
        "both (a) and (b)",
        "A and C",
        "A, B and C",
        "a or b",
        "Neither A nor B",
        "Either B or C",
        "B/C",
        "A & B",
        "Only C",
        "A only",
        "II only",
        "I and III",
        "Option B",
        "Same as choice 2",
        "Answers A, C",
        "See (c)",
        "Option (D) is wrong",
    ],
)
def test_words_that_refer_to_labels(text: str) -> None:
    for options, question in [*lists(text), (("The tide", "The moon"), text)]:
        assert refers_to_labels(options, words_around=question)


@pytest.mark.parametrize(
    "option", ["A. The tide", "(b) The wind", "c) rain", "[D] snow", "2. hail", "iv) fog", "1) ice"]
)
def test_an_option_with_a_label(option: str) -> None:
    assert all(refers_to_labels(options, words_around=question) for options, question in lists(option))
    # In running text it is a list item or an initial.
    assert not refers_to_labels(("The tide", "The moon"), words_around="Steps:\n1. Look.\n2. Think of J. Smith.")


@pytest.mark.parametrize("option", ["A", "b", "(C)", "d.", "3", "[4]", "ii"])
def test_an_option_that_reads_as_a_label_of_the_list(option: str) -> None:
    assert all(refers_to_labels(options, words_around=question) for options, question in lists(option))


@pytest.mark.parametrize("option", ["E", "f", "5", "100", "vi", "O"])
def test_a_short_option_that_no_label_of_the_list_reads_as(option: str) -> None:
    assert not any(refers_to_labels(options, words_around=question) for options, question in lists(option))


@given(
    options=st.lists(st.text(st.sampled_from("ABab1 .)(\n")), min_size=2, max_size=4),
    question=st.text(st.sampled_from("ABab1 .)(\n")),
)
def test_every_bare_label_is_found(options: list[str], question: str) -> None:
    """Oracle for options of labels and signs alone: the letters and numbers of the list, written out."""
    bare = {re.sub(r"^[ ()\[\].:]+|[ ()\[\].:]+$", "", option).lower() for option in options}
    if bare & {"a", "b", "1"}:
        assert refers_to_labels(options, words_around=question)


@pytest.mark.parametrize("unit", ["all of ", "A) ", " ", "both (", "I", "\n", "option ", "none\n"])
def test_a_megabyte_of_one_line_takes_linear_time(unit: str) -> None:
    """A quadratic search would not end in this test's lifetime."""
    text = unit * (1_000_000 // len(unit)) + "end"
    refers_to_order((text, "other"), words_around="")
    refers_to_labels(("other", text), words_around=text)
