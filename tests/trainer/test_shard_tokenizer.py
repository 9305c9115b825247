"""Which tokenizers go with a model to be continued."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from contracts.manifest import TokenizerEntry
from tests.shard_fixtures import write_tokenizer
from trainer.shard_tokenizer import find_difference, open_shard_tokenizer


def write(folder, **options):
    return TokenizerEntry(name=str(folder), sha256=write_tokenizer(str(folder), **options))


def with_chat_template(folder, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def test_takes_the_models_own_where_it_is_the_same(tmp_path):
    entry = write(tmp_path / "shards")
    write(tmp_path / "model")
    with_chat_template(tmp_path / "model", "of the model")
    assert open_shard_tokenizer(entry, model_location=str(tmp_path / "model")).chat_template == "of the model"


def test_an_extension_is_taken_with_the_models_chat_template(tmp_path):
    write(tmp_path / "model", num_words=10)
    with_chat_template(tmp_path / "model", "of the model")
    entry = write(tmp_path / "shards", num_words=13)
    tokenizer = open_shard_tokenizer(entry, model_location=str(tmp_path / "model"))
    assert len(tokenizer) == 15
    assert tokenizer.chat_template == "of the model"
    with_chat_template(tmp_path / "shards", "of the shards")
    assert open_shard_tokenizer(entry, model_location=str(tmp_path / "model")).chat_template == "of the shards"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_words": 9}, "the token 'w9', of id 11 for the model, is missing"),
        ({"num_words": 13, "prefix": "v"}, "the token 'w0', of id 2 for the model, is missing"),
    ],
)
def test_refuses_a_tokenizer_that_gives_ids_another_meaning(tmp_path, options, message):
    write(tmp_path / "model", num_words=10)
    entry = write(tmp_path / "shards", **options)
    with pytest.raises(ValueError, match=f"no extension of the model's: {message}"):
        open_shard_tokenizer(entry, model_location=str(tmp_path / "model"))


def test_a_token_that_moved_is_named_with_both_ids():
    assert find_difference({"a": 0, "b": 1}, {"a": 0, "c": 1, "b": 2}) == (
        "the token 'b', of id 1 for the model, has the id 2 in the shards' tokenizer"
    )


vocabularies = st.lists(st.sampled_from("abcdef"), unique=True).map(lambda tokens: {t: i for i, t in enumerate(tokens)})


@given(vocabularies, vocabularies)
def test_extends_exactly_when_every_id_means_the_same(vocabulary, extended):
    tokens = sorted(extended, key=extended.get)
    extends = len(tokens) >= len(vocabulary) and all(tokens[id_] == token for token, id_ in vocabulary.items())
    assert (find_difference(vocabulary, extended) is None) == extends
