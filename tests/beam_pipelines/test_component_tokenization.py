import itertools
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from beam_pipelines import component_tokenization
from beam_pipelines.component_reading import Rendering
from beam_pipelines.component_tokenization import (
    Keeping,
    component_identity,
    find_unit,
    plan_units,
    read_rejects,
    tokenize_unit,
)
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.text_tokenization import Tokenization
from beam_pipelines.tokenized_parts import NUM_KEYS, document_key, read_range
from contracts import storage
from contracts.record_files import WHOLE_FILE
from contracts.records import Reject, RenderedText
from contracts.storage import InputFile
from templates import TemplateConfig
from tests.beam_pipelines.byte_tokenizer import DESCRIPTION, ByteTokenizer

EVERYTHING = (0, NUM_KEYS)
KEEPING = Keeping(part_tokens=1 << 20, validation_fraction=0.0, seed=3)


def rejects_of(index):
    return [Reject(**row) for table in read_rejects(index) for row in table.to_pylist()]


def text(number, *, doc_ids=None, content=None):
    return RenderedText(
        text_id=f"text-{number}",
        component="raw",
        text=f"text number {number}" if content is None else content,
        template_id="raw",
        doc_ids=doc_ids or (f"doc-{number}",),
        group_id=f"group-{number}",
    )


def reject(number):
    return Reject(doc_id=str(number), source="s", stage="read", reason="r", detail="d", text="t")


def read_texts(index, split="train"):
    paths = [part.path for part in index.texts if part.split == split]
    columns = ["key", "text_id", "num_documents", "num_tokens", "ids"]
    return pa.concat_tables([read_range(f"{index.folder}/{path}", EVERYTHING, columns=columns) for path in paths])


def texts_of(table):
    """The texts by id, from their ids as 16-bit numbers."""
    return {
        row["text_id"]: bytes(np.frombuffer(row["ids"], "<u2").astype(np.uint8)).decode() for row in table.to_pylist()
    }


def test_a_unit_keeps_every_text_by_its_first_document(tmp_path):
    texts = [text(number) for number in range(50)] + [text(50, doc_ids=("doc-50", "doc-51")), text(60, content="")]
    index = tokenize_unit(str(tmp_path), texts, tokenizer=ByteTokenizer(), keeping=KEEPING)
    table = read_texts(index)
    assert texts_of(table) == {one.text_id: one.text for one in texts if one.text}
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    assert {row["key"] for row in rows} == {document_key(f"doc-{number}", seed=3) for number in range(51)}
    assert [row["num_tokens"] for row in rows] == [len(texts_of(table)[row["text_id"]]) for row in rows]
    (part,) = index.texts
    assert (part.num_texts, part.num_tokens) == (51, sum(row["num_tokens"] for row in rows))
    (documents,) = index.documents
    columns = ["key", "doc_id", "text_key"]
    listed = read_range(f"{index.folder}/{documents}", EVERYTHING, columns=columns).to_pylist()
    assert {(row["doc_id"], row["text_key"]) for row in listed} == {
        *((f"doc-{number}", document_key(f"doc-{number}", seed=3)) for number in range(51)),
        ("doc-51", document_key("doc-50", seed=3)),
    }
    assert all(row["key"] == document_key(row["doc_id"], seed=3) for row in listed)


def test_what_is_kept_is_found_again_and_an_unfinished_unit_is_not(tmp_path):
    items = [reject(0), text(1), reject(2), text(3)]
    index = tokenize_unit(str(tmp_path), items, tokenizer=ByteTokenizer(), keeping=KEEPING)
    assert find_unit(str(tmp_path)) == index
    assert rejects_of(index) == [reject(0), reject(2)]
    (tmp_path / "unit.json").unlink()
    assert find_unit(str(tmp_path)) is None
    assert find_unit(str(tmp_path / "nowhere")) is None


def test_parts_are_bounded_and_hold_the_same_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(component_tokenization, "BATCH_CHARACTERS", 40)
    monkeypatch.setattr(component_tokenization, "_REJECTS_PER_FILE", 3)
    items = list(itertools.chain.from_iterable((text(number), reject(number)) for number in range(100)))
    keeping = replace(KEEPING, part_tokens=300)
    index = tokenize_unit(str(tmp_path / "small"), items, tokenizer=ByteTokenizer(), keeping=keeping)
    whole = tokenize_unit(str(tmp_path / "large"), items, tokenizer=ByteTokenizer(), keeping=KEEPING)
    assert len(index.texts) > 3
    assert len(whole.texts) == 1
    assert all(part.num_tokens < 300 + 60 for part in index.texts)
    assert texts_of(read_texts(index)) == texts_of(read_texts(whole))
    assert rejects_of(index) == rejects_of(whole) == [reject(number) for number in range(100)]
    assert len(index.rejects) == 34


@pytest.mark.parametrize("before", [None, "true"])
def test_the_tokenizers_own_threads_stay_out_of_it(tmp_path, monkeypatch, before):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    seen = []

    class Looking(ByteTokenizer):
        def encode(self, texts):
            seen.append(os.environ.get("TOKENIZERS_PARALLELISM"))
            return super().encode(texts)

    tokenize_unit(str(tmp_path), [text(0)], tokenizer=Looking(), keeping=KEEPING)
    assert seen == ["false"]
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_held_out_groups_have_parts_of_their_own(tmp_path):
    keeping = replace(KEEPING, validation_fraction=0.3)
    index = tokenize_unit(
        str(tmp_path), [text(number) for number in range(200)], tokenizer=ByteTokenizer(), keeping=keeping
    )
    train, validation = texts_of(read_texts(index)), texts_of(read_texts(index, "validation"))
    assert not train.keys() & validation.keys()
    assert len(train) + len(validation) == 200
    assert 30 < len(validation) < 90


def test_an_error_of_the_tokenizer_or_the_reader_ends_the_unit(tmp_path):
    class Failing(ByteTokenizer):
        def encode(self, texts):
            raise ValueError("cannot be encoded")

    def failing_texts():
        yield text(0)
        raise OSError("no connection")

    with pytest.raises(ValueError, match="cannot be encoded"):
        tokenize_unit(str(tmp_path), [text(0)], tokenizer=Failing(), keeping=KEEPING)
    with pytest.raises(OSError, match="no connection"):
        tokenize_unit(str(tmp_path), failing_texts(), tokenizer=ByteTokenizer(), keeping=KEEPING)
    assert find_unit(str(tmp_path)) is None


def test_units_are_neighbouring_files_of_bounded_size():
    unit_bytes = component_tokenization.UNIT_BYTES
    sizes = {"a.jsonl": 1, "b.jsonl": 2, "c.txt": unit_bytes, "d.jsonl": 3, "e.parquet": unit_bytes * 3, "f.jsonl": 5}
    files = [InputFile(url=url, size_bytes=size, version="") for url, size in sizes.items()]
    units = plan_units(["raw", "rest"], kind="documents", files=files, folder="cache")
    assert [unit.files for unit in units] == [
        (("a.jsonl", WHOLE_FILE), ("b.jsonl", WHOLE_FILE), ("c.txt", WHOLE_FILE)),
        (("d.jsonl", WHOLE_FILE), ("e.parquet", WHOLE_FILE)),
        (("f.jsonl", WHOLE_FILE),),
    ]
    assert {unit.components for unit in units} == {("raw", "rest")}
    assert [unit.folder for unit in units] == [f"cache/unit-0000{number}" for number in range(3)]
    assert plan_units(["raw", "rest"], kind="documents", files=[], folder="cache") == []


def test_a_large_file_is_several_units(monkeypatch):
    monkeypatch.setattr(component_tokenization, "UNIT_BYTES", 100)
    files = [InputFile(url=url, size_bytes=size, version="") for url, size in (("a.jsonl", 30), ("b.jsonl", 350))]
    units = plan_units(["raw"], kind="documents", files=files, folder="cache")
    assert [unit.files for unit in units] == [
        (("a.jsonl", (0, None)), ("b.jsonl", (0, 116))),
        (("b.jsonl", (116, 233)),),
        (("b.jsonl", (233, None)),),
    ]


RENDERING = Rendering(fields=FieldNames(), templates=TemplateConfig(), sequence_length=64, seed=3)
TOKENIZATION = Tokenization(
    definition_url="c/1.json", plain_definition_url="c/2.json", tokenizer=DESCRIPTION, add_bos=False, add_eos=True
)
FILES = (InputFile(url="f", size_bytes=1, version="1"),)


def fingerprint(kind, *, files=FILES, rendering=RENDERING, tokenization=TOKENIZATION, keeping=KEEPING):
    return storage.json_sha256(
        component_identity(kind, files=files, rendering=rendering, tokenization=tokenization, keeping=keeping)
    )


@pytest.mark.parametrize("kind", ["chains", "chain_documents", "documents", "instructions", "synthesizer_tuning"])
def test_whatever_decides_the_tokens_changes_the_fingerprint(kind, monkeypatch):
    same = fingerprint(kind)
    assert fingerprint(kind, keeping=replace(KEEPING, part_tokens=7)) == same
    assert fingerprint("documents" if kind != "documents" else "chains") != same
    assert fingerprint(kind, files=(replace(FILES[0], version="2"),)) != same
    assert fingerprint(kind, tokenization=replace(TOKENIZATION, add_bos=True)) != same
    assert fingerprint(kind, tokenization=replace(TOKENIZATION, plain_definition_url="c/3.json")) != same
    assert fingerprint(kind, keeping=replace(KEEPING, validation_fraction=0.1)) != same
    other_fields = replace(RENDERING, fields=FieldNames(text="body"))
    assert (fingerprint(kind, rendering=other_fields) != same) == (kind in ("documents", "instructions"))
    longer = replace(RENDERING, sequence_length=128)
    assert (fingerprint(kind, rendering=longer) != same) == (kind == "synthesizer_tuning")
    other_templates = replace(RENDERING, templates=TemplateConfig(pairs_first_share=0.9))
    assert (fingerprint(kind, rendering=other_templates) != same) == (kind == "chains")
    monkeypatch.setattr("beam_pipelines.component_reading.bank_sha256", lambda: "another bank")
    assert (fingerprint(kind) != same) == (kind == "chains")
    monkeypatch.undo()
    # A unit that is found again must hold the texts that it is to hold.
    monkeypatch.setattr(component_tokenization, "UNIT_BYTES", 7)
    assert fingerprint(kind) != same


def test_what_is_damaged_is_not_found_again(tmp_path, caplog):
    """A flipped bit, a lost end, a lost file: the unit is tokenized again, and says so."""
    items = [reject(0), *map(text, range(9))]
    index = tokenize_unit(str(tmp_path), items, tokenizer=ByteTokenizer(), keeping=KEEPING)
    assert len(index.files) == 3
    for path in index.files:
        content = (tmp_path / path).read_bytes()
        flipped = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
        for damaged in (flipped, content[:-9], None):
            (tmp_path / path).unlink()
            if damaged is not None:
                (tmp_path / path).write_bytes(damaged)
            assert find_unit(str(tmp_path)) is None
            assert f"{path} is damaged; its unit is tokenized again" in caplog.text
            caplog.clear()
            (tmp_path / path).write_bytes(content)
        assert find_unit(str(tmp_path)) == index


def test_two_packings_with_parts_of_another_size_do_not_overwrite_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(component_tokenization, "BATCH_CHARACTERS", 40)
    items = [text(number) for number in range(60)]
    other = replace(KEEPING, part_tokens=300)

    def begun_by_another():
        yield from items[:30]
        # The other one tokenizes the same unit in between, whole.
        tokenize_unit(str(tmp_path), items, tokenizer=ByteTokenizer(), keeping=other)
        yield from items[30:]

    index = tokenize_unit(str(tmp_path), begun_by_another(), tokenizer=ByteTokenizer(), keeping=KEEPING)
    assert len(texts_of(read_texts(index))) == read_texts(index).num_rows == 60
    assert find_unit(str(tmp_path)) == index


def test_a_text_without_a_token_is_a_reject(tmp_path):
    index = tokenize_unit(
        str(tmp_path), [text(0), replace(text(1), text="")], tokenizer=ByteTokenizer(), keeping=KEEPING
    )
    assert read_texts(index).num_rows == 1
    (found,) = rejects_of(index)
    assert (found.doc_id, found.source, found.stage, found.reason) == ("doc-1", "", "tokenize", "no_token")


def test_parts_of_a_document_lie_where_the_whole_does(tmp_path):
    parts = text(0, doc_ids=("long#part-0002", "other#part-0001", "short"))
    index = tokenize_unit(str(tmp_path), [parts], tokenizer=ByteTokenizer(), keeping=KEEPING)
    table = read_range(f"{tmp_path}/{index.documents[0]}", EVERYTHING, columns=["key", "doc_id", "text_key"])
    key = document_key("long", seed=KEEPING.seed)
    assert {(row["doc_id"], row["key"], row["text_key"]) for row in table.to_pylist()} == {
        ("long", key, key),
        ("other", document_key("other", seed=KEEPING.seed), key),
        ("short", document_key("short", seed=KEEPING.seed), key),
    }
    assert read_texts(index).column("key").to_pylist() == [key]


def test_an_id_beyond_the_vocabulary_is_never_narrowed(tmp_path):
    class TooLarge(ByteTokenizer):
        def encode(self, texts):
            encoded = super().encode(texts)
            return replace(encoded, ids=encoded.ids + np.uint32(1 << 16))

    with pytest.raises(AssertionError):
        tokenize_unit(str(tmp_path), [text(0)], tokenizer=TooLarge(), keeping=KEEPING)
