"""Killing a run and going on: the result must be that of a run that was never killed."""

import json
import shutil
import signal
import threading

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.shard_fixtures import write_example_shards
from tests.trainer.conftest import loss_columns, read_jsonl
from trainer import checkpoint_files
from trainer.checkpoint_files import completed_checkpoints
from trainer.checkpoints import open_checkpoint
from trainer.loop import TrainingLoop


class Killed(BaseException):
    """Stands for a process that is gone at once: nothing of the trainer catches it."""


@pytest.fixture(scope="module")
def weights_of():
    return lambda output: safetensors.torch.load_file(output / "model" / "model.safetensors")


@pytest.fixture
def uninterrupted(pretrain, tmp_path, weights_of):
    """The weights and the log of a run of 12 steps in two epochs, with two micro-batches a step."""
    output = tmp_path / "uninterrupted"
    assert pretrain(output) == 0
    return weights_of(output), loss_columns(output), read_jsonl(output / "validation.jsonl")


def die(*_, **__):
    raise Killed


def kill_at_step(monkeypatch, step):
    original = TrainingLoop._step

    def step_or_die(self, *arguments):
        if self.state.position.step == step:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(TrainingLoop, "_step", step_or_die)


def assert_same(output, uninterrupted, weights_of):
    weights, losses, validations = uninterrupted
    resumed = weights_of(output)
    assert resumed.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(resumed[name], weight), name
    assert loss_columns(output) == losses
    assert read_jsonl(output / "validation.jsonl") == validations


# Before the first checkpoint, in the middle of an epoch, right behind a checkpoint, in the second epoch.
@pytest.mark.parametrize("step", [1, 3, 4, 9])
def test_killed_and_resumed_is_bit_identical(pretrain, tmp_path, monkeypatch, uninterrupted, weights_of, step):
    output = tmp_path / "killed"
    with monkeypatch.context() as patch:
        kill_at_step(patch, step)
        with pytest.raises(Killed):
            pretrain(output)
    # The kill may also cut a line of the log short.
    with open(output / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "lo')
    assert len(loss_columns_of_whole_lines(output)) == step
    assert pretrain(output) == 0
    assert_same(output, uninterrupted, weights_of)


def loss_columns_of_whole_lines(output):
    return [line for line in (output / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("}\n")]


def test_tied_embeddings_and_dropout_go_on_just_as_well(pretrain, shards, tmp_path, monkeypatch, weights_of):
    """One tensor under two names, stored once; and random numbers in every step."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        attention_dropout=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    options = ("--model.init", "continual", "--model.preset", "null", "--model.name_or_path", str(tmp_path / "tied"))
    assert pretrain(tmp_path / "whole", *options) == 0
    with monkeypatch.context() as patch:
        kill_at_step(patch, 7)
        with pytest.raises(Killed):
            pretrain(tmp_path / "killed", *options)
    assert pretrain(tmp_path / "killed", *options) == 0
    weights = weights_of(tmp_path / "whole")
    assert "lm_head.weight" not in weights
    for name, weight in weights_of(tmp_path / "killed").items():
        assert torch.equal(weight, weights[name]), name
    assert loss_columns(tmp_path / "killed") == loss_columns(tmp_path / "whole")


def test_killed_between_the_last_step_and_the_export(pretrain, tmp_path, monkeypatch, uninterrupted, weights_of):
    output = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr("trainer.run._summarize", die)
        with pytest.raises(Killed):
            pretrain(output, "--checkpoint.save_final_optimizer_state", "true")
    assert open_checkpoint(completed_checkpoints(str(output / "checkpoints"))[-1]).state.position.step == 12
    assert not (output / "COMPLETED").exists()
    assert pretrain(output) == 0
    assert_same(output, uninterrupted, weights_of)


@pytest.mark.parametrize("function", ["safetensors.torch.save_file", "trainer.checkpoint_files.mark_completed"])
def test_killed_while_writing_a_checkpoint(
    pretrain, tmp_path, monkeypatch, uninterrupted, weights_of, caplog, function
):
    output = tmp_path / "killed"
    original = {
        "safetensors.torch.save_file": safetensors.torch.save_file,
        "trainer.checkpoint_files.mark_completed": checkpoint_files.mark_completed,
    }[function]

    def die_at_step_four(target, *arguments, **options):
        if "step-00000004" in str(arguments[:1]) + str(target):
            raise Killed
        return original(target, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(function, die_at_step_four)
        with pytest.raises(Killed):
            pretrain(output)
    left = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert len(left) == 2
    assert left[0] == "step-00000002"
    with caplog.at_level("INFO", logger="trainer"):
        assert pretrain(output) == 0
    assert "Going on after step 2" in caplog.text
    assert_same(output, uninterrupted, weights_of)


def test_keeps_the_newest_checkpoints_only(pretrain, tmp_path):
    assert pretrain(tmp_path, "--checkpoint.keep", "3") == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000008",
        "step-00000010",
    ]


def test_a_signal_ends_the_run_after_its_step(pretrain, tmp_path, uninterrupted, weights_of, monkeypatch, caplog):
    output = tmp_path / "stopped"
    original = TrainingLoop._step

    def step_with_signal(self, *arguments):
        result = original(self, *arguments)
        if self.state.position.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return result

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, caplog.at_level("INFO", logger="trainer"):
        patch.setattr(TrainingLoop, "_step", step_with_signal)
        assert pretrain(output, "--checkpoint.every_steps", "null") == 128 + signal.SIGTERM
    assert "Stopped after step 5" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000005"]
    # How often to save may differ at the next start.
    assert pretrain(output) == 0
    assert_same(output, uninterrupted, weights_of)


@pytest.mark.parametrize("moment", ["validation at the start", "validation", "save", "validation at the end"])
def test_a_signal_while_something_else_is_done(pretrain, tmp_path, monkeypatch, weights_of, moment):
    """Steps 4 and 8 are validated and saved; what the signal cut short is made up for at the next start."""
    whole, output = tmp_path / "whole", tmp_path / "stopped"
    options = ("--validation.every_steps", "4", "--checkpoint.every_steps", "4")
    assert pretrain(whole, *options) == 0
    at_step = {"validation at the start": 0, "validation": 4, "save": 4, "validation at the end": 12}[moment]
    method = "_save" if moment == "save" else "_validate"
    original = getattr(TrainingLoop, method)

    def with_signal(self, *arguments, **keywords):
        if self.state.position.step == at_step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, method, with_signal)
        assert pretrain(output, *options) == 128 + signal.SIGINT
    saved = [path.name for path in (output / "checkpoints").iterdir()] if at_step else []
    assert f"step-{at_step:08d}" in saved or not at_step
    validated = [record["step"] for record in read_jsonl(output / "validation.jsonl")]
    assert (at_step in validated) == (moment == "save")
    assert pretrain(output, *options) == 0
    weights = weights_of(whole)
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(output).items())
    assert loss_columns(output) == loss_columns(whole)
    assert read_jsonl(output / "validation.jsonl") == read_jsonl(whole / "validation.jsonl")


def test_never_starts_over(pretrain, tmp_path, monkeypatch, uninterrupted, weights_of, caplog):
    output = tmp_path / "killed"
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        with pytest.raises(Killed):
            pretrain(output)
    with caplog.at_level("INFO", logger="trainer"):
        assert pretrain(output, "--checkpoint.resume", "never") == 0
    assert "Going on" not in caplog.text
    assert_same(output, uninterrupted, weights_of)


def test_goes_on_from_a_checkpoint_of_another_run(pretrain, tmp_path, uninterrupted, weights_of):
    first, second = tmp_path / "first", tmp_path / "second"
    assert pretrain(first) == 0
    checkpoint = str(first / "checkpoints" / "step-00000008")
    assert pretrain(second, "--checkpoint.resume", checkpoint) == 0
    weights, losses, _ = uninterrupted
    for name, weight in weights_of(second).items():
        assert torch.equal(weight, weights[name]), name
    assert loss_columns(second) == losses[8:]
    assert [record["step"] for record in read_jsonl(second / "validation.jsonl")] == [8, 12]


def test_shards_that_changed_since_the_start_are_refused(pretrain, tmp_path, monkeypatch, capsys):
    shards = write_example_shards(str(tmp_path))
    with monkeypatch.context() as patch:
        kill_at_step(patch, 3)
        with pytest.raises(Killed):
            pretrain(tmp_path / "output", "--shards", shards)
    shutil.rmtree(shards)
    write_example_shards(str(tmp_path), seed=9)
    assert pretrain(tmp_path / "output", "--shards", shards) == 2
    assert "inputs.shards" in capsys.readouterr().err


def test_output_on_other_storage_than_a_local_disk(pretrain, monkeypatch, uninterrupted):
    import fsspec

    output = f"memory://runs/{threading.get_ident()}"
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        with pytest.raises(Killed):
            pretrain(output)
    assert pretrain(output) == 0
    fs, path = fsspec.core.url_to_fs(output)
    stored = safetensors.torch.load(fs.cat_file(f"{path}/model/model.safetensors"))
    weights, losses, _ = uninterrupted
    for name, weight in weights.items():
        assert torch.equal(stored[name], weight), name
    lines = fs.cat_file(f"{path}/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [record["loss"] for record in losses]
