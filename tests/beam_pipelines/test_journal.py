import json
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_pipelines import journal
from beam_pipelines.journal import Progress
from synth_model.generation import Completion


def completion(text, *, num_new_tokens=1, finish_reason="stop"):
    return Completion(text=text, finish_reason=finish_reason, num_prompt_tokens=3, num_new_tokens=num_new_tokens)


ANY_TEXT = st.text(st.characters(codec=None), max_size=20)
LINE_BREAKS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\r\nj\rk\nl"


def read_all(output):
    return [entry for url in journal.list_segments(output) for entry in journal.read_segment(url)]


def test_any_text_comes_back_whatever_breaks_lines_elsewhere(tmp_path):
    entries = [("k1", completion(LINE_BREAKS)), ("k2", completion('\ud800 "\\ 😀 \ufeff\x00'))]
    journal.write_segment(str(tmp_path), entries)
    assert read_all(str(tmp_path)) == entries


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_segments_round_trip(tmp_path_factory, texts):
    output = str(tmp_path_factory.mktemp("run"))
    entries = [(f"key {number}", completion(text, num_new_tokens=number)) for number, text in enumerate(texts)]
    journal.write_segment(output, entries)
    assert read_all(output) == entries
    assert journal.read_progress(output) == Progress(
        num_done=len(texts), num_planned=None, num_new_tokens=sum(range(len(texts)))
    )


def test_every_batch_is_a_file_of_its_own_and_no_batch_is_none(tmp_path):
    batches = [[("a", completion("x", num_new_tokens=5))], [("b", completion("y")), ("a", completion("z"))], []]
    for batch in batches:
        journal.write_segment(str(tmp_path), batch)
    assert len(journal.list_segments(str(tmp_path))) == 2
    assert Counter(read_all(str(tmp_path))) == Counter(entry for batch in batches for entry in batch)
    assert journal.read_progress(str(tmp_path)) == Progress(num_done=3, num_planned=None, num_new_tokens=7)


def test_progress_is_known_from_names_alone(tmp_path):
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / f"completions-n12-t3400-{'0' * 32}.jsonl").write_text("never read")
    journal.write_plan(str(tmp_path), num_prompts=40)
    assert journal.read_progress(str(tmp_path)) == Progress(num_done=12, num_planned=40, num_new_tokens=3400)


def test_torn_and_foreign_files_are_no_segments(tmp_path):
    journal.write_segment(str(tmp_path), [("a", completion("x"))])
    (whole,) = (tmp_path / "journal").iterdir()
    content = whole.read_text()
    for name in (f".{whole.name}.{'a' * 32}.partial", "completions.jsonl", f"{whole.name}.bak", "notes.txt"):
        (tmp_path / "journal" / name).write_text(content[:10])
    assert journal.list_segments(str(tmp_path)) == [str(whole)]
    assert journal.read_progress(str(tmp_path)).num_done == 1
    assert [json.loads(line)["key"] for line in content.splitlines()] == ["a"]


def test_no_journal_is_no_progress(tmp_path):
    assert journal.list_segments(str(tmp_path / "nowhere")) == []
    assert journal.read_progress(str(tmp_path / "nowhere")) == Progress(num_done=0, num_planned=None, num_new_tokens=0)


def test_a_journal_lives_on_any_file_system():
    output = "memory://journal-test/run"
    journal.write_segment(output, [("a", completion("x"))])
    assert [key for key, _ in read_all(output)] == ["a"]
