"""Training on shards that say which tokens are targets: synthesizer tuning data."""

import pytest
import torch

from contracts.manifest import read_shard_manifest
from tests.shard_fixtures import make_rows, write_shards, write_tokenizer
from tests.trainer.conftest import loss_columns
from trainer.config import ModelConfig
from trainer.models import create_model, describe_model
from trainer.pretrain import main


def test_the_loss_of_a_step_is_the_mean_over_the_tokens_inside_the_spans(tmp_path):
    rows = make_rows(4, component="tuning", with_loss_spans=True)
    sha256 = write_tokenizer(str(tmp_path / "tokenizer"))
    shards = str(tmp_path / "shards")
    manifest = write_shards(
        shards, {"train": [rows]}, tokenizer_folder=str(tmp_path / "tokenizer"), tokenizer_sha256=sha256
    )
    assert manifest.has_loss_spans
    arguments = [
        *("--shards", shards, "--output", str(tmp_path / "output"), "--device", "cpu", "--num_epochs", "1"),
        *("--model.init", "scratch", "--model.preset", "tiny"),
        *("--batch.rows_per_step", "4", "--batch.micro_batch_rows", "2"),
    ]
    assert main(arguments) == 0
    (record,) = loss_columns(tmp_path / "output")

    # Token by token: of each row the log-probability of what stands inside a span, given all before it.
    model = create_model(
        describe_model(ModelConfig(init="scratch", preset="tiny"), manifest=read_shard_manifest(shards)),
        seed=0,
        special_ids={},
    ).eval()
    inside, outside = [], []
    for row in rows:
        with torch.no_grad():
            log_probabilities = model(torch.from_numpy(row.input_ids)[None]).logits[0].log_softmax(-1)
        position = 0
        for length in row.segment_lengths.tolist():
            for index in range(position + 1, position + length):
                losses = inside if any(start <= index < end for start, end in row.loss_spans) else outside
                losses.append(-log_probabilities[index - 1, row.input_ids[index]].item())
            position += length
    assert len(inside) > 20
    assert len(outside) > 20
    assert record["loss"] == pytest.approx(sum(inside) / len(inside), rel=1e-5)
    every_token = (sum(inside) + sum(outside)) / (len(inside) + len(outside))
    assert record["loss"] != pytest.approx(every_token, rel=1e-5)
