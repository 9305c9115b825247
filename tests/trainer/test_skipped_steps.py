"""Whole runs in which steps are skipped."""

import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from contracts.manifest import read_shard_manifest
from tests.trainer.conftest import loss_columns, read_jsonl
from tests.trainer.test_resume import Killed, kill_at_step
from trainer.shard_dataset import ShardDataset, labels_of

ONE_ROW_A_STEP = ("--batch.rows_per_step", "1", "--num_epochs", "1", "--checkpoint.every_steps", "1")


@pytest.fixture
def dataset(shards, tmp_path):
    return ShardDataset(shards, manifest=read_shard_manifest(shards), split="train", cache=str(tmp_path / "rows"))


def rows_with_token(dataset, token):
    """The rows in which something is to be predicted behind a token."""
    rows = []
    for number in range(len(dataset)):
        row = dataset.row(number)
        ids = row.input_ids.tolist()
        if token in ids and (labels_of(row)[ids.index(token) + 1 :] != -100).any():
            rows.append(number)
    return rows


@pytest.fixture
def poisoned_token(dataset):
    """A token that some of the rows have."""
    return next(token for token in range(2, 512) if 2 <= len(rows_with_token(dataset, token)) <= 8)


@pytest.fixture
def poisoned_rows(dataset, poisoned_token):
    return rows_with_token(dataset, poisoned_token)


@pytest.fixture
def poisoned_model(pretrain, poisoned_token, tmp_path):
    """The options for a model to which one token is not a number."""
    assert pretrain(tmp_path / "start", "--max_steps", "1") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start" / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned_token] = float("nan")
    model.save_pretrained(tmp_path / "poisoned")
    return (
        *("--model.init", "continual", "--model.name_or_path", str(tmp_path / "poisoned")),
        *("--validation.at_start", "false", "--validation.at_end", "false"),
    )


@pytest.fixture
def from_poisoned_model(pretrain, poisoned_model):
    """Runs the command on that model, one row a step."""
    return lambda output, *options: pretrain(
        output, *poisoned_model, "--model.preset", "null", *ONE_ROW_A_STEP, *options
    )


def skipped_rows(output):
    """The rows named by the skipped steps; each step has one row here."""
    rows = []
    for record in read_jsonl(output / "metrics.jsonl"):
        if "skipped" in record:
            assert record["skipped"] == "the loss is not finite"
            ((row, loss),) = record["skipped_rows"]
            assert (record["loss"], loss) == (None, None)
            rows.append(row)
    return rows


def test_exactly_the_steps_with_a_bad_row_are_skipped(
    from_poisoned_model, shards, poisoned_rows, poisoned_token, tmp_path, monkeypatch, caplog
):
    num_updates = []
    update = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: num_updates.append(1) or update(self))
    # What is logged seldom is logged when it is skipped.
    assert from_poisoned_model(tmp_path / "output", "--logging.every_steps", "7") == 0
    assert sorted(skipped_rows(tmp_path / "output")) == poisoned_rows
    steps = [record["step"] for record in read_jsonl(tmp_path / "output" / "metrics.jsonl")]
    assert {7, 14, 21} <= set(steps)
    assert len(num_updates) == 21 - len(poisoned_rows)
    assert caplog.text.count("Skipped step") == len(poisoned_rows)
    for row in poisoned_rows:
        assert f"python -m beam_pipelines trace --shards {shards} --row {row}\n" in caplog.text
    weights = safetensors.torch.load_file(tmp_path / "output" / "model" / "model.safetensors")
    for name, weight in weights.items():
        is_finite = weight.isfinite().all(dim=-1)
        bad = (~is_finite).nonzero().flatten().tolist()
        assert bad == ([poisoned_token] if name == "model.embed_tokens.weight" else []), name


def test_a_run_that_is_killed_amid_skipped_steps_goes_on_bit_identically(
    from_poisoned_model, poisoned_rows, tmp_path, monkeypatch
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert from_poisoned_model(whole) == 0
    records = read_jsonl(whole / "metrics.jsonl")
    skipped_steps = [record["step"] for record in records if "skipped" in record]
    for step in skipped_steps[:2]:
        # Behind the skipped step, and behind the checkpoint that is due there.
        with monkeypatch.context() as patch:
            kill_at_step(patch, step)
            with pytest.raises(Killed):
                from_poisoned_model(killed)
        saved = {int(path.name.removeprefix("step-")) for path in (killed / "checkpoints").iterdir()}
        assert not saved & set(skipped_steps)
    assert from_poisoned_model(killed) == 0
    assert loss_columns(killed) == loss_columns(whole)
    assert skipped_rows(killed) == skipped_rows(whole)
    weights = safetensors.torch.load_file(whole / "model" / "model.safetensors")
    for name, weight in safetensors.torch.load_file(killed / "model" / "model.safetensors").items():
        assert torch.equal(weight.nan_to_num(9.0), weights[name].nan_to_num(9.0)), name


def test_too_many_in_a_row_stop_the_run_before_the_first(from_poisoned_model, tmp_path, capsys):
    """And the same run goes on once it may, to the same end."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert from_poisoned_model(whole) == 0
    first = next(record["step"] for record in read_jsonl(whole / "metrics.jsonl") if "skipped" in record)
    capsys.readouterr()
    options = ("--checkpoint.every_steps", "null")
    assert from_poisoned_model(stopped, "--spikes.max_consecutive", "1", *options) == 2
    message = capsys.readouterr().err
    assert f"stopped after step {first}: 1 steps in a row were skipped, the last because the loss is not" in message
    assert "(not finite)" in message
    assert f"those after step {first - 1}" in message
    saved = [path.name for path in (stopped / "checkpoints").iterdir()]
    assert saved == ([f"step-{first - 1:08d}"] if first > 1 else [])
    # Nothing has changed, so it stops there again.
    assert from_poisoned_model(stopped, "--spikes.max_consecutive", "1", *options) == 2
    assert from_poisoned_model(stopped, *options) == 0
    assert loss_columns(stopped) == loss_columns(whole)


SENSITIVE = ("--spikes.threshold", "0.5", "--spikes.window", "3")


def test_spikes_are_judged_by_the_losses_before(pretrain, tmp_path, caplog):
    """A bound so low that some steps of an ordinary run lie above it, computed again from the log."""
    assert pretrain(tmp_path / "output", "--num_epochs", "4", *SENSITIVE) == 0
    kept, num_skipped, num_judged = [], 0, 0
    for record in read_jsonl(tmp_path / "output" / "metrics.jsonl"):
        last = np.array(kept[-3:])
        num_rows = 1 if record["step"] % 6 == 0 else 4
        bound = np.inf
        if len(last) == 3:
            bound = last.mean() + 0.5 * max(last.std(), 0.01 * last.mean()) * np.sqrt(4 / num_rows)
        assert ("skipped" in record) == (record["loss"] > bound), record
        num_judged += np.isfinite(bound)
        if "skipped" in record:
            num_skipped += 1
            assert record["skipped"] == f"the loss {record['loss']:.4f} is above {bound:.4f}"
            losses = [loss for _, loss in record["skipped_rows"]]
            assert len(losses) == num_rows
            assert losses == sorted(losses, reverse=True)
        else:
            kept.append(record["loss"])
    assert 1 < num_skipped < num_judged
    assert caplog.text.count("Skipped step") == num_skipped


@pytest.mark.parametrize("step", [5, 9])
def test_the_statistics_go_on_after_a_kill(pretrain, tmp_path, monkeypatch, step):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert pretrain(whole, *SENSITIVE) == 0
    assert any("skipped" in record for record in read_jsonl(whole / "metrics.jsonl"))
    with monkeypatch.context() as patch:
        kill_at_step(patch, step)
        with pytest.raises(Killed):
            pretrain(killed, *SENSITIVE)
    assert pretrain(killed, *SENSITIVE) == 0
    assert loss_columns(killed) == loss_columns(whole)
    assert (killed / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_skip_the_same_steps(shards, poisoned_model, poisoned_rows, tmp_path):
    """Also where the bad row is the other process's."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "trainer.pretrain"),
        *("--shards", shards, "--output", str(tmp_path / "output"), "--device", "cpu", *poisoned_model),
        *("--batch.rows_per_step", "2", "--batch.micro_batch_rows", "1"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    records = read_jsonl(tmp_path / "output" / "metrics.jsonl")
    assert len(records) == 11
    rows = [row for record in records for row, loss in record.get("skipped_rows", ()) if loss is None]
    assert sorted(rows) == poisoned_rows
    weights = safetensors.torch.load_file(tmp_path / "output" / "model" / "model.safetensors")
    assert weights["lm_head.weight"].isfinite().all()
