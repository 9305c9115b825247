import io
import itertools
import json
import pickle
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines import journal
from beam_pipelines.journal import JournalWriter, Progress, Segment
from contracts import storage
from synth_model.generation import Completion, Failure


def completion(text, *, num_new_tokens=1, finish_reason="stop"):
    return Completion(text=text, finish_reason=finish_reason, num_prompt_tokens=3, num_new_tokens=num_new_tokens)


ANY_TEXT = st.text(st.characters(codec=None), max_size=20)
LINE_BREAKS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj\rk\nl"


class Clock:
    """Stands for the module `time` in the journal."""

    def __init__(self):
        self.now = 1_000_000.9

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(journal, "time", clock)
    return clock


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "out")


def writer_for(output, **options):
    return JournalWriter(output, start_id=journal.begin(output), **options)


def write_batches(writer, numbers):
    for number in numbers:
        writer.write([(f"key {number}", completion(f"text {number}", num_new_tokens=number))])


def read_all(output):
    return [entry for segment in journal.list_segments(output) for entry in journal.read_segment(segment)]


def file_names(output, kind="completions"):
    return [url.rsplit("/", 1)[-1] for url in storage.list_files(storage.join(output, "journal", kind))]


def batches_of(segments):
    return [(segment.first_batch, segment.last_batch) for segment in segments]


def test_any_text_comes_back_whatever_breaks_lines_elsewhere(output):
    entries = [("k1", completion(LINE_BREAKS)), ("k2", completion('\ud800 "\\ 😀 \ufeff\x00'))]
    writer_for(output).write(entries)
    assert read_all(output) == entries


@given(batches=st.lists(st.lists(ANY_TEXT, max_size=3), max_size=9), fan_in=st.integers(2, 4))
def test_what_is_written_comes_back_and_counts_whatever_was_merged(batches, fan_in, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("run"))
    writer = writer_for(output, count_pairs=lambda completion: len(completion.text) // 5)
    numbered = itertools.count()
    entries = [
        [(f"key {number}", completion(text, num_new_tokens=number)) for text, number in zip(batch, numbered)]  # noqa: B905
        for batch in batches
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_FAN_IN", fan_in)
        for batch in entries:
            writer.write(batch)
    flat = [entry for batch in entries for entry in batch]
    assert read_all(output) == flat
    progress = journal.read_progress(output)
    num_pairs = [len(record.text) // 5 for _, record in flat]
    assert (progress.num_done, progress.num_pairs) == (len(flat), sum(num_pairs))
    assert progress.num_with_pairs == sum(num > 0 for num in num_pairs)
    assert progress.num_new_tokens == sum(record.num_new_tokens for _, record in flat)
    assert progress.num_prompt_tokens == 3 * len(flat)


def test_each_batch_is_a_file_and_files_are_merged_twice_over(output, monkeypatch):
    monkeypatch.setattr(journal, "_FAN_IN", 3)
    writer = writer_for(output)
    expected = {
        1: [(0, 0)],
        2: [(0, 0), (1, 1)],
        3: [(0, 2)],
        8: [(0, 2), (3, 5), (6, 6), (7, 7)],
        9: [(0, 8)],
        # What was merged twice is left as it is.
        31: [(0, 8), (9, 17), (18, 26), (27, 29), (30, 30)],
    }
    for number in range(1, 32):
        write_batches(writer, [number])
        if number in expected:
            assert batches_of(journal.list_segments(output)) == expected[number]
            assert len(file_names(output)) == len(expected[number])
    assert [key for key, _ in read_all(output)] == [f"key {number}" for number in range(1, 32)]
    assert journal.read_progress(output).num_new_tokens == sum(range(1, 32))


def test_a_batch_without_completions_writes_no_segment(output):
    writer = writer_for(output)
    writer.write([])
    assert file_names(output) == []
    writer.write([("a", completion("x"))])
    assert batches_of(journal.list_segments(output)) == [(0, 0)]


def test_a_merged_file_is_one_that_other_tools_read(output, monkeypatch):
    monkeypatch.setattr(journal, "_FAN_IN", 2)
    write_batches(writer_for(output), range(2))
    (segment,) = journal.list_segments(output)
    content = io.BufferedReader(pa.CompressedInputStream(segment.url, "zstd")).read()
    assert [json.loads(line)["key"] for line in content.splitlines()] == ["key 0", "key 1"]


def test_copies_of_a_writer_are_writers_of_their_own(output):
    writer = writer_for(output)
    copies = [pickle.loads(pickle.dumps(writer)) for _ in range(2)]
    for number, copy in enumerate(copies):
        write_batches(copy, [number])
    assert len({segment.writer_id for segment in journal.list_segments(output)}) == 2


def test_entries_of_another_kind_have_a_folder_of_their_own(output):
    start_id = journal.begin(output)
    record = Failure(reason="why", detail="how")
    JournalWriter(output, start_id=start_id, kind="others").write([("k", record)], failures=[record])
    assert journal.list_segments(output) == []
    assert journal.read_progress(output) == Progress(num_done=0, num_planned=None)
    (segment,) = journal.list_segments(output, kind="others")
    assert list(journal.read_segment(segment, record=Failure)) == [("k", record)]


# The covering oracle: batches of each writer as sets, without any order.
SEGMENTS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(0, 4)).map(
        lambda t: Segment(
            folder="f",
            writer_id=t[0] * 32,
            first_batch=t[1],
            last_batch=t[1] + t[2],
            num_entries=1,
            num_with_pairs=0,
            num_pairs=0,
            num_prompt_tokens=0,
            num_new_tokens=0,
            first_second=0,
            last_second=0,
        )
    ),
    unique=True,
    max_size=8,
)


@given(SEGMENTS)
def test_only_what_one_other_segment_holds_whole_is_left_out(segments):
    kept = journal.without_covered(segments)

    def held(segment):
        return {(segment.writer_id, batch) for batch in range(segment.first_batch, segment.last_batch + 1)}

    assert set(kept) == {segment for segment in segments if not any(held(segment) < held(other) for other in segments)}


def test_what_a_killed_writer_left_is_merged_and_what_merging_left_is_removed(output, monkeypatch):
    monkeypatch.setattr(journal, "_FAN_IN", 2)
    start_id = journal.begin(output)
    for _ in range(2):
        write_batches(JournalWriter(output, start_id=start_id), range(7))
    before = read_all(output)
    (some, _) = by_writer = [
        [segment for segment in journal.list_files(output) if segment.writer_id == writer_id]
        for writer_id in sorted({segment.writer_id for segment in journal.list_files(output)})
    ]
    assert sorted(batches_of(some)) == [(0, 3), (4, 5), (6, 6)]
    # A merge that was killed before it removed what it had merged.
    leftover = replace(some[0], first_batch=1, last_batch=1)
    storage.write_bytes_atomically(leftover.url, b"not read")
    assert journal.read_progress(output).num_done == 14
    assert read_all(output) == before

    for segments in by_writer:
        kept = journal.roll_up([*segments, *([leftover] if segments is some else [])])
        # Full ones stay as they are; all others become one.
        assert batches_of(kept) == [(0, 3), (4, 6)]
    assert len(file_names(output)) == 4
    assert read_all(output) == before
    assert journal.read_progress(output).num_done == 14


class KilledError(BaseException):
    """Stands for the end of the process."""


def run_until_killed(work, *, kill_at):
    """Does some work, which ends before its ``kill_at``-th change of the storage; returns whether there was one."""
    changes = itertools.count()

    def killing(function):
        def change(*arguments, **options):
            if next(changes) >= kill_at:
                raise KilledError
            return function(*arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_atomic_output", "remove_file"):
            patch.setattr(storage, name, killing(getattr(storage, name)))
        try:
            work()
        except KilledError:
            return True
    return False


def folders(scheme, tmp_path):
    """A new folder for every point at which something is killed."""
    for kill_at in itertools.count():
        yield kill_at, str(tmp_path / str(kill_at)) if scheme == "file" else f"memory://{tmp_path.name}/{kill_at}"


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_writer_that_is_killed_at_any_change_has_lost_and_doubled_nothing(scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_FAN_IN", 2)
    num_segments = Counter()
    for kill_at, output in folders(scheme, tmp_path):
        writer = writer_for(output)
        written = []

        def work(writer=writer, written=written):
            for number in range(5):
                write_batches(writer, [number])
                written.append(number)

        was_killed = run_until_killed(work, kill_at=kill_at)
        numbers = range(journal.read_progress(output).num_done)
        # What a call returned from is there; what it was killed in may be.
        assert len(numbers) in (len(written), len(written) + 1)
        assert read_all(output) == [
            (f"key {number}", completion(f"text {number}", num_new_tokens=number)) for number in numbers
        ]
        assert journal.read_progress(output).num_new_tokens == sum(numbers)
        num_segments[len(file_names(output))] += 1
        if not was_killed:
            break
    # Five segments, two merges of two, one of two of these, and what each removes.
    assert kill_at == 5 + 3 * (1 + 2)
    assert num_segments.keys() >= {0, 1, 2, 3, 4}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_rolling_up_that_is_killed_at_any_change_loses_and_doubles_nothing(scheme, tmp_path):
    for kill_at, output in folders(scheme, tmp_path):
        write_batches(writer_for(output), range(4))
        files = journal.list_files(output)
        expected = read_all(output), journal.read_progress(output)
        was_killed = run_until_killed(lambda files=files: journal.roll_up(files), kill_at=kill_at)
        assert (read_all(output), journal.read_progress(output)) == expected
        # Beam does a step again with the same files, the next start with those that are there.
        assert batches_of(journal.roll_up(files)) == [(0, 3)]
        assert batches_of(journal.roll_up(journal.list_files(output))) == [(0, 3)]
        assert (read_all(output), journal.read_progress(output)) == expected
        assert len(file_names(output)) == 1
        if not was_killed:
            break
    # One write and four removals.
    assert kill_at == 5


def test_a_number_is_not_used_again_after_a_write_that_failed(output, monkeypatch):
    writer = writer_for(output)
    write = storage.write_bytes_atomically

    def write_and_fail(url, data):
        write(url, data)
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes_atomically", write_and_fail)
        with pytest.raises(OSError, match="no answer"):
            write_batches(writer, [1])
    write_batches(writer, [1])
    assert batches_of(journal.list_segments(output)) == [(0, 0), (1, 1)]


def test_torn_and_foreign_files_are_no_segments(output):
    write_batches(writer_for(output), [1])
    (name,) = file_names(output)
    for other in (f".{name}.{'a' * 32}.partial", "completions.jsonl", f"{name}.bak", "notes.txt", f"old-{name}"):
        storage.write_bytes_atomically(storage.join(output, "journal", "completions", other), b"torn")
    assert [segment.url.rsplit("/", 1)[-1] for segment in journal.list_segments(output)] == [name]
    assert journal.read_progress(output).num_done == 1


def test_progress_is_known_from_names_alone(output):
    name = f"{'0' * 32}-b0-63-n2048-d1800-p5400-i900000-o3400-s100-400.jsonl.zst"
    storage.write_bytes_atomically(storage.join(output, "journal", "completions", name), b"never read")
    journal.write_plan(output, num_prompts=4000, rejected={"read/no_text": 2})
    assert journal.read_progress(output) == Progress(
        num_done=2048,
        num_planned=4000,
        rejected={"read/no_text": 2},
        num_with_pairs=1800,
        num_pairs=5400,
        num_prompt_tokens=900_000,
        num_new_tokens=3400,
        new_tokens_per_second=3400 / 600,
        completions_per_second=2048 / 600,
        last_second=400,
    )


def test_no_journal_is_no_progress(output):
    assert journal.list_segments(output) == []
    assert journal.read_progress(output) == Progress(num_done=0, num_planned=None)


def test_failures_are_counted_by_reason_and_only_those_of_the_last_start(output):
    too_long = Failure(reason="prompt_too_long", detail="99 tokens")
    failed = Failure(reason="generation_failed", detail="x" * 1000)
    first = writer_for(output)
    first.write([("a", completion("x"))], failures=[too_long])
    first.write([], failures=[too_long, failed])
    journal.write_plan(output, num_prompts=10)
    progress = journal.read_progress(output)
    assert progress.failures == {"generation_failed": 1, "prompt_too_long": 2}
    assert (progress.num_done, progress.num_failed, progress.num_left) == (1, 3, 6)
    (url,) = storage.list_files(storage.join(output, "journal", "failures"))
    assert storage.read_json(url)["prompt_too_long"] == {"num_failures": 2, "example": "99 tokens"}
    # The next start tries them again.
    second, third = (JournalWriter(output, start_id=start_id) for start_id in [journal.begin(output)] * 2)
    assert journal.read_progress(output).num_failed == 0
    second.write([], failures=[failed])
    third.write([], failures=[failed])
    assert journal.read_progress(output).failures == {"generation_failed": 2}


def test_the_rate_is_that_of_the_last_ten_minutes_and_of_the_last_start(output, clock):
    writer = writer_for(output)
    clock.now += 100
    write_batches(writer, [500])
    assert journal.read_progress(output).new_tokens_per_second == pytest.approx(5.0)
    clock.now += 1000
    for _ in range(6):
        clock.now += 100
        write_batches(writer, [200])
    progress = journal.read_progress(output)
    assert progress.new_tokens_per_second == pytest.approx(2.0)
    assert progress.completions_per_second == pytest.approx(0.01)
    journal.write_plan(output, num_prompts=10)
    assert journal.read_progress(output).seconds_left == pytest.approx(300)
    # A break between two starts does not count.
    clock.now += 50_000
    writer = writer_for(output)
    assert journal.read_progress(output).new_tokens_per_second is None
    assert journal.read_progress(output).seconds_left is None
    clock.now += 10
    write_batches(writer, [70])
    assert journal.read_progress(output).new_tokens_per_second == pytest.approx(7.0)


def test_a_merged_segment_counts_in_the_rate_as_spread_over_its_time(output, clock, monkeypatch):
    monkeypatch.setattr(journal, "_FAN_IN", 13)
    writer = writer_for(output)
    for _ in range(13):
        clock.now += 100
        write_batches(writer, [60])
    assert len(file_names(output)) == 1
    # 1,200 s lie between its first and its last batch; half of them are in the window.
    assert journal.read_progress(output).new_tokens_per_second == pytest.approx(13 * 60 / 2 / 600)


def test_a_later_start_stops_the_writers_of_an_earlier_one_which_lose_nothing(output, monkeypatch):
    monkeypatch.setattr(journal, "_FAN_IN", 2)
    first = writer_for(output)
    write_batches(first, [1])
    second = writer_for(output)
    with pytest.raises(ValueError, match=r"Another start of this run has taken over .*out, .*this one stops"):
        write_batches(first, [2])
    write_batches(second, [3])
    assert Counter(key for key, _ in read_all(output)) == Counter(["key 1", "key 2", "key 3"])
    # It does not merge either: that is the last start's business.
    assert len(file_names(output)) == 3
    storage.remove_folder(output)
    with pytest.raises(ValueError, match="or the folder was removed"):
        write_batches(second, [4])


def test_a_journal_lives_on_any_file_system():
    output = "memory://journal-test/run"
    write_batches(writer_for(output), [1])
    assert [key for key, _ in read_all(output)] == ["key 1"]
