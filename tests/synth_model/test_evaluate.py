import json
import shutil
from dataclasses import asdict, replace

import pytest
import yaml

from contracts import storage
from synth_model import __main__, evaluate
from synth_model.engines import EngineConfig
from synth_model.engines.fake_engine import FakeEngine, FakeOptions
from synth_model.evaluation.config import EvaluateConfig, SystemConfig
from synth_model.generation import Sampling
from synth_model.synthesizer import SynthesizerConfig
from synth_model.tasks import TasksConfig, TaskSource, read_tasks
from synth_model.wire_format import SequenceMarks
from tests.conftest import REPOSITORY

REAL_MODEL = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
FILES = ("COMPLETED", "results.json", "texts.jsonl", "report.html")


def write_corpus(folder, *, datasets, num_texts=8):
    """A corpus of gold pairs as `tasks` makes it."""
    records = [
        {
            "id": f"{dataset}-{number}",
            "dataset": dataset,
            "domain": "general",
            "task_type": "qa",
            "license": "CC0",
            "context": f"The {dataset} of {1900 + number} held {number + 2} boats, and rain fell on the quay for days.",
            "pairs": [
                {"instruction": f"How many boats were there in {1900 + number}?", "response": f"{number + 2} boats"},
                {"instruction": "What fell on the quay?", "response": "Rain"},
            ],
        }
        for dataset in datasets
        for number in range(num_texts)
    ]
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    source = TaskSource(name="normalized", input=[str(folder / "records.jsonl")])
    read_tasks(TasksConfig(datasets=[source], output=str(folder / "corpus")))
    return str(folder / "corpus")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return {
        "seen": write_corpus(folder / "seen", datasets=["harbours", "markets"]),
        "unseen": write_corpus(folder / "unseen", datasets=["regattas"]),
        "tuning": write_corpus(folder / "tuning", datasets=["harbours", "markets"], num_texts=3),
    }


def system(name, *, seed=0, kind="wire_format", **options):
    return SystemConfig(
        name=name,
        engine=EngineConfig(kind="fake", max_batch_size=8, fake=FakeOptions(seed=seed, **options)),
        synthesizer=SynthesizerConfig(kind=kind),
    )


def config_of(corpora, output, **changes):
    settings = {
        "systems": [system("tuned"), system("untuned", seed=1, failure_rate=0.2), system("chat", kind="chat")],
        "seen": [corpora["seen"]],
        "unseen": [corpora["unseen"]],
        "tuning_corpora": [corpora["tuning"]],
        "sampling": Sampling(max_new_tokens=200),
        "max_texts": 4,
        "num_resamples": 200,
    }
    return EvaluateConfig(output=str(output), **settings | changes)


def contents(folder):
    return {name: storage.read_bytes(f"{folder}/{name}") for name in FILES}


def count_prompts(monkeypatch, *, dies_after=None):
    """Counts the prompts that reach the fake engine from here on, and perhaps has it die."""
    asked = []
    generate = FakeEngine.generate

    def counting(self, prompts, *, sampling):
        if dies_after is not None and len(asked) >= dies_after:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return generate(self, prompts, sampling=sampling)

    monkeypatch.setattr(FakeEngine, "generate", counting)
    return asked


def test_an_evaluation_from_corpora_to_results(corpora, tmp_path):
    config = config_of(corpora, tmp_path / "out")
    results = evaluate.evaluate(config)
    assert results == storage.read_json(f"{config.output}/results.json")
    accounts = {account["dataset"]: account for account in results["datasets"]}
    assert (accounts["harbours"]["num_tuned_on"], accounts["harbours"]["num_selected"]) == (3, 4)
    assert (accounts["regattas"]["split"], accounts["regattas"]["num_tuned_on"]) == ("unseen", 0)
    assert results["failures"]["tuned"] == {}
    assert results["failures"]["untuned"].keys() == {"generation_failed"}
    places = {(f["system"], f["versus"], f["shots"], f["split"], f["dataset"]) for f in results["figures"]}
    assert ("tuned", "chat", 3, "seen", "markets") in places
    assert len(places) == (3 + 2) * 2 * (3 + 2)
    lines = [json.loads(line) for line in storage.read_text(f"{config.output}/texts.jsonl").splitlines()]
    assert len(lines) == 12
    assert {(made["system"], made["shots"]) for made in lines[0]["systems"]} == {
        (name, shots) for name in ("tuned", "untuned", "chat") for shots in (1, 3)
    }
    # The figures are those of the texts.
    of_regattas = [
        made["values"]["num_pairs"]
        for line in lines
        if line["document"]["source"] == "regattas"
        for made in line["systems"]
        if (made["system"], made["shots"]) == ("chat", 3)
    ]
    place = {"system": "chat", "versus": "", "shots": 3, "dataset": "regattas", "measure": "num_pairs"}
    (figure,) = [f for f in results["figures"] if place.items() <= f.items()]
    assert figure["mean"] == pytest.approx(sum(of_regattas) / len(of_regattas))
    assert figure["low"] <= figure["mean"] <= figure["high"]


def test_the_same_bytes_whatever_the_batches_and_wherever(corpora, tmp_path):
    first = config_of(corpora, tmp_path / "first")
    evaluate.evaluate(first)
    engines = [replace(item, engine=replace(item.engine, max_batch_size=3)) for item in first.systems]
    other = replace(first, output=str(tmp_path / "other"), systems=engines)
    evaluate.evaluate(other)
    assert contents(first.output) == contents(other.output)
    shutil.rmtree(f"{other.output}/completions")
    assert evaluate.evaluate(other) == storage.read_json(f"{first.output}/results.json"), "it is found complete"


def test_a_killed_evaluation_goes_on_where_it_was(corpora, tmp_path, monkeypatch):
    # Without failures, which are asked again.
    systems = [system("tuned"), system("untuned", seed=1)]
    whole = config_of(corpora, tmp_path / "whole", systems=systems)
    with monkeypatch.context() as patch:
        asked = count_prompts(patch)
        evaluate.evaluate(whole)
        num_prompts = len(asked)
    killed = replace(whole, output=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        asked = count_prompts(patch, dies_after=60)
        with pytest.raises(KeyboardInterrupt):
            evaluate.evaluate(killed)
    num_done = len(asked)
    assert 60 <= num_done < num_prompts
    assert not storage.exists(f"{killed.output}/COMPLETED")
    with monkeypatch.context() as patch:
        asked = count_prompts(patch)
        evaluate.evaluate(killed)
    assert len(asked) == num_prompts - num_done
    assert contents(killed.output) == contents(whole.output)


def test_another_run_in_the_same_folder_is_refused(corpora, tmp_path):
    config = config_of(corpora, tmp_path / "out", systems=[system("tuned")])
    evaluate.evaluate(config)
    with pytest.raises(ValueError, match="already holds another run"):
        evaluate.evaluate(replace(config, max_texts=5))


def test_a_model_that_changed_under_its_name_is_another_run(corpora, tmp_path, monkeypatch):
    config = config_of(corpora, tmp_path / "out", systems=[system("tuned")])
    evaluate.evaluate(config)
    monkeypatch.setattr(evaluate, "identify_model", lambda engine: "tuned anew")
    with pytest.raises(ValueError, match=r"inputs\.model of tuned"):
        evaluate.evaluate(config)


def test_datasets_that_were_tuned_on_are_not_unseen(corpora, tmp_path):
    config = config_of(corpora, tmp_path / "out", unseen=[corpora["seen"]], seen=[])
    with pytest.raises(ValueError, match="harbours, markets are given as unseen"):
        evaluate.evaluate(config)


def test_without_a_text_left_there_is_nothing_to_evaluate(corpora, tmp_path):
    config = config_of(corpora, tmp_path / "out", seen=[corpora["tuning"]], unseen=[])
    with pytest.raises(ValueError, match="No text is left to evaluate on: harbours has 3, of which 3 were tuned on"):
        evaluate.evaluate(config)


def test_texts_too_long_for_one_system_are_left_out_for_all(corpora, tmp_path):
    narrow = system("narrow")
    narrow = replace(narrow, engine=replace(narrow.engine, context_length=210))
    with pytest.raises(ValueError, match="regattas has 8, of which 0 were tuned on and 8 are too long for a context"):
        evaluate.evaluate(config_of(corpora, tmp_path / "out", systems=[system("tuned"), narrow]))


def test_the_command_prints_a_table_and_where_the_results_are(corpora, tmp_path, capsys):
    config = config_of(corpora, tmp_path / "out", systems=[system("tuned"), system("other", seed=3)])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(config)), "utf-8")
    assert __main__.main(["evaluate", "--config", str(path), "--max_shown_texts=1"]) == 0
    out = capsys.readouterr().out
    assert "tuned − other" in out
    assert f"{config.output}/report.html" in out
    assert __main__.main(["evaluate", "--config", str(path), "--shots=[]"]) == 1
    assert "shots is []" in capsys.readouterr().err


@pytest.mark.real_model
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason=f"{REAL_MODEL} is absent; make model puts it there")
def test_a_real_model_in_both_kinds_of_prompt(corpora, tmp_path):
    engine = EngineConfig(model=str(REAL_MODEL), device="cpu", context_length=1024, max_batch_size=8)
    marks = SequenceMarks(bos="<|im_start|>", eos="<|im_end|>")
    config = config_of(
        corpora,
        tmp_path / "out",
        systems=[
            SystemConfig(name="wire", engine=engine, synthesizer=SynthesizerConfig(marks=marks)),
            SystemConfig(name="chat", engine=engine, synthesizer=SynthesizerConfig(kind="chat")),
        ],
        seen=[],
        max_texts=2,
        max_questions=1,
        shots=[2],
        sampling=Sampling(max_new_tokens=40),
        max_response_tokens=8,
    )
    results = evaluate.evaluate(config)
    assert results["failures"] == {"wire": {}, "chat": {}}
    means = {
        (figure["system"], figure["measure"]): figure["mean"]
        for figure in results["figures"]
        if not figure["versus"] and not figure["dataset"]
    }
    # Shown an example, the model says something of what was asked, and a chat has questions and answers in it.
    assert means["wire", "response_f1"] > 0
    assert means["chat", "response_f1"] > 0
    assert means["chat", "valid_pair_rate"] > 0
    assert means["wire", "num_examples"] == means["chat", "num_examples"] == 1
    assert results["inputs"]["model of wire"] == results["inputs"]["model of chat"]


def test_another_wording_under_the_same_name_is_another_evaluation(corpora, tmp_path):
    """A config has only the path of a wording, so what the file says is recorded beside it."""
    wording = tmp_path / "wording.yaml"
    shutil.copy(REPOSITORY / "synth_model" / "prompts" / "english.yaml", wording)
    chat = SystemConfig(
        name="chat", engine=EngineConfig(kind="fake"), synthesizer=SynthesizerConfig(kind="chat", prompt=str(wording))
    )
    config = config_of(corpora, tmp_path / "out", systems=[chat], max_texts=1)
    evaluate.evaluate(config)
    values = yaml.safe_load(wording.read_text("utf-8"))
    values["request"] = "Now ask one short question: " + values["request"]
    wording.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    with pytest.raises(ValueError, match=r"already holds another run.*format of chat"):
        evaluate.evaluate(config)
