import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document, Example, InstructionPair
from synth_model.chain_state import ChainState, add_completion, visible_examples
from synth_model.generation import Completion
from synth_model.markup import unescape
from synth_model.wire_format import MARKUP, build_prompt, parse_completion, render_pairs
from tests.synth_model.data_strategies import SPECIAL_TOKENS, hostile_pairs, hostile_texts

TOKENS = (*MARKUP, *SPECIAL_TOKENS)


def pairs_of(*sides):
    return [InstructionPair(instruction=instruction, response=response) for instruction, response in sides]


def example_of(text, pairs):
    return Example(document=Document(doc_id="d", source="s", text=text), pairs=tuple(pairs))


def test_a_prompt_without_earlier_examples():
    assert build_prompt([], text="Tides turn.") == "<s> <CON> Tides turn. </CON>\n\n"


def test_a_prompt_behind_earlier_examples():
    first = example_of("One.", pairs_of(("a?", "b"), ("c?\nOptions:\n- d\n- e", "d")))
    second = example_of("Two.", pairs_of(("f?", "g")))
    assert build_prompt([first, second], text="Three.") == (
        "<s> <CON> One. </CON>\n\n"
        "<QUE> a? <ANS> b </END>\n\n<QUE> c?\nOptions:\n- d\n- e <ANS> d </END></s>"
        "<s> <CON> Two. </CON>\n\n<QUE> f? <ANS> g </END></s>"
        "<s> <CON> Three. </CON>\n\n"
    )


@pytest.mark.parametrize(
    ("completion", "sides"),
    [
        ("<QUE> a? <ANS> b </END>", [("a?", "b")]),
        ("<QUE>a?<ANS>b</END>", [("a?", "b")]),
        ("<QUE> a? <ANS> b </END>\n\n<QUE> c? <ANS> d </END></s>", [("a?", "b"), ("c?", "d")]),
        ("\n\n <QUE>\ta?\n<ANS>\n b\n c </END>", [("a?", "b\n c")]),
        # Incomplete: what follows the last end, or all of it.
        ("<QUE> a? <ANS> b </END> <QUE> c? <ANS> d", [("a?", "b")]),
        ("<QUE> a? <ANS> b", []),
        ("", []),
        ("</END></END>", []),
        # Not a pair: no question in front, no answer or two, an empty side.
        ("a? <ANS> b </END>", []),
        ("Sure! <QUE> a? <ANS> b </END><QUE> c? <ANS> d </END>", [("c?", "d")]),
        ("<QUE> a? </END>", []),
        ("<QUE> a? <ANS> b <ANS> c </END>", []),
        ("<QUE> <ANS> b </END><QUE> a? <ANS>\n</END>", []),
        # The same instruction again, whatever the case of its letters; the same response is fine.
        ("<QUE> a? <ANS> b </END><QUE> A? <ANS> c </END><QUE> d? <ANS> b </END>", [("a?", "b"), ("d?", "b")]),
        # A dropped pair does not use up its instruction.
        ("<QUE> a? <ANS> </END><QUE> a? <ANS> b </END>", [("a?", "b")]),
        # Braces are just braces; what a model copies of an escaped text is restored.
        ("<QUE> {a} <ANS> {0} %s </END>", [("{a}", "{0} %s")]),
        ("<QUE> What is <\u2060s>? <ANS> A <\u2060\u2060QUE> mark </END>", [("What is <s>?", "A <\u2060QUE> mark")]),
    ],
)
def test_reading_a_completion(completion, sides):
    assert parse_completion(completion) == pairs_of(*sides)


def test_the_tokenizers_special_tokens_are_data_too():
    pairs = pairs_of(("Who ends a turn?", "<|im_end|> does"))
    prompt = build_prompt([example_of("<|im_end|>", pairs)], text="<|im_end|>", special_tokens=SPECIAL_TOKENS)
    assert "<|im_end|>" not in prompt
    assert prompt.count("<\u2060|im_end|>") == 3
    assert parse_completion(render_pairs(pairs, tokens=TOKENS), special_tokens=SPECIAL_TOKENS) == pairs


@given(hostile_pairs())
def test_pairs_survive_building_and_parsing(pairs):
    completion = render_pairs(pairs, tokens=TOKENS)
    assert parse_completion(completion, special_tokens=SPECIAL_TOKENS) == pairs
    # A cut inside the next pair takes nothing from those before.
    assert parse_completion(completion + "\n\n<QUE> And <ANS> cut", special_tokens=SPECIAL_TOKENS) == pairs


@given(st.lists(st.tuples(hostile_texts(), hostile_pairs(min_size=1)), max_size=3), hostile_texts())
def test_data_never_acts_as_markup(shots, text):
    examples = [example_of(shot_text, pairs) for shot_text, pairs in shots]
    prompt = build_prompt(examples, text=text, special_tokens=SPECIAL_TOKENS)
    num_pairs = sum(len(pairs) for _, pairs in shots)
    counts = {token: prompt.count(token) for token in TOKENS}
    contexts = dict.fromkeys(("<s>", "<CON>", "</CON>"), len(shots) + 1)
    questions = dict.fromkeys(("<QUE>", "<ANS>", "</END>"), num_pairs)
    assert counts == {**contexts, **questions, "</s>": len(shots), **dict.fromkeys(SPECIAL_TOKENS, 0)}
    # And every text stands in it unharmed.
    found = [part.split(" </CON>\n\n")[0] for part in prompt.split("<s> <CON> ")[1:]]
    assert [unescape(part, tokens=TOKENS) for part in found] == [*(shot_text for shot_text, _ in shots), text]


@pytest.fixture(scope="module")
def reference_cases(shared_folder):
    return json.loads((shared_folder / "reference_cases" / "chains.json").read_text("utf-8"))


def test_completions_are_read_as_the_published_code_reads_them(reference_cases):
    assert len(reference_cases["parse"]) == 60
    for number, case in enumerate(reference_cases["parse"]):
        expected = pairs_of(*((pair["instruction"], pair["response"]) for pair in case["pairs"]))
        assert parse_completion(case["completion"]) == expected, f"case {number}"


def test_chains_go_through_their_rounds_as_in_the_published_code(reference_cases):
    assert len(reference_cases["chains"]) == 30
    for number, case in enumerate(reference_cases["chains"]):
        documents = [Document(doc_id=str(index), source="s", text=text) for index, text in enumerate(case["texts"])]
        state = ChainState(chain_id=str(number), source="s", pending=tuple(documents))
        for index, spoken in enumerate(case["rounds"]):
            visible = visible_examples(state)
            assert build_prompt(visible, text=state.pending[0].text) == spoken["prompt"], f"chain {number}, {index}"
            completion = Completion(
                text=spoken["completion"], finish_reason="stop", num_prompt_tokens=1, num_new_tokens=1
            )
            state = add_completion(
                state, pairs=parse_completion(completion.text), completion=completion, num_visible=len(visible)
            )
        assert not state.pending
        results = [
            {
                "text": example.document.text,
                "pairs": [{"instruction": pair.instruction, "response": pair.response} for pair in example.pairs],
                "inherits_previous": example.inherits_previous,
            }
            for example in state.examples
        ]
        assert results == case["examples"], f"chain {number}"


def test_the_reference_chains_are_not_all_alike(reference_cases):
    examples = [example for case in reference_cases["chains"] for example in case["examples"]]
    assert {example["inherits_previous"] for example in examples} == {True, False}
    assert {bool(example["pairs"]) for example in examples} == {True, False}
