"""The real TensorBoard and Weights & Biases, without a network, read back by their own readers."""

import importlib.util
import json
import struct
import time

import pytest

from tests.trainer.conftest import read_jsonl
from trainer.metrics_log import MetricsLog
from trainer.trackers import Trackers, require_trackers

has_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs the extra `tensorboard`"
)
has_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra `wandb`")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No network, no account, and nothing on the screen."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


class Killed(BaseException):
    """What nobody catches."""


def kill_after_logging(patch, number):
    append = MetricsLog.append

    def append_and_die(log, record):
        append(log, record)
        if "loss" in record and record["step"] == number:
            raise Killed

    patch.setattr(MetricsLog, "append", append_and_die)


def open_trackers(output, *names, last_step=0):
    return Trackers(
        names, output=str(output), project="a-project", description={"config": {"seed": 1}}, last_step=last_step
    )


def tensorboard_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_history(output):
    """The logged values of every run folder, in order.

    The file is a log in LevelDB's format behind a header of seven bytes: blocks of 32 KiB, in which each piece of a
    record has a checksum (4 bytes), its length (2) and its place in the record (1: whole, 2 to 4: first to last).
    """
    from wandb.proto import wandb_internal_pb2

    values = []
    for path in sorted(output.glob("wandb/offline-run-*/run-*.wandb")):
        content, position, parts = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
            _, length, place = struct.unpack_from("<IHB", content, position)
            parts += content[position + 7 : position + 7 + length]
            position += 7 + length
            if place in (1, 4):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(parts)
                parts = b""
                if record.WhichOneof("record_type") == "history":
                    values.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
    return values


@has_tensorboard
def test_tensorboard_has_every_logged_number_once_after_a_kill(pretrain, tmp_path, monkeypatch):
    options = ("--logging.trackers", "[tensorboard]", "--validation.every_steps", "3")
    with monkeypatch.context() as patch:
        # Behind the checkpoint of step 4, so that step 5 comes again.
        kill_after_logging(patch, 5)
        with pytest.raises(Killed):
            pretrain(tmp_path, *options)
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 5
    assert pretrain(tmp_path, *options) == 0
    scalars = tensorboard_scalars(tmp_path / "tensorboard")
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert len(records) == 12
    for name, values_of in {
        "train/loss": lambda record: record["loss"],
        "train/grad_norm": lambda record: record["grad_norm"],
        "train/loss_by_component/raw": lambda record: record["loss_by_component"].get("raw"),
    }.items():
        expected = [(record["step"], values_of(record)) for record in records if values_of(record) is not None]
        assert [step for step, _ in scalars[name]] == [step for step, _ in expected]
        assert [value for _, value in scalars[name]] == pytest.approx([value for _, value in expected])
    validations = read_jsonl(tmp_path / "validation.jsonl")
    assert scalars["validation/losses/all"] == [
        (record["step"], pytest.approx(record["losses"]["all"])) for record in validations
    ]


@has_tensorboard
def test_what_was_logged_behind_the_checkpoint_is_forgotten(tmp_path):
    with open_trackers(tmp_path, "tensorboard") as trackers:
        trackers.start()
        for step in range(1, 8):
            trackers.log({"step": step, "loss": 1.0}, group="train")
    with open_trackers(tmp_path, "tensorboard", last_step=4) as trackers:
        trackers.start()
        for step in range(5, 7):
            trackers.log({"step": step, "loss": 2.0}, group="train")
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]
    assert tensorboard_scalars(tmp_path / "tensorboard")["train/loss"] == expected


@has_wandb
def test_wandb_writes_a_run_without_network_or_login(tmp_path):
    for last_step in (0, 2):
        with open_trackers(tmp_path, "wandb", last_step=last_step) as trackers:
            trackers.start()
            trackers.log({"step": last_step + 1, "loss": 2.5, "loss_by_component": {"raw": 2.0}}, group="train")
            trackers.log({"step": last_step + 2, "loss": 2.25, "skipped": "a spike", "mfu": None}, group="train")
        time.sleep(1.1)  # its folders are named by the second
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb_run_id"]
    folders = list(tmp_path.glob("wandb/offline-run-*"))
    assert folders
    assert all(folder.name.endswith(run_id) for folder in folders)
    logged = {int(values["_step"]): values for values in wandb_history(tmp_path)}
    assert logged[1]["train/loss"] == logged[3]["train/loss"] == "2.5"
    assert logged[1]["train/loss_by_component/raw"] == "2"
    assert {name for name in logged[4] if name.startswith("train/")} == {"train/loss"}


class BrokenTracker:
    """Works until it does not."""

    def __init__(self):
        self.num_calls = 0

    def log(self, values, step):
        self.num_calls += 1
        if step >= 2:
            raise OSError("No space left on device")

    def finish(self):
        raise AssertionError("what has failed is not asked again")


def test_a_tracker_that_fails_is_named_once_and_left_out(tmp_path, caplog):
    broken = BrokenTracker()
    with caplog.at_level("WARNING", logger="trainer"), open_trackers(tmp_path) as trackers:
        trackers._running["tensorboard"] = broken
        for step in range(1, 6):
            trackers.log({"step": step, "loss": 1.0}, group="train")
    assert broken.num_calls == 2
    assert [record.message for record in caplog.records] == [
        "The tracker 'tensorboard' failed and is left out from now on: No space left on device"
    ]


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(pretrain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trainer.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"instruction-pretraining\[wandb\]"):
        require_trackers(["wandb"])
    assert pretrain(tmp_path / "output", "--logging.trackers", "[tensorboard]") == 2
    assert "instruction-pretraining[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


@has_wandb
def test_a_tracker_that_cannot_start_is_refused(tmp_path, monkeypatch):
    def refuse(**arguments):
        raise RuntimeError("no API key")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.raises(ValueError, match=r"'wandb' cannot start: no API key.*WANDB_MODE=offline"):
        open_trackers(tmp_path, "wandb").start()
