import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from beam_pipelines.span_tokenization import SpanTokenizer
from contracts.records import Document, Example, InstructionPair
from synth_model.tuning_sequences import render_sequence
from synth_model.wire_format import SequenceMarks, build_prompt
from tests.conftest import REPOSITORY
from trainer.train_tokenizer import as_tokenizer, train_pieces


def span_tokenizer(tokenizer, *, add_eos):
    definition = tokenizer.backend_tokenizer.to_str()
    return SpanTokenizer(definition, eos_id=tokenizer.eos_token_id if add_eos else None)


# U+2581 stands for a space in SentencePiece tokenizers, and comes back as one.
CHARACTERS = st.characters(exclude_characters="\u2581", exclude_categories=("Cs",))
WORDS = st.text(CHARACTERS, max_size=20) | st.sampled_from(["é😀", "a b", "<s>", "\n\n", "x</END>"])


def sentencepiece_tokenizer(*, with_space_in_front):
    """A SentencePiece BPE with byte fallback; Llama's and Mistral's put a space in front of a text."""
    prose = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
    backend = as_tokenizer(train_pieces([prose], vocab_size=600, character_coverage=1.0))
    if with_space_in_front:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        backend.pre_tokenizer = pre_tokenizers.Sequence([])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "sentencepiece with a space in front"])
def tokenizer(request, tokenizer_folder):
    if request.param == "byte-level":
        return AutoTokenizer.from_pretrained(tokenizer_folder)
    return sentencepiece_tokenizer(with_space_in_front=request.param != "sentencepiece")


def example(text, instruction, response):
    return Example(
        document=Document(doc_id="d", source="s", text=text),
        pairs=(InstructionPair(instruction=instruction, response=response),),
    )


@given(sides=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=3))
def test_targets_are_the_pairs_and_their_eos(tokenizer, sides):
    examples = [example(*side) for side in sides]
    text, spans = render_sequence(examples, special_tokens=("<|im_end|>",))
    ((ids, targets),) = span_tokenizer(tokenizer, add_eos=True).encode([text], spans=[spans])
    assert ids.dtype == np.uint32
    assert targets.dtype == np.int32
    # Special tokens are read as such, and nothing is added: the text ends in EOS by itself.
    assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (ids == tokenizer.bos_token_id).sum() == (ids == tokenizer.eos_token_id).sum() == len(examples)
    decoded = [tokenizer.decode(ids[start:end]) for start, end in targets]
    assert decoded == [text[start:end] for start, end in spans]


def test_a_token_that_begins_the_next_example_is_no_target():
    """Where BOS and EOS are plain text, the end of one example and the beginning of the next may share a token."""
    text, spans = render_sequence([example("t", "q", "r"), example("u", "v", "w")], special_tokens=())
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    backend = Tokenizer(models.BPE({**letters, "><": len(letters)}, [(">", "<")]))
    ((ids, targets),) = SpanTokenizer(backend.to_str(), eos_id=None).encode([text], spans=[spans])
    written = ["".join(backend.id_to_token(int(id_)) for id_ in ids[start:end]) for start, end in targets]
    assert written == ["<QUE> q <ANS> r </END></s", "<QUE> v <ANS> w </END></s>"]


def test_an_eos_of_another_name_is_added_and_a_target(tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, eos_token="<|im_end|>")
    text, spans = render_sequence([example("t", "q", "r")], special_tokens=("<|im_end|>",))
    ((ids, targets),) = span_tokenizer(tokenizer, add_eos=True).encode([text], spans=[spans])
    ((bare, bare_targets),) = span_tokenizer(tokenizer, add_eos=False).encode([text], spans=[spans])
    assert ids.tolist() == [*bare.tolist(), tokenizer.eos_token_id]
    assert (targets.tolist(), bare_targets.tolist()) == (
        [[bare_targets[0, 0], len(ids)]],
        [[bare_targets[0, 0], len(bare)]],
    )
    ((_, apart),) = span_tokenizer(tokenizer, add_eos=True).encode([text], spans=[[]])
    assert apart.tolist() == [[len(bare), len(bare) + 1]]
    assert span_tokenizer(tokenizer, add_eos=True).count([text, ""], spans=[spans, []]) == [len(ids), 0]


MODEL = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"


@pytest.mark.real_model
def test_a_model_is_tuned_on_the_tokens_that_it_meets_at_the_seam():
    """SmolLM2 joins the blank line at the end of a prompt into one token, which in front of <QUE> would be two."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    marks = SequenceMarks(bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    examples = [example("t", "q", "r"), example("u", "v", "w")]
    text, spans = render_sequence(examples, special_tokens=(), marks=marks)
    ((ids, targets),) = span_tokenizer(tokenizer, add_eos=True).encode([text], spans=[spans])
    first = tokenizer(build_prompt([], text="t", marks=marks), add_special_tokens=False)["input_ids"]
    assert ids[: len(first)].tolist() == first
    assert tokenizer(text, add_special_tokens=False)["input_ids"][: len(first)] != first, "the seam would not matter"
    assert tokenizer.decode(ids) == text
    assert ids[-1] == tokenizer.eos_token_id
    assert [tokenizer.decode(ids[start:end]) for start, end in targets] == [text[start:end] for start, end in spans]
