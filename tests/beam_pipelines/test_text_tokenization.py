import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from beam_pipelines.text_tokenization import TextTokenizer, TokenizerDescription
from contracts.records import RenderedText
from trainer.shard_tokenizer import tokenizer_sha256


def rendered(text, number=0):
    return RenderedText(
        text_id=str(number), component="raw", text=text, template_id="raw", doc_ids=("a", "b"), group_id=f"g{number}"
    )


def encode(tokenizer, *texts):
    members = [rendered(text, number) for number, text in enumerate(texts)]
    return tokenizer.encode(members, split_of={member.group_id: "train" for member in members})


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return TextTokenizer(tokenizer_folder, add_bos=True, add_eos=True)


@given(
    text=st.text(min_size=1, max_size=60)
    | st.lists(st.sampled_from(["<s>", "</s>", "<|im_end|>", " ", "a"])).map("".join)
)
def test_special_tokens_inside_a_text_are_plain_text(tokenizer, tokenizer_folder, text):
    encoded = encode(tokenizer, text)
    if not text:
        assert encoded == []
        return
    first, *inner, last = encoded[0].token_ids().tolist()
    ids = tokenizer.description.special_ids
    assert (first, last) == (ids["bos"], ids["eos"])
    assert not set(inner) & set(ids.values())
    assert Tokenizer.from_file(f"{tokenizer_folder}/tokenizer.json").decode(inner, skip_special_tokens=False) == text


def test_a_special_token_would_be_read_as_one_by_the_tokenizer_itself(tokenizer_folder):
    assert len(AutoTokenizer.from_pretrained(tokenizer_folder)("<|im_end|>")["input_ids"]) == 1


def test_a_batch_keeps_its_order_and_leaves_out_texts_without_a_token(tokenizer_folder):
    tokenizer = TextTokenizer(tokenizer_folder, add_bos=False, add_eos=False)
    together = encode(tokenizer, "one", "", "two three", "four")
    assert [text.text_id for text in together] == ["0", "2", "3"]
    assert [text.ids for text in together] == [encode(tokenizer, text)[0].ids for text in ("one", "two three", "four")]
    assert together[0].num_documents == 2
    assert together[1].num_tokens == len(together[1].token_ids())
    assert together[1].token_ids().dtype == np.uint32


def test_the_description_is_the_trainers(tokenizer, tokenizer_folder):
    definition = Tokenizer.from_file(f"{tokenizer_folder}/tokenizer.json")
    assert tokenizer.description == TokenizerDescription(
        name=tokenizer_folder,
        sha256=tokenizer_sha256(definition),
        vocab_size=definition.get_vocab_size(),
        special_ids={"bos": 0, "eos": 1, "pad": 2},
    )


def test_padding_falls_back_to_eos():
    for special_ids, pad_id in (({"bos": 1, "eos": 5, "pad": None}, 5), ({"bos": 1, "eos": None, "pad": None}, 0)):
        description = TokenizerDescription(name="", sha256="", vocab_size=9, special_ids=special_ids)
        assert description.pad_id == pad_id


def test_a_token_that_is_asked_for_and_absent_is_an_error(tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"add_bos is on, but .* has no BOS token"):
        TextTokenizer(str(tmp_path), add_bos=True, add_eos=True)
    TextTokenizer(str(tmp_path), add_bos=False, add_eos=True)
