import json

import pytest

from trainer.command_line import run_command
from trainer.folders import read_folder, write_folder
from trainer.metrics_log import MetricsLog, read_log
from trainer.progress import Pace, Progress, step_figures
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


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("trainer.progress.time.monotonic", lambda: self.now)

    def step(self, pace, seconds):
        with pace.measure_step():
            self.now += seconds

    def pause(self, pace, kind, seconds):
        with pace.measure_pause(kind):
            self.now += seconds


def test_time_left_counts_steps_and_the_pauses_that_are_still_due(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pace(num_steps=100, every_steps={"validation": 10, "save": 25, "never": None})
    assert pace.seconds_left(0) is None
    for _ in range(10):
        clock.step(pace, 2.0)
    assert pace.seconds_left(10) == 90 * 2
    clock.pause(pace, "validation", 30.0)
    # Before step 100: validations at 20, 30, ... 90, and none at 100, which is left to the end of the run.
    assert pace.seconds_left(10 + 1) == 89 * 2 + 8 * 30
    clock.pause(pace, "validation", 50.0)
    clock.pause(pace, "save", 7.0)
    # Asked between step and pause, the pause at this very step is still due: saves at 25, 50, 75.
    assert pace.seconds_left(25) == 75 * 2 + 7 * 40 + 3 * 7
    assert pace.seconds_left(100) == 0


def test_time_left_is_exact_for_a_steady_run(monkeypatch):
    """Against the clock of a run that is played to its end."""
    clock = Clock(monkeypatch)
    pace = Pace(num_steps=57, every_steps={"validation": 6, "save": 10})
    estimates = []
    for step in range(1, 58):
        clock.step(pace, 1.5)
        estimates.append((clock.now, pace.seconds_left(step)))
        for kind, every, seconds in (("validation", 6, 20.0), ("save", 10, 4.0)):
            if step % every == 0 and step != 57:
                clock.pause(pace, kind, seconds)
    for now, seconds_left in estimates[10:]:
        assert now + seconds_left == pytest.approx(clock.now)


def test_a_slow_first_step_is_forgotten(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pace(num_steps=1000, every_steps={})
    clock.step(pace, 300.0)
    for _ in range(100):
        clock.step(pace, 1.0)
    assert pace.seconds_left(101) == 899


def test_progress_shows_the_time_that_it_is_given(capsys):
    with Progress(description="pretrain", total=1) as progress:
        progress.show(1, seconds_left=3723)
    assert capsys.readouterr().out.endswith("ETA 1:02:03\n")


def test_figures_of_a_step():
    figures = {"loss": 2.3456, "grad_norm": 0.5, "learning_rate": 3e-4, "tokens_per_second": 12345.6}
    assert step_figures(**figures) == "loss 2.346  grad 0.50  lr 3.00e-04  12,346 tok/s"
    assert step_figures(**figures, mfu=0.456, num_skipped=2).endswith("tok/s  MFU 45.6%  2 skipped")


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


def test_a_number_that_is_not_finite_stands_as_null(tmp_path):
    """As JSON has it, and not as Python would write it."""
    path = tmp_path / "log.jsonl"
    log = MetricsLog(str(path), last_step=0)
    log.append({"step": 1, "loss": float("nan"), "nested": {"a": [float("inf"), 1.5]}})
    assert path.read_text() == '{"step": 1, "loss": null, "nested": {"a": [null, 1.5]}}\n'


def test_listeners_hear_of_new_records_only(tmp_path):
    heard = []
    for last_step in (0, 1):
        log = MetricsLog(str(tmp_path / "log.jsonl"), last_step=last_step, on_append=heard.append)
        log.append({"step": last_step + 1})
    assert heard == [{"step": 1}, {"step": 2}]
    MetricsLog(str(tmp_path / "log.jsonl"), last_step=9, is_writer=False, on_append=heard.append).append({"step": 3})
    assert len(heard) == 2


def test_a_log_is_read_while_it_is_written(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(str(path)) == []
    path.write_text('{"step": 1}\n{"st')
    assert read_log(str(path)) == [{"step": 1}]


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
