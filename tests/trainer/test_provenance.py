"""What a run writes down of where its data and its model come from."""

import dataclasses
import json

import pytest

from contracts.manifest import AugmentedCorpusManifest, DocumentAccounts, complete_artifact, read_shard_manifest
from trainer.config import ModelConfig
from trainer.models import create_model, describe_model
from trainer.provenance import describe_provenance

SPECIAL_IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
SCRATCH = ModelConfig(init="scratch", preset="tiny")


def write_corpus(folder, *, num_pairs=12):
    """An empty augmented corpus with figures; returns its fingerprint."""
    counts = {name.name: 0 for name in dataclasses.fields(DocumentAccounts)}
    manifest = AugmentedCorpusManifest(
        synthesizer_id="synthesizer@1",
        accounts=DocumentAccounts(**{**counts, "num_records": 5, "num_augmented": 5, "rejected_by_reason": {}}),
        num_chains=0,
        num_pairs=num_pairs,
        num_prompt_tokens=0,
        num_new_tokens=0,
        finish_reasons={},
        parts=(),
        rejects=(),
        inputs={},
        config={"input": ["texts/"], "output": str(folder)},
    )
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text('{"command": "synthesize"}')
    return complete_artifact(str(folder), manifest).fingerprint


@pytest.fixture
def packed(shards, tmp_path):
    """The manifest of shards packed from a corpus, from one that is gone, and from a file."""
    present = str(tmp_path / "present")
    inputs = {
        present: write_corpus(tmp_path / "present"),
        str(tmp_path / "gone"): "ab" * 32,
        "/texts.jsonl": "12 bytes, 34.5",
        "templates": "cd" * 32,
    }
    components = [
        {"name": "instructions", "kind": "chains", "input": [present, str(tmp_path / "gone")]},
        {"name": "raw", "kind": "documents", "input": ["/texts.jsonl"]},
    ]
    return dataclasses.replace(read_shard_manifest(shards), inputs=inputs, config={"components": components})


def test_follows_the_components_to_their_corpora(packed, tmp_path):
    provenance = describe_provenance(packed, description=describe_model(SCRATCH, manifest=packed))
    # As JSON, which is what it becomes.
    provenance = json.loads(json.dumps(provenance))
    present, gone = str(tmp_path / "present"), str(tmp_path / "gone")
    assert list(provenance["corpora"]) == [present, gone]
    corpus = provenance["corpora"][present]
    assert (corpus["command"], corpus["synthesizer_id"], corpus["inputs"]) == (
        "synthesize",
        "synthesizer@1",
        ["texts/"],
    )
    assert (corpus["num_texts"], corpus["num_pairs"], corpus["datasets"]) == (5, 12, {})
    assert provenance["corpora"][gone] is None
    assert provenance["components"]["raw"]["inputs"] == ["/texts.jsonl"]
    expected = packed.components["raw"]["train"].num_tokens
    assert provenance["components"]["raw"]["num_tokens"] == expected > 0
    assert provenance["shards"]["template_bank"] == "cd" * 32
    assert provenance["base"] is None


def test_a_corpus_that_changed_since_packing_is_not_described(packed, tmp_path):
    write_corpus(tmp_path / "present", num_pairs=13)
    provenance = describe_provenance(packed, description=describe_model(SCRATCH, manifest=packed))
    assert set(provenance["corpora"].values()) == {None}


def test_licences_of_task_datasets_are_kept(packed, tmp_path):
    datasets = {"squad": {"licenses": ["CC BY-SA 4.0"], "num_texts": 1, "num_pairs": 2}}
    (tmp_path / "present" / "datasets.json").write_text(json.dumps(datasets))
    provenance = describe_provenance(packed, description=describe_model(SCRATCH, manifest=packed))
    assert provenance["corpora"][str(tmp_path / "present")]["datasets"] == datasets


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\nbase_model: someone/base\n---\n# A model\n", ("mit", ["someone/base"])),
        ("---\nbase_model: [a/b, c/d]\n---\n", (None, ["a/b", "c/d"])),
        ("no metadata", (None, [])),
        ("---\nlicense: [\n---\n", (None, [])),
        (None, (None, [])),
    ],
)
def test_keeps_what_the_model_continued_from_states_of_itself(packed, tmp_path, card, expected):
    create_model(describe_model(SCRATCH, manifest=packed), seed=0, special_ids=SPECIAL_IDS).save_pretrained(
        tmp_path / "model"
    )
    if card is not None:
        (tmp_path / "model" / "README.md").write_text(card)
    description = describe_model(ModelConfig(name_or_path=str(tmp_path / "model")), manifest=packed)
    base = describe_provenance(packed, description=description)["base"]
    assert (base["license"], base["hub_names"]) == expected
    assert base["name"] == str(tmp_path / "model")
