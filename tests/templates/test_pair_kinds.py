import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import InstructionPair
from templates.pair_kinds import ChainOfThought, FreeForm, MultipleChoice, recognize_pair
from tests.templates.example_chains import CHAIN_OF_THOUGHT, FREE_FORM, MULTIPLE_CHOICE


def test_each_convention_is_recognized() -> None:
    assert recognize_pair(FREE_FORM) == FreeForm(question=FREE_FORM.instruction, response=FREE_FORM.response)
    assert recognize_pair(MULTIPLE_CHOICE) == MultipleChoice(
        question="What does the crab carry?", options=("A pebble", "A snail shell", "A fish"), answer_index=1
    )
    assert recognize_pair(CHAIN_OF_THOUGHT) == ChainOfThought(
        question=CHAIN_OF_THOUGHT.instruction, response=CHAIN_OF_THOUGHT.response, conclusion="six times"
    )


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("Which?\nOptions:\n- a\n- b", "c"),
        ("Which?\nOptions:\n- a\n- b", "A"),
        ("Which?\nOptions:\n- a\n- b\n- a", "a"),
        ("Which?\nOptions:\n- a\n- a ", "a"),
        ("Which?\nOptions:\n- a", "a"),
        ("Which?\nOptions:\n- a\n- ", "a"),
        ("Which?\nOptions:\n- a\n- b\nExplain.", "a"),
        ("Which?\nOptions:\n- a\nb\n- c", "c"),
        ("Which? Options:\n- a\n- b", "a"),
        ("Options:\n- a\n- b", "a"),
        ("\nOptions:\n- a\n- b", "a"),
        ("How many?\nLet's think step by step.", "Six"),
        ("How many?\nLet's think step by step.", "Therefore, the answer is 6"),
        ("How many?\nLet's think step by step.", "\nTherefore, the answer is 6"),
        ("How many?\nLet's think step by step.", "Two.\nTherefore, the answer is "),
        ("How many?\nLet's think step by step.", "Two.\nTherefore, the answer is 6\nAnd more."),
        ("How many?", "Two.\nTherefore, the answer is 6"),
        ("\nLet's think step by step.", "Two.\nTherefore, the answer is 6"),
    ],
)
def test_what_only_looks_like_a_convention_is_free_form(instruction: str, response: str) -> None:
    pair = InstructionPair(instruction=instruction, response=response)
    assert recognize_pair(pair) == FreeForm(question=instruction, response=response)


def test_the_last_list_of_options_counts() -> None:
    pair = InstructionPair(
        instruction="A menu says\nOptions:\n- tea\nWhat is it?\nOptions:\n- tea\n- food", response="food"
    )
    assert recognize_pair(pair) == MultipleChoice(
        question="A menu says\nOptions:\n- tea\nWhat is it?", options=("tea", "food"), answer_index=1
    )


@given(data=st.data(), num_options=st.integers(2, 12))
def test_the_answer_goes_with_its_option(data: st.DataObject, num_options: int) -> None:
    options = tuple(f"option {index}" for index in range(num_options))
    answer_index = data.draw(st.integers(0, num_options - 1))
    order = data.draw(st.permutations(range(num_options)))
    shuffled = MultipleChoice(question="?", options=options, answer_index=answer_index).reordered(order)
    assert shuffled.options == tuple(f"option {index}" for index in order)
    assert shuffled.options[shuffled.answer_index] == options[answer_index]
