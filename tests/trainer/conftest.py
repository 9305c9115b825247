import json

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.shard_fixtures import write_example_shards
from trainer.pretrain import main


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder of shards: 21 training rows in three shards, 6 validation rows, two components, 32 tokens a row."""
    return write_example_shards(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """A second thread has nothing to gain on a tiny model, and much to lose where the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture
def pretrain(shards):
    """Runs the command on the tiny preset in this process; returns the exit code."""

    def run(output, *options):
        # Accelerate keeps its choice of precision for the life of a process; a run here may choose otherwise.
        AcceleratorState._reset_state(reset_partial_state=True)
        return main(
            [
                *("--shards", shards, "--output", str(output), "--device", "cpu"),
                *("--model.init", "scratch", "--model.preset", "tiny"),
                *("--batch.rows_per_step", "4", "--batch.micro_batch_rows", "2", "--num_epochs", "2"),
                *("--optimizer.learning_rate", "3e-3", "--checkpoint.every_steps", "2"),
                *options,
            ]
        )

    return run


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


LOSS_KEYS = ("step", "epoch", "rows", "tokens", "loss", "loss_by_component", "lr", "grad_norm")


def loss_columns(output):
    """What of the log does not depend on the clock."""
    return [{key: record[key] for key in LOSS_KEYS} for record in read_jsonl(output / "metrics.jsonl")]
