"""The command from its arguments to its exported model, on a model small enough for a test."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contracts.manifest import read_shard_manifest
from tests.shard_fixtures import make_rows, write_example_shards, write_shards, write_tokenizer
from tests.trainer.conftest import loss_columns, read_jsonl
from trainer.config import ModelConfig, OptimizerConfig, ScheduleConfig
from trainer.models import create_model, describe_model
from trainer.optimizer import create_optimizer
from trainer.pretrain import main
from trainer.row_permutation import RowPermutation
from trainer.schedules import learning_rate_multiplier
from trainer.shard_dataset import ShardDataset, labels_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request):
    """The output folder of a finished run of 12 steps, and its shards."""
    folder = tmp_path_factory.mktemp("finished")
    shards = write_example_shards(str(folder))
    output = folder / "output"
    arguments = [
        *("--shards", shards, "--output", str(output), "--model.init", "scratch", "--model.preset", "tiny"),
        *("--batch.rows_per_step", "4", "--batch.micro_batch_rows", "3", "--num_epochs", "2", "--device", "cpu"),
        *("--optimizer.learning_rate", "3e-3", "--validation.every_steps", "5"),
    ]
    assert main(arguments) == 0
    return output, shards, arguments


def test_exports_a_model_that_transformers_loads_and_generates_with(finished):
    output, _, _ = finished
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert model.config.vocab_size == 512
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    generated = model.generate(**tokenizer("w5 w6 w7", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert 4 <= generated.shape[1] <= 7
    assert (output / "model" / "model.safetensors").exists()


def test_logs_every_step(finished):
    output, _, _ = finished
    records = read_jsonl(output / "metrics.jsonl")
    # 21 rows by 4 are 6 steps an epoch, the last of which has one row.
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["rows"] for record in records][4:8] == [20, 21, 25, 29]
    assert [record["epoch"] for record in records][5::6] == [1.0, 2.0]
    for record in records:
        assert set(record["loss_by_component"]) <= {"raw", "instructions"}
        values = [value for value in record.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in values)
    assert records[-1]["loss"] < records[0]["loss"]
    schedule = ScheduleConfig()
    for step, record in enumerate(records):
        multiplier = learning_rate_multiplier(step, num_steps=12, schedule=schedule)
        assert record["lr"] == pytest.approx(3e-3 * multiplier)


def test_summarizes_the_run(finished):
    output, shards, _ = finished
    manifest = read_shard_manifest(shards)
    training = json.loads((output / "training.json").read_text())
    assert training["shards_fingerprint"] == manifest.fingerprint
    assert (training["steps"], training["rows"], training["epochs"]) == (12, 42, 2.0)
    assert training["tokens_seen"] == 2 * manifest.num_tokens("train")
    before, after = training["validation"]["before"], training["validation"]["after"]
    assert set(before) == set(after) == {"raw", "instructions", "all"}
    assert after["all"] < before["all"]
    tokens = training["validation"]["tokens"]
    for losses in (before, after):
        weighted = sum(losses[name] * tokens[name] for name in tokens) / sum(tokens.values())
        assert losses["all"] == pytest.approx(weighted)
    assert [record["step"] for record in read_jsonl(output / "validation.jsonl")] == [0, 5, 10, 12]
    assert (output / "COMPLETED").exists()


def test_validation_is_the_mean_over_the_tokens_of_each_component(finished):
    output, shards, _ = finished
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    dataset = ShardDataset(shards, manifest=read_shard_manifest(shards), split="validation")
    losses = {}
    for number in range(len(dataset)):
        row = dataset.row(number)
        with torch.no_grad():
            log_probabilities = model(torch.tensor(row.input_ids)[None]).logits[0].log_softmax(-1)
        start = 0
        for length in row.segment_lengths:
            losses.setdefault(row.component, []).extend(
                -log_probabilities[position - 1, row.input_ids[position]].item()
                for position in range(start + 1, start + length)
            )
            start += length
    validation = json.loads((output / "training.json").read_text())["validation"]
    assert validation["tokens"] == {name: len(values) for name, values in losses.items()}
    for name, values in losses.items():
        assert validation["after"][name] == pytest.approx(np.mean(values), rel=1e-5)


def test_a_step_is_one_update_on_the_token_mean_of_its_rows(pretrain, shards, tmp_path):
    """Against plain PyTorch, with micro-batches whose means would not average to the mean of the step."""
    options = ("--max_steps", "1", "--schedule.warmup_steps", "0", "--batch.micro_batch_rows", "3")
    assert pretrain(tmp_path / "output", *options) == 0

    manifest = read_shard_manifest(shards)
    dataset = ShardDataset(shards, manifest=manifest, split="train")
    description = describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=manifest)
    model = create_model(description, seed=0, special_ids={})
    permutation = RowPermutation(len(dataset), seed=0, name="train", epoch=0)
    batch = dataset.batch([permutation[position] for position in range(4)])
    loss = torch.nn.functional.cross_entropy(
        model(batch.input_ids).logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100
    )
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    create_optimizer(model, optimizer=OptimizerConfig(learning_rate=3e-3)).step()

    (record,) = loss_columns(tmp_path / "output")
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert record["grad_norm"] == pytest.approx(grad_norm.item(), rel=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "output" / "model").state_dict()
    untrained = create_model(description, seed=0, special_ids={}).state_dict()
    for name, weight in model.state_dict().items():
        assert not torch.equal(untrained[name], weight)
        # AdamW's first update is about the sign of the gradient, which rounding turns where it is next to zero.
        assert ((trained[name] - weight).abs() > 1e-5).float().mean() < 0.01, name


def test_decays_matrices_only(shards):
    description = describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=read_shard_manifest(shards))
    model = create_model(description, seed=0, special_ids={})
    optimizer = create_optimizer(model, optimizer=OptimizerConfig(weight_decay=0.3))
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    by_name = {name: decay[id(weight)] for name, weight in model.named_parameters()}
    assert len(by_name) == len(decay)
    assert {name for name, value in by_name.items() if value == 0} == {
        name for name in by_name if "norm" in name or "embed" in name
    }
    assert by_name["lm_head.weight"] == by_name["model.layers.0.mlp.up_proj.weight"] == 0.3


def test_seed_decides_weights_and_order(pretrain, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert pretrain(tmp_path / name, "--seed", seed, "--max_steps", "2") == 0
    assert loss_columns(tmp_path / "a") == loss_columns(tmp_path / "b")
    assert loss_columns(tmp_path / "a") != loss_columns(tmp_path / "c")


def test_max_steps_can_go_beyond_an_epoch(pretrain, tmp_path):
    assert pretrain(tmp_path, "--max_steps", "8", "--logging.every_steps", "3") == 0
    assert [(record["step"], record["rows"]) for record in loss_columns(tmp_path)] == [(3, 12), (6, 21), (8, 29)]


def test_bfloat16_arithmetic_keeps_float32_weights(pretrain, tmp_path):
    assert pretrain(tmp_path / "half", "--model.dtype", "bfloat16", "--max_steps", "3") == 0
    assert pretrain(tmp_path / "full", "--max_steps", "3") == 0
    half, full = loss_columns(tmp_path / "half"), loss_columns(tmp_path / "full")
    assert half != full
    assert [record["loss"] for record in half] == pytest.approx([record["loss"] for record in full], rel=0.01)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half" / "model")
    assert model.dtype == torch.float32


def test_a_finished_run_is_left_alone(finished, caplog):
    output, _, arguments = finished
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with caplog.at_level("INFO", logger="trainer"):
        assert main(arguments) == 0
    assert "nothing left to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times


def test_another_run_in_the_same_output_is_refused(finished, capsys):
    output, _, arguments = finished
    before = (output / "training.json").read_bytes()
    assert main([*arguments, "--optimizer.learning_rate", "1e-3"]) == 2
    assert "config.optimizer.learning_rate (there 0.003, here 0.001)" in capsys.readouterr().err
    assert (output / "training.json").read_bytes() == before
    # What does not change the result may change.
    assert main([*arguments, "--batch.micro_batch_rows", "1", "--logging.every_steps", "7"]) == 0


def test_continues_a_model_and_keeps_its_tokenizer(finished, tmp_path):
    output, shards, _ = finished
    arguments = ["--shards", shards, "--model.name_or_path", str(output / "model"), "--device", "cpu"]
    arguments += ["--batch.rows_per_step", "4", "--max_steps", "2"]
    assert main([*arguments, "--output", str(tmp_path / "next")]) == 0
    first = json.loads((output / "training.json").read_text())["validation"]
    second = json.loads((tmp_path / "next" / "training.json").read_text())["validation"]
    assert second["before"] == pytest.approx(first["after"])
    assert (tmp_path / "next" / "model" / "tokenizer.json").read_bytes() == (
        output / "model" / "tokenizer.json"
    ).read_bytes()


def test_names_the_rows_whose_loss_is_not_finite(finished, tmp_path, capsys):
    output, shards, _ = finished
    dataset = ShardDataset(shards, manifest=read_shard_manifest(shards), split="train")
    poisoned_id = int(dataset.row(3).input_ids[0])
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned_id] = float("nan")
    model.save_pretrained(tmp_path / "poisoned")
    poisoned = []
    for number in range(len(dataset)):
        ids = dataset.row(number).input_ids.tolist()
        # Whatever is predicted behind the poisoned token attends to it.
        if poisoned_id in ids and (labels_of(dataset.row(number))[ids.index(poisoned_id) + 1 :] != -100).any():
            poisoned.append(number)
    assert 3 in poisoned
    assert len(poisoned) <= 8
    arguments = ["--shards", shards, "--output", str(tmp_path / "output"), "--validation.at_start", "false"]
    arguments += ["--model.name_or_path", str(tmp_path / "poisoned"), "--batch.rows_per_step", "21", "--device", "cpu"]
    assert main([*arguments, "--spikes.max_consecutive", "1"]) == 2
    named = ", ".join(f"row {row} (not finite)" for row in poisoned[:4])
    assert f"because the loss is not finite (highest losses: {named}" in capsys.readouterr().err
    assert not (tmp_path / "output" / "COMPLETED").exists()


def test_without_a_validation_split_there_is_nothing_to_validate(tmp_path):
    shards = write_example_shards(str(tmp_path), num_validation_rows=0)
    arguments = ["--shards", shards, "--output", str(tmp_path / "output"), "--max_steps", "1", "--device", "cpu"]
    assert main([*arguments, "--model.init", "scratch", "--model.preset", "tiny"]) == 0
    validation = json.loads((tmp_path / "output" / "training.json").read_text())["validation"]
    assert validation == {"before": {}, "after": {}, "tokens": {}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda"), "PyTorch sees no GPU"),
        (("--shards", "nowhere"), "no run is there"),
        (("--model.preset", "huge"), "must be one of tiny, 500m, 1.3b"),
        (("--model.preset", "null"), "model.preset is None"),
        (("--model.init", "continual", "--model.preset", "null"), "model.name_or_path is None"),
        (
            ("--model.init", "continual", "--model.preset", "null", "--model.name_or_path", "./nowhere"),
            "There is no model folder ./nowhere",
        ),
        (("--optimizer.learning_rate", "-1"), "optimizer.learning_rate is -1.0; it must be positive"),
        (("--batch.rows_per_step", "0"), "batch.rows_per_step is 0; it must be positive"),
        (("--checkpoint.resume", "nowhere"), "nowhere is not a completed artifact"),
    ],
)
def test_refuses_before_any_work(pretrain, tmp_path, capsys, options, message):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert pretrain(tmp_path / "output", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_refuses_an_unknown_key(pretrain, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        pretrain(tmp_path / "output", "--optimizer.momentum", "0.9")
    assert stopped.value.code == 2
    assert "optimizer.momentum" in capsys.readouterr().err


def test_refuses_a_model_that_does_not_fit_the_shards(finished, tmp_path, capsys):
    output, _, _ = finished
    arguments = ["--output", str(tmp_path / "output"), "--model.name_or_path", str(output / "model"), "--device", "cpu"]

    tokenizer = str(tmp_path / "larger_tokenizer")
    sha256 = write_tokenizer(tokenizer, num_words=598)
    write_shards(
        str(tmp_path / "larger"),
        {"train": [make_rows(2, component="raw")]},
        tokenizer_folder=tokenizer,
        tokenizer_sha256=sha256,
        vocab_size=600,
    )
    assert main([*arguments, "--shards", str(tmp_path / "larger")]) == 2
    message = capsys.readouterr().err
    assert "600 ids" in message
    assert "embeddings for 512 only" in message

    tokenizer = str(tmp_path / "other_tokenizer")
    sha256 = write_tokenizer(tokenizer, prefix="v")
    write_shards(
        str(tmp_path / "other"),
        {"train": [make_rows(2, component="raw")]},
        tokenizer_folder=tokenizer,
        tokenizer_sha256=sha256,
    )
    assert main([*arguments, "--shards", str(tmp_path / "other")]) == 2
    message = capsys.readouterr().err
    assert "another tokenizer" in message
    assert "the token 'w0', of id 2 for the model, is missing" in message
    assert str(output / "model") in message
    assert tokenizer in message

    write_shards(
        str(tmp_path / "long"),
        {"train": [make_rows(2, component="raw", sequence_length=4096)]},
        tokenizer_folder=tokenizer,
        tokenizer_sha256=sha256,
        sequence_length=4096,
    )
    assert main([*arguments, "--shards", str(tmp_path / "long")]) == 2
    assert "rows of 4096 tokens" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_refuses_a_tokenizer_that_changed_since_packing(pretrain, tmp_path, capsys):
    shards = write_example_shards(str(tmp_path))
    write_tokenizer(str(tmp_path / "tokenizer"), num_words=100)
    assert pretrain(tmp_path / "output", "--shards", shards) == 2
    assert "has changed since the shards were packed" in capsys.readouterr().err


def test_refuses_a_damaged_shard(pretrain, tmp_path, capsys):
    shards = write_example_shards(str(tmp_path))
    (tmp_path / "shards" / "train-00001.parquet").write_bytes(b"PAR1")
    assert pretrain(tmp_path / "output", "--shards", shards) == 2
    assert "train-00001.parquet is damaged" in capsys.readouterr().err
