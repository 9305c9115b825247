import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Chain, Document, Example, InstructionPair, Reject
from synth_model.tuning_sequences import chain_id_of_sequence, render_sequence, tuning_sequences
from synth_model.wire_format import EOS, SequenceMarks, build_prompt, parse_completion

HOSTILE = st.text(max_size=12) | st.lists(
    st.sampled_from(["<QUE>", "</END>", "<ANS>", "<s>", "</s>", "<CON>", "<|im_end|>", " ", "a", "\n\n"]), max_size=6
).map("".join)


def example(number, *, num_pairs=1, text=None):
    return Example(
        document=Document(doc_id=f"doc-{number}", source="squad", text=text or f"Text {number}."),
        pairs=tuple(
            InstructionPair(instruction=f"Q{number}.{index}?", response=f"A{number}.{index}.")
            for index in range(num_pairs)
        ),
    )


def chain(*examples):
    return Chain(chain_id="squad/7", source="squad", examples=examples, synthesizer_id="given")


def count_characters(texts, spans):
    return [len(text) for text in texts]


def sequences(chain, *, max_tokens=10_000, count_tokens=count_characters):
    return list(
        tuning_sequences(
            chain,
            component="tuning",
            max_tokens=max_tokens,
            special_tokens=("<|im_end|>",),
            count_tokens=count_tokens,
        )
    )


def test_a_chain_in_the_wire_format_with_its_pairs_and_their_eos_marked():
    (text,) = sequences(chain(example(1), example(2, num_pairs=2)))
    assert text.text == (
        "<s> <CON> Text 1. </CON>\n\n<QUE> Q1.0? <ANS> A1.0. </END></s>"
        "<s> <CON> Text 2. </CON>\n\n<QUE> Q2.0? <ANS> A2.0. </END>\n\n<QUE> Q2.1? <ANS> A2.1. </END></s>"
    )
    assert [text.text[start:end] for start, end in text.loss_spans] == [
        "<QUE> Q1.0? <ANS> A1.0. </END></s>",
        "<QUE> Q2.0? <ANS> A2.0. </END>\n\n<QUE> Q2.1? <ANS> A2.1. </END></s>",
    ]
    assert (text.text_id, text.group_id, text.doc_ids) == ("squad/7#0", "squad/7", ("doc-1", "doc-2"))
    assert (text.component, text.template_id) == ("tuning", "wire_format")
    assert chain_id_of_sequence(text.text_id) == "squad/7"


def test_a_chain_longer_than_a_row_goes_on_in_another_text_and_is_cut_between_examples():
    examples = [example(number) for number in range(5)]
    block = len(render_sequence(examples[:1], special_tokens=())[0])
    texts = sequences(chain(*examples), max_tokens=2 * block + 3)
    assert [text.text_id for text in texts] == ["squad/7#0", "squad/7#1", "squad/7#2"]
    assert [text.doc_ids for text in texts] == [("doc-0", "doc-1"), ("doc-2", "doc-3"), ("doc-4",)]
    assert "".join(text.text for text in texts) == render_sequence(examples, special_tokens=())[0]


def test_what_cannot_be_learnt_is_rejected_with_its_reason():
    texts = sequences(chain(example(1), example(2, text="x" * 200), example(3, num_pairs=0)), max_tokens=100)
    assert [type(found) for found in texts].count(Reject) == 2
    rejects = {found.doc_id: found for found in texts if isinstance(found, Reject)}
    assert (rejects["doc-2"].reason, rejects["doc-3"].reason) == ("longer_than_a_row", "no_pairs")
    assert "a row has room for 100" in rejects["doc-2"].detail
    assert rejects["doc-2"].text == "x" * 200
    assert sequences(chain()) == []


@given(
    extra=st.integers(0, 6),
    max_tokens=st.integers(40, 400),
    pair_counts=st.lists(st.integers(0, 3), max_size=8),
)
def test_every_example_stands_once_and_no_text_is_longer_than_allowed(extra, max_tokens, pair_counts):
    """Also where two examples together have more tokens than each alone."""

    def count(texts, spans=()):
        return [len(text) + extra * (text.count(EOS) - 1) for text in texts]

    whole = chain(*(example(number, num_pairs=num_pairs) for number, num_pairs in enumerate(pair_counts)))
    found = sequences(whole, max_tokens=max_tokens, count_tokens=count)
    texts = [item for item in found if not isinstance(item, Reject)]
    rejected = {item.doc_id for item in found if isinstance(item, Reject)}
    kept = [doc_id for text in texts for doc_id in text.doc_ids]
    assert kept == [item.document.doc_id for item in whole.examples if item.document.doc_id not in rejected]
    assert len(kept) + len(rejected) == len(pair_counts)
    assert all(length <= max_tokens for length in count([text.text for text in texts]))
    for text, following in itertools.pairwise(texts):
        first = next(item for item in whole.examples if item.document.doc_id == following.doc_ids[0])
        joined = text.text + render_sequence([first], special_tokens=())[0]
        assert count([joined])[0] > max_tokens, "another example would have fitted"


@given(texts=st.lists(HOSTILE, min_size=1, max_size=3), side=HOSTILE)
def test_markup_in_the_data_is_escaped_as_in_synthesis(texts, side):
    tokens = ("<|im_end|>",)
    examples = [
        replace(example(0, text=f"t{text}"), pairs=(InstructionPair(instruction=f"q{side}q", response=f"r{side}r"),))
        for text in texts
    ]
    text, spans = render_sequence(examples, special_tokens=tokens)
    assert "<|im_end|>" not in text
    assert text.count("<QUE>") == text.count("</s>") == text.count("<CON>") == len(examples)
    for number, (start, end) in enumerate(spans):
        prompt = build_prompt(examples[:number], text=examples[number].document.text, special_tokens=tokens)
        assert text[:start] == prompt
        written = text[start:end]
        assert written.endswith(EOS)
        assert parse_completion(written.removesuffix(EOS), special_tokens=tokens) == list(examples[number].pairs)


def test_an_example_without_pairs_is_no_sequence():
    with pytest.raises(AssertionError):
        render_sequence([example(1, num_pairs=0)], special_tokens=())


def test_other_marks_open_and_close_the_examples():
    marks = SequenceMarks(bos="<|im_start|>", eos="<|im_end|>")
    text, spans = render_sequence([example(1), example(2)], special_tokens=(marks.bos, marks.eos), marks=marks)
    assert text == (
        "<|im_start|> <CON> Text 1. </CON>\n\n<QUE> Q1.0? <ANS> A1.0. </END><|im_end|>"
        "<|im_start|> <CON> Text 2. </CON>\n\n<QUE> Q2.0? <ANS> A2.0. </END><|im_end|>"
    )
    assert [text[start:end] for start, end in spans] == [
        "<QUE> Q1.0? <ANS> A1.0. </END><|im_end|>",
        "<QUE> Q2.0? <ANS> A2.0. </END><|im_end|>",
    ]
    prompt = build_prompt([example(1)], text="Text 2.", special_tokens=(marks.bos, marks.eos), marks=marks)
    assert text.startswith(prompt)


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_an_empty_mark_is_refused(name):
    with pytest.raises(ValueError, match="neither may be empty"):
        SequenceMarks(**{name: ""})
