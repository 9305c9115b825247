import io
import json
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from rich.console import Console

from beam_pipelines import journal, progress, status
from beam_pipelines.commands import run_command
from beam_pipelines.journal import JournalWriter
from beam_pipelines.progress import describe_seconds, follow, show_progress
from beam_pipelines.status import StatusConfig, describe_status, main, read_status
from contracts import storage
from contracts.artifact import claim_output, mark_completed
from synth_model.gates.config import PairGateConfig
from synth_model.generation import Completion, Failure
from tests.beam_pipelines.pipeline_runs import (
    fake_engine,
    make_documents,
    read_examples,
    read_rejects,
    run_synthesize,
    write_jsonl,
)

START = 1_000_000


class Clock:
    """Stands for the module `time` wherever a clock is read."""

    def __init__(self):
        self.now = float(START)
        self.monotonic = self.time

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (journal, status):
        monkeypatch.setattr(module, "time", clock)
    return clock


def shown(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def completions(num, *, num_new_tokens=10):
    record = Completion(text="xx", finish_reason="stop", num_prompt_tokens=100, num_new_tokens=num_new_tokens)
    return [(f"key {number}", record) for number in range(num)]


@pytest.fixture
def started(tmp_path):
    """A run that some other process is doing, and its writer, which finds three pairs in every second completion."""
    output = str(tmp_path / "out")
    claim_output(output, run={"command": "synthesize", "config": {}, "inputs": {}})
    counts = iter([3, 0] * 1000)
    return output, lambda: JournalWriter(output, start_id=journal.begin(output), count_pairs=lambda _: next(counts))


def test_a_running_synthesis_is_told_from_its_journal_alone(started, clock):
    output, start = started
    assert "not completed" not in shown(describe_status(read_status(output)))
    assert "started, no completion yet" in shown(describe_status(read_status(output)))
    writer = start()
    clock.now += 10
    writer.write(completions(4), failures=[Failure(reason="prompt_too_long", detail="99")])
    assert read_status(output).progress.num_planned is None
    journal.write_plan(output, num_prompts=25, rejected={"chain/duplicate_id": 2})
    clock.now += 10
    writer.write(completions(6))
    clock.now += 5

    found = read_status(output)
    assert found.as_json() == {
        "output": output,
        "command": "synthesize",
        "is_completed": False,
        "num_done": 10,
        "num_planned": 25,
        "failures": {"prompt_too_long": 1},
        "num_failed": 1,
        "rejected": {"chain/duplicate_id": 2},
        "num_with_pairs": 5,
        "num_pairs": 15,
        "num_prompt_tokens": 1000,
        "num_new_tokens": 100,
        "new_tokens_per_second": 5.0,
        "completions_per_second": 0.5,
        "last_second": START + 20,
        "pairs_per_document": 1.5,
        "share_with_pairs": 0.5,
        "seconds_left": 28.0,
        "idle_seconds": 5.0,
    }
    lines = [line.strip() for line in shown(describe_status(found)).splitlines()]
    assert lines[0].split(maxsplit=1)[1].startswith("synthesize into /")
    assert [line.split(maxsplit=1) for line in lines[-8:]] == [
        ["state", "not completed, last completion 5 s ago"],
        ["prompts", "10 of 25 done (40.0%), 1 failed"],
        ["tokens", "1000 in prompts, 100 new"],
        ["speed", "5.0 new tokens/s of late"],
        ["left", "about 28 s"],
        ["pairs", "15, 1.50 a document; 50.0% of documents have any"],
        ["failed", "1 prompt_too_long"],
        ["rejected", "2 chain/duplicate_id"],
    ]


def test_a_run_that_stands_still_is_told_from_one_that_goes_on(started, clock):
    output, start = started
    writer = start()
    clock.now += 10
    writer.write(completions(4))
    journal.write_plan(output, num_prompts=10)
    clock.now += 3 * 3600
    table = shown(describe_status(read_status(output)))
    assert "nothing seems to run: last completion 3 h 0 min ago; the same command goes on" in table
    assert "left" not in table
    # A clock that is behind the writers' is no reason for a negative time.
    clock.now = START
    assert read_status(output).idle_seconds == 0.0


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completed")
    records = [*make_documents(30), {"id": "web-0", "source": "web", "text": "Another text of the same id."}, {"x": 1}]
    manifest = run_synthesize(
        [write_jsonl(folder / "in.jsonl", records)],
        folder / "out",
        chain_length=3,
        engine=fake_engine(failure_rate=0.15, no_pair_rate=0.3),
        gates=PairGateConfig(min_grounding=0.7),
    )
    return folder / "out", manifest


def test_journal_and_manifest_of_a_synthesis_agree(completed):
    output, manifest = completed
    by_manifest = read_status(str(output))
    by_journal = journal.read_progress(str(output))
    assert by_manifest.is_completed
    failures = Counter(reject.reason for reject in read_rejects(output) if reject.stage == "synthesize")
    assert by_journal.failures == by_manifest.progress.failures == dict(failures)
    assert by_journal.num_failed > 0
    for name in ("num_done", "num_planned", "num_prompt_tokens", "num_new_tokens"):
        assert getattr(by_journal, name) == getattr(by_manifest.progress, name)
    assert by_journal.num_left == by_manifest.progress.num_left == 0
    assert by_journal.rejected == {"chain/duplicate_id": 1, "read/no_text": 1}
    assert by_manifest.progress.rejected == {**by_journal.rejected, **manifest.rejected_pairs_by_reason}
    # The journal counts pairs before the gate, the manifest those that passed.
    num_gated = sum(manifest.rejected_pairs_by_reason.values())
    assert num_gated > 0
    assert by_journal.num_pairs == by_manifest.progress.num_pairs + num_gated
    texts = {reject.doc_id for reject in read_rejects(output) if reject.stage == "gate"}
    texts |= {doc_id for doc_id, example in read_examples(output).items() if example.pairs}
    assert by_journal.num_with_pairs == len(texts) >= by_manifest.progress.num_with_pairs > 0


def test_a_completed_run_has_no_speed_and_needs_no_journal(completed, capsys):
    output, manifest = completed
    (output / "journal").rename(output / "elsewhere")
    try:
        found = read_status(str(output))
        assert main(StatusConfig(output=str(output), watch=True)) == 0
    finally:
        (output / "elsewhere").rename(output / "journal")
    assert (found.idle_seconds, found.progress.seconds_left) == (None, None)
    assert found.progress.num_new_tokens == manifest.num_new_tokens
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()].count(["state", "completed"]) == 1
    assert "speed" not in printed


def test_where_no_run_is(tmp_path):
    with pytest.raises(ValueError, match="No run is in"):
        read_status(str(tmp_path))


def test_the_command_takes_flags_without_values(completed, capsys):
    output, _ = completed
    assert run_command(["status", str(output), "--watch", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == read_status(str(output)).as_json()
    assert run_command(["status", str(output), "--json", "false"]) == 0
    assert "completed" in capsys.readouterr().out


def test_watching_ends_with_the_run(started, clock, monkeypatch, capsys):
    output, start = started
    writer = start()
    looks = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            """What happens between two looks."""
            looks.append(timeout)
            clock.now += 10
            if len(looks) < 3:
                writer.write(completions(2))
            else:
                storage.remove_folder(output)
                claim_output(output, run={"command": "pack", "config": {}, "inputs": {}})
                mark_completed(output, fingerprint="0")
            return False

    # Of this module alone: threads of other tests wait too.
    monkeypatch.setattr(status, "threading", SimpleNamespace(Event=Event))
    assert main(StatusConfig(output=output, watch=True, json=True)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["num_done"], line["is_completed"]) for line in lines] == [
        (0, False),
        (2, False),
        (4, False),
        (0, True),
    ]


def test_the_longer_a_look_takes_the_rarer_it_is(monkeypatch):
    clock, pauses = Clock(), []
    monkeypatch.setattr(progress, "time", clock)
    durations = iter([0.001, 0.05, 4.0, 30.0, 0.5])
    looks = []

    def look(output):
        looks.append(output)
        clock.now += next(durations)
        return len(looks)

    class Stop:
        def wait(self, seconds):
            pauses.append(seconds)
            return len(pauses) == 4

    monkeypatch.setattr(progress.journal, "read_progress", look)
    # Once more when it is told to stop.
    assert list(follow("out", stop=Stop())) == [1, 2, 3, 4, 5]
    assert pauses == pytest.approx([1.0, 1.0, 40.0, 300.0])


def test_progress_is_shown_line_by_line_where_there_is_no_terminal(started, clock):
    output, start = started
    writer = start()
    console = Console(file=io.StringIO(), width=120)
    journal.write_plan(output, num_prompts=8)
    with show_progress(output, console=console, label="working"):
        clock.now += 4
        writer.write(completions(6), failures=[Failure(reason="generation_failed", detail="")])
    assert console.file.getvalue().splitlines()[-1] == "working: 7/8 prompts, 15 tokens/s, about 1 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 0 h"),
        (8 * 86_400 + 3 * 3600, "8 d 3 h"),
    ],
)
def test_time_spans_for_people(seconds, words):
    assert describe_seconds(seconds) == words
