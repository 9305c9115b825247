"""Asking a synthesizer for the response to a given instruction, in both kinds of prompt."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document, Example, InstructionPair
from synth_model.chat_prompt import load_wording
from synth_model.engines.fake_engine import FakeEngine, FakeOptions
from synth_model.few_shot_examples import FewShotExamples
from synth_model.generation import ChatMessage, Completion, Prompt, Sampling
from synth_model.prompt_tokenizer import ModelTokenizer
from synth_model.synthesizer import ChatSynthesizer, WireFormatSynthesizer
from synth_model.tuning_sequences import render_sequence
from synth_model.wire_format import SequenceMarks, parse_response, render_instruction
from tests.synth_model.data_strategies import SPECIAL_TOKENS, hostile_pairs, hostile_texts

DOCUMENT = Document(doc_id="d", source="s", text="Tides turn.")
EARLIER = Example(
    document=Document(doc_id="e", source="s", text="Bread rises.", title="Bread"),
    pairs=(
        InstructionPair(instruction="What rises?", response="Bread."),
        InstructionPair(instruction="b", response="c"),
    ),
)
WIRE = WireFormatSynthesizer()
CHAT = ChatSynthesizer(wording=replace(load_wording("english"), examples=FewShotExamples()))


def completion(text, finish_reason="stop"):
    return Completion(text=text, finish_reason=finish_reason, num_prompt_tokens=1, num_new_tokens=1)


def ask(synthesizer, examples=(), *, instruction="What turns?", special_tokens=()):
    return synthesizer.build_response_prompt(
        examples, document=DOCUMENT, instruction=instruction, special_tokens=special_tokens
    )


def test_in_the_wire_format_the_pair_is_begun():
    prompt = ask(WIRE, [EARLIER])
    assert prompt.text == (
        "<s> <CON> Bread rises. </CON>\n\n<QUE> What rises? <ANS> Bread. </END>\n\n<QUE> b <ANS> c </END></s>"
        "<s> <CON> Tides turn. </CON>\n\n"
    )
    assert prompt.response_prefix == "<QUE> What turns? <ANS>"


def test_in_a_chat_the_user_asks_about_the_text():
    assert ask(CHAT, [EARLIER]) == Prompt(
        messages=(
            ChatMessage(role="user", content="Bread\n\nBread rises.\n\nWhat rises?"),
            ChatMessage(role="assistant", content="Bread."),
            ChatMessage(role="user", content="Tides turn.\n\nWhat turns?"),
        )
    )


def test_a_wordings_own_examples_show_how_to_respond():
    wording = load_wording("english")
    shown = wording.examples.for_source(DOCUMENT.source)
    prompt = ask(ChatSynthesizer(wording=wording))
    assert len(prompt.messages) == 2 * len(shown) + 1 > 1
    assert prompt.messages[1].content == shown[0].pairs[0].response


@given(hostile_texts(), hostile_pairs(min_size=1), st.sampled_from([("<s>", "</s>"), ("<|im_start|>", "<|im_end|>")]))
def test_what_is_asked_stands_in_the_tuned_text_to_the_letter(text, pairs, marks):
    marks = SequenceMarks(bos=marks[0], eos=marks[1])
    document = replace(DOCUMENT, text=text)
    tuned, _ = render_sequence(
        [Example(document=document, pairs=tuple(pairs))], special_tokens=SPECIAL_TOKENS, marks=marks
    )
    prompt = WireFormatSynthesizer(marks=marks).build_response_prompt(
        (), document=document, instruction=pairs[0].instruction, special_tokens=SPECIAL_TOKENS
    )
    asked = prompt.text + prompt.response_prefix
    assert tuned.startswith(asked)
    # What a tuned model then writes is read as the response.
    assert parse_response(tuned.removeprefix(asked), special_tokens=SPECIAL_TOKENS) == pairs[0].response


@pytest.mark.parametrize(
    ("text", "response"),
    [
        (" Bread. </END>\n\n<QUE> c <ANS> d </END>", "Bread."),
        (" Bread.", "Bread."),
        (" Bread. </s> <CON>", "Bread."),
        ("\nBread.\n\n<QUE> c", "Bread."),
        (" </END> Bread.", ""),
        ("", ""),
        (" a <\u2060QUE> b </END>", "a <QUE> b"),
    ],
)
def test_a_response_ends_at_the_first_markup(text, response):
    assert WIRE.parse_response(completion(text), special_tokens=()) == response


def test_a_chats_response_is_all_of_the_completion():
    assert CHAT.parse_response(completion(" The tide.\nTwice. \n"), special_tokens=()) == "The tide.\nTwice."


@pytest.mark.parametrize(
    ("synthesizer", "text", "num_begun"),
    [
        (WIRE, "<QUE> a <ANS> b </END>\n\n<QUE> c <ANS> d <ANS> e </END> <QUE> f", 3),
        (WIRE, "Nothing to ask.", 0),
        (CHAT, " What?\nAnswer: That.\nQuestion: Who?\n2. **Question:** Why?", 3),
        (CHAT, " What?", 1),
    ],
)
def test_pairs_are_counted_where_they_begin(synthesizer, text, num_begun):
    assert synthesizer.count_begun_pairs(completion(text)) == num_begun
    assert len(synthesizer.parse(completion(text), special_tokens=())) <= num_begun


def test_a_prompt_is_encoded_as_it_is_without_the_instruction(tokenizer_folder):
    """A model is tuned on the tokens that the prompt alone has, and on those of the pairs alone."""
    tokenizer = ModelTokenizer(tokenizer_folder)
    merges, text = 0, "What is the difference between the instruction and the response?"
    for cut in range(1, len(text)):
        prompt = Prompt(text=text[:cut], response_prefix=text[cut:])
        alone, prefix, joined = tokenizer.encode(
            [Prompt(text=prompt.text), Prompt(text=prompt.response_prefix), Prompt(text=tokenizer.render(prompt))]
        )
        (ids,) = tokenizer.encode([prompt])
        assert ids == alone + prefix
        assert tokenizer.count([prompt]) == [len(ids)]
        merges += joined != ids
    assert merges, "the tokenizer joins nothing across the seam, so the test shows nothing"


def test_the_fake_engine_ends_a_begun_pair():
    engine = FakeEngine(FakeOptions(no_pair_rate=0.0), context_length=512)
    (outcome,) = engine.generate([ask(WIRE)], sampling=Sampling(max_new_tokens=100))
    assert outcome.text.startswith(" It says: ")
    assert WIRE.parse_response(outcome, special_tokens=()).startswith("It says: ")
    assert render_instruction("a <QUE> b") == "<QUE> a <\u2060QUE> b <ANS>"
