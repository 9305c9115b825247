"""Looking into shards: a row as text, and back from a row to the files that it was made from."""

import itertools
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from beam_pipelines.commands import run_command
from beam_pipelines.inspect_shards import print_lengths, row_as_text, segment_lengths
from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.shard_rows import open_tokenizer, printable, read_row
from beam_pipelines.text_origins import find_documents
from beam_pipelines.trace import TraceConfig, trace_row
from contracts import parquet_files
from contracts.artifact import claim_output
from contracts.manifest import InstructionCorpusManifest, complete_artifact, read_shard_manifest
from contracts.parquet_files import write_parquet
from contracts.records import GeneralInstruction, PackedRow
from contracts.schemas import instructions_to_table
from tests.beam_pipelines.pipeline_runs import (
    make_documents,
    make_text,
    read_chains,
    read_rows,
    run_pack,
    run_synthesize,
    write_jsonl,
)
from tests.shard_fixtures import make_rows, write_shards

SEQUENCE_LENGTH = 64
DOCUMENTS = make_documents(12)
NOTES = [{"id": f"note-{number}", "text": make_text(f"note{number}")} for number in range(6)]
# Responses that would colour the terminal.
PAIRS = [
    {"id": f"pair-{number}", "instruction": f"Add {number}.", "response": f"\x1b[31mDone {number}."}
    for number in range(4)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer_folder):
    """A corpus, its augmented form, and shards of all kinds of components, in one folder."""
    folder = tmp_path_factory.mktemp("run")
    corpus = write_jsonl(folder / "corpus" / "web.jsonl", DOCUMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "ROW_GROUP_ROWS", 2)
        run_synthesize([corpus], folder / "augmented", chain_length=3)
    notes = write_jsonl(folder / "corpus" / "notes.jsonl", NOTES)
    pairs = write_jsonl(folder / "corpus" / "pairs.jsonl", PAIRS)
    augmented = [str(folder / "augmented")]
    run_pack(
        [
            ComponentConfig(name="augmented", kind="chains", input=augmented),
            ComponentConfig(name="raw", kind="chain_documents", input=augmented),
            ComponentConfig(name="tuning", kind="synthesizer_tuning", input=augmented),
            ComponentConfig(name="notes", kind="documents", input=[notes]),
            ComponentConfig(name="general", kind="instructions", input=[pairs]),
        ],
        folder / "shards",
        tokenizer=tokenizer_folder,
        sequence_length=SEQUENCE_LENGTH * 8,
        num_shards=2,
        validation_fraction=0.2,
    )
    return folder


def rows_of(folder, component):
    """Numbers of the training rows of a component."""
    manifest = read_shard_manifest(str(folder / "shards"))
    rows = [row for split, row in read_rows(folder / "shards", manifest) if split == "train"]
    return [(number, row) for number, row in enumerate(rows) if row.component == component]


def trace(folder, number, **settings):
    return trace_row(TraceConfig(shards=str(folder / "shards"), row=number, **settings))


def lines_with(place):
    """The record that a place (file and line) names."""
    path, _, line = place.rpartition(":")
    with open(path, encoding="utf-8") as file:
        return json.loads(next(itertools.islice(file, int(line) - 1, None)))


def test_rows_are_found_by_their_global_numbers(run):
    manifest = read_shard_manifest(str(run / "shards"))
    for split in ("train", "validation"):
        expected = [row for of_split, row in read_rows(run / "shards", manifest) if of_split == split]
        assert len(expected) == manifest.num_rows(split) > 1
        for number, row in enumerate(expected):
            found = read_row(str(run / "shards"), manifest=manifest, split=split, row_number=number)
            assert found.input_ids.tolist() == row.input_ids.tolist()
            assert found.text_ids == row.text_ids
    for number in (-1, manifest.num_rows("train")):
        with pytest.raises(ValueError, match=f"Row {number} is not in .*: the split 'train' has"):
            read_row(str(run / "shards"), manifest=manifest, split="train", row_number=number)


def test_rows_behind_the_first_row_group_are_found(tmp_path):
    rows = make_rows(8, component="raw")
    manifest = write_shards(
        str(tmp_path / "shards"), {"train": [rows[:1], rows[1:]]}, tokenizer_folder="tokenizer", tokenizer_sha256="0"
    )
    # A group holds three rows there.
    for number, row in enumerate(rows):
        found = read_row(str(tmp_path / "shards"), manifest=manifest, split="train", row_number=number)
        assert found.text_ids == row.text_ids


def test_a_part_of_a_document_is_found_where_the_whole_stands(tmp_path):
    records = [{"id": "a", "text": "x"}, {"id": "b#part-0002", "text": "y"}, {"id": "c", "text": "z"}]
    source = write_jsonl(tmp_path / "c.jsonl", records)
    found = find_documents(["a#part-0013", "b#part-0002", "absent#part-0001"], inputs=[source], fields=FieldNames())
    assert found == {"a#part-0013": f"{source}:1", "b#part-0002": f"{source}:2"}


def test_a_row_of_chains_leads_to_its_chains_documents_and_files(run):
    chains = {chain.chain_id: chain for chain in read_chains(run / "augmented")}
    seen = set()
    for number, row in rows_of(run, "augmented"):
        found = trace(run, number)
        assert found.problems == ()
        assert set(found.origins) == set(row.text_ids)
        for text_id, (origin,) in found.origins.items():
            assert origin.chain == chains[text_id]
            path, _, number_in_file = origin.place.partition(":row ")
            assert pq.read_table(path).column("chain_id")[int(number_in_file)].as_py() == text_id
            for example in origin.chain.examples:
                record = lines_with(found.places[example.document.doc_id])
                assert (record["id"], record["text"]) == (example.document.doc_id, example.document.text)
            seen.add(text_id)
    assert len(seen) >= 2
    (part,) = (run / "augmented").glob("part-*")
    assert pq.ParquetFile(part).num_row_groups == 2


def test_a_row_of_raw_documents_of_chains_leads_to_each(run):
    for number, row in rows_of(run, "raw"):
        found = trace(run, number)
        assert found.problems == ()
        for text_id in row.text_ids:
            (origin,) = found.origins[text_id]
            assert origin.document.doc_id == text_id
            assert origin.document in [example.document for example in origin.chain.examples]
            assert lines_with(found.places[text_id])["text"] == origin.document.text


def test_a_row_of_tuning_data_leads_to_its_chains(run):
    ((number, row), *_) = rows_of(run, "tuning")
    found = trace(run, number)
    assert found.problems == ()
    assert {origin.chain.chain_id for (origin,) in found.origins.values()} == {t.split("#")[0] for t in row.text_ids}


def test_a_row_of_records_leads_to_their_lines(run):
    for component, records in (("notes", NOTES), ("general", PAIRS)):
        ((number, row), *_) = rows_of(run, component)
        found = trace(run, number)
        assert found.problems == ()
        for text_id in row.text_ids:
            (origin,) = found.origins[text_id]
            record = lines_with(origin.place)
            assert record in records
            assert record["id"] == text_id


def test_the_command_shows_texts_pairs_and_files(run, capsys):
    number, row = rows_of(run, "augmented")[0]
    assert run_command(["trace", str(run / "shards"), "--row", str(number)]) == 0
    printed = capsys.readouterr().out
    chain = next(chain for chain in read_chains(run / "augmented") if chain.chain_id == row.text_ids[0])
    for example in chain.examples:
        assert example.document.text in printed
        for pair in example.pairs:
            assert f"Q: {pair.instruction}" in printed
            assert f"A: {pair.response}" in printed
    assert f"from {run}/corpus/web.jsonl:" in printed
    number, _ = rows_of(run, "general")[0]
    assert run_command(["trace", str(run / "shards"), "--row", str(number)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed, "a text of the corpus must not speak to the terminal"
    assert "␛[31mDone" in printed


def test_what_has_moved_is_found_where_the_user_says(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    corpus, augmented = run / "corpus", run / "augmented"
    (corpus_aside, augmented_aside) = (run / "corpus-aside", run / "augmented-aside")
    number, row = rows_of(moved, "augmented")[0]
    os.rename(corpus, corpus_aside)
    os.rename(augmented, augmented_aside)
    try:
        lost = trace(moved, number)
        assert lost.origins == {}
        assert len(lost.problems) == 1
        assert str(augmented) in lost.problems[0]
        assert "--corpus" in lost.problems[0]

        partly = trace(moved, number, corpus=[str(moved / "augmented")])
        assert set(partly.origins) == set(row.text_ids)
        assert partly.places == {}
        assert "--documents" in partly.problems[0]

        whole = trace(moved, number, corpus=[str(moved / "augmented")], documents=[str(moved / "corpus" / "web.jsonl")])
        assert whole.problems == ()
        assert all(place.startswith(str(moved)) for place in whole.places.values())
        assert whole.places
    finally:
        os.rename(corpus_aside, corpus)
        os.rename(augmented_aside, augmented)


def test_what_is_not_there_or_not_the_same_is_said(run, tmp_path, capsys):
    other = write_jsonl(tmp_path / "other.jsonl", make_documents(3, source="other"))
    run_synthesize([other], tmp_path / "augmented")
    number, row = rows_of(run, "augmented")[0]
    found = trace(run, number, corpus=[str(tmp_path / "augmented")])
    assert found.origins == {}
    assert "not, or no longer, the corpus that the shards were packed from" in found.problems[0]
    arguments = ["trace", str(run / "shards"), "--row", str(number), "--corpus", f"[{tmp_path}/augmented]"]
    assert run_command(arguments) == 1
    assert capsys.readouterr().out.count("not found") == len(row.text_ids)
    number, row = rows_of(run, "notes")[0]
    found = trace(run, number, corpus=[other])
    assert found.problems == (f"Not in {other}: {', '.join(row.text_ids)}.",)


def test_the_row_is_shown_with_its_boundaries(run, capsys, tokenizer_folder):
    number, row = rows_of(run, "notes")[0]
    assert run_command(["inspect", str(run / "shards"), "--row", str(number)]) == 0
    printed = capsys.readouterr().out
    for text_id in row.text_ids:
        assert f"{text_id}, tokens " in printed
    texts = {note["id"]: note["text"] for note in NOTES}
    assert any(texts[text_id] in printed for text_id in row.text_ids)
    manifest = read_shard_manifest(str(run / "shards"))
    assert manifest.fingerprint in printed
    for name in manifest.components:
        assert name in printed
    assert run_command(["inspect", str(run / "shards"), "--row", "100000"]) == 1
    assert "Row 100000 is not in" in capsys.readouterr().err


def test_boundaries_padding_and_targets_of_a_row_worked_by_hand(run):
    tokenizer = open_tokenizer(read_shard_manifest(str(run / "shards")))
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("one two", "three"))
    ids = [*first, *second, 0, 0]
    row = PackedRow(
        input_ids=np.array(ids),
        segment_lengths=np.array([len(first), len(second)], np.int32),
        component="c",
        text_ids=("a", "b"),
        loss_spans=np.array([[1, len(first) + 2]], np.int32),
    )
    lines = list(row_as_text(row, tokenizer=tokenizer))
    assert [line.plain for line in lines] == [
        f"── text 1 of 2: a, tokens 0 to {len(first) - 1}, {len(first) - 1} of them targets",
        "one two",
        f"── text 2 of 2: b, tokens {len(first)} to {len(ids) - 3}, 2 of them targets",
        "three",
        f"── padding, tokens {len(ids) - 2} to {len(ids) - 1}",
    ]
    dim = [line.plain[span.start : span.end] for line in lines for span in line.spans if span.style == "dim"]
    assert dim == [tokenizer.decode(first[:1]), tokenizer.decode(second[2:])]


def test_lengths_are_counted_in_doubling_bins(run, capsys):
    manifest = read_shard_manifest(str(run / "shards"))
    histogram = segment_lengths(str(run / "shards"), manifest=manifest, split="train")
    assert histogram.first_lengths.tolist() == [2**n for n in range(10)]
    expected = {name: [0] * 10 for name in manifest.components}
    for split, row in read_rows(run / "shards", manifest):
        if split == "train":
            for length in row.segment_lengths.tolist():
                expected[row.component][length.bit_length() - 1] += 1
    assert {name: counts.tolist() for name, counts in histogram.counts.items()} == expected
    print_lengths(histogram, console=Console(width=200))
    assert "█" in capsys.readouterr().out


def test_another_tokenizer_is_refused(run, tmp_path, tokenizer_folder):
    other = shutil.copytree(tokenizer_folder, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|im_end|>"', '"<|im_and|>"'))
    manifest = read_shard_manifest(str(run / "shards"))
    with pytest.raises(ValueError, match=r"is another one .* Name theirs by --tokenizer"):
        open_tokenizer(manifest, name_or_path=str(other))


def test_control_characters_become_signs():
    assert printable("a\tb\nc\x1b[0m\x00\r\x7f é") == "a\tb\nc␛[0m␀␍␡ é"


def test_an_id_that_stands_in_several_places_is_shown_with_all_of_them(tmp_path, tokenizer_folder, capsys):
    """Two corpora of the same documents have the same chains, and files by others the same ids."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", make_documents(4))
    for name in ("first", "second"):
        run_synthesize([corpus], tmp_path / name, chain_length=1)
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", [{"id": "1", "text": f"The {name} file melts copper."}])
        for name in ("left", "right")
    ]
    run_pack(
        [
            ComponentConfig(name="both", kind="chains", input=[str(tmp_path / "first"), str(tmp_path / "second")]),
            ComponentConfig(name="files", kind="documents", input=files),
        ],
        tmp_path / "shards",
        tokenizer=tokenizer_folder,
        sequence_length=SEQUENCE_LENGTH,
        num_shards=1,
    )
    number, row = rows_of(tmp_path, "both")[0]
    found = trace(tmp_path, number)
    for text_id in row.text_ids:
        assert [origin.place.split("/part-")[0] for origin in found.origins[text_id]] == [
            str(tmp_path / "first"),
            str(tmp_path / "second"),
        ]
    assert len(found.problems) == len(set(row.text_ids))
    assert "stands in several places" in found.problems[0]
    number, _ = rows_of(tmp_path, "files")[0]
    assert run_command(["trace", str(tmp_path / "shards"), "--row", str(number)]) == 1
    printed = capsys.readouterr().out
    assert "The left file" in printed
    assert "The right file" in printed


def test_a_file_that_has_changed_since_is_said(tmp_path, tokenizer_folder):
    notes = write_jsonl(tmp_path / "notes.jsonl", NOTES)
    components = [ComponentConfig(name="notes", kind="documents", input=[notes])]
    settings = {"tokenizer": tokenizer_folder, "sequence_length": SEQUENCE_LENGTH, "num_shards": 1}
    run_pack(components, tmp_path / "shards", **settings)
    assert trace(tmp_path, 0).problems == ()
    write_jsonl(tmp_path / "notes.jsonl", [{**note, "text": f"{note['text']} And more."} for note in NOTES])
    (problem,) = trace(tmp_path, 0).problems
    assert problem.startswith(f"{notes} is not as it was when the shards were packed")


@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, 100)], ids=["missing", "truncated"])
def test_a_damaged_shard_is_named(run, tmp_path, capsys, damage):
    shutil.copytree(run / "shards", tmp_path / "shards")
    damage(tmp_path / "shards" / "shard-00001-of-00002.parquet")
    assert run_command(["inspect", str(tmp_path / "shards")]) == 1
    error = capsys.readouterr().err
    assert "shard-00001-of-00002.parquet is missing or damaged" in error


def write_instructions(folder, *, model_id):
    """An instruction corpus whose ids are the same whatever the model."""
    claim_output(str(folder), run={"command": "self-instruct", "model": model_id})
    rows = [
        GeneralInstruction(
            id=f"draw-{n}", instruction=f"Name {n}.", response=f"{model_id} says {n}.", model_id=model_id
        )
        for n in range(3)
    ]
    entry = write_parquet(str(folder), path="part-0.parquet", table=instructions_to_table(rows))
    complete_artifact(
        str(folder),
        InstructionCorpusManifest(
            model_id=model_id,
            num_draws=3,
            num_instructions=3,
            rejected_by_reason={},
            parts=(entry,),
            rejects=(),
            inputs={"model": model_id},
            config={},
        ),
    )
    return str(folder)


def test_an_instruction_corpus_that_was_made_anew_is_said(tmp_path, tokenizer_folder):
    corpus = write_instructions(tmp_path / "general", model_id="first")
    components = [ComponentConfig(name="general", kind="instructions", input=[corpus])]
    run_pack(components, tmp_path / "shards", tokenizer=tokenizer_folder, sequence_length=SEQUENCE_LENGTH, num_shards=1)
    assert trace(tmp_path, 0).problems == ()
    shutil.rmtree(corpus)
    write_instructions(tmp_path / "general", model_id="second")
    (problem,) = trace(tmp_path, 0).problems
    assert problem.startswith(f"{corpus} is not as it was when the shards were packed")
