import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from beam_pipelines.text_tokenization import TextTokenizer, Tokenization, TokenizerDescription
from beam_pipelines.tokenizer_loading import load_tokenizer
from contracts import storage
from contracts.records import RenderedText
from tests.beam_pipelines.tokenizer_kinds import SPACE, large_vocabulary, llama_like, t5_like, unigram_with_bytes


def rendered(text, number=0):
    return RenderedText(
        text_id=str(number), component="raw", text=text, template_id="raw", doc_ids=("a", "b"), group_id=f"g{number}"
    )


def open_tokenizer(folder, *, add_bos=False, add_eos=False):
    """As a worker does: from definitions that lie somewhere on a shared storage."""
    loaded = load_tokenizer(folder, add_bos=add_bos, add_eos=add_eos)
    urls = {name: f"memory://{folder}/{name}.json" for name in ("definition", "plain_definition")}
    for name, url in urls.items():
        storage.write_bytes_atomically(url, getattr(loaded, name).encode())
    return TextTokenizer(
        Tokenization(
            definition_url=urls["definition"],
            plain_definition_url=urls["plain_definition"],
            tokenizer=loaded.description,
            add_bos=add_bos,
            add_eos=add_eos,
        )
    )


def encode(tokenizer, *texts):
    """The ids of each text that has any, as lists by the text's number."""
    encoded = tokenizer.encode([rendered(text, number) for number, text in enumerate(texts)])
    assert encoded.ids.dtype == np.uint32
    ids = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1]) if len(encoded.lengths) else []
    return {text.text_id: own.tolist() for text, own in zip(encoded.texts, ids, strict=True)}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return open_tokenizer(tokenizer_folder, add_bos=True, add_eos=True)


@given(
    text=st.text(min_size=1, max_size=60)
    | st.lists(st.sampled_from(["<s>", "</s>", "<|im_end|>", " ", "a"])).map("".join)
)
def test_special_tokens_inside_a_text_are_plain_text(tokenizer, tokenizer_folder, text):
    encoded = encode(tokenizer, text)
    if not text:
        assert encoded == {}
        return
    first, *inner, last = encoded["0"]
    ids = tokenizer.description.special_ids
    assert (first, last) == (ids["bos"], ids["eos"])
    assert not set(inner) & set(ids.values())
    assert Tokenizer.from_file(f"{tokenizer_folder}/tokenizer.json").decode(inner, skip_special_tokens=False) == text


def test_a_special_token_would_be_read_as_one_by_the_tokenizer_itself(tokenizer_folder):
    assert len(AutoTokenizer.from_pretrained(tokenizer_folder)("<|im_end|>")["input_ids"]) == 1


def test_a_batch_keeps_its_order_and_leaves_out_texts_without_a_token(tokenizer_folder):
    tokenizer = open_tokenizer(tokenizer_folder)
    together = encode(tokenizer, "one", "", "two three", "four")
    assert list(together) == ["0", "2", "3"]
    assert list(together.values()) == [encode(tokenizer, text)["0"] for text in ("one", "two three", "four")]
    assert encode(tokenizer, "", "") == {}


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("add_eos", [False, True])
def test_bos_and_eos_stand_exactly_where_they_are_asked_for(tokenizer_folder, add_bos, add_eos):
    plain = encode(open_tokenizer(tokenizer_folder), "one two")["0"]
    special = AutoTokenizer.from_pretrained(tokenizer_folder)
    asked = [*[special.bos_token_id] * add_bos, *plain, *[special.eos_token_id] * add_eos]
    assert encode(open_tokenizer(tokenizer_folder, add_bos=add_bos, add_eos=add_eos), "one two")["0"] == asked


def test_truncation_and_padding_that_a_tokenizer_brings_along_are_off(tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=2, pad_token="<|im_end|>")
    tokenizer.save_pretrained(tmp_path)
    texts = "one", "a text that is longer than three tokens"
    assert len(AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.encode(texts[1])) == 9
    assert encode(open_tokenizer(str(tmp_path)), *texts) == encode(open_tokenizer(tokenizer_folder), *texts)


@pytest.fixture(scope="module", params=[llama_like, t5_like, unigram_with_bytes], ids=lambda kind: kind.__name__)
def kind(request, tmp_path_factory):
    return request.param(str(tmp_path_factory.mktemp(request.param.__name__)))


TEXTS = [
    "The value of the expression is the last one.",
    "for name in names:  print(name)",
    "One <s> two </s> three <pad> four <unk>",
    "See <0x41> and <0x0A> here.",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_model_that_was_trained(kind, text):
    tokenizer = open_tokenizer(kind.folder)
    ids = encode(tokenizer, text)["0"]
    assert ids == kind.encode(text)
    assert not set(ids) & {id_ for id_ in tokenizer.description.special_ids.values() if id_ is not None}
    assert AutoTokenizer.from_pretrained(kind.folder).decode(ids, skip_special_tokens=False) == kind.restores(text)


def test_asking_the_library_for_plain_text_is_not_enough(tmp_path):
    # A Unigram model finds the string of its own end of sequence in a text; a word-level one would, too.
    tokenizer = AutoTokenizer.from_pretrained(t5_like(str(tmp_path)).folder).backend_tokenizer
    tokenizer.encode_special_tokens = True
    assert tokenizer.token_to_id("</s>") in tokenizer.encode("a </s>", add_special_tokens=False).ids


BYTE_PIECES = st.lists(
    st.sampled_from(["<0x41>", "<0x0A>", "<0xE6>", " ", "a", "漢", "<0x4", "value", "\n"]), min_size=1
)


@given(text=BYTE_PIECES.map("".join))
def test_names_of_bytes_in_a_text_are_plain_text(unigram, text):
    """As SentencePiece has it, and so that every text comes back; beside a text without one, in its place."""
    tokenizer, decode, reference = unigram
    encoded = encode(tokenizer, "one value", f"x{text}", "the last")
    assert decode(encoded["1"]) == f"x{text}"
    assert encoded["1"] == reference(f"x{text}")
    assert [encoded["0"], encoded["2"]] == [encode(tokenizer, other)["0"] for other in ("one value", "the last")]


@pytest.fixture(scope="module", params=["", "<>", "<x4"])
def unigram(request, tmp_path_factory):
    kind = unigram_with_bytes(str(tmp_path_factory.mktemp("unigram")), characters_left_out=request.param)
    return open_tokenizer(kind.folder), AutoTokenizer.from_pretrained(kind.folder).decode, kind.encode


def test_a_name_that_the_normalizer_makes_is_plain_text_too(tmp_path):
    kind = unigram_with_bytes(str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(kind.folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save_pretrained(tmp_path)
    ids = encode(open_tokenizer(str(tmp_path)), "see ＜0x41＞")["0"]
    assert tokenizer.decode(ids) == "see <0x41>"


def test_words_that_are_special_tokens_are_unknown_words(tmp_path):
    tokenizer = open_tokenizer(large_vocabulary(str(tmp_path), num_words=5).folder, add_eos=True)
    assert encode(tokenizer, "w1 </s> w3 zzz <unk>")["0"] == [3, 0, 5, 0, 0, 1]


@given(text=st.text(max_size=40).map("x{}".format))
def test_byte_fallback_gives_every_text_back(llama, text):
    # A space that a text begins with is lost in these models: they would put one there themselves.
    tokenizer, decode = llama
    assert decode(encode(tokenizer, text)["0"]) == text.replace(SPACE, " ")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = llama_like(str(tmp_path_factory.mktemp("llama"))).folder
    return open_tokenizer(folder), AutoTokenizer.from_pretrained(folder).decode


def test_no_second_bos_from_a_tokenizer_that_adds_one_itself(llama, tmp_path_factory):
    folder = llama_like(str(tmp_path_factory.mktemp("llama"))).folder
    itself = AutoTokenizer.from_pretrained(folder, add_bos_token=True)
    assert itself("one")["input_ids"][0] == itself.bos_token_id
    ids = encode(open_tokenizer(folder, add_bos=True), "one")["0"]
    assert ids == itself("one")["input_ids"]
    assert ids.count(itself.bos_token_id) == 1


def test_padding_falls_back_to_eos():
    for special_ids, pad_id in (({"bos": 1, "eos": 5, "pad": None}, 5), ({"bos": 1, "eos": None, "pad": None}, 0)):
        description = TokenizerDescription(name="", sha256="", vocab_size=9, special_ids=special_ids)
        assert description.pad_id == pad_id
