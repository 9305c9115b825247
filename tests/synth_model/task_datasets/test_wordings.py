import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth_model.task_datasets.wordings import (
    check_list_wording,
    check_wording,
    fill,
    fill_all,
    find_rows,
    find_scopes,
    find_values,
    text_of,
)

RECORD = {
    "a": {"b": [1, {"c": "x"}, [2, 3]]},
    "d e": "y",
    "empty": [],
    "none": None,
    "rows": {"p": [1, 2, 3], "q": [4, 5]},
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", [RECORD]),
        ("d e", ["y"]),
        ("a.b[0]", [1]),
        ("a.b[1].c", ["x"]),
        ("a.b[]", [1, {"c": "x"}, [2, 3]]),
        ("a.b[][]", [2, 3]),
        ("a.b[].c", ["x"]),
        ("a.*", [[1, {"c": "x"}, [2, 3]]]),
        ("*", list(RECORD.values())),
        ("a.b[9]", []),
        ("a.nothing.c", []),
        ("nothing", []),
        ("d e[]", []),
        ("d e[0]", []),
        ("none", [None]),
        ("none.c", []),
        ("[0]", []),
    ],
)
def test_a_path_finds_what_it_names(path, found):
    assert find_values(path, (RECORD,)) == found


def test_a_name_is_looked_up_from_the_inside_out():
    scopes = ({"q": 1}, {"q": 2, "r": 3}, {"s": 4})
    assert [find_values(name, scopes) for name in ("q", "r", "s", "t")] == [[1], [3], [4], []]
    # A list has no names, but its own elements.
    assert find_values("[1]", (["x", "y"], {"q": 1})) == ["y"]
    assert find_values("q", (["x", "y"], {"q": 1})) == [1]


def test_scopes_keep_what_a_value_stands_in():
    root = {"title": "T", "data": [{"n": 1}, {"n": 2}]}
    scopes = find_scopes("data[]", (root,))
    assert [scope[0] for scope in scopes] == [{"n": 1}, {"n": 2}]
    assert [fill("{n} of {title}", scope) for scope in scopes] == ["1 of T", "2 of T"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
STEPS = st.lists(st.sampled_from(["a", "b", "c", "[]", "[0]", "[1]", "*"]), min_size=1, max_size=4)


def find_slowly(value, steps):
    """The values of a path by its definition, one step at a time."""
    if not steps:
        return [value]
    step, rest = steps[0], steps[1:]
    if step == "[]":
        inner = value if isinstance(value, list) else []
    elif step == "*":
        inner = value.values() if isinstance(value, dict) else []
    elif step in ("[0]", "[1]"):
        inner = [element for n, element in enumerate(value) if f"[{n}]" == step] if isinstance(value, list) else []
    else:
        inner = [element for name, element in value.items() if name == step] if isinstance(value, dict) else []
    return [found for element in inner for found in find_slowly(element, rest)]


@given(JSON, STEPS)
def test_a_path_finds_what_its_definition_finds(value, steps):
    path = "".join(step if step.startswith("[") or n == 0 else f".{step}" for n, step in enumerate(steps))
    assert find_values(path, (value,)) == find_slowly(value, steps)
    assert [scope[0] for scope in find_scopes(path, (value,))] == find_slowly(value, steps)


@pytest.mark.parametrize(
    ("value", "text"),
    [(" a ", "a"), (True, "Yes"), (False, "No"), (3, "3"), (3.0, "3"), (2.5, "2.5"), (None, ""), ({}, ""), (["a"], "")],
)
def test_single_values_become_text(value, text):
    assert text_of(value) == text


def test_slots_are_filled_and_lists_joined():
    scopes = ({"x": "one", "many": ["a", "", "c"], "gone": None},)
    assert fill(" {x}: {many[]:, }{gone}. ", scopes) == "one: a, , c."
    assert fill("{nothing}", scopes) == ""
    assert fill_all("{many[]}", scopes) == ["a", "", "c"]
    assert fill_all("{x}", scopes) == fill_all("one", scopes) == ["one"]
    assert fill_all("{many[]:+}", scopes) == ["a++c"]
    assert fill_all("{nothing[]}", scopes) == []


@given(st.text(max_size=20), st.text(max_size=20))
def test_values_are_inserted_and_never_formatted(first, second):
    scopes = ({"p": first, "q": second},)
    assert fill("<{p}|{q}>", scopes) == f"<{first.strip()}|{second.strip()}>"


def test_columns_become_rows_as_far_as_the_shortest_goes():
    assert find_rows({"left": "rows.p[]", "right": "rows.q[]"}, (RECORD,)) == [
        {"left": 1, "right": 4},
        {"left": 2, "right": 5},
    ]
    assert find_rows("rows.p[]", (RECORD,)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        ("{a..b}", "'a..b' is not a path (at '..b')"),
        ("{a[x]}", "is not a path"),
        ("{a", "a brace that belongs to no slot"),
        ("a}", "a brace that belongs to no slot"),
        ("{a[]}", "must have a separator exactly when it finds many"),
        ("{a:, }", "must have a separator exactly when it finds many"),
    ],
)
def test_a_wording_that_cannot_be_filled_is_refused(wording, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_wording(wording)


def test_where_several_texts_are_asked_for_a_slot_may_find_many():
    check_list_wording("{a[]}")
    check_list_wording("{a}")
    with pytest.raises(ValueError, match="must have a separator"):
        check_list_wording("the {a[]}")
