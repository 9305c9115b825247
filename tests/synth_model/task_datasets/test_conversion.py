import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import InstructionPair, Reject
from contracts.schemas import rejects_to_table
from synth_model.task_datasets.conversion import convert_entry
from synth_model.task_datasets.table import load_table
from synth_model.task_datasets.task_files import TaskEntry
from templates.pair_kinds import ChainOfThought, MultipleChoice, recognize_pair
from tests.synth_model.task_datasets.release_examples import CHOICES, RELEASE_EXAMPLES, TEXT, WHAT


def convert(value, name):
    return list(convert_entry(TaskEntry(value=value, place="file:1"), dataset=load_table()[name]))


def record(**changes):
    return {
        "id": "ferries-1",
        "dataset": "ferries",
        "context": TEXT,
        "pairs": [{"instruction": WHAT, "response": "goats"}],
        "license": "MIT",
        **changes,
    }


@pytest.mark.parametrize(
    ("name", "value", "reason", "detail"),
    [
        ("normalized", record(context="  "), "task/no_text", "file:1: its text is empty"),
        ("normalized", record(context=None), "task/no_text", "file:1: its text is empty"),
        ("normalized", record(context="a\ud800"), "task/invalid_unicode", "file:1: a lone surrogate"),
        ("normalized", {"context": TEXT}, "task/unknown_layout", "file:1: it has the fields ['context'], not one of"),
        ("normalized", [TEXT], "task/unknown_layout", "file:1: it has a list"),
        ("normalized", None, "task/unknown_layout", "file:1: it has a NoneType"),
        (
            "squad",
            {"data": [{"paragraphs": [{"context": "a", "qas": []}, {"qas": []}]}]},
            "task/missing_field",
            "file:1, record 1: it has the fields ['qas'], not ['context']",
        ),
    ],
)
def test_a_record_that_cannot_be_used_says_where_it_stands_and_why(name, value, reason, detail):
    reject = convert(value, name)[-1]
    assert f"{reject.stage}/{reject.reason}" == reason
    assert reject.detail.startswith(detail)
    # What is shown of it can be written.
    assert json.loads(reject.text) is not None or value is None
    rejects_to_table([reject])


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("race", {"answer": "E"}, "unknown_label"),
        ("race", {"answer": ""}, "unknown_label"),
        ("race", {"question": " "}, "no_question"),
        ("race", {"options": ["", "", ""]}, "no_answer"),
        ("race", {"question": "\udc00"}, "invalid_unicode"),
        ("quail", {"correct_answer_id": -1}, "unknown_label"),
        ("quail", {"correct_answer_id": 3}, "unknown_label"),
        ("dream", {"answer": "sheep"}, "answer_not_among_options"),
        ("dream", {"answer": None}, "no_answer"),
        ("qasc", {"answerKey": "9"}, "unknown_label"),
    ],
)
def test_a_question_that_cannot_be_used_leaves_its_text(name, changes, reason):
    (row,) = next(e.content for e in RELEASE_EXAMPLES if e.dataset == name and e.file == "train.parquet")
    *rejects, text = convert({**row, **changes}, name)
    assert {(reject.stage, reject.reason) for reject in rejects} == {("gate", reason)}
    assert all(reject.detail.startswith("file:1: ") for reject in rejects)
    assert text.pairs == ()
    assert {reject.doc_id for reject in rejects} == {text.document.doc_id}
    rejects_to_table(rejects)
    assert convert(row, name)[-1].pairs


def test_options_stand_on_one_line_each_and_the_answer_as_they_do():
    row = {"article": TEXT, "question": WHAT, "options": ["many \n cows", "bees", " "], "answer": "A"}
    (text,) = convert(row, "race")
    assert text.pairs == (InstructionPair(instruction=f"{WHAT}\nOptions:\n- many cows\n- bees", response="many cows"),)


@pytest.mark.parametrize("answer", ["unknown", "Unknown", " UNKNOWN "])
def test_an_answer_that_says_there_is_none_does_so_in_any_case_of_letters(answer):
    story = {"story": TEXT, "questions": [WHAT], "answers": {"input_text": [answer]}}
    reject, text = convert(story, "coqa")
    assert (reject.reason, text.pairs) == ("unanswerable", ())


@pytest.mark.parametrize(
    ("mark", "is_set"),
    [(True, True), (1, True), ("true", True), ("image.png", True)]
    + [(unset, False) for unset in (False, 0, None, "", "0", "False", " false ")],
)
def test_a_mark_is_read_as_json_and_as_text(mark, is_set):
    row = {"plot": TEXT, "question": WHAT, "answers": ["goats"], "no_answer": mark}
    assert [isinstance(item, Reject) for item in convert(row, "duorc")] == ([True, False] if is_set else [False])


def test_marks_that_do_not_fit_the_options_are_refused():
    question = {"question": WHAT, "answers": [{"text": "a", "label": 1}, {"text": "b"}]}
    reject, text = convert({"passage": {"text": TEXT, "questions": [question]}}, "multirc")
    assert (reject.reason, text.pairs) == ("unknown_label", ())


def test_what_follows_a_convention_is_recognised_by_the_templates():
    kinds = set()
    for example in RELEASE_EXAMPLES:
        for instruction, response in example.pairs:
            kind = recognize_pair(InstructionPair(instruction=instruction, response=response))
            # Several right answers follow no convention.
            if "\nOptions:\n" in instruction and response != f"{CHOICES[0]}\n{CHOICES[1]}":
                assert isinstance(kind, MultipleChoice), instruction
            elif instruction.endswith("step by step."):
                assert isinstance(kind, ChainOfThought), instruction
            kinds.add(type(kind).__name__)
    assert len(kinds) == 3


def test_the_right_answer_stands_nowhere_in_particular_among_distractors():
    places = set()
    for number in range(40):
        row = {
            "support": TEXT,
            "question": f"{WHAT} {number}",
            "correct_answer": CHOICES[1],
            **{f"distractor{n}": f"wrong {n}" for n in (1, 2, 3)},
        }
        (text,) = convert(row, "sciq")
        question = recognize_pair(text.pairs[0])
        assert sorted(question.options) == sorted([CHOICES[1], "wrong 1", "wrong 2", "wrong 3"])
        places.add(question.answer_index)
    assert places == {0, 1, 2, 3}


ANY_TEXT = st.text(max_size=8)
UTF8 = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    context=UTF8,
    sides=st.lists(st.tuples(UTF8, UTF8), max_size=4),
    name=UTF8,
)
def test_normalised_records_come_back_as_they_were(context, sides, name):
    value = record(context=context, dataset=name, pairs=[{"instruction": i, "response": r} for i, r in sides])
    *rejects, last = convert(value, "normalized")
    if not context.strip():
        assert isinstance(last, Reject)
        return
    kept = [(i.strip(), r.strip()) for i, r in sides if i.strip() and r.strip()]
    assert [(pair.instruction, pair.response) for pair in last.pairs] == kept
    assert len(kept) + len(rejects) == len(sides)
    assert {reject.reason for reject in rejects} <= {"no_question", "no_answer"}
    assert last.document.text == context.strip()
    assert last.document.source == (name.strip() or "normalized")
    assert last.license == "MIT"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=True) | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["context", "pairs", "instruction", "response", "id", "dataset", "question", "answers", "text"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(sorted(load_table())))
def test_anything_gives_texts_or_rejects_that_can_be_written(value, name):
    found = convert(value, name)
    assert found
    rejects_to_table([item for item in found if isinstance(item, Reject)])
    for item in found:
        if not isinstance(item, Reject):
            parts = [item.document.text, *(side for pair in item.pairs for side in (pair.instruction, pair.response))]
            assert all(part.strip() for part in parts)
            "".join(parts).encode()
