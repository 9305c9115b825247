"""Every kind of damage to an artifact is found, and named by its file."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipelines.commands import run_command
from beam_pipelines.verify import verify_artifact
from contracts import storage
from contracts.manifest import complete_artifact, read_shard_manifest
from tests.beam_pipelines.pipeline_runs import make_documents, run_synthesize, write_jsonl
from tests.shard_fixtures import make_rows, write_shards


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("original") / "shards")
    rows = [*make_rows(9, component="tuning", with_loss_spans=True), *make_rows(3, component="b", with_loss_spans=True)]
    write_shards(
        folder,
        {"train": [rows[:5], rows[5:10]], "validation": [rows[10:]]},
        tokenizer_folder="tokenizer",
        tokenizer_sha256="0",
    )
    return folder


@pytest.fixture
def shards(original, tmp_path):
    return shutil.copytree(original, tmp_path / "shards")


FIRST, SECOND = "train-00000.parquet", "train-00001.parquet"


def findings(folder):
    return [(finding.path, finding.problem) for finding in verify_artifact(str(folder)).findings]


def test_whole_shards_have_no_finding(shards, capsys):
    verification = verify_artifact(str(shards))
    assert (verification.num_files, verification.num_rows, verification.findings) == (3, 12, ())
    assert run_command(["verify", str(shards)]) == 0
    assert "3 files with 12 rows, as the manifest says" in capsys.readouterr().out


def test_every_damaged_file_is_named(shards, capsys):
    os.remove(shards / FIRST)
    content = (shards / SECOND).read_bytes()
    (shards / SECOND).write_bytes(content[:-40])
    (shards / "shard-from-elsewhere.parquet").write_bytes(content)
    validation = shards / "validation-00002.parquet"
    damaged = bytearray(validation.read_bytes())
    damaged[60] ^= 0xFF
    validation.write_bytes(damaged)
    assert findings(shards) == [
        (FIRST, "missing"),
        (SECOND, "truncated"),
        ("validation-00002.parquet", "corrupted"),
        ("shard-from-elsewhere.parquet", "foreign"),
    ]
    assert run_command(["verify", "--folder", str(shards)]) == 1
    printed = capsys.readouterr().out
    for name in (FIRST, SECOND, "validation-00002.parquet", "shard-from-elsewhere.parquet"):
        assert name in printed
    assert "4 findings" in printed


@pytest.mark.parametrize("position", [0, 4, 100, -1, -5])
def test_a_single_flipped_bit_is_found(shards, position):
    content = bytearray((shards / FIRST).read_bytes())
    content[position] ^= 1
    (shards / FIRST).write_bytes(content)
    assert findings(shards) == [(FIRST, "corrupted")]


def test_a_whole_file_of_another_packing_is_foreign(shards):
    rows = make_rows(7, component="raw")
    other = shards.parent / "other"
    write_shards(str(other), {"train": [rows]}, tokenizer_folder="tokenizer", tokenizer_sha256="0")
    shutil.copy(other / "train-00000.parquet", shards / SECOND)
    assert findings(shards) == [(SECOND, "foreign")]
    assert "a whole Parquet file of 7 rows" in verify_artifact(str(shards)).findings[0].detail


def test_folders_and_files_of_others_are_left_alone(shards):
    (shards / "tokenized").mkdir()
    shutil.copy(shards / FIRST, shards / "tokenized" / "kept.parquet")
    (shards / "notes.txt").write_text("mine")
    assert findings(shards) == []


@pytest.mark.parametrize("name", ["COMPLETED", "manifest.json"])
def test_without_its_manifest_nothing_is_trusted(shards, name, capsys):
    os.remove(shards / name)
    assert findings(shards) == [("manifest.json", "manifest")]
    assert run_command(["verify", str(shards)]) == 1
    assert "manifest" in capsys.readouterr().out


def test_a_changed_manifest_is_found(shards):
    text = (shards / "manifest.json").read_text()
    (shards / "manifest.json").write_text(text.replace('"num_rows": 5', '"num_rows": 6', 1))
    assert findings(shards) == [("manifest.json", "manifest")]


def rewritten(folder, change):
    """What is found in shards whose first file was changed before they were completed: every checksum is right."""
    pq.write_table(change(pq.read_table(folder / FIRST)), folder / FIRST)
    manifest = read_shard_manifest(str(folder))
    first, *others = manifest.shards
    changed = replace(first, num_bytes=(folder / FIRST).stat().st_size, sha256=storage.file_sha256(str(folder / FIRST)))
    complete_artifact(str(folder), replace(manifest, shards=(changed, *others)))
    return [finding.detail for finding in verify_artifact(str(folder)).findings]


def with_column(table, name, values):
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda table: table.slice(0, 4), "4 rows, 5 in the manifest"),
        (lambda table: table.drop_columns(["loss_spans"]), "not the contract's"),
        (lambda table: with_column(table, "component", ["b"] * 5), "rows by component are"),
        (lambda table: with_column(table, "text_ids", [["x"]] * 5), "a text id for each segment"),
        (lambda table: with_column(table, "segment_lengths", [[99]] * 5), "segments do not fit their rows"),
        (lambda table: with_column(table, "loss_spans", [[3, 3]] * 5), "loss spans are empty or reach beyond"),
        (lambda table: with_column(table, "loss_spans", [[0, 99]] * 5), "loss spans are empty or reach beyond"),
        (lambda table: with_column(table, "loss_spans", [[0, 1, 2]] * 5), "loss spans are empty or reach beyond"),
        (lambda table: with_column(table, "input_ids", np.full((5, 32), 600).tolist()), "a token id is 600"),
    ],
)
def test_rows_that_are_not_whole_are_found_behind_right_checksums(shards, change, detail):
    assert any(detail in found for found in rewritten(shards, change))


def test_a_rewritten_file_without_a_change_has_no_finding(shards):
    assert rewritten(shards, lambda table: table) == []


def test_an_augmented_corpus(tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*make_documents(6), {"id": "no text"}])
    run_synthesize([corpus], tmp_path / "augmented", num_files=2)
    verification = verify_artifact(str(tmp_path / "augmented"))
    assert verification.findings == ()
    assert verification.num_files == 3
    part = sorted((tmp_path / "augmented").glob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:-1])
    (reject,) = (tmp_path / "augmented" / "rejects").iterdir()
    reject.unlink()
    assert findings(tmp_path / "augmented") == [(part.name, "truncated"), (f"rejects/{reject.name}", "missing")]


def test_in_memory_storage(original):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(original + "/", "/verified/", recursive=True)
    assert verify_artifact("memory://verified").findings == ()
    fs.rm("/verified/" + FIRST)
    fs.pipe("/verified/extra.parquet", b"x")
    assert findings("memory://verified") == [(FIRST, "missing"), ("extra.parquet", "foreign")]


def test_there_must_be_a_folder(tmp_path, capsys):
    assert run_command(["verify", str(tmp_path / "nowhere")]) == 1
    assert "There is no folder" in capsys.readouterr().err


def test_a_manifest_that_is_no_object_is_a_finding(shards):
    (shards / "manifest.json").write_text("null", "utf-8")
    assert findings(shards) == [("manifest.json", "manifest")]
