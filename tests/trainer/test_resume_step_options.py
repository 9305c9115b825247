"""Killing a run and going on, with each option of how a step is computed."""

import shutil

import pytest
import safetensors.torch
import torch

from tests.trainer.conftest import loss_columns, read_jsonl
from tests.trainer.test_resume import Killed, kill_at_step

OPTIONS = {
    "document masks": ("--model.document_masks", "true"),
    "checkpointing": ("--batch.gradient_checkpointing", "true"),
    "chunks and z-loss": ("--loss.chunk_tokens", "20", "--loss.z_loss", "0.001"),
}
COMPILED = ("--model.compile", "default", "--model.document_masks", "true", "--batch.micro_batch_rows", "3")


def assert_resumes(pretrain, folder, monkeypatch, *options):
    """Killed in the middle of the second epoch."""
    whole, killed = folder / "whole", folder / "killed"
    assert pretrain(whole, *options) == 0
    with monkeypatch.context() as patch:
        kill_at_step(patch, 9)
        with pytest.raises(Killed):
            pretrain(killed, *options)
    assert pretrain(killed, *options) == 0
    assert loss_columns(killed) == loss_columns(whole)
    assert read_jsonl(killed / "validation.jsonl") == read_jsonl(whole / "validation.jsonl")
    weights = safetensors.torch.load_file(whole / "model" / "model.safetensors")
    for name, weight in safetensors.torch.load_file(killed / "model" / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    return whole


@pytest.mark.parametrize("name", OPTIONS)
def test_resumes_bit_identically(pretrain, tmp_path, monkeypatch, name):
    output = assert_resumes(pretrain, tmp_path, monkeypatch, *OPTIONS[name])
    plain = tmp_path / "plain"
    assert pretrain(plain) == 0
    losses, plain_losses = ([record["loss"] for record in loss_columns(path)] for path in (output, plain))
    if name == "checkpointing":
        assert losses == plain_losses
    else:
        assert losses != plain_losses
        assert losses == pytest.approx(plain_losses, rel=0.05)
    has_z_loss = ["z_loss" in record and record["z_loss"] > 0 for record in read_jsonl(output / "metrics.jsonl")]
    assert all(has_z_loss) if "z-loss" in name else not any(has_z_loss)


@pytest.mark.slow
def test_compiled_resumes_bit_identically(pretrain, tmp_path, monkeypatch):
    """With micro-batches of three, two and one rows."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is none")
    output = assert_resumes(pretrain, tmp_path, monkeypatch, *COMPILED)
    names = safetensors.torch.load_file(output / "model" / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert not any("_orig_mod" in name for name in names)


def test_what_saves_memory_may_change_at_a_restart(pretrain, tmp_path, monkeypatch):
    """It is no part of the run's identity, unlike what changes the result."""
    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        with pytest.raises(Killed):
            pretrain(output)
    assert pretrain(output, "--model.document_masks", "true") == 2
    assert pretrain(output, "--loss.z_loss", "0.1") == 2
    assert pretrain(output, "--batch.gradient_checkpointing", "true", "--loss.chunk_tokens", "9") == 0
