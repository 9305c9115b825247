import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_model.markup import JOINER, escape, unescape
from tests.synth_model.data_strategies import SPECIAL_TOKENS, hostile_texts

TOKENS = ("<s>", "</s>", "<QUE>", "<ANS>", "</END>", "<CON>", "</CON>", *SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("no markup", "no markup"),
        ("a <s> b", f"a <{JOINER}s> b"),
        ("<s><s>", f"<{JOINER}s><{JOINER}s>"),
        (f"<{JOINER}s>", f"<{JOINER}{JOINER}s>"),
        ("<<s>", f"<<{JOINER}s>"),
        ("</s>", f"<{JOINER}/s>"),
        ("<S>", "<S>"),
    ],
)
def test_a_token_gets_a_joiner_behind_its_first_character(text, escaped):
    assert escape(text, tokens=TOKENS) == escaped
    assert unescape(escaped, tokens=TOKENS) == text


@given(hostile_texts())
def test_unescape_is_the_inverse_of_escape(text):
    assert unescape(escape(text, tokens=TOKENS), tokens=TOKENS) == text


@given(hostile_texts())
def test_no_token_is_left(text):
    escaped = escape(text, tokens=TOKENS)
    assert not any(token in escaped for token in TOKENS)
    assert escaped.replace(JOINER, "") == text.replace(JOINER, "")


@given(hostile_texts())
def test_a_text_without_tokens_stays_as_it_is(text):
    for token in TOKENS:
        text = text.replace(token, "").replace(JOINER, "")
    if not any(token in text for token in TOKENS):
        assert escape(text, tokens=TOKENS) == text


@given(hostile_texts())
def test_text_between_tokens_stays_as_it_is(text):
    assert escape(text, tokens=()) == text == unescape(text, tokens=())
    without_pointed = text.replace("<", "")
    assert escape(without_pointed, tokens=TOKENS) == without_pointed


@given(hostile_texts(), st.permutations(TOKENS))
def test_the_order_of_the_tokens_does_not_matter(text, tokens):
    assert escape(text, tokens=tokens) == escape(text, tokens=TOKENS)
    assert escape(text, tokens=(*tokens, *tokens)) == escape(text, tokens=TOKENS)


def test_a_token_that_begins_with_another_one_is_seen_whole():
    tokens = ("<a", "<ab>")
    assert escape("<ab> <a", tokens=tokens) == f"<{JOINER}ab> <{JOINER}a"
    assert unescape(escape("<ab> <a", tokens=tokens), tokens=tokens) == "<ab> <a"


@pytest.mark.parametrize("token", ["", "x", f"<{JOINER}s>"])
def test_a_token_that_cannot_be_escaped_is_refused(token):
    with pytest.raises(ValueError, match="at least two characters long"):
        escape("text", tokens=("<s>", token))
