"""Where a run keeps its decoded rows, and what it says of reading them."""

import json

import pytest

from tests.trainer.conftest import loss_columns, read_jsonl
from trainer.step_loader import StepLoader


def decoded_in(folder):
    return sorted(path.name for path in folder.glob("*.arrow"))


def test_a_run_keeps_its_rows_until_it_is_complete(pretrain, tmp_path):
    """And says how long it waited for them."""
    during = []
    original = StepLoader.step

    def step_and_look(self, position):
        during.append(decoded_in(tmp_path / "run" / "rows"))
        return original(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepLoader, "step", step_and_look)
        assert pretrain(tmp_path / "run", "--max_steps", "3") == 0
    assert [len(files) for files in during] == [4, 4, 4]
    assert not (tmp_path / "run" / "rows").exists()
    waited = [record["data_seconds"] for record in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert all(seconds > 0 for seconds in waited)
    assert sum(waited) == pytest.approx(training["data_seconds"])
    assert training["data_seconds"] < training["seconds"]


def test_a_folder_that_is_given_is_kept(pretrain, tmp_path):
    assert pretrain(tmp_path / "run", "--max_steps", "1", "--data.cache", str(tmp_path / "kept")) == 0
    assert len(decoded_in(tmp_path / "kept")) == 4
    assert not (tmp_path / "run" / "rows").exists()


def test_reading_ahead_and_where_rows_are_kept_change_nothing(pretrain, tmp_path):
    assert pretrain(tmp_path / "ahead", "--data.prefetch_steps", "3") == 0
    assert pretrain(tmp_path / "not", "--data.prefetch_steps", "0", "--data.cache", str(tmp_path / "kept")) == 0
    assert loss_columns(tmp_path / "ahead") == loss_columns(tmp_path / "not")
