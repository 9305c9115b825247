import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.decontamination import DecontaminationConfig, EvaluationIndex, find_evaluation_files, load_index
from tests.beam_pipelines.pipeline_runs import (
    make_documents,
    make_text,
    read_examples,
    read_rejects,
    run_synthesize,
    write_jsonl,
)

ITEM = "Which of the four gases makes up most of the air that we breathe every single day?"
SHORT = "Name the tallest mountain on the whole planet"


def index_of(*texts, ngram_words=13, min_item_words=8):
    return EvaluationIndex(
        [("set.jsonl", f"set.jsonl:{number}", text) for number, text in enumerate(texts, start=1)],
        ngram_words=ngram_words,
        min_item_words=min_item_words,
    )


def test_a_shared_run_is_found_whatever_its_layout_and_named_as_the_text_has_it():
    run = "of the FOUR gases\nmakes up (most) of the air -- that we breathe"
    found = index_of("Another item without anything in common, though it is long enough.", ITEM).find(
        f"A quiz asked: which one {run}, and why?"
    )
    assert (found.words, found.file, found.place) == (run, "set.jsonl", "set.jsonl:2")


def test_twelve_shared_words_are_no_contamination():
    words = ITEM.rstrip("?").split()
    assert index_of(ITEM).find(" ".join(words[:12])) is None
    assert index_of(ITEM).find(" ".join(words[:13])) is not None


def test_a_shorter_item_counts_as_a_whole():
    index = index_of(SHORT, "Too short to count")
    assert index.num_items == 1
    assert index.find(f"Please {SHORT.lower()}, and its height.").place == "set.jsonl:1"
    assert index.find(SHORT.rsplit(" ", 1)[0]) is None
    assert index.find("Too short to count") is None


def test_a_script_without_spaces_is_compared_by_characters():
    index = index_of("水在标准大气压下的沸点是多少摄氏度")
    assert index.find("他问：“水在标准大气压下的沸点是多少摄氏度？”").words == "水在标准大气压下的沸点是多"
    assert index.find("水在标准大气压下沸腾") is None


words = st.lists(st.sampled_from("abc"), max_size=25)


@given(st.lists(words, max_size=4), words, st.integers(1, 4), st.integers(0, 3))
def test_it_finds_what_a_search_through_all_runs_finds(items, text, ngram_words, spare):
    min_item_words = max(1, ngram_words - spare)
    found = index_of(*map(" ".join, items), ngram_words=ngram_words, min_item_words=min_item_words).find(" ".join(text))

    def runs(sequence, length):
        return [tuple(sequence[start : start + length]) for start in range(len(sequence) - length + 1)]

    sought = [run for item in items if len(item) >= min_item_words for run in runs(item, min(ngram_words, len(item)))]
    shared = [run for run in sought if run in runs(text, len(run))]
    if not shared:
        assert found is None
        return
    run = tuple(found.words.split())
    assert len(run) == max(map(len, shared))
    assert run in shared
    number = int(found.place.split(":")[1])
    assert run in runs(items[number - 1], len(run))


def test_items_are_the_strings_of_records_however_nested(tmp_path):
    path = write_jsonl(
        tmp_path / "set.jsonl", [{"id": 7, "ask": {"parts": [ITEM]}, "choices": [SHORT, "air"], "note": make_text("n")}]
    )
    zipped = tmp_path / "more.jsonl.gz"
    zipped.write_bytes(gzip.compress(json.dumps({"ask": make_text("zip")}).encode()))
    config = DecontaminationConfig(files=[str(tmp_path)])
    files = [file.url for file in find_evaluation_files(config)]
    index = load_index(config, files=files)
    assert index.num_items == 4
    assert index.find(ITEM).place == f"{path}:1"
    assert index.find(make_text("zip")).file == "more.jsonl.gz"
    chosen = load_index(DecontaminationConfig(files=[path], fields=["choices"]), files=[path])
    assert chosen.num_items == 1
    assert chosen.find(SHORT) is not None
    assert chosen.find(ITEM) is None


def test_no_files_are_no_evaluation():
    assert find_evaluation_files(DecontaminationConfig()) == []


def test_a_damaged_evaluation_set_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"ask": ITEM}) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"set.jsonl:2: .*Mend or remove it"):
        load_index(DecontaminationConfig(files=[str(path)]), files=[str(path)])


@pytest.mark.parametrize("fields", [[], ["question"]])
def test_an_evaluation_set_without_items_is_refused(tmp_path, fields):
    path = write_jsonl(tmp_path / "set.jsonl", [{"ask": "Too short."}])
    with pytest.raises(ValueError, match="hold no item of at least 8 words"):
        load_index(DecontaminationConfig(files=[path], fields=fields), files=[path])


@pytest.mark.parametrize("numbers", [{"ngram_words": 0}, {"min_item_words": 0}, {"min_item_words": 14}])
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(ValueError, match="min_item_words"):
        DecontaminationConfig(**numbers).check()


def test_a_synthesis_rejects_contaminated_documents_by_file(tmp_path):
    evaluation = write_jsonl(tmp_path / "eval" / "quiz.jsonl", [{"question": ITEM}])
    records = make_documents(5)
    records[2]["text"] += f" {ITEM}"
    corpus = write_jsonl(tmp_path / "in.jsonl", records)
    config = DecontaminationConfig(files=[evaluation])
    manifest = run_synthesize([corpus], tmp_path / "out", decontamination=config)
    assert manifest.accounts.rejected_by_reason == {"decontaminate/shared_with_quiz.jsonl": 1}
    assert set(read_examples(tmp_path / "out")) == {f"web-{number}" for number in (0, 1, 3, 4)}
    (reject,) = read_rejects(tmp_path / "out")
    assert (reject.doc_id, reject.text) == ("web-2", records[2]["text"])
    assert reject.detail.endswith(f"stands in {evaluation}:1")
    # Another evaluation set is another run.
    write_jsonl(evaluation, [{"question": ITEM + " Why?"}])
    with pytest.raises(ValueError, match=r"differs in: .*quiz.jsonl"):
        run_synthesize([corpus], tmp_path / "out", decontamination=config)


def test_a_missing_evaluation_set_is_refused_before_any_work(tmp_path):
    corpus = write_jsonl(tmp_path / "in.jsonl", make_documents(2))
    with pytest.raises(ValueError, match="No file matches"):
        run_synthesize(
            [corpus], tmp_path / "out", decontamination=DecontaminationConfig(files=[str(tmp_path / "absent.jsonl")])
        )
    assert not (tmp_path / "out").exists()


def test_planted_questions_of_published_sets_are_found(shared_folder):
    """Real sets index, a question planted in a text is found, and a text of our own is clean."""
    config = DecontaminationConfig(files=[str(shared_folder / "data" / "eval" / "arc_*.jsonl.gz")])
    files = [file.url for file in find_evaluation_files(config)]
    if not files:
        pytest.skip("the evaluation sets are absent")
    index = load_index(config, files=files)
    with gzip.open(files[0], "rt", encoding="utf-8") as file:
        strings = [value for line in file for value in json.loads(line).values() if isinstance(value, str)]
    long_strings = [text for text in strings if len(text.split()) > 20][:50]
    assert len(long_strings) == 50
    assert all(index.find(f"{make_text('before')} {text} {make_text('after')}") for text in long_strings)
    assert index.find(make_text("clean", num_sentences=50)) is None
