import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.instruction_shapes import SHAPES, find_pair
from contracts.records import InstructionPair

ASK, ANSWER = "Name a river.", "The Danube."


@pytest.mark.parametrize(
    ("values", "instruction", "response"),
    [
        ({"instruction": ASK, "response": ANSWER}, ASK, ANSWER),
        ({"instruction": f"  {ASK}\n", "response": f"\n{ANSWER} "}, ASK, ANSWER),
        ({"instruction": "Shout.", "input": "Good day", "output": "GOOD DAY"}, "Shout.\n\nGood day", "GOOD DAY"),
        ({"instruction": ASK, "input": "", "output": ANSWER}, ASK, ANSWER),
        ({"instruction": ASK, "input": None, "output": ANSWER}, ASK, ANSWER),
        ({"instruction": ASK, "input": " \n", "output": ANSWER}, ASK, ANSWER),
        ({"system_prompt": "Be brief.", "question": ASK, "response": ANSWER, "id": "q.1"}, ASK, ANSWER),
        ({"question": ASK, "answer": ANSWER}, ASK, ANSWER),
        ({"prompt": ASK, "completion": ANSWER}, ASK, ANSWER),
        ({"prompt": ASK, "response": ANSWER}, ASK, ANSWER),
        ({"messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]}, ASK, ANSWER),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": ASK},
                    {"role": "assistant", "content": ANSWER},
                ]
            },
            ASK,
            ANSWER,
        ),
        ({"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": ANSWER}]}, ASK, ANSWER),
        (
            {
                "conversations": [
                    {"from": "human", "value": ASK},
                    {"from": "gpt", "value": ANSWER},
                    {"from": "human", "value": "A longer one."},
                    {"from": "gpt", "value": "The Nile."},
                    {"from": "human", "value": "Thanks"},
                ]
            },
            f"{ASK}\n\n{ANSWER}\n\nA longer one.",
            "The Nile.",
        ),
        # A null counts as absent, as where sets of several shapes share one table.
        ({"messages": None, "question": ASK, "response": None, "answer": ANSWER}, ASK, ANSWER),
        ({"instruction": "{0} %s \\n", "response": "<s> {x}"}, "{0} %s \\n", "<s> {x}"),
    ],
)  # fmt: skip
def test_each_shape_gives_its_pair(values, instruction, response):
    assert find_pair(values) == InstructionPair(instruction=instruction, response=response)


TURN = {"role": "user", "content": ASK}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {},
            r"the record has \[\], which is none of the known shapes: messages; conversations; instruction, \(input\)",
        ),
        ({"text": "x", "label": 1}, r"the record has \['label', 'text'\], which is none of the known shapes"),
        ({"instruction": ASK}, "none of the known shapes"),
        ({"instruction": ASK, "output": None}, "none of the known shapes"),
        ({"instruction": ASK, "output": " "}, "field 'output' holds no text"),
        ({"instruction": 7, "output": ANSWER}, "field 'instruction' holds no text"),
        ({"instruction": ASK, "input": {"a": 1}, "output": ANSWER}, "field 'input' holds no text"),
        ({"instruction": ASK, "input": "\ud800", "output": ANSWER}, "field 'input' holds no text"),
        ({"question": ASK, "response": "half \ud83d"}, "field 'response' holds no text"),
        ({"messages": ASK}, "field 'messages': holds a str, not a list of turns"),
        ({"messages": []}, "has no turn of the user that the assistant answered"),
        ({"messages": [TURN]}, "has no turn of the user that the assistant answered"),
        ({"messages": [{"role": "assistant", "content": "Hello!"}] * 2}, "has no turn of the user"),
        ({"messages": [TURN, ANSWER]}, "turn 2 is a str, not an object"),
        ({"messages": [TURN, {"role": "tool", "content": "42"}]}, "turn 2 has the role 'tool'; known are user, human"),
        ({"messages": [TURN, {"content": "42"}]}, "turn 2 has the role None"),
        ({"messages": [TURN, {"role": "assistant", "content": [{"type": "text"}]}]}, "turn 2 holds no text"),
        ({"conversations": [{"from": "human", "value": ""}]}, "field 'conversations': turn 1 holds no text"),
    ],
)
def test_what_has_no_pair_is_told(values, message):
    reason = find_pair(values)
    assert isinstance(reason, str)
    assert re.search(message, reason), reason


def test_every_shape_is_named_where_none_fits():
    reason = find_pair({"body": "x"})
    for shape in SHAPES:
        assert str(shape) in reason


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_a_conversation_keeps_every_turn_in_order(exchanges, has_system_turn, is_asked_again):
    turns = [("system", "hidden")] if has_system_turn else []
    for asked, answered in exchanges:
        turns += [("user", asked), ("assistant", answered)]
    turns += [("user", "unanswered")] if is_asked_again else []
    names = ("role", "content"), ("from", "value")
    pairs = [
        find_pair({field: [dict(zip(keys, turn, strict=True)) for turn in turns]})
        for field, keys in zip(("messages", "conversations"), names, strict=True)
    ]
    spoken = [side.strip() for exchange in exchanges for side in exchange]
    expected = InstructionPair(instruction="\n\n".join(spoken[:-1]), response=spoken[-1])
    assert pairs == [expected, expected]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner | st.just("user"), max_size=3)
    ),
    max_leaves=8,
)
FIELDS = sorted({name for shape in SHAPES for name in (shape.instruction, shape.response, shape.input) if name})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=5))
def test_any_record_has_a_pair_of_two_texts_or_a_reason(values):
    found = find_pair(json.loads(json.dumps(values)))
    if isinstance(found, str):
        assert found
    else:
        assert found.instruction == found.instruction.strip() != ""
        assert found.response == found.response.strip() != ""
        (found.instruction + found.response).encode("utf-8")
