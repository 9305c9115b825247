import json
import shutil
import subprocess
import sys

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from beam_pipelines import tokenizer_loading
from beam_pipelines.text_tokenization import TokenizerDescription
from beam_pipelines.tokenizer_loading import load_here, load_tokenizer
from tests.conftest import REPOSITORY
from trainer.shard_tokenizer import tokenizer_sha256


def test_the_description_is_the_trainers(tokenizer_folder):
    definition = Tokenizer.from_file(f"{tokenizer_folder}/tokenizer.json")
    loaded = load_tokenizer(tokenizer_folder, add_bos=True, add_eos=True)
    assert loaded.description == TokenizerDescription(
        name=tokenizer_folder,
        sha256=tokenizer_sha256(definition),
        vocab_size=definition.get_vocab_size(),
        special_ids={"bos": 0, "eos": 1, "pad": 2},
        special_tokens=("<s>", "</s>", "<|im_end|>"),
    )
    assert Tokenizer.from_str(loaded.definition).encode("one <s>").ids == definition.encode("one <s>").ids


def test_special_tokens_keep_their_ids_and_lose_their_names(tokenizer_folder):
    loaded = load_tokenizer(tokenizer_folder, add_bos=True, add_eos=True)
    definition, plain = Tokenizer.from_str(loaded.definition), Tokenizer.from_str(loaded.plain_definition)
    ids, plain_ids = definition.get_vocab(), plain.get_vocab()
    specials = set(loaded.description.special_tokens)
    assert {token: id_ for token, id_ in ids.items() if token not in specials} == {
        token: id_ for token, id_ in plain_ids.items() if "special token" not in token
    }
    assert sorted(ids.values()) == sorted(plain_ids.values())
    assert not specials & set(plain_ids)


def test_a_process_of_its_own_loads_the_same(tokenizer_folder, monkeypatch):
    here = load_here(tokenizer_folder)
    monkeypatch.delitem(sys.modules, "transformers")
    assert load_tokenizer(tokenizer_folder, add_bos=True, add_eos=True) == here
    assert "transformers" not in sys.modules
    with pytest.raises(ValueError, match="There is no model folder 'a/missing/folder'"):
        load_tokenizer("a/missing/folder", add_bos=False, add_eos=False)


def test_packing_imports_neither_transformers_nor_torch():
    # Half a gigabyte that would stay with the pipeline to its end.
    check = "import sys; import beam_pipelines.pack; sys.exit(bool({'transformers', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=True)


def test_a_token_that_is_asked_for_and_absent_is_an_error(tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"add_bos is on, but .* has no BOS token"):
        load_tokenizer(str(tmp_path), add_bos=True, add_eos=True)
    load_tokenizer(str(tmp_path), add_bos=False, add_eos=True)


def test_a_tokenizer_without_a_fast_implementation_is_refused(monkeypatch):
    class Slow:
        tokenizer = object()

    monkeypatch.setattr("synth_model.prompt_tokenizer.ModelTokenizer", lambda _: Slow())
    with pytest.raises(ValueError, match="has no fast implementation"):
        tokenizer_loading.load_here("slow")


def test_a_vocabulary_with_gaps_is_as_large_as_its_largest_id(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] = 100_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert load_here(str(tmp_path)).description.vocab_size == 100_001


def test_a_definition_that_the_library_does_not_understand_is_named(tokenizer_folder, tmp_path, monkeypatch):
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"model": {"type": "NoSuchModel"}}), "utf-8")
    for is_loaded_here in (True, False):
        if not is_loaded_here:
            monkeypatch.delitem(sys.modules, "transformers")
        with pytest.raises(ValueError, match=f"No tokenizer could be loaded from '{tmp_path}'"):
            load_tokenizer(str(tmp_path), add_bos=False, add_eos=False)
