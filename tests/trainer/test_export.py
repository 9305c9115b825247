"""Exported models, loaded by plain transformers and PEFT."""

import json
import os
import subprocess
import sys

import fsspec
import peft
import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.shard_fixtures import SEQUENCE_LENGTH, make_rows, write_example_shards, write_shards, write_tokenizer
from tests.trainer.conftest import read_jsonl
from trainer.__main__ import main as command
from trainer.pretrain import main as pretrain

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} <eos>{% endfor %}"


def train(shards, output, *options):
    # Accelerate keeps its choice of precision for the life of a process; a run here may choose otherwise.
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = ["--shards", str(shards), "--output", str(output), "--device", "cpu", "--batch.rows_per_step", "4"]
    arguments += ["--optimizer.learning_rate", "3e-3", "--checkpoint.every_steps", "3", "--checkpoint.keep", "9"]
    assert pretrain([*arguments, *map(str, options)]) == 0


def run(*arguments):
    return command(["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A run of 12 steps from scratch, with checkpoints after 3, 6 and 9; and its shards."""
    folder = tmp_path_factory.mktemp("scratch")
    shards = write_example_shards(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    options = ("--model.init", "scratch", "--model.preset", "tiny", "--num_epochs", "2", "--validation.every_steps", 6)
    train(shards, folder / "output", *options)
    return folder / "output", shards


@pytest.fixture(scope="module")
def adapter(scratch, tmp_path_factory):
    """A run that trains an adapter for the model of the other run."""
    output = tmp_path_factory.mktemp("adapter") / "output"
    base, shards = scratch
    train(shards, output, "--model.name_or_path", base / "model", "--model.lora.rank", 4)
    return output, base / "model"


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None]).logits


def test_a_checkpoint_is_exported_as_of_its_step(scratch, tmp_path):
    output, _ = scratch
    assert run(output / "checkpoints" / "step-00000006", "--output", tmp_path / "model") == 0
    stored = safetensors.torch.load_file(output / "checkpoints" / "step-00000006" / "model" / "model.safetensors")
    exported = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert stored.keys() == exported.keys()
    assert all(torch.equal(stored[name], exported[name]) for name in stored)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False) == "w1 <eos>"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "6 steps" in card
    loss = next(record for record in read_jsonl(output / "validation.jsonl") if record["step"] == 6)["losses"]["all"]
    assert f"{loss:.4f} |" in card


def test_plain_transformers_loads_a_run_that_was_exported_in_bfloat16(scratch, tmp_path):
    """In a process that can import nothing of this project, and without a network."""
    output, _ = scratch
    assert run(output, "--output", tmp_path / "model", "--dtype", "bfloat16") == 0
    program = """
import sys
for name in ("trainer", "contracts", "templates", "synth_model", "beam_pipelines"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM, pipeline
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert model.dtype == torch.bfloat16, model.dtype
generate = pipeline("text-generation", model=sys.argv[1])
assert generate.model.generation_config.eos_token_id == generate.model.generation_config.pad_token_id == 1
print(generate("w5 w6 w7", max_new_tokens=4, do_sample=False)[0]["generated_text"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model")],
        env={**environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("w5 w6 w7")


def test_an_export_is_done_once(scratch, tmp_path, caplog, capsys):
    output, _ = scratch
    assert run(output, "--output", tmp_path / "model") == 0
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "model").iterdir()}
    with caplog.at_level("INFO", logger="trainer"):
        assert run(output, "--output", tmp_path / "model") == 0
    assert "is complete" in caplog.text
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "model").iterdir()} == times
    assert run(output, "--output", tmp_path / "model", "--dtype", "bfloat16") == 2
    assert "config.dtype" in capsys.readouterr().err


def test_the_same_export_has_the_same_bytes(scratch, tmp_path):
    output, _ = scratch
    for name in ("first", "second"):
        assert run(output, "--output", tmp_path / name) == 0
    names = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert {"README.md", "loss_curve.svg", "model.safetensors", "generation_config.json"} <= set(names)
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_an_export_goes_to_any_storage(scratch):
    output, _ = scratch
    assert run(output, "--output", "memory://exports/tiny") == 0
    fs = fsspec.filesystem("memory")
    assert {"COMPLETED", "README.md", "config.json", "model.safetensors"} <= {
        name.rsplit("/", 1)[-1] for name in fs.find("/exports/tiny")
    }


def test_an_adapter_is_exported_as_one_or_merged(adapter, tmp_path):
    output, base = adapter
    own = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output / "model")
    expected = logits(own)
    # Not vacuous: the adapter changes what the model computes.
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-3)

    assert run(output, "--output", tmp_path / "adapter", "--dtype", "float32") == 0
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template == CHAT_TEMPLATE

    assert run(output, "--output", tmp_path / "merged", "--merge") == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    for folder in ("adapter", "merged"):
        card = (tmp_path / folder / "README.md").read_text()
        assert card.startswith(f"---\nlibrary_name: {'peft' if folder == 'adapter' else 'transformers'}\n")
    assert (output / "model" / "README.md").read_text() == (tmp_path / "adapter" / "README.md").read_text()


def test_refuses_what_cannot_be_merged_or_found(scratch, adapter, tmp_path, capsys):
    output, _ = adapter
    other = tmp_path / "other"
    base, _ = scratch
    assert run(base, "--output", tmp_path / "model", "--merge") == 2
    assert "holds a whole model and no adapter" in capsys.readouterr().err
    assert run(base / "checkpoints" / "step-00000003", "--output", other) == 0
    capsys.readouterr()
    assert run(output, "--output", tmp_path / "model", "--merge", "--base", other) == 2
    assert "is not the model that the adapter was trained on" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", "--output", tmp_path / "model") == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert run(output, "--output", tmp_path / "model", "--merge", "--base", base / "model") == 0


def test_a_grown_vocabulary_is_trained_resumed_and_exported(scratch, tmp_path):
    base, _ = scratch
    sha256 = write_tokenizer(str(tmp_path / "tokenizer"), num_words=514)
    rows = make_rows(12, component="raw", vocab_size=516)
    write_shards(
        str(tmp_path / "shards"),
        {"train": [rows]},
        tokenizer_folder=str(tmp_path / "tokenizer"),
        tokenizer_sha256=sha256,
        vocab_size=516,
    )
    options = ("--model.name_or_path", base / "model", "--model.resize_embeddings", "true", "--num_epochs", 2)
    train(tmp_path / "shards", tmp_path / "output", *options)
    assert run(tmp_path / "output" / "checkpoints" / "step-00000003", "--output", tmp_path / "model") == 0
    for folder in (tmp_path / "output" / "model", tmp_path / "model"):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert model.config.vocab_size == len(tokenizer) == 516
        assert tokenizer.chat_template == CHAT_TEMPLATE
    # From its checkpoint on it is the same run.
    train(
        tmp_path / "shards",
        tmp_path / "again",
        *options,
        "--checkpoint.resume",
        tmp_path / "output/checkpoints/step-00000003",
    )
    ends = [
        safetensors.torch.load_file(tmp_path / name / "model" / "model.safetensors") for name in ("output", "again")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert (
        json.loads((tmp_path / "output" / "provenance.json").read_text())["shards"]["sequence_length"]
        == SEQUENCE_LENGTH
    )
