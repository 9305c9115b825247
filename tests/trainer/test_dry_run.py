"""The estimate against the run that it is about."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from contracts.manifest import read_shard_manifest
from tests.conftest import REPOSITORY
from tests.shard_fixtures import make_rows, write_shards, write_tokenizer
from trainer.config import PretrainConfig, parse_config
from trainer.dry_run import dry_run
from trainer.folders import file_sizes
from trainer.memory_estimate import count_parameters, estimate_memory, model_without_data, trace_model
from trainer.models import describe_model
from trainer.shard_tokenizer import tokenizer_sha256

SMOLLM2 = REPOSITORY / ".cache/models/smollm2-135m-instruct"


def config_of(shards, output, *options):
    arguments = [
        *("--shards", shards, "--output", str(output), "--device", "cpu"),
        *("--model.init", "scratch", "--model.preset", "tiny"),
        *("--batch.rows_per_step", "4", "--batch.micro_batch_rows", "2", "--num_epochs", "2"),
        *options,
    ]
    return parse_config(PretrainConfig, arguments=arguments, program="test")


def bytes_below(folder):
    return sum(file_sizes(str(folder)).values())


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--max_steps", "3"),
        ("--max_steps", "8", "--schedule.warmup_steps", "5"),
        ("--data.component_weights", "{raw: 2.5, instructions: 0.5}"),
    ],
    ids=["epochs", "within an epoch", "behind an epoch", "weights"],
)
def test_steps_rows_and_parameters_are_those_of_the_run(pretrain, shards, tmp_path, options):
    report = dry_run(config_of(shards, tmp_path, *options))
    assert list(tmp_path.iterdir()) == []
    assert pretrain(tmp_path, "--checkpoint.save_final_optimizer_state", "true", *options) == 0
    training = json.loads((tmp_path / "training.json").read_text())
    assert report.num_steps == training["steps"]
    assert report.rows == training["rows"]
    assert report.epochs == pytest.approx(training["epochs"])
    assert report.parameters.num_parameters == training["model"]["num_parameters"]
    # Rows differ in their padding, so the tokens of a part of an epoch are not known before it.
    exact = not options
    assert report.tokens == pytest.approx(training["tokens_seen"], rel=1e-9 if exact else 0.1)
    assert sum(component.rows for component in report.components.values()) == pytest.approx(report.rows)
    [*_, checkpoint] = sorted((tmp_path / "checkpoints").iterdir())
    assert report.checkpoint_bytes == pytest.approx(bytes_below(checkpoint), rel=0.02)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates.index(max(rates)) == max(report.num_warmup_steps - 1, 0)


def test_repetitions_are_those_of_shards_and_weights_and_epochs(shards, tmp_path):
    report = dry_run(config_of(shards, tmp_path, "--data.component_weights", "{raw: 3, instructions: 0}"))
    assert report.components["raw"].epochs == 6
    assert report.components["instructions"].rows == 0
    raw = read_shard_manifest(shards).components["raw"]["train"]
    assert report.components["raw"].tokens == 6 * raw.num_tokens
    assert report.components["raw"].repetitions == 6 * raw.epochs


def test_hours_follow_from_operations_and_peak(pretrain, shards, tmp_path):
    options = ("--logging.peak_tflops", "2", "--estimate.mfu", "0.5", "--estimate.num_processes", "4")
    report = dry_run(config_of(shards, tmp_path, *options))
    assert report.hours == pytest.approx(report.flops_per_token * report.tokens / (4 * 2e12 * 0.5) / 3600)
    assert report.measured_tokens_per_second is None
    assert dry_run(config_of(shards, tmp_path)).hours is None
    assert pretrain(tmp_path) == 0
    report = dry_run(config_of(shards, tmp_path))
    assert report.measured_tokens_per_second > 0
    assert report.measured_hours_left == 0


def test_the_command_prints_and_writes_nothing(pretrain, tmp_path, capsys):
    output = tmp_path / "output"
    assert pretrain(output, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "12 of 4 rows" in text
    assert "each text 2.00 times" in text
    assert "logging.peak_tflops" in text
    assert pretrain(output, "--json", "--dry-run", "--logging.peak_tflops", "1") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["memory"]["total"] == sum(size for part, size in values["memory"].items() if part != "total")
    assert values["parameters"]["num_parameters"] == 151_872
    assert not output.exists()


def describe(shards, tmp_path, *options):
    config = config_of(shards, tmp_path, *options)
    return config, describe_model(config.model, manifest=read_shard_manifest(shards))


def traced(shards, tmp_path, *options, dtype=torch.float32, num_rows=4, chunk_tokens=None):
    config, description = describe(shards, tmp_path, *options)
    with model_without_data(description, config=config) as model:
        kept = trace_model(model, num_rows=num_rows, sequence_length=32, dtype=dtype, chunk_tokens=chunk_tokens)
        return count_parameters(model), kept


def test_activations_are_those_that_autograd_keeps(shards, tmp_path):
    """Against a model with data, whose kept tensors are counted one by one."""
    _, description = describe(shards, tmp_path)
    model = AutoModelForCausalLM.from_config(description.config).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros(4, 32, dtype=torch.int64), use_cache=False)
    expected = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    _, estimate = traced(shards, tmp_path)
    assert estimate.layers + estimate.half_precision_copies == pytest.approx(expected, rel=1e-3)


def test_memory_follows_the_batch_the_precision_and_the_chunks(shards, tmp_path):
    counts, kept = traced(shards, tmp_path)
    _, twice = traced(shards, tmp_path, num_rows=8)
    assert twice.layers == 2 * kept.layers
    assert twice.logits == pytest.approx(2 * kept.logits, rel=1e-4)
    _, chunks = traced(shards, tmp_path, chunk_tokens=32)
    assert chunks.layers == kept.layers
    assert chunks.logits == pytest.approx(kept.logits / 4, rel=0.01)
    _, half = traced(shards, tmp_path, dtype=torch.bfloat16)
    assert 0.4 * kept.layers < half.layers < 0.9 * kept.layers
    # Two bytes an element of every matrix, and the little that does not grow with the rows.
    assert half.half_precision_copies == pytest.approx(2 * counts.matrices.num_elements, rel=0.05)


def memory(counts, kept, **options):
    defaults = {"num_processes": 1, "is_sharded": False, "has_gradient_checkpointing": False}
    return estimate_memory(counts, kept, **{**defaults, **options})


def test_memory_by_part(shards, tmp_path):
    counts, kept = traced(shards, tmp_path)
    num = counts.num_parameters
    one = memory(counts, kept)
    assert (one.weights, one.gradients, one.optimizer) == (4 * num, 4 * num, 8 * num)
    assert one.gradient_buckets == 0
    assert memory(counts, kept, num_processes=4).gradient_buckets == 4 * num
    sharded = memory(counts, kept, num_processes=4, is_sharded=True)
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (num, num, 2 * num)
    assert sharded.activations == one.activations
    assert sharded.whole_layers == 2 * 4 * counts.num_largest_layer == 8 * 43_136
    checkpointed = memory(counts, kept, has_gradient_checkpointing=True)
    # Two layers of 4 x 32 positions of 64 numbers, and all of one layer.
    assert checkpointed.activations == 2 * 4 * 32 * 64 * 4 + kept.layers // 2


def test_an_adapter_has_no_gradients_but_its_own(shards, tmp_path, pretrain):
    pytest.importorskip("peft")
    assert pretrain(tmp_path / "base", "--max_steps", "1") == 0
    options = (
        *("--model.init", "continual", "--model.preset", "null", "--model.name_or_path", str(tmp_path / "base/model")),
        *("--model.lora.rank", "8", "--model.lora.target_modules", "[q_proj, v_proj]"),
    )
    report = dry_run(config_of(shards, tmp_path / "output", *options))
    # Of each of two layers: 64 to 8 to 64, and 64 to 8 to 32.
    num_adapter = 2 * (8 * (64 + 64) + 8 * (64 + 32))
    assert report.parameters.num_trained == num_adapter
    assert report.parameters.num_parameters == 151_872 + num_adapter
    assert (report.memory.gradients, report.memory.optimizer) == (4 * num_adapter, 8 * num_adapter)
    assert pretrain(tmp_path / "output", *options, "--checkpoint.save_final_optimizer_state", "true") == 0
    checkpoint = tmp_path / "output/checkpoints/step-00000012"
    tensors = sum(size for name, size in file_sizes(str(checkpoint)).items() if name.endswith(".safetensors"))
    assert report.checkpoint_bytes == pytest.approx(tensors, rel=0.1)


def test_a_large_model_takes_seconds_and_no_memory(tmp_path, capsys):
    """Llama-3-8B's shape, with rows of 4,096 tokens, on a machine that could not hold it."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
                **{"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192},
            }
        )
    )
    rows = make_rows(3, component="raw", sequence_length=4096, vocab_size=128_256)
    sha256 = write_tokenizer(str(tmp_path / "tokenizer"))
    write_shards(
        str(tmp_path / "shards"),
        {"train": [rows]},
        tokenizer_folder=str(tmp_path / "tokenizer"),
        tokenizer_sha256=sha256,
        vocab_size=128_256,
        sequence_length=4096,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = ("--model.preset", "null", "--model.config_path", str(tmp_path), "--model.dtype", "bfloat16")
    report = dry_run(
        config_of(str(tmp_path / "shards"), tmp_path / "output", *options, "--estimate.num_processes", "8")
    )
    assert report.parameters.num_parameters == 8_030_261_248
    assert report.memory.weights == 4 * 8_030_261_248
    assert report.checkpoint_bytes == pytest.approx(12 * 8_030_261_248, rel=1e-3)
    # 6 N without the embeddings, and attention.
    flops = 6 * (8_030_261_248 - 128_256 * 4096) + 12 * 32 * 4096 * 4096
    assert report.flops_per_token == pytest.approx(flops, rel=1e-3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


_MEASURE = r"""
import re, sys
import trainer.run
from trainer.pretrain import main
def peak():
    # Not getrusage, whose peak a process takes over from the one that started it.
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
before = peak()
assert main(sys.argv[1:]) == 0
print("measured", 1024 * (peak() - before))
"""


@pytest.mark.real_model
def test_memory_and_checkpoint_of_a_real_model(tmp_path):
    if not SMOLLM2.exists():
        pytest.skip("needs the quickstart's model: make model")
    shards = str(tmp_path / "shards")
    write_shards(
        shards,
        {"train": [make_rows(4, component="raw", sequence_length=256, vocab_size=49_152)]},
        tokenizer_folder=str(SMOLLM2),
        tokenizer_sha256=tokenizer_sha256(Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))),
        vocab_size=49_152,
        sequence_length=256,
    )
    arguments = [
        *("--shards", shards, "--output", str(tmp_path / "output"), "--model.name_or_path", str(SMOLLM2)),
        *("--batch.rows_per_step", "2", "--batch.micro_batch_rows", "2", "--device", "cpu"),
        *("--checkpoint.every_steps", "1"),
    ]
    report = dry_run(parse_config(PretrainConfig, arguments=arguments, program="test"))
    assert report.parameters.num_parameters == 134_515_008
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    measured = int(process.stdout.rsplit("measured ", 1)[1])
    assert 0.8 < measured / report.memory.total < 1.35
    [checkpoint] = (tmp_path / "output/checkpoints").iterdir()
    assert report.checkpoint_bytes == pytest.approx(bytes_below(checkpoint), rel=0.02)
