"""The round trip: a model is tuned, evaluated and described by one command, and synthesis goes on with what it made."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import LlamaConfig, LlamaForCausalLM

from contracts.manifest import read_shard_manifest
from synth_model.finetune import StepFailedError, main, run_step
from synth_model.tuning.config import FinetuneConfig, sequence_marks, step_configs
from synth_model.tuning.data_counts import count_data
from synth_model.wire_format import RELEASED_MARKS, SequenceMarks
from tests.beam_pipelines.pipeline_runs import read_chains
from tests.conftest import REPOSITORY
from tests.shard_fixtures import write_tokenizer as write_word_tokenizer
from tests.synth_model.tiny_model import write_tokenizer
from trainer.adapters import require_peft

INSTRUCTION, RESPONSE = "What is it?", "It is red."


def write_records(path, *, dataset, count):
    lines = [
        {
            "id": f"{dataset}-{number}",
            "dataset": dataset,
            "domain": "toys",
            "task_type": "colour",
            "license": "MIT",
            "context": f"Toy {number} of {dataset}.",
            "pairs": [{"instruction": INSTRUCTION, "response": RESPONSE}],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """A model small enough to learn one pair by heart in seconds; it reads bytes and its tokenizer adds BOS."""
    folder = str(tmp_path_factory.mktemp("base"))
    tokenizer = write_tokenizer(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1, **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def settings(folder, *, model, **changes):
    return {
        "output": str(folder / "out"),
        "model": model,
        "tasks": {
            "datasets": [{"name": "normalized", "input": [str(folder / "toys.jsonl")]}],
            "chain_length": 4,
            "held_out_fraction": 0.1,
        },
        "unseen": {"datasets": [{"name": "normalized", "input": [str(folder / "others.jsonl")]}]},
        "pack": {"sequence_length": 256},
        "pretrain": {
            "max_steps": 200,
            "device": "cpu",
            "optimizer": {"learning_rate": 1e-2},
            "batch": {"rows_per_step": 4, "micro_batch_rows": 4},
            "checkpoint": {"every_steps": None},
        },
        "engine": {"context_length": 512, "device": "cpu", "batching": "padded"},
        "compare_with": ["untuned"],
        "evaluate": {"max_texts": 4, "shots": [1], "sampling": {"max_new_tokens": 64}, "num_resamples": 100},
        **changes,
    }


@pytest.fixture(scope="module")
def config_file(base_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    write_records(folder / "toys.jsonl", dataset="toys", count=40)
    write_records(folder / "others.jsonl", dataset="others", count=6)
    (folder / "finetune.yaml").write_text(yaml.safe_dump(settings(folder, model=base_model)))
    return folder / "finetune.yaml"


@pytest.fixture(scope="module")
def output(config_file):
    assert main(["--config", str(config_file)]) == 0
    return config_file.parent / "out"


def figure(output, *, system, split, measure):
    results = json.loads((output / "evaluation" / "results.json").read_text())
    (found,) = [
        figure["mean"]
        for figure in results["figures"]
        if (figure["system"], figure["versus"], figure["split"], figure["measure"], figure["dataset"])
        == (system, "", split, measure, "")
    ]
    return found


def test_the_tuned_model_writes_the_pairs_and_the_untuned_one_does_not(output):
    for split in ("seen", "unseen"):
        assert figure(output, system="tuned", split=split, measure="valid_pair_rate") == 1
        assert figure(output, system="tuned", split=split, measure="response_f1") > 0.9
        assert figure(output, system="untuned", split=split, measure="valid_pair_rate") == 0


def test_what_was_tuned_on_is_not_evaluated_on(output):
    tuned_on = {e.document.text for chain in read_chains(output / "tasks") for e in chain.examples}
    judged = [json.loads(line) for line in (output / "evaluation" / "texts.jsonl").read_text().splitlines()]
    assert len(tuned_on) > 30
    assert len(judged) > 4
    assert not tuned_on & {text["document"]["text"] for text in judged}


def test_synthesis_goes_on_with_the_settings_that_were_written_down(output, tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        # A model this small knows little but what it was tuned on.
        "".join(json.dumps({"id": str(n), "text": f"Toy {n} of toys."}) + "\n" for n in range(10, 14))
    )
    written = yaml.safe_load((output / "synthesizer" / "synthesizer.yaml").read_text())
    written["engine"] |= {"context_length": 512, "device": "cpu"}
    config = {"input": [str(tmp_path / "corpus.jsonl")], "output": str(tmp_path / "augmented"), "chain_length": 2}
    config |= {"sampling": {"max_new_tokens": 64}, **written}
    (tmp_path / "synthesize.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "beam_pipelines", "synthesize", "--config", str(tmp_path / "synthesize.yaml")]
    subprocess.run([*command, "--", "--runner=DirectRunner"], check=True, cwd=REPOSITORY, capture_output=True)
    examples = [example for chain in read_chains(tmp_path / "augmented") for example in chain.examples]
    assert len(examples) == 4
    assert {(pair.instruction, pair.response) for e in examples for pair in e.pairs} == {(INSTRUCTION, RESPONSE)}
    # It ended by the closing mark rather than by the limit, also behind an example.
    assert {example.finish_reason for example in examples} == {"stop"}


def test_the_card_says_data_recipe_and_figures(output, base_model):
    card = ModelCard.load(output / "synthesizer" / "README.md")
    assert "instruction-synthesizer" in card.data["tags"]
    assert "| toys | MIT | colour |" in card.text
    assert "| tuned | 1 | unseen |" in card.text
    assert "| tuned - untuned | 1 | unseen |" in card.text
    recipe = card.text.split("## Recipe")[1].split("```yaml")[1].split("```")[0]
    assert yaml.safe_load(recipe)["pretrain"]["max_steps"] == 200
    assert (output / "synthesizer" / "TRAINING.md").exists()


def test_a_second_start_does_nothing_again(output, config_file):
    def changes():
        return {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name in ("COMPLETED", "run.json")}

    before = changes()
    assert main(["--config", str(config_file)]) == 0
    assert changes() == before
    assert len(before) > 10


def test_the_card_counts_what_was_trained_on_and_not_what_was_read(config_file, tmp_path):
    """Some chains go to the validation loss, and texts longer than a row are rejected."""
    values = yaml.safe_load(config_file.read_text())
    long = {**json.loads((config_file.parent / "toys.jsonl").read_text().splitlines()[0]), "context": "Toy. " * 80}
    lines = [json.dumps({**long, "id": f"long-{n}", "dataset": "a|b <i>"}) for n in range(2)]
    lines.append(json.dumps({**long, "id": "short", "dataset": "a|b <i>", "context": "Toy short."}))
    (tmp_path / "toys.jsonl").write_text(
        (config_file.parent / "toys.jsonl").read_text() + "".join(line + "\n" for line in lines)
    )
    values |= {"output": str(tmp_path / "out"), "evaluate": None}
    values["tasks"] = {"datasets": [{"name": "normalized", "input": [str(tmp_path / "toys.jsonl")]}], "chain_length": 4}
    values["pack"] = {"sequence_length": 256, "validation_fraction": 0.3}
    values["pretrain"] |= {"max_steps": 1}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(values))
    assert main(["--config", str(tmp_path / "card.yaml")]) == 0
    counts = count_data(tasks=str(tmp_path / "out" / "tasks"), shards=str(tmp_path / "out" / "shards"))
    toys, odd = counts["toys"], counts["a|b <i>"]
    assert toys.num_texts + toys.num_validation == 40
    assert 4 <= toys.num_validation < 30
    assert (odd.num_texts + odd.num_validation, odd.num_rejected) == (1, 2)
    manifest = read_shard_manifest(str(tmp_path / "out" / "shards"))
    assert manifest.rejected_by_reason == {"render/longer_than_a_row": 2}
    card = (tmp_path / "out" / "synthesizer" / "README.md").read_text()
    assert f"| toys | MIT | colour | {toys.num_texts} | {toys.num_texts} | {toys.num_validation} | 0 |" in card
    assert f"\n{toys.num_pairs + odd.num_pairs} pairs about {toys.num_texts + odd.num_texts} texts" in card
    assert r"| a\|b &lt;i&gt; | MIT |" in card


def test_a_dataset_both_tuned_on_and_unseen_is_found_before_anything_is_trained(config_file, tmp_path):
    values = yaml.safe_load(config_file.read_text())
    write_records(tmp_path / "both.jsonl", dataset="boats", count=20)
    with (tmp_path / "both.jsonl").open("a") as file:
        file.write((config_file.parent / "toys.jsonl").read_text())
    values |= {"output": str(tmp_path / "out"), "evaluate": None}
    values["tasks"]["datasets"][0]["input"] = [str(tmp_path / "both.jsonl")]
    values["unseen"] = {"datasets": [{"name": "normalized", "input": [str(config_file.parent / "toys.jsonl")]}]}
    values["pretrain"] |= {"max_steps": 1}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"datasets toys are under tasks and under unseen.*max_texts_by_set") as raised:
        main(["--config", str(tmp_path / "both.yaml")])
    assert not (tmp_path / "out" / "shards").exists()
    # What it says to do helps.
    for folder in str(raised.value).partition("remove ")[2].partition(", and run")[0].split(" and "):
        shutil.rmtree(folder)
    values["tasks"]["max_texts_by_set"] = {"toys": 0}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(values))
    assert main(["--config", str(tmp_path / "both.yaml")]) == 0


def test_the_config_of_a_step_that_refuses_another_one_stays_what_was_run(output, config_file, tmp_path, capfd):
    copy = tmp_path / "out"
    shutil.copytree(output, copy)
    values = yaml.safe_load(config_file.read_text())
    values |= {"output": str(copy)}
    # The copy's shards and corpora are named by their new place in the steps behind; here the first step refuses.
    values["tasks"] |= {"chain_length": 3}
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(values))
    before = (copy / "configs" / "tasks.yaml").read_bytes()
    assert main(["--config", str(tmp_path / "changed.yaml")]) != 0
    assert (copy / "configs" / "tasks.yaml").read_bytes() == before
    assert "correct what it names" in capfd.readouterr().err


def test_a_mistake_in_the_last_step_is_found_before_the_first(config_file, tmp_path):
    values = yaml.safe_load(config_file.read_text())
    values |= {"output": str(tmp_path / "out"), "evaluate": {"max_texts": 0}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="max_texts is 0"):
        main(["--config", str(tmp_path / "bad.yaml")])
    assert not (tmp_path / "out").exists()


def test_pack_is_asked_about_its_options_beforehand(config_file, tmp_path):
    values = yaml.safe_load(config_file.read_text())
    values |= {"output": str(tmp_path / "out"), "pack": {"sequence_length": 256, "colour": "red"}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"pack refuses its settings: .*colour"):
        main(["--config", str(tmp_path / "bad.yaml")])
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_gives_its_exit_code(config_file, tmp_path, capfd):
    values = yaml.safe_load(config_file.read_text())
    values |= {"output": str(tmp_path / "out"), "launcher": ["sh", "-c", "kill -TERM $$"]}
    (tmp_path / "killed.yaml").write_text(yaml.safe_dump(values))
    assert main(["--config", str(tmp_path / "killed.yaml")]) == 128 + 15
    assert "The step pretrain ended with status 143" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"datasets": [], "output": "x"}}, "tasks.output follows from the rest"),
        ({"pack": {}}, "pack.sequence_length is missing"),
        ({"pretrain": {"model": {"name_or_path": "x"}}}, "may not choose the model"),
        ({"engine": {"adapter": "x"}}, "engine.adapter follow"),
        ({"launcher": []}, "launcher is empty"),
        ({"tasks": {"datasets": []}, "unseen": None}, "nothing to evaluate on"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**settings(tmp_path, model="m", **changes)).check()


def test_an_adapter_with_default_settings_is_one_too(tmp_path):
    config = FinetuneConfig(**settings(tmp_path, model="m", pretrain={"model": {"lora": {}}}))
    assert config.tunes_adapter
    assert not FinetuneConfig(**settings(tmp_path, model="m", pretrain={"model": {}})).tunes_adapter


def test_marks_are_the_released_ones_where_the_tokenizer_has_them_else_its_own(base_model, tmp_path):
    assert sequence_marks(base_model) == RELEASED_MARKS
    write_word_tokenizer(str(tmp_path))
    marks = sequence_marks(str(tmp_path))
    assert marks != RELEASED_MARKS
    steps = step_configs(FinetuneConfig(**settings(tmp_path, model=str(tmp_path))))
    assert SequenceMarks(**steps["pack"]["marks"]) == marks
    assert {SequenceMarks(**s["synthesizer"]["marks"]) for s in steps["evaluate"]["systems"]} == {marks}


def test_an_adapter_is_exported_under_the_name_of_its_base_model(config_file, tmp_path):
    values = yaml.safe_load(config_file.read_text())
    values |= {"output": str(tmp_path / "out"), "evaluate": None, "dtype": "bfloat16", "base_model_name": "a/b"}
    values["pretrain"] |= {"max_steps": 2, "model": {"lora": {"rank": 2}}}
    (tmp_path / "adapter.yaml").write_text(yaml.safe_dump(values))
    assert main(["--config", str(tmp_path / "adapter.yaml")]) == 0
    folder = tmp_path / "out" / "synthesizer"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "a/b"
    weights = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert yaml.safe_load((folder / "synthesizer.yaml").read_text())["engine"] == {
        "model": "a/b",
        "adapter": str(folder),
    }
    assert "It was not evaluated." in (folder / "README.md").read_text()


_STEP = """
import sys
from synth_model.finetune import StepFailedError, run_step
try:
    script = "trap 'sleep 1; echo saved; exit 130' INT TERM; echo ready; while :; do sleep 0.1; done"
    run_step("train", ["sh", "-c", script])
except StepFailedError as error:
    print(error.args)
"""


@pytest.mark.parametrize("is_typed", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_a_step_that_is_interrupted_is_left_the_time_to_save(is_typed):
    process = subprocess.Popen(
        [sys.executable, "-c", _STEP],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert [process.stdout.readline(), process.stdout.readline()] == ["== train\n", "ready\n"]
    if is_typed:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n('train', 130)\n"


_SIGNALLED_STEP = """
import os, signal, subprocess, sys
from synth_model import finetune

number, moment = int(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGINT, signal.default_int_handler)
start = subprocess.Popen

def signalled_start(command):
    if moment == "before":
        os.kill(os.getpid(), number)
    process = start(command, stdout=subprocess.PIPE)
    # The signal is passed on when this returns, so the step must have its handler by then.
    process.stdout.readline()
    if moment == "behind":
        os.kill(os.getpid(), number)
    return process

subprocess.Popen = signalled_start
try:
    finetune.run_step("train", ["sh", "-c", "trap 'exit 7' INT TERM; echo ready; while :; do sleep 0.1; done"])
except finetune.StepFailedError as error:
    print(error.args)
"""


@pytest.mark.parametrize("moment", ["before", "behind"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_step_is_being_started_reaches_it(number, moment):
    command = [sys.executable, "-c", _SIGNALLED_STEP, str(int(number)), moment]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("== train\n('train', 7)\n", 0), done.stderr


def test_a_step_that_ends_well_in_spite_of_an_interrupt_is_the_last():
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            script = f"trap 'exit 0' TERM; kill -{int(number)} $PPID; for i in 1 2 3 4 5; do sleep 0.1; done"
            with pytest.raises(StepFailedError) as raised:
                run_step("train", ["sh", "-c", script])
            assert raised.value.args == ("train", 128 + number)
    finally:
        signal.signal(signal.SIGINT, earlier)


@pytest.mark.parametrize(
    "missing", ["trainer.adapters.require_peft", "synth_model.evaluation.similarity.check_available"]
)
def test_a_package_that_a_later_step_needs_is_asked_for_first(config_file, tmp_path, monkeypatch, missing):
    def refuse():
        raise ValueError("pip install it")

    values = yaml.safe_load(config_file.read_text()) | {"output": str(tmp_path / "out")}
    values["pretrain"]["model"] = {"lora": {"rank": 2}}
    (tmp_path / "adapter.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(missing, refuse)
    with pytest.raises(ValueError, match="pip install it"):
        main(["--config", str(tmp_path / "adapter.yaml")])
    assert not (tmp_path / "out").exists()


def test_peft_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'instruction-pretraining\[adapters\]'"):
        require_peft()
