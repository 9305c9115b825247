from dataclasses import replace

import pyarrow as pa
import pytest

from contracts.artifact import claim_output
from contracts.manifest import (
    FileEntry,
    InstructionCorpusManifest,
    complete_artifact,
    read_augmented_corpus_manifest,
    read_instruction_corpus_manifest,
)
from contracts.records import GeneralInstruction
from contracts.schemas import INSTRUCTION_SCHEMA, instructions_to_table


def entry(path, num_rows):
    return FileEntry(path=path, num_rows=num_rows, num_bytes=10, sha256="0" * 64)


MANIFEST = InstructionCorpusManifest(
    model_id="model@1",
    num_draws=10,
    num_instructions=6,
    rejected_by_reason={"duplicates/duplicate": 1, "response/cut_off": 3},
    parts=(entry("part-0.parquet", 2), entry("part-1.parquet", 4)),
    rejects=(entry("rejects/part-0.parquet", 4),),
    inputs={"model": "model@1"},
    config={"num_draws": 10, "output": "here"},
)


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    folder = str(tmp_path / "out")
    claim_output(folder, run={"command": "self-instruct"})
    with pytest.raises(ValueError, match="its run has not completed"):
        read_instruction_corpus_manifest(folder)
    written = complete_artifact(folder, MANIFEST)
    assert read_instruction_corpus_manifest(folder) == written
    assert replace(written, fingerprint="") == MANIFEST
    with pytest.raises(ValueError, match="is not the manifest expected here: it has no 'accounts'"):
        read_augmented_corpus_manifest(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_draws": 11}, "11 instructions were asked for, but 6 kept \\+ 4 rejected"),
        ({"rejected_by_reason": {"response/cut_off": 3}}, "6 kept \\+ 3 rejected"),
        ({"parts": (entry("part-0.parquet", 5),)}, "The files hold 5 instructions and 4 rejects"),
        ({"rejects": ()}, "The files hold 6 instructions and 0 rejects"),
    ],
)
def test_sums_that_differ_are_refused(tmp_path, changes, message):
    folder = str(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        complete_artifact(folder, replace(MANIFEST, **changes))
    assert not (tmp_path / "out").exists()


def test_where_it_lies_is_no_part_of_what_it_is(tmp_path):
    elsewhere = replace(MANIFEST, config={"num_draws": 10, "output": "there"})
    prints = [
        complete_artifact(str(tmp_path / name), manifest).fingerprint
        for name, manifest in [("a", MANIFEST), ("b", elsewhere), ("c", replace(MANIFEST, model_id="model@2"))]
    ]
    assert prints[0] == prints[1] != prints[2]


def test_instructions_are_rows_of_four_texts():
    rows = [GeneralInstruction(id=str(n), instruction=f"i{n}", response="r\u2028{x}", model_id="m") for n in range(3)]
    table = instructions_to_table(rows)
    assert table.schema.equals(INSTRUCTION_SCHEMA)
    assert table.column_names == ["id", "instruction", "response", "model_id"]
    assert [GeneralInstruction(**row) for row in table.to_pylist()] == rows
    assert all(field.type == pa.string() and not field.nullable for field in table.schema)
