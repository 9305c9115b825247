"""GGUF import, on a file of a few kilobytes written by the format's own library."""

import json
import sys

import gguf
import numpy as np
import pytest
import safetensors.torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import import_model
from trainer.__main__ import main

NUM_IDS, WIDTH, NUM_HEADS = 12, 32, 4


def write_gguf(path):
    """A llama model of one layer; returns its tensors by GGUF name."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A working title")
    writer.add_license("apache-2.0")
    writer.add_languages(["en", "fr"])
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_HEADS)
    writer.add_rope_dimension_count(WIDTH // NUM_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(NUM_IDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<end>", *"abcdefgh", "ab", "Ġ", "Ġa"])
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (NUM_IDS - 1)])
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (NUM_IDS, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (WIDTH, WIDTH),
        "blk.0.attn_v.weight": (WIDTH, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_gate.weight": (2 * WIDTH, WIDTH),
        "blk.0.ffn_up.weight": (2 * WIDTH, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, 2 * WIDTH),
    }
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def gguf_file(tmp_path):
    path = tmp_path / "tiny.gguf"
    return path, write_gguf(path)


def run(path, output):
    return main(["import-model", "--gguf", str(path), "--output", str(output)])


def test_makes_a_folder_that_needs_nothing_else(gguf_file, tmp_path):
    path, tensors = gguf_file
    output = tmp_path / "model"
    assert run(path, output) == 0
    path.unlink()

    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    stored = safetensors.torch.load_file(output / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.float32"}
    # Not those of queries and keys, whose rows GGUF orders differently.
    for name, gguf_name in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }.items():
        assert np.array_equal(stored[name].numpy(), tensors[gguf_name]), name
    assert tokenizer("ab a")["input_ids"] == [9, 11]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False) == "abc"
    assert model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=2).shape[1] >= 2

    config = json.loads((output / "config.json").read_text())
    assert "quantization_config" not in config
    assert "A working title" not in json.dumps(config)
    assert str(tmp_path) not in json.dumps(config)


def test_a_complete_folder_is_left_alone_and_a_killed_conversion_is_redone(gguf_file, tmp_path, monkeypatch, caplog):
    path, _ = gguf_file
    output = tmp_path / "model"

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.tokenization_utils_base.PreTrainedTokenizerBase.save_pretrained", die)
        assert run(path, output) == 130
    assert [file.name for file in output.iterdir()] == ["run.json"]
    assert run(path, output) == 0
    files = {file.name: file.stat().st_mtime_ns for file in output.iterdir()}
    assert {"run.json", "COMPLETED", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    with caplog.at_level("INFO", logger="trainer"):
        assert run(path, output) == 0
    assert "is complete" in caplog.text
    assert {file.name: file.stat().st_mtime_ns for file in output.iterdir()} == files


def test_refuses_a_folder_with_another_model(gguf_file, tmp_path, capsys):
    path, _ = gguf_file
    output = tmp_path / "model"
    assert run(path, output) == 0
    path.write_bytes(path.read_bytes() + b"\0")
    assert run(path, output) == 2
    assert "already holds another run" in capsys.readouterr().err


def test_finds_a_file_in_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    package = tmp_path / "package_with_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs a compiler')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_model.find_gguf("package:package_with_model/tiny.gguf") == str(package / "tiny.gguf")
    assert "package_with_model" not in sys.modules
    with pytest.raises(ValueError, match="There is no GGUF file"):
        import_model.find_gguf("package:package_with_model/other.gguf")
    with pytest.raises(ValueError, match=r"'no_such_package' .* is not installed"):
        import_model.find_gguf("package:no_such_package/tiny.gguf")


def test_refuses_a_file_that_is_no_gguf(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"<html>")
    assert run(tmp_path / "model.gguf", tmp_path / "model") == 2
    assert "does not start with the letters GGUF" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_hands_on_what_the_file_states_of_its_licence(gguf_file, tmp_path):
    path, _ = gguf_file
    assert run(path, tmp_path / "model") == 0
    assert ModelCard.load(tmp_path / "model" / "README.md").data.to_dict() == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "language": ["en", "fr"],
    }
