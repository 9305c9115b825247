import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templates.patterns import parse_pattern


def test_a_pattern_is_literals_around_fields() -> None:
    pattern = parse_pattern("Q: {question}\nA: {response}!")
    assert pattern.literals == ("Q: ", "\nA: ", "!")
    assert pattern.fields == ("question", "response")
    assert pattern.fill(question="Why?", response="So", unused="x") == "Q: Why?\nA: So!"


@given(question=st.text(), response=st.text())
def test_values_are_inserted_never_read(question: str, response: str) -> None:
    filled = parse_pattern("<{question}|{response}>").fill(question=question, response=response)
    assert filled == "<" + question + "|" + response + ">"


@given(st.lists(st.text(alphabet="ab%\\$ \n", min_size=1), min_size=4, max_size=4))
def test_filling_agrees_with_replacing_one_field_after_the_other(literals: list[str]) -> None:
    wording = literals[0] + "{one}" + literals[1] + "{two}" + literals[2] + "{three}" + literals[3]
    expected = wording.replace("{one}", "1").replace("{two}", "2").replace("{three}", "3")
    assert parse_pattern(wording).fill(one="1", two="2", three="3") == expected


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        ("", "is empty"),
        ("a {b", "brace outside a field"),
        ("a } b", "brace outside a field"),
        ("{Upper}", "brace outside a field"),
        ("{0}", "brace outside a field"),
        ("{{question}}", "brace outside a field"),
        ("{question:>8}", "brace outside a field"),
        ("{text} {text}", "names a field twice"),
        ("{question}{response}", "nothing between them"),
    ],
)
def test_a_bad_wording_is_refused(wording: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_pattern(wording)
