"""Evaluation of a small model, held against the model's own likelihoods, and of the real one."""

import gzip
import json
import math
import os
import socket
import subprocess

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

from contracts import storage
from contracts.artifact import mark_completed
from contracts.seeding import stable_hash
from tests.conftest import REPOSITORY
from trainer import evaluate as evaluate_module
from trainer.__main__ import main as run_trainer
from trainer.answer_metrics import token_f1
from trainer.evaluate import EvaluateConfig, evaluate
from trainer.evaluated_model import find_evaluated_model
from trainer.evaluation_comparison import compare
from trainer.lm_eval_tasks import prepare_tasks

WORDS = ["text", "write", "list", "the", "of", "words", "a short", "question", "sentence", "what is"]
QUESTIONS = [
    {
        "question": f"{WORDS[number % 10]} {WORDS[(3 * number + 1) % 10]} {number}",
        "options": [WORDS[(number + step) % 10] + " " * 0 + "!" * step for step in range(2 + number % 3)],
        "right": number % 2,
        "subject": "even" if number % 2 == 0 else "odd",
    }
    for number in range(12)
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer_folder):
    """A model of two layers with large random weights, so that its choices differ; returns its folder."""
    folder = str(tmp_path_factory.mktemp("models") / "model")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(5)
    config = MistralConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "sliding_window": None},
        **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.4},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write_task(tmp_path):
    def write(name, records, **keys):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, "file": str(data), **keys}), "utf-8")
        return str(path)

    return write


@pytest.fixture
def choice_task(write_task):
    def write(name="choice", records=QUESTIONS, **keys):
        keys = {"prompt": "{{ question }} =", "choices": "options", "answer": "right", **keys}
        return write_task(name, records, kind="multiple_choice", **keys)

    return write


def run(model, tasks, output, **settings):
    return evaluate(
        EvaluateConfig(model=str(model), tasks=tasks, output=str(output), device="cpu", **{"batch_size": 3, **settings})
    )


def samples_of(output, task="choice"):
    (path,) = (output / "samples").glob(f"{task}-*.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def log_likelihood(model, tokenizer, context, continuation):
    """Of a continuation, token by token, straight from the definition."""
    num_context = len(tokenizer(context)["input_ids"])
    ids = tokenizer(context + continuation)["input_ids"]
    with torch.inference_mode():
        log_probabilities = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(log_probabilities[position - 1, ids[position]]) for position in range(num_context, len(ids)))


def test_choices_are_judged_by_their_likelihood(model_folder, choice_task, tmp_path):
    results = run(model_folder, [choice_task(metrics=["acc", "acc_norm", "f1"])], tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    num_right = num_right_by_length = 0
    for sample, record in zip(samples_of(tmp_path / "out"), QUESTIONS, strict=True):
        scores = [
            log_likelihood(model, tokenizer, f"{record['question']} =", f" {option}") for option in record["options"]
        ]
        assert [response[0] for response in sample["responses"]] == pytest.approx(scores, abs=1e-3)
        by_length = [score / len(option) for score, option in zip(scores, record["options"], strict=True)]
        num_right += scores.index(max(scores)) == record["right"]
        num_right_by_length += by_length.index(max(by_length)) == record["right"]
    entry = results["tasks"]["choice"]
    assert 0 < num_right < len(QUESTIONS), "the model is right now and then, so that the figure says something"
    assert entry["metrics"]["acc"]["value"] == pytest.approx(num_right / 12)
    assert entry["metrics"]["acc_norm"]["value"] == pytest.approx(num_right_by_length / 12)
    share = num_right / 12
    assert entry["metrics"]["acc"]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 11))
    assert 0 < entry["metrics"]["f1"]["stderr"] < 0.5
    assert (entry["num_records"], entry["num_fewshot"], entry["num_truncated"], entry["version"]) == (12, 0, 0, 1)


def test_a_continuation_is_judged_after_each_choice(model_folder, choice_task, tmp_path):
    task = choice_task(prompt="{{ question }} {{ choice }}", continuation="{{ subject }}")
    results = run(model_folder, [task], tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    num_right = 0
    for record in QUESTIONS:
        scores = [
            log_likelihood(model, tokenizer, f"{record['question']} {option}", f" {record['subject']}")
            for option in record["options"]
        ]
        num_right += scores.index(max(scores)) == record["right"]
    assert list(results["tasks"]["choice"]["metrics"]) == ["acc"]
    assert results["tasks"]["choice"]["metrics"]["acc"]["value"] == pytest.approx(num_right / 12)


def test_free_text_is_generated_and_compared(model_folder, write_task, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)

    def generated(prompt):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=2)[
            0, inputs["input_ids"].shape[1] :
        ]
        return tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0]

    texts = [generated(f"Say {word}:") for word in WORDS[:4]]
    assert len(set(texts)) > 1
    records = [
        {"word": word, "answers": ["nothing at all", text if index < 2 else f"{text} more"]}
        for index, (word, text) in enumerate(zip(WORDS, texts, strict=False))
    ]
    task = write_task(
        "text",
        records,
        kind="free_text",
        prompt="Say {{ word }}:",
        answer="answers",
        max_new_tokens=6,
        answer_separator="",
    )
    results = run(model_folder, [task], tmp_path / "out")
    assert [sample["responses"] for sample in samples_of(tmp_path / "out", "text")] == [[text] for text in texts]
    metrics = results["tasks"]["text"]["metrics"]
    expected = [token_f1(text, answers=record["answers"]) for text, record in zip(texts, records, strict=True)]
    assert metrics["f1"]["value"] == pytest.approx(sum(expected) / 4)
    assert metrics["exact_match"]["value"] == 0.5


def test_perplexity_counts_every_token_of_long_texts_too(model_folder, write_task, tmp_path):
    texts = ["a short sentence of words", " ".join(WORDS * 12)]
    path = write_task("ppl", [{"text": text} for text in texts], kind="perplexity", text="{{ text }}")
    metrics = run(model_folder, [path], tmp_path / "out")["tasks"]["ppl"]["metrics"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    short = log_likelihood(model, tokenizer, "<s>", texts[0])
    items = [sample["items"] for sample in samples_of(tmp_path / "out", "ppl")]
    assert items[0]["bits_per_byte"] == [pytest.approx(short, abs=1e-3), len(texts[0])]
    assert len(tokenizer(texts[1])["input_ids"]) > 128, "longer than the model's context"
    total = items[0]["bits_per_byte"][0] + items[1]["bits_per_byte"][0]
    num_bytes = sum(map(len, texts))
    assert metrics["bits_per_byte"]["value"] == pytest.approx(-total / num_bytes / math.log(2))
    assert metrics["byte_perplexity"]["value"] == pytest.approx(2 ** metrics["bits_per_byte"]["value"])
    assert metrics["bits_per_byte"]["higher_is_better"] is False
    assert metrics["word_perplexity"]["stderr"] > 0


def prompts_of(path, **settings):
    """The context of each record as lm-eval builds it, by the record's number in the file."""
    settings = {"num_fewshot": None, "limit": None, "seed": 0, **settings}
    (task,) = prepare_tasks([path], **settings)
    loaded = task.loaded["tasks"][task.name]
    samples = None if task.samples is None else task.samples[task.name]
    loaded.build_all_requests(samples=samples)
    contexts = {instance.doc_id: instance.args[0] for instance in loaded.instances}
    return {(samples[index] if samples else index): context for index, context in contexts.items()}


def test_examples_stand_before_the_prompt_with_their_answers(choice_task):
    path = choice_task(num_fewshot=2, description="Choose.", answer_separator=" => ")
    contexts = prompts_of(path)
    for number, context in contexts.items():
        description, *examples, prompt = context.split("\n\n")
        own = {f"{record['question']} = => {record['options'][record['right']]}" for record in QUESTIONS}
        assert description == "Choose."
        assert len(examples) == 2
        assert set(examples) < own
        assert prompt == f"{QUESTIONS[number]['question']} ="
        assert not any(example.startswith(prompt) for example in examples), "a record is never its own example"
    assert len({context.split("\n\n")[1] for context in contexts.values()}) > 3, "not the same ones for all"


def test_examples_depend_on_seed_and_record_alone(choice_task):
    path = choice_task(num_fewshot=2)
    contexts = prompts_of(path)
    assert prompts_of(path, seed=1) != contexts
    limited = prompts_of(path, limit=5)
    assert len(limited) == 5
    assert limited == {number: contexts[number] for number in limited}
    assert sorted(limited) != list(range(5)), "a limit draws, since files are often sorted"
    assert prompts_of(path, num_fewshot=0)[0] == "text write 0 ="


def test_examples_of_a_group_from_a_file_of_their_own(choice_task, write_task, tmp_path):
    write_task("pool", [{**record, "question": f"pool {record['question']}"} for record in QUESTIONS[:4]], kind="x")
    path = choice_task(num_fewshot=2, fewshot_file=str(tmp_path / "pool.jsonl"), fewshot_group="subject")
    for number, context in prompts_of(path).items():
        *examples, _ = context.split("\n\n")
        # Both of the group, in the order of their file.
        expected = [record["question"] for record in QUESTIONS[:4] if record["subject"] == QUESTIONS[number]["subject"]]
        assert [example.partition(" =")[0] for example in examples] == [f"pool {question}" for question in expected]


def test_nothing_is_evaluated_twice(model_folder, choice_task, tmp_path, monkeypatch):
    output = tmp_path / "out"
    tasks = [choice_task(), choice_task("second", prompt="{{ question }} is")]
    evaluated = []
    run_task = evaluate_module.run_task

    def counted(task, **settings):
        evaluated.append(task.name)
        if evaluated == ["choice", "second"]:
            raise KeyboardInterrupt
        return run_task(task, **settings)

    monkeypatch.setattr(evaluate_module, "run_task", counted)
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, tasks, output)
    assert not (output / "COMPLETED").exists()
    run(model_folder, tasks, output)
    assert evaluated == ["choice", "second", "second"]
    content = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr(evaluate_module, "load_for_lm_eval", lambda *args, **settings: pytest.fail("nothing to do"))
    run(model_folder, tasks, output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == content
    # Another list of the same tasks is another table, not another evaluation.
    assert list(run(model_folder, tasks[1:], output)["tasks"]) == ["second"]
    monkeypatch.undo()
    # A task that changes is evaluated anew, by itself.
    monkeypatch.setattr(evaluate_module, "run_task", counted)
    changed = choice_task("second", prompt="{{ question }} was")
    before = storage.read_json(str(output / "results.json"))["identities"]["second"]
    assert run(model_folder, [tasks[0], changed], output)["identities"]["second"] != before
    assert evaluated == ["choice", "second", "second", "second"]


def test_batches_change_nothing_and_the_same_run_gives_the_same_bytes(model_folder, choice_task, tmp_path):
    tasks = [choice_task()]
    for name, batch_size in (("one", 1), ("five", 5), ("again", 5)):
        run(model_folder, tasks, tmp_path / name, batch_size=batch_size)
    one, five, again = (samples_of(tmp_path / name) for name in ("one", "five", "again"))
    assert five == again
    (first,), (second,) = ((tmp_path / name).glob("samples/*") for name in ("five", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == bytes(4), "gzip's time"
    assert [sample["items"] for sample in one] == [sample["items"] for sample in five]


def test_another_run_is_refused(model_folder, choice_task, tmp_path):
    output = tmp_path / "out"
    run(model_folder, [choice_task()], output)
    for settings, key in (
        ({"seed": 1}, "config.seed"),
        ({"limit": 2}, "config.limit"),
        ({"num_fewshot": 1}, "num_fewshot"),
    ):
        with pytest.raises(ValueError, match=f"already holds another run.*{key}"):
            run(model_folder, [choice_task()], output, **settings)


def test_nothing_is_asked_of_a_network(model_folder, choice_task, tmp_path, monkeypatch):
    def refuse(*args, **settings):
        raise AssertionError(f"the network was asked: {args}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert run(model_folder, [choice_task()], tmp_path / "out")["tasks"]["choice"]["num_records"] == 12
    with pytest.raises(AssertionError, match="the network was asked"):
        socket.create_connection(("localhost", 1))


def test_prompts_that_do_not_fit_are_counted(model_folder, choice_task, tmp_path):
    records = [QUESTIONS[0], {**QUESTIONS[1], "question": "words " * 200}]
    assert run(model_folder, [choice_task(records=records)], tmp_path / "out")["tasks"]["choice"]["num_truncated"] == 1


def test_a_run_and_its_checkpoints_are_found(model_folder, tmp_path):
    def find(name, **settings):
        settings = {
            "base_model": None,
            "tokenizer": None,
            "cache": str(tmp_path),
            "trust_remote_code": False,
            **settings,
        }
        return find_evaluated_model(str(name), **settings)

    expected = find(model_folder)
    run_folder = tmp_path / "run"
    checkpoint = run_folder / "checkpoints" / "step-00000004"
    for folder in (run_folder, checkpoint):
        (folder / "model").parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", model_folder, str(folder / "model")], check=True)
        with pytest.raises(ValueError, match="not a completed artifact"):
            find(folder)
        mark_completed(str(folder), fingerprint="x")
        found = find(folder)
        assert (found.identity, found.location) == (expected.identity, str(folder / "model"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / "model" / file).unlink()
    # A checkpoint without a tokenizer takes that of its run.
    subprocess.run(["cp", "-r", model_folder, str(run_folder / "tokenizer")], check=True)
    assert find(checkpoint).tokenizer == str(run_folder / "tokenizer")
    (run_folder / "tokenizer").rename(run_folder / "elsewhere")
    with pytest.raises(ValueError, match="There is no tokenizer"):
        find(checkpoint)
    assert find(checkpoint, tokenizer=model_folder).tokenizer == model_folder
    with pytest.raises(ValueError, match="There is no model folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no adapter"):
        find(model_folder, base_model="other")
    (checkpoint / "model" / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"python -m trainer export .*step-00000004 --output DIR"):
        find(checkpoint)


def test_a_run_of_the_trainer_is_evaluated_and_so_are_its_checkpoints(pretrain, write_task, tmp_path):
    output = tmp_path / "run"
    assert pretrain(output, "--checkpoint.save_final_optimizer_state", "true") == 0
    text = write_task("ppl", [{"text": "w1 w2 w3 w4 w5"}, {"text": "w9 w8"}], kind="perplexity", text="{{ text }}")
    first, last = sorted((output / "checkpoints").iterdir())
    figures = {
        name: run(folder, [text], tmp_path / name)["tasks"]["ppl"]["metrics"]["bits_per_byte"]["value"]
        for name, folder in (("whole", output), ("last", last), ("first", first))
    }
    assert figures["last"] == figures["whole"], "the same weights"
    assert figures["first"] != figures["last"]


def test_an_adapter_is_put_on_its_model(model_folder, choice_task, tmp_path):
    import peft

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.manual_seed(stable_hash(0, "adapter"))
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    folder = str(tmp_path / "adapter")
    adapted.save_pretrained(folder)
    tasks = [choice_task()]
    own = run(model_folder, tasks, tmp_path / "own")
    with_adapter = run(folder, tasks, tmp_path / "with_adapter")
    assert with_adapter["model"]["identity"] != own["model"]["identity"]
    model, tokenizer = adapted.eval(), AutoTokenizer.from_pretrained(model_folder)
    for sample in samples_of(tmp_path / "with_adapter")[:3]:
        scores = [log_likelihood(model, tokenizer, *request) for request in sample["requests"]]
        assert [response[0] for response in sample["responses"]] == pytest.approx(scores, abs=1e-2)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match="read from safetensors only"):
        run(folder, tasks, tmp_path / "unsafe")


def test_two_models_are_compared(model_folder, choice_task, tmp_path, capsys):
    other_folder = str(tmp_path / "other_model")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    model.save_pretrained(other_folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(other_folder)
    tasks = [choice_task(metrics=["acc", "f1"])]
    first, second, bare = (tmp_path / name for name in ("first", "second", "bare"))
    ours, theirs = run(model_folder, tasks, first), run(other_folder, tasks, second)
    run(other_folder, tasks, bare, samples=False)
    ((acc, f1),) = compare([str(first), str(second)])
    figures = [results["tasks"]["choice"]["metrics"]["acc"]["value"] for results in (ours, theirs)]
    assert figures[0] != figures[1]
    assert (acc.first, acc.second, acc.is_paired) == (*figures, True)
    differences = [
        b["items"]["acc"] - a["items"]["acc"] for a, b in zip(samples_of(first), samples_of(second), strict=True)
    ]
    mean = sum(differences) / 12
    assert acc.difference == pytest.approx(mean)
    assert acc.standard_error == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in differences) / 11 / 12))
    assert f1.is_paired
    assert f1.standard_error > 0
    # Without samples the two errors are added.
    ((acc, _),) = compare([str(first), str(bare)])
    errors = [results["tasks"]["choice"]["metrics"]["acc"]["stderr"] for results in (ours, theirs)]
    assert not acc.is_paired
    assert acc.standard_error == pytest.approx(math.hypot(*errors))
    # A model against itself does not differ.
    ((acc, _), _) = compare([str(second), str(bare), str(second)])
    assert acc.difference == 0
    assert run_trainer(["evaluate", "--compare", str(first), str(second)]) == 0
    assert "difference" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(model_folder, choice_task, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    run(model_folder, [choice_task()], first)
    run(model_folder, [choice_task(prompt="{{ question }} was")], second)
    for folders, message in (
        ([first], "takes two or more"),
        ([first, tmp_path / "nowhere"], "not a completed artifact"),
        ([first, second], "choice differs in its records, wording, examples or limit"),
    ):
        assert run_trainer(["evaluate", "--compare", *map(str, folders)]) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_said(model_folder, choice_task, tmp_path, capsys):
    task = choice_task()

    def message(*options, model=model_folder, tasks=(task,)):
        arguments = ["--model", str(model), "--output", str(tmp_path / "out"), "--tasks", json.dumps(list(tasks))]
        assert run_trainer(["evaluate", *arguments, "--device", "cpu", *options]) == 2
        return capsys.readouterr().err

    assert "tasks is empty" in message(tasks=[])
    assert "limit is 0" in message("--limit", "0")
    assert "batch_size is 0" in message("--batch_size", "0")
    assert "num_fewshot is -1" in message("--num_fewshot", "-1")
    assert "There is no model folder" in message(model=tmp_path / "nowhere")
    assert "names choice twice" in message(tasks=[task, task])
    assert "There is no task file" in message(tasks=["nowhere.yaml"])
    if not torch.cuda.is_available():
        assert "sees no GPU" in message("--device", "cuda")
    assert not list((tmp_path / "out").glob("tasks/*"))


@pytest.fixture
def lm_eval_tasks_in(monkeypatch, tmp_path):
    """Has lm-eval read the task files of one folder instead of all of its own, which takes seconds."""
    import datasets
    import huggingface_hub
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def use(folder):
        manager = TaskManager(include_defaults=False, include_path=str(folder))
        monkeypatch.setattr("trainer.lm_eval_tasks._task_manager", lambda: manager)

    return use


def test_a_task_of_lm_eval_that_needs_the_network(model_folder, lm_eval_tasks_in, tmp_path):
    import lm_eval

    lm_eval_tasks_in(os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "hellaswag"))
    with pytest.raises(ValueError, match="comes from the Hugging Face hub"):
        run(model_folder, ["hellaswag"], tmp_path / "out")
    with pytest.raises(ValueError, match="knows no task 'hellaswagg'; it knows hellaswag"):
        run(model_folder, ["hellaswagg"], tmp_path / "out")


def test_tasks_of_lm_eval_by_name(model_folder, choice_task, lm_eval_tasks_in, tmp_path):
    local = run(model_folder, [choice_task()], tmp_path / "local")["tasks"]["choice"]
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = {
        **{"task": "own", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test"},
        **{"doc_to_text": "{{question}} =", "doc_to_choice": "options", "doc_to_target": "right", "num_fewshot": None},
        **{"dataset_kwargs": {"data_files": {"test": str(tmp_path / "choice.jsonl")}}, "metadata": {"version": 2.5}},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(task))
    (folder / "twin.yaml").write_text(yaml.safe_dump({**task, "task": "twin", "num_fewshot": 0}))
    aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    group = {"group": "both", "task": ["own", "twin"], "aggregate_metric_list": aggregate}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    lm_eval_tasks_in(folder)
    found = run(model_folder, ["own"], tmp_path / "out")["tasks"]["own"]
    assert found["version"] == 2.5
    assert found["metrics"]["acc"] == pytest.approx(local["metrics"]["acc"])
    # Of a group each task and the whole; records of a limit are drawn for each.
    entries = run(model_folder, ["both"], tmp_path / "limited", limit=4, num_fewshot=1)["tasks"]
    assert sorted(entries) == ["both", "own", "twin"]
    assert (entries["own"]["num_records"], entries["own"]["num_fewshot"]) == (4, 1)
    assert entries["twin"]["num_fewshot"] == 0, "a task that wants none gets none"
    values = [entries[name]["metrics"]["acc"]["value"] for name in ("own", "twin", "both")]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)
    drawn = {sample["record"] for sample in samples_of(tmp_path / "limited", "both") if sample["task"] == "own"}
    assert len(drawn) == 4
    assert drawn != {0, 1, 2, 3}


def test_evaluation_without_lm_eval_says_what_to_install(model_folder, choice_task, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\[evaluate\]"):
        run(model_folder, [choice_task()], tmp_path / "out")


@pytest.mark.real_model
def test_a_trained_model_is_well_above_chance(shared_folder, tmp_path, monkeypatch):
    data, model = shared_folder / "data" / "eval", REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
    if not (data / "arc_easy.jsonl.gz").exists() or not model.is_dir():
        pytest.skip("the data or the model is absent")
    monkeypatch.setenv("IPT_EVAL_DATA", str(data))
    results = run(
        model, [str(REPOSITORY / "configs/evaluate/tasks/arc_easy.yaml")], tmp_path / "out", limit=60, batch_size=16
    )
    assert results["tasks"]["arc_easy"]["num_records"] == 60
    assert results["tasks"]["arc_easy"]["metrics"]["acc"]["value"] > 0.4, "one of four is right by chance"
