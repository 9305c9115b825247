"""A tokenizer of one's own, trained on a few thousand words of the repository's own prose."""

import json

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from contracts.artifact import completed_fingerprint
from tests.conftest import REPOSITORY
from trainer.__main__ import main as run_trainer
from trainer.shard_tokenizer import tokenizer_sha256
from trainer.train_tokenizer import TokenizerConfig, as_tokenizer, measure_compression, train_pieces, train_tokenizer

PROSE = [path.read_text("utf-8") for path in (REPOSITORY / "ARCHITECTURE.md", REPOSITORY / "trainer" / "loop.py")]
# U+2581 stands for a space in every SentencePiece tokenizer, and comes back as one.
ANY_TEXT = st.text(st.characters(exclude_characters="\u2581", exclude_categories=("Cs",)), max_size=80)
WORDY_TEXT = st.lists(
    st.sampled_from(["the ", "    ", "  return", "\n", "\n\n", "shard", "s 123", ".", "é", "\t", "<s>", "</s>"])
).map("".join)


def write_corpus(folder, name, texts):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def pieces():
    years = ["In 2024, as in 2023 and 1999, 2024 words."] * 50
    return train_pieces([*PROSE, *years], vocab_size=900, character_coverage=0.9995)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_folder):
    """A finished run over two files, compared with another tokenizer."""
    data = tmp_path_factory.mktemp("corpus")
    paragraphs = [paragraph for text in PROSE for paragraph in text.split("\n\n")]
    inputs = [write_corpus(data, "first", paragraphs[::2]), write_corpus(data, "second", paragraphs[1::2])]
    config = TokenizerConfig(
        input=inputs,
        output=str(data / "tokenizer"),
        vocab_size=700,
        measured_share=0.2,
        base_tokenizer=tokenizer_folder,
    )
    report = train_tokenizer(config)
    return config, report


@given(text=ANY_TEXT | WORDY_TEXT)
def test_decoding_gives_back_what_was_encoded(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder[0].output)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert 0 not in ids, "nothing is unknown where bytes are known"


@given(text=WORDY_TEXT | st.text(st.characters(max_codepoint=0x17F, exclude_categories=("Cc",)), max_size=60))
def test_tokens_are_those_of_sentencepiece(pieces, text):
    # Control tokens in a text are plain text to SentencePiece.
    tokenizer = as_tokenizer(pieces)
    tokenizer.encode_special_tokens = True
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    assert tokenizer.encode(text, add_special_tokens=False).tokens == processor.encode(text, out_type=str)


def test_tokens_of_prose_are_those_of_sentencepiece(pieces):
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    tokenizer = as_tokenizer(pieces)
    for text in PROSE:
        assert tokenizer.encode(text, add_special_tokens=False).tokens == processor.encode(text, out_type=str)


def test_digits_stand_alone_and_no_token_reaches_over_the_end_of_a_line(pieces):
    tokenizer = as_tokenizer(pieces)
    assert tokenizer.encode("2024", add_special_tokens=False).tokens == ["2", "0", "2", "4"]
    assert tokenizer.encode("a\n\nb", add_special_tokens=False).tokens == ["a", "<0x0A>", "<0x0A>", "b"]
    tokens = tokenizer.get_vocab()
    assert not [token for token in tokens if "\n" in token]
    assert any(token.strip("\u2581") == "" and len(token) > 1 for token in tokens), "runs of spaces are tokens"


def test_transformers_loads_the_folder(folder):
    config, report = folder
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    assert len(tokenizer) == report["vocab_size"] == 700
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer("<s>a</s>", add_special_tokens=False)["input_ids"][::2] == [1, 2]
    definition = Tokenizer.from_file(f"{config.output}/tokenizer.json")
    assert tokenizer_sha256(definition) == report["tokenizer_sha256"]
    assert completed_fingerprint(config.output) == report["tokenizer_sha256"]


def test_the_report_counts_bytes_and_tokens_of_texts_not_trained_on(folder, tokenizer_folder):
    config, report = folder
    assert list(report["compression_by_file"]) == config.input
    tokenizers = {
        "own": AutoTokenizer.from_pretrained(config.output).backend_tokenizer,
        "base": AutoTokenizer.from_pretrained(tokenizer_folder).backend_tokenizer,
    }
    for figures in report["compression_by_file"].values():
        assert figures["own_bytes_per_token"] == pytest.approx(
            figures["num_bytes"] / figures["own_num_tokens"], rel=1e-3
        )
        assert figures["own_bytes_per_token"] > figures["base_bytes_per_token"] > 1
    assert measure_compression(["héé", "a"], tokenizers=tokenizers)["num_bytes"] == 6
    # The limits of some model's training, which come with its tokenizer, do not count.
    texts = ["a b c d e f g h", "a"]
    plain = measure_compression(texts, tokenizers=tokenizers)
    tokenizers["base"].enable_truncation(2)
    tokenizers["base"].enable_padding(length=50)
    assert measure_compression(texts, tokenizers=tokenizers) == plain
    assert tokenizers["base"].truncation is not None, "it is measured on a copy"
    written = json.loads((REPOSITORY / config.output / "report.json").read_text())
    assert written == report


def test_neither_the_order_of_files_nor_a_second_start_changes_anything(folder, tmp_path):
    config, report = folder
    assert train_tokenizer(config) == report
    other = TokenizerConfig(
        input=config.input[::-1], output=str(tmp_path / "other"), vocab_size=700, measured_share=0.2
    )
    assert train_tokenizer(other)["tokenizer_sha256"] == report["tokenizer_sha256"]
    with pytest.raises(ValueError, match="already holds another run"):
        train_tokenizer(TokenizerConfig(input=config.input, output=config.output, vocab_size=701))


def test_what_cannot_work_is_said(tmp_path, capsys):
    few = write_corpus(tmp_path, "few", ["a b c"])
    empty = write_corpus(tmp_path, "empty", [" ", ""])

    def run(*arguments):
        code = run_trainer(["tokenizer", *arguments])
        return code, capsys.readouterr().err

    output = ("--output", str(tmp_path / "tokenizer"))
    code, message = run("--input", f"[{few}]", *output, "--measured_share", "0")
    assert code == 2
    assert "No vocabulary of vocab_size = 32000 could be made from 5 bytes of text" in message
    # The folder was given back: other settings find it free.
    code, message = run("--input", f"[{empty}]", *output)
    assert (code, "There is no text to train a tokenizer on" in message) == (2, True)
    code, message = run("--input", f"[{few}]", *output, "--vocab_size", "259")
    assert (code, "it must be above 259" in message) == (2, True)
    code, message = run("--input", f"[{few}]", *output, "--base_tokenizer", str(tmp_path / "nowhere"))
    assert (code, "no tokenizer could be loaded from" in message) == (2, True)
    code, message = run("--input", "[]", *output)
    assert (code, "input is empty" in message) == (2, True)


@pytest.mark.parametrize(
    "setting",
    [{"max_sample_bytes": 0}, {"max_measured_bytes": 0}, {"measured_share": 1.0}, {"character_coverage": 0.0}],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        TokenizerConfig(input=["a"], output="b", **setting).check()
