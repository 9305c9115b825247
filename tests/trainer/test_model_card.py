"""The model card, as the hub and a reader of Markdown see it."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from contracts.markdown import escape_markdown
from trainer.config import PretrainConfig, parse_config
from trainer.model_card import (
    TrainingRecord,
    code_block,
    read_training_record,
    render_model_card,
    write_model_card,
)

HOSTILE = "x | <script>alert(1)</script> `y` {{ 7919 * 7 }} ![z](http://example.org/z.png)\n# heading\n```"


def component(**changes):
    values = {"kind": "documents", "inputs": ["texts/"], "num_documents": 3, "num_texts": 4}
    return {**values, "num_tokens": 100, "epochs": 1.0, **changes}


def corpus(**changes):
    values = {
        "command": "synthesize",
        "fingerprint": "ab" * 32,
        "synthesizer_id": "synthesizer@1",
        "inputs": ["texts/"],
    }
    counts = {"num_texts": 5, "num_pairs": 17, "datasets": {}, "config": {"chain_length": 2}}
    return {**values, **counts, **changes}


BASE = {"name": "someone/base", "revision": "c0ffee", "hub_names": ["someone/base"]}


def make_record(*, base=None, license_=None, **provenance):
    config = {
        "shards": "runs/shards",
        "model": {"license": license_},
        "optimizer": {"learning_rate": 1e-4},
        "schedule": {"kind": "cosine"},
        "batch": {"rows_per_step": 8},
        "seed": 3,
    }
    shards = {"fingerprint": "f0" * 32, "sequence_length": 64, "vocab_size": 9, "template_bank": "ba" * 32}
    return TrainingRecord(
        provenance={
            "model": {"name": "preset tiny" if base is None else base["name"], "identity": "1d"},
            "base": base and {"license": None, "license_name": None, "license_link": None, **base},
            "shards": {**shards, "tokenizer": {"name": "tokenizer", "sha256": "5a" * 32}, "config": {"seed": 0}},
            "components": {"raw": component(), "augmented": component(kind="chains", num_tokens=300, epochs=2.5)},
            "corpora": {},
            **provenance,
        },
        config=config,
        steps=[{"step": step, "tokens": 512 * step, "epoch": step / 4, "loss": 5.0 - step / 2} for step in range(1, 5)],
        validations=[
            {"step": step, "losses": {"raw": loss, "all": loss}, "num_targets": {"raw": 70}}
            for step, loss in ((0, 5.0), (4, 3.25))
        ],
    )


def render(record, *, is_adapter=False):
    return render_model_card(record, num_parameters=1_234_567, is_adapter=is_adapter)


def metadata(record, *, is_adapter=False):
    return ModelCard(render(record, is_adapter=is_adapter)).data.to_dict()


def test_metadata_are_those_of_the_hub():
    inputs = ["hf://datasets/org/corpus@main/data/*.parquet", "local/"]
    record = make_record(
        base={**BASE, "license": "apache-2.0"},
        corpora={"runs/augmented": corpus(inputs=["hf://datasets/org/texts/a.jsonl"]), "runs/gone": None},
        components={"raw": component(inputs=inputs)},
    )
    assert metadata(record) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": ["someone/base"],
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "datasets": ["org/corpus", "org/texts"],
        "tags": ["instruction-pre-training"],
    }
    adapter = metadata(record, is_adapter=True)
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")


def test_what_is_unknown_is_left_out():
    assert metadata(make_record()).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "No licence is stated" in render(make_record())
    assert metadata(make_record(license_="mit"))["license"] == "mit"


def test_a_stated_licence_goes_before_the_inherited_one():
    other = {**BASE, "license": "other", "license_name": "special", "license_link": "LICENSE"}
    assert {"license_name", "license_link"} <= metadata(make_record(base=other)).keys()
    stated = metadata(make_record(base=other, license_="mit"))
    assert stated["license"] == "mit"
    assert not {"license_name", "license_link"} & stated.keys()


def test_says_where_the_data_came_from():
    datasets = {"squad": {"licenses": ["CC BY-SA 4.0"], "num_texts": 9, "num_pairs": 80}}
    card = render(
        make_record(corpora={"runs/a": corpus(), "runs/t": corpus(command="tasks", datasets=datasets), "runs/c": None})
    )
    assert re.search(r"\| raw \| documents of texts/ \| 3 \| 4 \| 100 \| 25\.0 % \| 1\.00 \|", card)
    assert re.search(r"\| augmented \| chains of texts/ \| 3 \| 4 \| 300 \| 75\.0 % \| 2\.50 \|", card)
    assert "| runs/a | synthesize | texts/ | 5 | 17 | synthesizer@1 |" in card
    assert "| runs/c | not at hand during training |" in card
    assert "| squad | CC BY-SA 4.0 | 9 | 80 |" in card
    assert "f0" * 32 in card
    assert "python -m synth_model tasks --config tasks-abababab.yaml" in card


def test_tells_results_and_curve():
    card = render(make_record())
    assert "4 steps, 2,048 tokens, 1.00 passes" in card
    assert "| raw | 70 | 5.0000 | 3.2500 |" in card
    assert "| 512 | 4.5000 |" in card
    assert "| 2,048 | 3.0000 |" in card


def test_text_of_others_stays_text():
    """Names with markup break no table, start no heading, image or script, and are no template."""
    plain = render(make_record(corpora={"runs/a": corpus()}, components={"raw": component()}))
    hostile = corpus(synthesizer_id=HOSTILE, inputs=[HOSTILE], config={"prompt": HOSTILE, "fences": "````\n```"})
    card = render(make_record(corpora={HOSTILE: hostile}, components={HOSTILE: component(inputs=[HOSTILE])}))

    def outside_code(text):
        return re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)

    def columns(text):
        return [len(re.findall(r"(?<!\\)\|", line)) for line in outside_code(text).splitlines() if line.startswith("|")]

    assert columns(card) == columns(plain)
    assert "```" not in outside_code(card)
    headings = [line for line in outside_code(card).splitlines() if line.startswith("#")]
    assert headings == [line for line in outside_code(plain).splitlines() if line.startswith("#")]
    assert "<script" not in outside_code(card)
    assert "![z]" not in outside_code(card)
    assert str(7919 * 7) not in card
    # Inside a code block it is what it was.
    fence, text = re.search(r"^(`{4,})yaml\n(prompt.*?)^\1$", card, flags=re.MULTILINE | re.DOTALL).groups()
    assert len(fence) == 5
    assert yaml.safe_load(text) == {"prompt": HOSTILE, "fences": "````\n```"}


def test_escapes_by_example():
    assert escape_markdown("a_b|c\n<d>") == r"a\_b\|c &lt;d&gt;"
    assert code_block("a", "text") == "```text\na\n```"


def test_a_run_that_logged_nothing_has_a_card(tmp_path):
    record = make_record()
    empty = TrainingRecord(provenance=record.provenance, config=record.config, steps=[], validations=[])
    write_model_card(str(tmp_path), record=empty, num_parameters=1, is_adapter=False)
    card = (tmp_path / "README.md").read_text()
    assert "No step was logged" in card
    assert "The run did not validate" in card
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_configs_in_the_card_can_be_run_again(pretrain, shards, tmp_path):
    assert pretrain(tmp_path / "output", "--num_epochs", "1") == 0
    card = (tmp_path / "output" / "model" / "README.md").read_text()
    text = re.search(r"pretrain\.yaml</summary>\n\n```yaml\n(.*?)```", card, flags=re.DOTALL)[1]
    (tmp_path / "pretrain.yaml").write_text(text)
    config = parse_config(PretrainConfig, arguments=["--config", str(tmp_path / "pretrain.yaml")], program="pretrain")
    assert (config.shards, config.output, config.model.preset) == (shards, str(tmp_path / "output"), "tiny")
    # The same run goes on, and finds that there is nothing to do.
    from trainer.pretrain import main

    assert main(["--config", str(tmp_path / "pretrain.yaml")]) == 0


def test_refuses_a_folder_of_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"not the output folder of a training run: it has no provenance\.json"):
        read_training_record(str(tmp_path), last_step=1)


def test_steps_that_changed_nothing_or_came_later_are_not_told(tmp_path):
    for name in ("provenance.json", "resolved_config.json"):
        (tmp_path / name).write_text("{}")
    steps = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 9.0, "skipped": "spike"}, {"step": 3, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    record = read_training_record(str(tmp_path), last_step=2)
    assert [step["step"] for step in record.steps] == [1]
    assert record.validations == []
