from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document, InstructionPair
from synth_model.chain_state import ChainState, add_completion
from synth_model.engines.fake_engine import FakeTokenizer
from synth_model.generation import Completion
from synth_model.next_prompt import next_prompt
from synth_model.synthesizer import WireFormatSynthesizer

PAIRS = (InstructionPair(instruction="What?", response="That."),)
COMPLETION = Completion(text="", finish_reason="stop", num_prompt_tokens=0, num_new_tokens=0)
SYNTHESIZER, TOKENIZER = WireFormatSynthesizer(), FakeTokenizer()


def count(examples, document):
    prompt = SYNTHESIZER.build_prompt(examples, document=document, special_tokens=TOKENIZER.special_tokens)
    return TOKENIZER.count([prompt])[0]


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), room=st.integers(0, 120))
def test_a_chain_drops_its_earliest_examples_and_no_more_than_it_must(lengths, room):
    documents = tuple(
        Document(doc_id=str(number), source="s", text="word " * length) for number, length in enumerate(lengths)
    )
    state = ChainState(chain_id="c", source="s", pending=documents)
    for document in documents:
        limit = count((), document) + room
        prompt, num_visible = next_prompt(state, synthesizer=SYNTHESIZER, tokenizer=TOKENIZER, max_prompt_tokens=limit)
        # Only what the last prompt still showed, and what came after it, can be shown.
        run = 0
        for example in reversed(state.examples):
            run += 1
            if not example.inherits_previous:
                break
        shown = state.examples[len(state.examples) - num_visible :]
        assert prompt.num_tokens == count(shown, document) <= limit
        assert num_visible == run or count(state.examples[len(state.examples) - num_visible - 1 :], document) > limit
        state = add_completion(state, pairs=PAIRS, completion=COMPLETION, num_visible=num_visible)


def test_an_example_of_what_is_dropped():
    documents = tuple(Document(doc_id=name, source="s", text=name * 3) for name in ("a ", "b ", "c "))
    state = ChainState(chain_id="c", source="s", pending=documents)
    for _ in range(2):
        _, num_visible = next_prompt(state, synthesizer=SYNTHESIZER, tokenizer=TOKENIZER, max_prompt_tokens=1000)
        state = add_completion(state, pairs=PAIRS, completion=COMPLETION, num_visible=num_visible)
    whole, earlier = next_prompt(state, synthesizer=SYNTHESIZER, tokenizer=TOKENIZER, max_prompt_tokens=1000)
    assert earlier == 2
    one_less = (whole.num_tokens or 0) - 1
    prompt, num_visible = next_prompt(state, synthesizer=SYNTHESIZER, tokenizer=TOKENIZER, max_prompt_tokens=one_less)
    assert num_visible == 1
    assert "a a a" not in prompt.text
    assert "b b b" in prompt.text
