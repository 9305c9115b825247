"""The shipped evaluation tasks: they load, and their prompts read as they should."""

import pytest
import yaml

from tests.conftest import REPOSITORY
from trainer.config import parse_config
from trainer.evaluate import EvaluateConfig
from trainer.local_tasks import load_local_task, read_task_records

FOLDER = REPOSITORY / "configs" / "evaluate"
TASKS = sorted((FOLDER / "tasks").glob("*.yaml"))

# Of each set the number of records, choices of the first, and how its first prompt ends.
EXPECTED = {
    "arc_challenge": (1172, 4, "\nAnswer:"),
    "arc_easy": (2376, 4, "\nAnswer:"),
    "boolq": (3270, 2, "?\nAnswer:"),
    "chemprot": (3469, 13, " is:"),
    "fin_ner": (980, None, "\nEntities:\n"),
    "finqa": (118, None, "\nAnswer, as a number:"),
    "fiqa_sa": (954, 3, "The sentiment towards Royal Mail is:"),
    "fpb": (4846, 3, " is:"),
    "headline": (12684, 2, "\nAnswer:"),
    "hellaswag": (1000, 4, "."),
    "medqa_usmle": (1273, 5, "\nAnswer:"),
    "mmlu": (14042, 4, "\nD. 6\nAnswer:"),
    "mqp": (3048, 2, "The two questions are"),
    "openbookqa": (500, 4, "the best way to save money is to"),
    "piqa": (1838, 2, "\nAnswer:"),
    "pubmedqa": (500, 3, "maybe:"),
    "python_questions": (24, 4, "\nAnswer:"),
    "social_iqa": (1954, 3, "\nAnswer:"),
    "winogrande": (1267, 2, None),
}


@pytest.fixture
def evaluation_data(shared_folder, monkeypatch):
    folder = shared_folder / "data" / "eval"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    monkeypatch.setenv("IPT_EVAL_DATA", str(folder))
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_file_loads(path):
    task = load_local_task(str(path))
    assert task.name == path.stem
    written = yaml.safe_load(path.read_text("utf-8"))
    assert {key: getattr(task, key) for key in written} == written


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_makes_sense_of_its_data(path, evaluation_data):
    task = load_local_task(str(path))
    documents = read_task_records(task, num_fewshot=task.num_fewshot).documents
    num_records, num_choices, end = EXPECTED[task.name]
    assert len(documents) == num_records
    first = documents[0]
    if task.continuation is not None:
        blank = documents[0]["continuation"]
        assert blank == "always got the easier cases."
        assert [choice.rsplit(" ", 1)[-1] for choice in first["choices"]] == ["Sarah", "Maria"]
        return
    assert first["prompt"].endswith(end)
    if num_choices is None:
        assert all(document["answers"] for document in documents)
    else:
        assert len(first["choices"]) == num_choices
        # Nearly every choice is right now and then: the index is that of the choice, not of something else.
        assert len({document["gold"] for document in documents}) >= max(2, num_choices - 1)


def test_every_task_is_expected():
    assert {path.stem for path in TASKS} == set(EXPECTED)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_names_tasks_that_are_there(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    config = parse_config(EvaluateConfig, arguments=["--config", str(path)], program="evaluate")
    config.check()
    for name in config.tasks:
        load_local_task(name)
