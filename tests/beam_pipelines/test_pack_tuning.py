"""Tuning data of the synthesizer, from task datasets to the labels that the trainer sees."""

import pytest
from transformers import AutoTokenizer

from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.shard_writing import PackingConfig
from beam_pipelines.verify import verify_artifact
from contracts.schemas import packed_row_schema
from synth_model.generation import Sampling
from synth_model.tasks import TasksConfig, TaskSource, read_tasks
from synth_model.wire_format import EOS, parse_completion
from tests.beam_pipelines.pipeline_runs import (
    fake_engine,
    make_text,
    read_chains,
    read_rejects,
    read_rows,
    run_pack,
    run_synthesize,
    write_jsonl,
)
from tests.synth_model.task_datasets.release_examples import RELEASE_EXAMPLES
from trainer.shard_dataset import ShardDataset

SEQUENCE_LENGTH = 512


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """An augmented corpus of task datasets."""
    folder = tmp_path_factory.mktemp("tasks")
    sources = []
    for name in ("squad", "coqa", "race"):
        example = next(example for example in RELEASE_EXAMPLES if example.dataset == name)
        (folder / example.file).write_bytes(example.as_bytes())
        sources.append(TaskSource(name=name, input=[str(folder / example.file)]))
    read_tasks(TasksConfig(datasets=sources, output=str(folder / "tasks")))
    return str(folder / "tasks")


@pytest.fixture(scope="module")
def packed(tasks, tokenizer_folder, tmp_path_factory):
    """Tuning data beside raw texts in one folder of shards."""
    folder = tmp_path_factory.mktemp("packed")
    raw = write_jsonl(folder / "raw.jsonl", [{"id": f"raw-{n}", "text": f"Raw text number {n}."} for n in range(30)])
    components = [
        ComponentConfig(name="tuning", kind="synthesizer_tuning", input=[tasks]),
        ComponentConfig(name="raw", kind="documents", input=[raw]),
    ]
    output = folder / "shards"
    manifest = run_pack(
        components,
        output,
        tokenizer=tokenizer_folder,
        sequence_length=SEQUENCE_LENGTH,
        packing=PackingConfig(strategy="best_fit"),
    )
    return output, manifest


def test_the_model_is_trained_on_the_pairs_and_their_eos_and_on_all_of_a_raw_text(packed, tasks, tokenizer_folder):
    output, manifest = packed
    assert manifest.has_loss_spans
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    dataset = ShardDataset(str(output), manifest=manifest, split="train")
    written, raw_targets = [], 0
    for number in range(len(dataset)):
        row, labels = dataset.row(number), dataset.batch([number]).labels[0].numpy()
        if row.component == "raw":
            raw_targets += (labels >= 0).sum()
            continue
        for start, end in row.loss_spans:
            assert labels[start:end].tolist() == row.input_ids[start:end].tolist()
            written.append(tokenizer.decode(row.input_ids[start:end]))
        assert (labels >= 0).sum() == sum(end - start for start, end in row.loss_spans)
    assert all(text.endswith(EOS) for text in written)
    pairs = [tuple(parse_completion(text.removesuffix(EOS))) for text in written]
    expected = [example.pairs for chain in read_chains(tasks) for example in chain.examples]
    assert sorted(pairs, key=repr) == sorted(expected, key=repr)
    assert len(pairs) == 3
    # Every token of a raw text but its first.
    counts = manifest.components["raw"]["train"]
    assert raw_targets == counts.num_tokens - counts.num_texts
    assert verify_artifact(str(output)).findings == ()


def test_rows_hold_the_wire_format_with_bos_and_eos_as_tokens(packed, tokenizer_folder):
    output, manifest = packed
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [row for _, row in read_rows(output, manifest) if row.component == "tuning"]
    ids = [int(id_) for row in rows for id_ in row.input_ids[: row.segment_lengths.sum()]]
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 3
    assert tokenizer.decode(ids).count("<s> <CON>") == 3
    assert read_rejects(output) == []


def test_shards_without_tuning_data_have_no_column_for_it(tokenizer_folder, tmp_path):
    raw = write_jsonl(tmp_path / "raw.jsonl", [{"id": "a", "text": "Some text."}])
    component = ComponentConfig(name="raw", kind="documents", input=[raw])
    manifest = run_pack([component], tmp_path / "shards", tokenizer=tokenizer_folder, sequence_length=16)
    assert not manifest.has_loss_spans
    assert all(row.loss_spans is None for _, row in read_rows(tmp_path / "shards", manifest))
    schema = packed_row_schema(sequence_length=16, vocab_size=manifest.vocab_size)
    assert "loss_spans" not in schema.names
    assert verify_artifact(str(tmp_path / "shards")).findings == ()


def test_an_example_longer_than_a_row_is_rejected(tokenizer_folder, tmp_path):
    texts = [make_text("short", num_sentences=1), make_text("long", num_sentences=30)]
    records = [{"id": str(number), "source": "s", "text": text} for number, text in enumerate(texts)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", records)
    # Long enough for a whole pair.
    settings = {"engine": fake_engine(no_pair_rate=0.0), "sampling": Sampling(max_new_tokens=256)}
    run_synthesize([corpus], tmp_path / "augmented", chain_length=2, **settings)
    component = ComponentConfig(name="tuning", kind="synthesizer_tuning", input=[str(tmp_path / "augmented")])
    manifest = run_pack([component], tmp_path / "shards", tokenizer=tokenizer_folder, sequence_length=512)
    assert manifest.rejected_by_reason == {"render/longer_than_a_row": 1}
    (reject,) = read_rejects(tmp_path / "shards")
    assert (reject.doc_id, reject.text) == ("1", texts[1])
    assert manifest.components["tuning"]["train"].num_documents == 1
