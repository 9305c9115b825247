"""The command in processes of its own: several of them, a launcher, a real signal."""

import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch

from tests.trainer.conftest import loss_columns, read_jsonl
from tests.trainer.test_resume import Killed, kill_at_step


def start(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def tiny_arguments(shards, output):
    return [
        *("--shards", shards, "--output", str(output), "--model.init", "scratch", "--model.preset", "tiny"),
        *("--batch.rows_per_step", "4", "--batch.micro_batch_rows", "2", "--num_epochs", "2", "--device", "cpu"),
        *("--optimizer.learning_rate", "3e-3", "--checkpoint.every_steps", "2"),
    ]


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_take_over_from_it(pretrain, shards, tmp_path, monkeypatch):
    """Steps of one row are among them, in which one of the processes has nothing to do."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert pretrain(one) == 0
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        with pytest.raises(Killed):
            pretrain(two)

    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "-m", "trainer.pretrain"]
    process = start([*launcher, *tiny_arguments(shards, two)])
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert output.count("Going on after step 4") == 1, output
    assert "on 2 x cpu" in output

    expected, actual = loss_columns(one), loss_columns(two)
    assert [record["step"] for record in actual] == list(range(1, 13))
    assert [record["tokens"] for record in actual] == [record["tokens"] for record in expected]
    for key in ("loss", "grad_norm"):
        assert [record[key] for record in actual] == pytest.approx([record[key] for record in expected], rel=1e-3)
    for mine, theirs in zip(read_jsonl(two / "validation.jsonl"), read_jsonl(one / "validation.jsonl"), strict=True):
        assert mine["num_targets"] == theirs["num_targets"]
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-3)
    weights = safetensors.torch.load_file(one / "model" / "model.safetensors")
    for name, weight in safetensors.torch.load_file(two / "model" / "model.safetensors").items():
        # Sums in another order, amplified by AdamW where a gradient is next to zero.
        assert ((weight - weights[name]).abs() > 1e-4).float().mean() < 0.02, name


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_its_code(shards, tmp_path):
    arguments = [*tiny_arguments(shards, tmp_path), "--num_epochs", "100000", "--checkpoint.every_steps", "null"]
    process = start(["trainer.pretrain", *arguments])
    while not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").stat().st_size == 0:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "Run the same command again to go on" in output
    num_steps = len(read_jsonl(tmp_path / "metrics.jsonl"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{num_steps:08d}"]
    assert not (tmp_path / "COMPLETED").exists()


@pytest.mark.slow
def test_accelerate_launch_says_nothing_of_its_own(shards, tmp_path):
    launcher = ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "trainer.pretrain"]
    process = start([*launcher, *tiny_arguments(shards, tmp_path), "--max_steps", "2"])
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    known = ("Training", "Only", "validation:", "Validation", "pretrain:", "Saved", "Wrote")
    assert [line for line in output.splitlines() if not line.startswith(known)] == []
