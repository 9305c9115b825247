"""Task files of one's own: what they mean, and what is said about what is wrong with them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from trainer.local_tasks import LocalTask, load_local_task, read_task_records, resolve_variables

CHOICE = {"prompt": "{{ question }} ->", "choices": "options", "answer": "right"}
RECORDS = [
    {"question": "one?", "options": ["a", "b"], "right": 0},
    {"question": "two?", "options": ["c", "d", "e"], "right": 2},
    {"question": "three?", "options": ["f", "g"], "right": 1},
]


@pytest.fixture
def write(tmp_path):
    """Writes records and a task file about them; returns the file's name."""

    def write_task(records=RECORDS, **keys):
        data = tmp_path / "records.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        values = {"name": "t", "kind": "multiple_choice", "file": str(data), **keys}
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}), "utf-8")
        return str(path)

    return write_task


def documents(path, *, num_fewshot=0):
    return read_task_records(load_local_task(path), num_fewshot=num_fewshot).documents


def test_a_choice_task(write):
    assert documents(write(**CHOICE)) == [
        {
            "record": "1",
            "part": 1,
            "description": "",
            "group": "",
            "prompt": "one? ->",
            "choices": ["a", "b"],
            "gold": 0,
        },
        {
            **{"record": "2", "part": 1, "description": "", "group": "", "prompt": "two? ->"},
            **{"choices": ["c", "d", "e"], "gold": 2},
        },
        {
            "record": "3",
            "part": 1,
            "description": "",
            "group": "",
            "prompt": "three? ->",
            "choices": ["f", "g"],
            "gold": 1,
        },
    ]


def test_choices_may_be_templates_and_the_answer_their_text(write):
    path = write(
        prompt="{{ question }}", choices=["no {{ right }}", "yes {{ right }}"], answer="'yes ' ~ right", description="D"
    )
    first = documents(path)[0]
    assert (first["choices"], first["gold"], first["description"]) == (["no 0", "yes 0"], 1, "D\n\n")


def test_a_continuation_after_each_choice(write):
    path = write(
        [{"sentence": "She gave _ a book.", "names": ["Ann", "Bob"], "right": 1}],
        prompt="{{ sentence.split('_')[0] }}{{ choice }}",
        choices="names",
        continuation="{{ sentence.split('_')[1] | trim }}",
        answer="right",
    )
    assert load_local_task(path).reported_metrics == ("acc",)
    (document,) = documents(path)
    assert document["choices"] == ["She gave Ann", "She gave Bob"]
    assert (document["continuation"], document["gold"]) == ("a book.", 1)


def test_a_record_with_several_questions(write):
    records = [{"text": "T", "parts": [{"q": "x", "a": "1"}, {"q": "y", "a": ["2", "3"]}]}]
    path = write(records, kind="free_text", expand="parts", prompt="{{ text }} {{ q }}", answer="a")
    found = [
        (document["record"], document["part"], document["prompt"], document["answers"]) for document in documents(path)
    ]
    assert found == [("1", 1, "T x", ["1"]), ("1", 2, "T y", ["2", "3"])]


def test_what_looks_like_markup_or_code_in_a_record_is_text(write):
    question = "{{ 7 * 7 }} {% if %} [1] 7"
    records = [{"question": question, "options": ["[0]", "{'a': 1}"], "right": 0}, {**RECORDS[0], "question": "7"}]
    first, second = documents(write(records, prompt="{{ question }}", choices="options", answer="right"))
    assert (first["prompt"], first["choices"]) == (question, ["[0]", "{'a': 1}"])
    assert second["prompt"] == "7"


def test_every_file_type_gives_the_same(write, tmp_path):
    path = write(**CHOICE)
    expected = documents(path)
    compressed = tmp_path / "records.jsonl.gz"
    compressed.write_bytes(gzip.compress((tmp_path / "records.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "records.parquet")
    for name in ("records.jsonl.gz", "records.parquet"):
        assert documents(write(**CHOICE, file=str(tmp_path / name))) == expected


def test_variables_in_file_names(write, tmp_path, monkeypatch):
    path = write(**CHOICE, file="${TASK_DATA}/records.jsonl")
    monkeypatch.delenv("TASK_DATA", raising=False)
    with pytest.raises(ValueError, match="needs the environment variable TASK_DATA"):
        documents(path)
    monkeypatch.setenv("TASK_DATA", str(tmp_path))
    assert len(documents(path)) == 3
    assert resolve_variables("a$b/{c}") == "a$b/{c}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "essay"}, "kind"),
        ({"colour": "red"}, "colour"),
        ({"name": None}, "name"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"prompt": None}, "prompt is missing"),
        ({"text": "x"}, "text has no meaning for kind multiple_choice"),
        ({"metrics": ["exact_match"]}, "exact_match"),
        ({"metrics": ["acc_norm"], "continuation": "x"}, "acc_norm"),
        ({"metrics": ["speed"]}, "speed"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompt": "{{ question"}, "prompt: .* is not valid Jinja2"),
        ({"answer": "right +"}, "answer: .* is not valid Jinja2"),
        ({"choices": ["{% if %}", "b"]}, "choices: .* is not valid Jinja2"),
    ],
)
def test_a_wrong_task_file_is_refused(write, keys, message):
    with pytest.raises(ValueError, match=message) as error:
        load_local_task(write(**{**CHOICE, **keys}))
    assert "task.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "holds no mapping"),
        ("task: mmlu_x\ndataset_path: json", "lm-eval's own format"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_what_is_no_task_file_is_refused(tmp_path, content, message):
    path = tmp_path / "task.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_local_task(str(path))
    with pytest.raises(ValueError, match="There is no task file"):
        load_local_task(str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("record", "keys", "message"),
    [
        ({"right": 3}, {}, "the index 3 is not in range"),
        ({"right": -1}, {}, "the index -1 is not in range"),
        ({"right": True}, {}, "must be the index or the text"),
        ({"right": "z"}, {}, "not exactly one of the choices"),
        ({"options": ["a"]}, {}, "two or more"),
        ({"options": ["a", " "]}, {}, "none of them empty"),
        ({"options": "ab"}, {}, "must be a list of texts"),
        ({}, {"prompt": "{{ query }}"}, "'query' is undefined"),
        ({}, {"answer": "wrong"}, "'wrong' is not among the fields"),
        ({}, {"prompt": "{{ question.nothing.more }}"}, "has no attribute 'nothing'"),
        ({}, {"prompt": "{{ ().__class__.__mro__ }}"}, "unsafe"),
        ({}, {"prompt": "{{ 1 // 0 }}"}, "division"),
        ({}, {"continuation": " "}, "continuation: it is empty"),
        ({}, {"expand": "question"}, "must be a list of mappings"),
        ({"question": "\ud800"}, {}, "surrogate"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(write, record, keys, message):
    records = [RECORDS[0], {**RECORDS[1], **record}]
    if "expand" in keys:
        records = [{**RECORDS[0], "question": [RECORDS[0]]}, records[1]]
    path = write(records, **{**CHOICE, **keys})
    with pytest.raises(ValueError, match=message) as error:
        documents(path)
    # What is wrong with the template shows in the first record.
    number = 1 if keys and "expand" not in keys else 2
    assert f"record {number} (" in str(error.value)
    assert f"records.jsonl:{number}" in str(error.value)


def test_free_text_needs_an_answer_and_perplexity_a_text(write):
    for answer in ("", [], [" "], None, {"a": 1}):
        with pytest.raises(ValueError, match="record 1"):
            documents(write([{"q": "x", "a": answer}], kind="free_text", prompt="{{ q }}", answer="a"))
    assert documents(write([{"q": "x", "a": 3.5}], kind="free_text", prompt="{{ q }}", answer="a"))[0]["answers"] == [
        "3.5"
    ]
    with pytest.raises(ValueError, match="text: it is empty"):
        documents(write([{"text": " \n"}], kind="perplexity", text="{{ text }}"))
    assert documents(write([{"text": "x\n"}], kind="perplexity", text="{{ text }}"))[0]["text"] == "x\n"


def test_an_evaluation_set_is_complete_or_refused(write, tmp_path):
    with pytest.raises(ValueError, match="there is no record"):
        documents(write([], **CHOICE))
    path = write(**CHOICE)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write("{not json\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:4"):
        documents(path)
    with pytest.raises(ValueError, match="No file matches"):
        documents(write(**CHOICE, file=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(ValueError, match="cannot be read"):
        documents(write(**CHOICE, file=str(tmp_path / "task.yaml")))


def test_too_few_examples_are_said_before_anything_is_evaluated(write):
    assert len(documents(write(**CHOICE), num_fewshot=2)) == 3
    with pytest.raises(ValueError, match="record 1: there are 2 other records to draw 3 examples"):
        documents(write(**CHOICE), num_fewshot=3)
    # A record with the same prompt is no example, in whichever record it stands.
    with pytest.raises(ValueError, match="record 1: there are 2 other records"):
        documents(write([*RECORDS, RECORDS[0]], **CHOICE), num_fewshot=3)
    grouped = [{**record, "subject": subject} for record, subject in zip(RECORDS, "aab", strict=True)]
    with pytest.raises(ValueError, match="record 3: there are 0 other records with subject = 'b'"):
        documents(write(grouped, **CHOICE, fewshot_group="subject"), num_fewshot=1)


def test_the_hash_is_that_of_the_content(write, tmp_path):
    def sha256(**keys):
        return read_task_records(load_local_task(write(**{**CHOICE, **keys})), num_fewshot=0).sha256

    first = sha256()
    (tmp_path / "elsewhere.jsonl").write_bytes((tmp_path / "records.jsonl").read_bytes())
    assert sha256(file=str(tmp_path / "elsewhere.jsonl")) == first
    assert sha256(records=RECORDS[:2]) != first


def test_every_key_of_a_file_is_what_the_task_gets(write):
    written = {
        **{"name": "x", "kind": "free_text", "file": "f.jsonl", "version": 3, "expand": "parts"},
        **{"description": "{{ d }}", "prompt": "{{ [1, 2] }}", "answer": "1", "metrics": ["f1"], "num_fewshot": 2},
        **{"fewshot_file": "g.jsonl", "fewshot_group": "s", "answer_separator": "", "stop": ["\n\n", "##"]},
        "max_new_tokens": 5,
    }
    task = load_local_task(write(**written))
    assert {key: getattr(task, key) for key in written} == written
    assert LocalTask(name="x", kind="free_text", file="f").reported_metrics == ("exact_match", "f1")
