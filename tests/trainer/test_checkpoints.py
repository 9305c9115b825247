"""Checkpoints on the disk: damage is found and named, a kill at any moment leaves a whole one, a full disk no ruin."""

import contextlib
import itertools
import os
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from contracts import storage
from tests.shard_fixtures import write_example_shards
from tests.trainer.conftest import loss_columns
from tests.trainer.test_resume import Killed, kill_at_step
from trainer import checkpoints, folders
from trainer.checkpoint_files import completed_checkpoints
from trainer.checkpoints import (
    CheckpointNotSavedError,
    RunState,
    newest_checkpoint,
    open_checkpoint,
    read_model_folder,
    refuse_other_run,
    restore_checkpoint,
    save_checkpoint,
)
from trainer.config import CheckpointConfig
from trainer.row_sampler import Position


def state_at(step, **fields):
    fields = {"seed": 0, "shards_fingerprint": "s", "tokenizer_sha256": "t", "model_identity": "m", **fields}
    return RunState(position=Position(step=step), config={"model": {"dtype": "auto"}, "max_steps": 9}, **fields)


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


@pytest.fixture
def trained():
    """A model with tied embeddings and an optimizer that has made a step."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def save(accelerator, trained):
    def run(root, step, **config):
        model, optimizer = trained
        return save_checkpoint(
            str(root),
            state=state_at(step),
            accelerator=accelerator,
            model=model,
            optimizer=optimizer,
            config=CheckpointConfig(**config),
        )

    return run


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b" ")


def remove(path):
    path.unlink()


FILES = ["model/model.safetensors", "model/config.json", "optimizer.safetensors", "state.json", "files.json"]


@pytest.mark.parametrize("damage", [flip_a_bit, cut, lengthen, remove])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(save, tmp_path, caplog, damage, file):
    save(tmp_path, 2)
    url = save(tmp_path, 4)
    assert newest_checkpoint(str(tmp_path), fresh_state=state_at(0)).url == url
    damage(tmp_path / "step-00000004" / file)
    with pytest.raises(ValueError, match=rf"The checkpoint .*step-00000004 is damaged: .*{file}") as error:
        open_checkpoint(url)
    assert newest_checkpoint(str(tmp_path), fresh_state=state_at(0)).state.position.step == 2
    assert f"Skipping the checkpoint step-00000004: {error.value}" in caplog.text


def test_a_file_too_many_is_named(save, tmp_path):
    url = save(tmp_path, 2)
    (tmp_path / "step-00000002" / "model" / "model-2.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model/model-2.safetensors does not belong to it"):
        open_checkpoint(url)


def test_a_whole_checkpoint_under_another_name_is_refused(save, tmp_path):
    save(tmp_path, 2)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000008")
    with pytest.raises(ValueError, match="saved after step 2"):
        open_checkpoint(str(tmp_path / "step-00000008"))


def test_one_that_was_not_completed_is_as_good_as_not_there(save, tmp_path):
    save(tmp_path, 2)
    (tmp_path / "step-00000002" / "COMPLETED").unlink()
    assert newest_checkpoint(str(tmp_path), fresh_state=state_at(0)) is None
    with pytest.raises(ValueError, match="not a completed artifact"):
        open_checkpoint(str(tmp_path / "step-00000002"))


def test_never_starts_over_by_itself(save, tmp_path):
    for step in (2, 4):
        save(tmp_path, step)
        cut(tmp_path / f"step-{step:08d}" / "optimizer.safetensors")
    with pytest.raises(ValueError, match=r"step-00000002, step-00000004 .*--checkpoint.resume never"):
        newest_checkpoint(str(tmp_path), fresh_state=state_at(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 7), ("shards_fingerprint", "other"), ("tokenizer_sha256", "other"), ("model_identity", "other")],
)
def test_a_foreign_checkpoint_is_skipped_with_both_named(save, tmp_path, caplog, field, value):
    save(tmp_path, 2)
    with pytest.raises(ValueError, match="cannot go on from any"):
        newest_checkpoint(str(tmp_path), fresh_state=state_at(0, **{field: value}))
    there = getattr(state_at(0), field)
    assert f"its {field.replace('_', ' ')} is {there}, that of this run is {value}" in caplog.text


def test_only_a_named_checkpoint_may_have_another_schedule(save, tmp_path):
    checkpoint = open_checkpoint(save(tmp_path, 2))
    longer = replace(state_at(0), config={**state_at(0).config, "max_steps": 10})
    refuse_other_run(checkpoint, fresh_state=longer, is_named=True)
    with pytest.raises(ValueError, match="its max_steps is 9, that of this run is 10"):
        refuse_other_run(checkpoint, fresh_state=longer)


def test_keeps_the_newest_and_the_milestones(save, tmp_path):
    for step in range(1, 12):
        save(tmp_path, step, keep=2, keep_every_steps=4)
    assert [url[-2:] for url in completed_checkpoints(str(tmp_path))] == ["04", "08", "10", "11"]
    assert len(list(tmp_path.iterdir())) == 4


class Disk:
    """A disk that works until the process is killed, right before its ``kill_at``-th change."""

    CHANGES = (
        (storage, "open_atomic_output"),
        (storage, "remove_file"),
        (os, "makedirs"),
        (os, "rename"),
        (os, "replace"),
        (os, "rmdir"),
        (os, "fsync"),
        (safetensors.torch, "save_file"),
        (checkpoints, "publish_folder"),
    )

    def __init__(self, patch, *, kill_at):
        self.num_changes = 0
        self._kill_at = kill_at
        for module, name in self.CHANGES:
            patch.setattr(module, name, self._until_killed(getattr(module, name)))
        patch.setattr(storage, "remove_folder", self._remove_folder)

    def _until_killed(self, function):
        def change(*arguments, **options):
            self.num_changes += 1
            if self.num_changes > self._kill_at:
                raise Killed
            return function(*arguments, **options)

        return change

    def _remove_folder(self, folder):
        """File by file, the largest name first: whoever is killed meanwhile has removed some of them."""
        for url in reversed(storage.list_files(folder)):
            storage.remove_file(url)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_kill_at_any_change_of_the_disk_leaves_a_whole_checkpoint(save, tmp_path, caplog, sharded):
    """Step 6 is saved where a damaged step 6 lies, and steps 2 and 4 are there, of which 2 is to be removed."""
    before = tmp_path / "before"
    for step in (2, 4, 6):
        save(before, step, sharded=sharded, keep=3)
    flip_a_bit(before / "step-00000006" / "state.json")
    seen = []
    for kill_at in itertools.count():
        root = tmp_path / f"{kill_at}"
        shutil.copytree(before, root)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            Disk(patch, kill_at=kill_at)
            save(root, 6, sharded=sharded, keep=2)
            break
        caplog.clear()
        newest = newest_checkpoint(str(root), fresh_state=state_at(0))
        new_damage = [text for text in caplog.messages if "the content of state.json has changed" not in text]
        assert not new_damage
        assert newest.state.position.step in (4, 6)
        seen.append(newest.state.position.step)
        save(root, 8, sharded=sharded, keep=2)
        left = sorted(path.name for path in root.iterdir())
        assert left in (["step-00000004", "step-00000008"], ["step-00000006", "step-00000008"])
    assert {4, 6} == set(seen)
    assert len(seen) > 10


@pytest.mark.parametrize("sharded", [False, True])
def test_a_full_disk_is_noticed_before_and_leaves_nothing_behind(save, tmp_path, monkeypatch, sharded):
    save(tmp_path, 2, sharded=sharded)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "free_bytes", lambda url: 1_000_000)
        with pytest.raises(CheckpointNotSavedError, match=r"after step 4 .* 0.017 GB are needed and 0.001 GB are free"):
            save(tmp_path, 4, sharded=sharded)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert newest_checkpoint(str(tmp_path), fresh_state=state_at(0)).state.position.step == 2


def test_free_space_is_that_of_the_disk_a_folder_will_be_on(tmp_path):
    assert folders.free_bytes(str(tmp_path / "not" / "yet")) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert folders.free_bytes("memory://x") is None


def test_a_full_disk_in_the_middle_of_a_save(save, tmp_path, monkeypatch):
    def save_file(tensors, path, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", save_file)
        with pytest.raises(CheckpointNotSavedError, match="No space left"):
            save(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_run_outlives_a_save_that_fails_unless_it_is_the_last(pretrain, tmp_path, monkeypatch, caplog, capsys):
    fails = {"step-00000004", "step-00000012"}
    publish = checkpoints.publish_folder

    def publish_folder(aside, url):
        if url[-13:] in fails:
            raise OSError(28, "No space left on device")
        publish(aside, url)

    monkeypatch.setattr(checkpoints, "publish_folder", publish_folder)
    assert pretrain(tmp_path, "--checkpoint.save_final_optimizer_state", "true", "--checkpoint.keep", "9") == 2
    assert "after step 4 could not be saved" in caplog.text
    assert "will try again" in caplog.text
    assert "after step 12 could not be saved" in capsys.readouterr().err
    assert [url[-2:] for url in completed_checkpoints(str(tmp_path / "checkpoints"))] == ["02", "06", "08", "10"]
    fails.clear()
    assert pretrain(tmp_path, "--checkpoint.save_final_optimizer_state", "true") == 0
    assert len(loss_columns(tmp_path)) == 12


@pytest.mark.parametrize("root", ["file", "memory"])
@pytest.mark.parametrize("sharded", [False, True])
def test_all_that_was_saved_comes_back(save, trained, accelerator, tmp_path, root, sharded):
    root = str(tmp_path) if root == "file" else f"memory://checkpoints-{tmp_path.name}"
    model, optimizer = trained
    checkpoint = open_checkpoint(save(root, 2, sharded=sharded))
    assert checkpoint.is_sharded == sharded
    assert checkpoint.state.position.step == 2
    with read_model_folder(checkpoint.url) as folder:
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    weights = model.state_dict()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight

    torch.manual_seed(1)
    other = LlamaForCausalLM(model.config) if sharded else loaded
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    restore_checkpoint(checkpoint, accelerator=accelerator, model=other, optimizer=other_optimizer)
    for name, weight in other.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(other_optimizer.state[ours][key], value), key
    assert {group["lr"] for group in other_optimizer.param_groups} == {0.5}


@pytest.mark.parametrize("sharded", [False, True])
def test_the_means_of_another_model_are_refused(save, accelerator, trained, tmp_path, sharded):
    checkpoint = open_checkpoint(save(tmp_path, 2, sharded=sharded))
    config = LlamaConfig(**{**trained[0].config.to_dict(), "num_hidden_layers": 2})
    model = LlamaForCausalLM(config)
    with pytest.raises(ValueError, match=r"belongs to another model: they differ in .*layers\.1\."):
        restore_checkpoint(
            checkpoint, accelerator=accelerator, model=model, optimizer=torch.optim.AdamW(model.parameters())
        )


def test_a_run_with_sharded_checkpoints_goes_on_bit_for_bit(pretrain, tmp_path, monkeypatch):
    assert pretrain(tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        kill_at_step(patch, 9)
        with pytest.raises(Killed):
            pretrain(tmp_path / "killed", "--checkpoint.sharded", "true")
    assert pretrain(tmp_path / "killed") == 0
    assert loss_columns(tmp_path / "killed") == loss_columns(tmp_path / "whole")
    ours, theirs = (
        safetensors.torch.load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_named_checkpoint_is_refused_when_it_is_damaged_or_of_another_run(pretrain, shards, tmp_path, capsys):
    assert pretrain(tmp_path / "first") == 0
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000008"
    named = ("--checkpoint.resume", str(checkpoint))
    other_shards = write_example_shards(str(tmp_path), seed=9)
    for options, message in (
        (("--shards", other_shards), "its shards fingerprint is"),
        (("--seed", "9"), "its seed is 0, that of this run is 9"),
        (("--model.document_masks", "true"), "its model.document_masks is False, that of this run is True"),
        (("--loss.z_loss", "0.1"), "its loss.z_loss is 0.0, that of this run is 0.1"),
    ):
        assert pretrain(tmp_path / "second", *named, *options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "second").exists()
    # Another schedule is what one goes on with.
    assert pretrain(tmp_path / "third", *named, "--num_epochs", "3", "--optimizer.learning_rate", "1e-3") == 0
    flip_a_bit(checkpoint / "optimizer.safetensors")
    assert pretrain(tmp_path / "second", *named) == 2
    assert "the content of optimizer.safetensors has changed" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
