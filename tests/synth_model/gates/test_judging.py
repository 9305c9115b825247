import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document, InstructionPair
from synth_model.gates.config import PairGateConfig
from synth_model.gates.judging import SCORE_EDGES, judge_pairs, score_counts, settle
from synth_model.text_similarity import jaccard, normalize, shingles

DOCUMENT = Document(
    doc_id="tides", source="web", title="Tides", text="The tide turns twice a day because the moon pulls at the sea."
)
GOOD = InstructionPair(instruction="How often does the tide turn?", response="Twice a day.")


def judge(pairs, **bounds):
    return judge_pairs(pairs, document=DOCUMENT, gates=PairGateConfig(**bounds))


def pair(instruction, response="Twice a day."):
    return InstructionPair(instruction=instruction, response=response)


@pytest.mark.parametrize(
    ("bounds", "bad", "reason", "detail"),
    [
        ({"min_grounding": 0.5}, pair("Why?", "Bread rises."), "ungrounded", "grounding 0.000 is below 0.5"),
        (
            {"max_instruction_overlap": 0.6},
            pair("Why does the tide turn?", "why does  the tide turn"),
            "repeats_instruction",
            "instruction overlap 0.947 is above 0.6",
        ),
        (
            {"max_similarity_in_text": 0.7},
            pair("How often does the tide turn!"),
            "similar_in_text",
            "similarity in text 0.923 is above 0.7",
        ),
        (
            {"max_same_responses_in_text": 1},
            pair("How many times does it turn in a day?", "twice  a Day."),
            "repeated_response",
            "2 pairs of the text with this response are above 1",
        ),
        (
            {"min_language_probability": 0.1},
            pair("Why?", "달이 끌어당기기 때문"),
            "other_language",
            "language probability 0.000 is below 0.1",
        ),
        ({"min_instruction_characters": 5}, pair("Why?"), "instruction_too_short", "4 characters are below 5"),
        ({"max_instruction_characters": 30}, pair("Why, " * 9), "instruction_too_long", "45 characters are above 30"),
        ({"min_response_characters": 3}, pair("Why?", "No"), "response_too_short", "2 characters are below 3"),
        ({"max_response_characters": 12}, pair("Why?", "x" * 13), "response_too_long", "13 characters are above 12"),
    ],
)
def test_each_gate_rejects_what_it_is_for_with_its_score_and_nothing_else(bounds, bad, reason, detail):
    judged = judge([GOOD, bad], **bounds)
    kept, (reject,) = settle(judged, document=DOCUMENT, gates=PairGateConfig(**bounds))
    assert kept == [GOOD]
    assert (reject.stage, reject.reason, reject.detail) == ("gate", reason, detail)
    assert (reject.doc_id, reject.source) == ("tides", "web")
    assert json.loads(reject.text) == {"instruction": bad.instruction, "response": bad.response}
    # Off, it lets everything through and measures nothing.
    assert [item.measurements for item in judge([GOOD, bad])] == [(), ()]
    # With report_only it measures the same and rejects nothing.
    report = PairGateConfig(**bounds, report_only=True)
    assert judge_pairs([GOOD, bad], document=DOCUMENT, gates=report) == judged
    assert settle(judged, document=DOCUMENT, gates=report) == ([GOOD, bad], [])


def test_a_right_option_is_not_a_repeated_instruction():
    asked = "What turns?\nOptions:\n- the tide turns twice a day\n- the earth turns once\n- nothing at all turns"
    (judged,) = judge([pair(asked, "the tide turns twice a day")], max_instruction_overlap=0.6)
    assert judged.refusal is None


def test_a_score_at_its_bound_passes():
    exact = pair("Why?", "The tide turns weekly")
    (judged,) = judge([exact], min_grounding=2 / 3, min_instruction_characters=4, max_instruction_characters=4)
    assert judged.refusal is None
    assert [item.score for item in judged.measurements] == [4.0, pytest.approx(2 / 3)]


def test_an_instruction_is_compared_with_those_that_passed_only():
    ungrounded = pair("How often does the tide turn?", "Bread rises.")
    similar = pair("How often does the tide turn??")
    bounds = {"max_similarity_in_text": 0.7, "min_grounding": 0.5}
    assert [item.refusal and item.refusal.reason for item in judge([ungrounded, similar, similar], **bounds)] == [
        "ungrounded",
        None,
        "similar_in_text",
    ]


def test_a_response_may_stand_as_often_as_is_allowed_and_those_that_failed_do_not_count():
    asked = [pair(f"Is it so, number {number}?", "Yes.") for number in range(4)]
    asked[1] = pair("Is it so, and is this instruction longer than allowed?", "Yes.")
    judged = judge(asked, max_same_responses_in_text=2, max_instruction_characters=30)
    assert [item.refusal and item.refusal.reason for item in judged] == [
        None,
        "instruction_too_long",
        None,
        "repeated_response",
    ]
    assert [item.measurements[-1].score for item in judged] == [1.0, 2.0, 2.0, 3.0]


def test_the_first_failed_gate_names_the_reason_but_all_are_measured():
    (judged,) = judge([pair("Why?", "Bread rises.")], min_grounding=0.5, max_response_characters=3)
    assert judged.refusal.reason == "response_too_long"
    assert [item.gate for item in judged.measurements] == ["response_characters", "grounding"]
    assert list(score_counts([judged])) == [("response_characters", (4, True)), ("grounding", (0, True))]


WORDS = st.sampled_from(["tide", "moon", "turns", "twice", "bread", "why", "how", "often", "하루", "潮汐"])
TEXTS = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)


@given(
    pairs=st.lists(st.builds(InstructionPair, instruction=TEXTS, response=TEXTS), max_size=6),
    bounds=st.fixed_dictionaries(
        {},
        optional={
            "min_grounding": st.floats(0, 1),
            "max_instruction_overlap": st.floats(0, 1),
            "max_similarity_in_text": st.floats(0, 1),
            "max_same_responses_in_text": st.integers(0, 2),
            "min_instruction_characters": st.integers(0, 20),
            "max_response_characters": st.integers(0, 20),
        },
    ),
)
def test_what_stays_passes_every_gate_and_nothing_disappears(pairs, bounds):
    gates = PairGateConfig(**bounds)
    judged = judge_pairs(pairs, document=DOCUMENT, gates=gates)
    kept, rejects = settle(judged, document=DOCUMENT, gates=gates)
    assert [item.pair for item in judged] == pairs
    assert len(kept) + len(rejects) == len(pairs)
    for number, item in enumerate(kept):
        earlier = [jaccard(shingles(item.instruction), shingles(other.instruction)) for other in kept[:number]]
        assert gates.max_similarity_in_text == 1 or max(earlier, default=0) <= gates.max_similarity_in_text
        assert len(item.instruction) >= gates.min_instruction_characters
        num_same = sum(normalize(other.response) == normalize(item.response) for other in kept)
        assert not gates.max_same_responses_in_text or num_same <= gates.max_same_responses_in_text
        assert not gates.max_response_characters or len(item.response) <= gates.max_response_characters
    # What stays is what would stay alone, but for likeness to each other.
    again, _ = settle(judge_pairs(kept, document=DOCUMENT, gates=gates), document=DOCUMENT, gates=gates)
    assert again == kept
    num_gates = {len(item.measurements) for item in judged}
    assert len(num_gates) <= 1
    for gate, (index, _) in score_counts(judged):
        assert 0 <= index <= len(SCORE_EDGES[gate])
