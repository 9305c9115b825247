import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Chain, Document, InstructionPair, Reject
from synth_model.chain_state import (
    ChainState,
    add_completion,
    add_failure,
    finished_chain,
    fit_prompt,
    visible_examples,
)
from synth_model.generation import Completion, Failure, Prompt

COMPLETION = Completion(text="", finish_reason="stop", num_prompt_tokens=11, num_new_tokens=7)
PAIRS = (InstructionPair(instruction="a?", response="b"),)


def state_of(num_documents):
    documents = [Document(doc_id=f"doc-{index}", source="s", text=f"Text {index}.") for index in range(num_documents)]
    return ChainState(chain_id="chain", source="s", pending=tuple(documents))


def complete(state, *, pairs=PAIRS, num_visible=None):
    shown = len(visible_examples(state)) if num_visible is None else num_visible
    return add_completion(state, pairs=pairs, completion=COMPLETION, num_visible=shown)


def fail(state):
    return add_failure(state, failure=Failure(reason="prompt_too_long", detail="99 tokens"))


def visible_ids(state):
    return [example.document.doc_id for example in visible_examples(state)]


def test_each_document_sees_all_before_it():
    state = state_of(3)
    assert visible_ids(state) == []
    state = complete(state)
    assert visible_ids(state) == ["doc-0"]
    state = complete(state)
    assert visible_ids(state) == ["doc-0", "doc-1"]
    state = complete(state)
    assert [example.inherits_previous for example in state.examples] == [False, True, True]
    assert (state.examples[1].finish_reason, state.examples[1].num_prompt_tokens) == ("stop", 11)
    assert state.examples[1].num_new_tokens == 7


def test_a_text_without_pairs_is_kept_and_breaks_the_chain():
    state = complete(complete(state_of(4)), pairs=())
    assert visible_ids(state) == []
    assert state.examples[1].pairs == ()
    assert not state.examples[1].inherits_previous
    assert state.rejects == ()
    state = complete(state)
    assert visible_ids(state) == ["doc-2"]
    state = complete(state)
    assert [example.inherits_previous for example in state.examples] == [False, False, False, True]


def test_a_failure_is_rejected_with_its_text_and_breaks_the_chain():
    state = fail(complete(state_of(4)))
    assert visible_ids(state) == []
    assert state.rejects == (
        Reject(
            doc_id="doc-1",
            source="s",
            stage="synthesize",
            reason="prompt_too_long",
            detail="99 tokens",
            text="Text 1.",
        ),
    )
    state = complete(state)
    # The document before the failure does not come back into view.
    assert visible_ids(state) == ["doc-2"]


def test_examples_that_were_left_out_of_a_prompt_stay_out_of_view():
    # When nothing fitted, the document began a new run of its own.
    state = complete(complete(complete(state_of(4))), num_visible=0)
    assert visible_ids(state) == ["doc-2"]
    # When some fitted, the whole run stays in view: what fits is decided for each prompt anew.
    state = complete(complete(complete(state_of(4))), num_visible=1)
    assert visible_ids(state) == ["doc-0", "doc-1", "doc-2"]


@given(st.lists(st.tuples(st.sampled_from(["pairs", "pairs", "none", "failure"]), st.integers(0, 3)), max_size=8))
def test_visibility_agrees_with_keeping_the_run_by_hand(outcomes):
    """The oracle keeps a list of what is in view and never looks at the state."""
    state, run, expected_inherits = state_of(len(outcomes)), [], []
    for number, (outcome, num_dropped) in enumerate(outcomes):
        assert visible_ids(state) == run
        num_visible = max(0, len(run) - num_dropped)
        if outcome == "failure":
            state, run = fail(state), []
            continue
        state = complete(state, pairs=PAIRS if outcome == "pairs" else (), num_visible=num_visible)
        expected_inherits.append(outcome == "pairs" and num_visible > 0)
        run = [] if outcome == "none" else [*(run if num_visible else []), f"doc-{number}"]
    assert visible_ids(state) == run
    assert [example.inherits_previous for example in state.examples] == expected_inherits
    # Every document is somewhere, once, in its order.
    assert not state.pending
    places = [*(example.document.doc_id for example in state.examples), *(reject.doc_id for reject in state.rejects)]
    assert sorted(places) == [f"doc-{number}" for number in range(len(outcomes))]


def test_a_round_leaves_the_state_before_as_it_was():
    before = state_of(2)
    complete(before)
    fail(before)
    assert before == state_of(2)


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(1, 40))
def test_the_earliest_examples_go_first_and_no_more_than_must(sizes, limit):
    examples = complete_all(len(sizes))
    size_of = dict(zip((example.document.doc_id for example in examples), sizes, strict=True))

    def build(shown):
        return Prompt(text="x" * (5 + sum(size_of[example.document.doc_id] for example in shown)))

    result = fit_prompt(examples, build=build, fits=lambda prompt: len(prompt.text) <= limit)
    fitting = [count for count in range(len(sizes) + 1) if 5 + sum(sizes[len(sizes) - count :]) <= limit]
    if not fitting:
        assert result is None
        return
    prompt, num_visible = result
    assert num_visible == max(fitting)
    assert prompt == build(examples[len(examples) - num_visible :])


def complete_all(num_documents):
    state = state_of(num_documents)
    while state.pending:
        state = complete(state)
    return state.examples


def test_a_finished_chain_holds_its_examples_in_order():
    state = complete(fail(complete(state_of(3), pairs=())))
    chain = finished_chain(state, synthesizer_id="fake")
    assert chain == Chain(chain_id="chain", source="s", examples=state.examples, synthesizer_id="fake")
    assert [example.document.doc_id for example in chain.examples] == ["doc-0", "doc-2"]


def test_a_chain_of_rejects_alone_is_none():
    assert finished_chain(fail(fail(state_of(2))), synthesizer_id="fake") is None


def test_a_chain_is_not_finished_before_its_last_document():
    with pytest.raises(AssertionError, match="1 documents left"):
        finished_chain(complete(state_of(2)), synthesizer_id="fake")
