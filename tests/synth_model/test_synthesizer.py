from dataclasses import replace

import pytest

from contracts.records import Document, Example, InstructionPair
from synth_model.chat_prompt import load_wording
from synth_model.generation import Completion
from synth_model.synthesizer import ChatSynthesizer, SynthesizerConfig, make_synthesizer

DOCUMENT = Document(doc_id="d", source="s", text="Tides <|end|> turn.", title="Tides")
EARLIER = (
    Example(
        document=Document(doc_id="c", source="s", text="Before."),
        pairs=(InstructionPair(instruction="a?", response="b"),),
    ),
)
SPECIAL_TOKENS = ("<|end|>",)


def completion_of(text, finish_reason="stop"):
    return Completion(text=text, finish_reason=finish_reason, num_prompt_tokens=1, num_new_tokens=1)


def test_the_wire_format_speaks_its_format():
    synthesizer = make_synthesizer(SynthesizerConfig(kind="wire_format"))
    prompt = synthesizer.build_prompt(EARLIER, document=DOCUMENT, special_tokens=SPECIAL_TOKENS)
    assert prompt.text == (
        "<s> <CON> Before. </CON>\n\n<QUE> a? <ANS> b </END></s><s> <CON> Tides <\u2060|end|> turn. </CON>\n\n"
    )
    # Its completions say themselves where a pair ends, so a cut one keeps its whole pairs.
    completion = completion_of("<QUE> a? <ANS> <\u2060|end|> </END> <QUE> c", "length")
    assert synthesizer.parse(completion, special_tokens=SPECIAL_TOKENS) == [
        InstructionPair(instruction="a?", response="<|end|>")
    ]


def test_the_chat_synthesizer_speaks_its_wording():
    synthesizer = make_synthesizer(SynthesizerConfig(kind="chat", prompt="english"))
    prompt = synthesizer.build_prompt(EARLIER, document=DOCUMENT, special_tokens=SPECIAL_TOKENS)
    assert "Tides\n\nTides <\u2060|end|> turn." in prompt.messages[-1].content
    assert prompt.messages[-2].content == "Question: a?\nAnswer: b"
    text = " a?\nAnswer: b\nQuestion: c?\nAnswer: d"
    assert len(synthesizer.parse(completion_of(text), special_tokens=())) == 2
    assert len(synthesizer.parse(completion_of(text, "length"), special_tokens=())) == 1


def test_the_format_id_changes_with_the_wording():
    wording = load_wording("english")
    first, second = ChatSynthesizer(wording=wording), ChatSynthesizer(wording=replace(wording, system="Another."))
    assert first.format_id == ChatSynthesizer(wording=load_wording("english")).format_id
    assert first.format_id != second.format_id
    assert make_synthesizer(SynthesizerConfig(kind="wire_format")).format_id == "wire-format"


def test_a_missing_wording_is_refused():
    with pytest.raises(ValueError, match="There is no chat prompt 'klingon'"):
        make_synthesizer(SynthesizerConfig(kind="chat", prompt="klingon"))
