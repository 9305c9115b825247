import json

import pytest

from trainer.command_line import run_command
from trainer.folders import read_folder, write_folder
from trainer.metrics_log import MetricsLog
from trainer.progress import Progress
from trainer.row_permutation import RowPermutation


def test_progress_prints_about_twenty_lines_where_there_is_no_terminal(capsys):
    with Progress(description="pretrain", total=1000) as progress:
        for completed in range(1, 1001):
            progress.show(completed, figures="loss 2.5")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("pretrain: 50/1000 (5%)  loss 2.5  ETA ")
    assert lines[-1].startswith("pretrain: 1000/1000 (100%)")


def test_progress_that_goes_on_does_not_repeat_lines(capsys):
    with Progress(description="pretrain", total=100, completed=90) as progress:
        for completed in range(91, 101):
            progress.show(completed)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["95/100", "100/100"]


def test_progress_of_other_processes_is_silent(capsys):
    with Progress(description="pretrain", total=2, is_shown=False) as progress:
        progress.show(2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("storage", ["local", "memory"])
def test_a_log_that_goes_on_has_no_step_twice(tmp_path, storage):
    url = str(tmp_path / "log.jsonl") if storage == "local" else f"memory://{tmp_path.name}/log.jsonl"
    log = MetricsLog(url, last_step=0)
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    log.sync()
    again = MetricsLog(url, last_step=3)
    again.append({"step": 4, "text": "ü\u2028"})
    again.sync()
    records = MetricsLog(url, last_step=9).records()
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[-1]["text"] == "ü\u2028"


def test_a_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    log = MetricsLog(str(path), last_step=5)
    log.append({"step": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_a_log_of_another_process_writes_nothing(tmp_path):
    log = MetricsLog(str(tmp_path / "log.jsonl"), last_step=0, is_writer=False)
    log.append({"step": 1})
    log.sync()
    assert log.records() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", ["local", "memory"])
def test_a_folder_appears_when_it_is_whole(tmp_path, storage):
    url = str(tmp_path / "out" / "model") if storage == "local" else f"memory://{tmp_path.name}/model"

    def write(text):
        with write_folder(url) as folder:
            for name in ("a.txt", "b.txt"):
                with open(f"{folder}/{name}", "w") as file:
                    file.write(text)
                if text == "broken":
                    raise RuntimeError

    def read():
        with read_folder(url) as folder, open(f"{folder}/a.txt") as first, open(f"{folder}/b.txt") as second:
            return first.read(), second.read()

    write("one")
    assert read() == ("one", "one")
    with pytest.raises(RuntimeError):
        write("broken")
    assert read() == ("one", "one")
    write("two")
    assert read() == ("two", "two")


def test_errors_of_the_project_are_messages_and_others_keep_their_traceback(capsys):
    assert run_command(lambda: len(RowPermutation(0, seed=0, name="train", epoch=0))) == 2
    assert capsys.readouterr().err.startswith("error: num_rows is 0")
    with pytest.raises(ValueError, match="invalid literal"):
        run_command(lambda: int("x"))
