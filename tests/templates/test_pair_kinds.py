import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import InstructionPair
from templates.pair_kinds import ChainOfThought, FreeForm, MultipleChoice, recognize_pair
from tests.templates.example_chains import (
    CHAIN_OF_THOUGHT,
    FREE_FORM,
    MULTIPLE_CHOICE,
    MULTIPLE_CHOICE_CHAIN_OF_THOUGHT,
)


def test_each_convention_is_recognized() -> None:
    assert recognize_pair(FREE_FORM) == FreeForm(question=FREE_FORM.instruction, response=FREE_FORM.response)
    assert recognize_pair(MULTIPLE_CHOICE) == MultipleChoice(
        question="What does the crab carry?", options=("A pebble", "A snail shell", "A fish"), answer_index=1
    )
    assert recognize_pair(CHAIN_OF_THOUGHT) == ChainOfThought(
        question=CHAIN_OF_THOUGHT.instruction, response=CHAIN_OF_THOUGHT.response, conclusion="six times"
    )


def test_a_chain_of_thought_that_ends_at_an_option_is_multiple_choice() -> None:
    assert recognize_pair(MULTIPLE_CHOICE_CHAIN_OF_THOUGHT) == MultipleChoice(
        question="Which rock is oldest?",
        options=("Basalt", "Granite", "Chalk"),
        answer_index=1,
        reasoning="Granite lies under the other two.\nWhat lies deeper was there before.",
    )


@pytest.mark.parametrize(
    ("options", "response"),
    [
        ("- Basalt\n- Chalk", "It is deep.\nTherefore, the answer is Granite"),
        ("- Basalt\n- Granite", "It is deep.\nTherefore, the answer is granite"),
        ("- Granite\n- Granite", "It is deep.\nTherefore, the answer is Granite"),
        ("- Granite", "It is deep.\nTherefore, the answer is Granite"),
        ("- Basalt\n- Granite", "Option B lies deep.\nTherefore, the answer is Granite"),
        ("- Basalt\n- Granite\n- Both A and B", "It is deep.\nTherefore, the answer is Granite"),
    ],
)
def test_a_chain_of_thought_without_such_an_option_stands_as_it_is(options: str, response: str) -> None:
    instruction = f"Which rock?\nOptions:\n{options}\nLet's think step by step."
    recognized = recognize_pair(InstructionPair(instruction=instruction, response=response))
    assert isinstance(recognized, ChainOfThought)
    assert (recognized.question, recognized.response) == (instruction, response)


def test_an_answer_without_reasoning_is_no_chain_of_thought() -> None:
    pair = InstructionPair(
        instruction="Which?\nOptions:\n- Basalt\n- Granite\nLet's think step by step.", response="Granite"
    )
    assert recognize_pair(pair) == FreeForm(question=pair.instruction, response=pair.response)


@pytest.mark.parametrize(
    ("option", "keeps_order"), [("None of the above", True), ("Both", True), ("Chalk of all kinds", False)]
)
def test_whether_the_options_keep_their_order(option: str, keeps_order: bool) -> None:
    pair = InstructionPair(instruction=f"Which?\nOptions:\n- Basalt\n- Granite\n- {option}", response=option)
    recognized = recognize_pair(pair)
    assert isinstance(recognized, MultipleChoice)
    assert recognized.keeps_order is keeps_order


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("Which?\nOptions:\n- tea\n- rye", "cod"),
        ("Which?\nOptions:\n- tea\n- rye", "Tea"),
        ("Which?\nOptions:\n- tea\n- rye\n- tea", "tea"),
        ("Which?\nOptions:\n- tea\n- tea ", "tea"),
        ("Which?\nOptions:\n- tea", "tea"),
        ("Which?\nOptions:\n- tea\n- ", "tea"),
        ("Which?\nOptions:\n- tea\n- rye\nExplain.", "tea"),
        ("Which?\nOptions:\n- tea\nrye\n- cod", "cod"),
        ("Which? Options:\n- tea\n- rye", "tea"),
        ("Options:\n- tea\n- rye", "tea"),
        ("\nOptions:\n- tea\n- rye", "tea"),
        ("Which?\nOptions:\n- A. tea\n- B. rye", "A. tea"),
        ("Which?\nOptions:\n- tea\n- Both A and B", "tea"),
        ("Which is option B?\nOptions:\n- tea\n- rye", "tea"),
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
