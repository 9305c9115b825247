import json
from dataclasses import asdict, replace

import pytest

from contracts import storage
from contracts.artifact import mark_completed
from contracts.manifest import (
    AugmentedCorpusManifest,
    ComponentCounts,
    DocumentAccounts,
    FileEntry,
    ShardEntry,
    ShardManifest,
    TokenizerEntry,
    complete_artifact,
    manifest_fingerprint,
    read_augmented_corpus_manifest,
    read_shard_manifest,
)


def file_of(path, num_rows):
    return FileEntry(path=path, num_rows=num_rows, num_bytes=100, sha256="ab")


# Ten records, one of them split into three parts: twelve texts to account for.
ACCOUNTS = DocumentAccounts(
    num_records=10,
    num_documents_split=1,
    num_parts=3,
    num_augmented=7,
    num_kept_raw=2,
    num_rejected=3,
    rejected_by_reason={"read/not_json": 1, "split/sentence_too_long": 2},
)
CORPUS = AugmentedCorpusManifest(
    synthesizer_id="fake+chat",
    accounts=ACCOUNTS,
    num_chains=5,
    num_pairs=14,
    num_prompt_tokens=1000,
    num_new_tokens=200,
    finish_reasons={"stop": 8, "length": 1},
    parts=(file_of("part-0.parquet", 3), file_of("part-1.parquet", 2)),
    rejects=(file_of("rejects/part-0.parquet", 3),),
    inputs={"corpus.jsonl": "1"},
    config={"output": "here", "seed": 3, "engine": {"kind": "fake", "model": "/models/a", "sizes": (1, 2)}},
)


SEQUENCE_LENGTH = 32


def counts_of(num_rows, num_tokens):
    return ComponentCounts(
        num_documents=3,
        num_texts=4,
        num_available_tokens=90,
        epochs=num_tokens / 90,
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_padding_tokens=num_rows * SEQUENCE_LENGTH - num_tokens,
        num_truncations=1,
    )


def shard_of(path, split, rows, tokens):
    return ShardEntry(
        path=path,
        split=split,
        num_rows=sum(rows.values()),
        num_bytes=100,
        sha256="cd",
        rows_by_component=rows,
        tokens_by_component=tokens,
    )


SHARDS = ShardManifest(
    sequence_length=32,
    tokenizer=TokenizerEntry(name="folder", sha256="ef"),
    vocab_size=100,
    special_ids={"eos": 1, "pad": None},
    has_loss_spans=False,
    shards=(
        shard_of("a", "train", {"raw": 2, "general": 1}, {"raw": 60, "general": 32}),
        shard_of("b", "train", {"raw": 1}, {"raw": 32}),
        shard_of("c", "validation", {"raw": 1}, {"raw": 20}),
    ),
    rejects=(file_of("rejects/part-0.parquet", 2),),
    rejected_by_reason={"read/empty_text": 2},
    components={
        "raw": {"train": counts_of(3, 92), "validation": counts_of(1, 20)},
        "general": {"train": counts_of(1, 32), "validation": counts_of(0, 0)},
    },
    inputs={"augmented": "fingerprint"},
    config={"output": "here", "seed": 0},
)
READERS = [(CORPUS, read_augmented_corpus_manifest), (SHARDS, read_shard_manifest)]


def test_sums_that_hold_pass():
    assert ACCOUNTS.num_texts == 12
    ACCOUNTS.check()
    CORPUS.check()
    SHARDS.check()
    assert SHARDS.num_rows("train") == 4
    assert SHARDS.num_tokens("train") == 124
    assert [entry.path for entry in SHARDS.shards_of("train")] == ["a", "b"]
    assert SHARDS.num_rows("validation") == 1


@pytest.mark.parametrize(
    "name", ["num_records", "num_documents_split", "num_parts", "num_augmented", "num_kept_raw", "num_rejected"]
)
@pytest.mark.parametrize("error", [-1, 1])
def test_every_count_of_documents_is_held_against_the_others(name, error):
    accounts = replace(ACCOUNTS, **{name: getattr(ACCOUNTS, name) + error})
    with pytest.raises(ValueError, match="The accounts do not add up"):
        accounts.check()
    with pytest.raises(ValueError, match="The accounts do not add up"):
        replace(CORPUS, accounts=accounts).check()


def test_reasons_are_held_against_the_rejects():
    # The sum of what came out is right, only the reasons are not.
    with pytest.raises(ValueError, match="The accounts do not add up"):
        replace(ACCOUNTS, rejected_by_reason={"read/not_json": 2}).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_chains": 4},
        {"parts": (file_of("part-0.parquet", 3),)},
        {"rejects": ()},
        {"rejects": (file_of("rejects/part-0.parquet", 4),)},
    ],
)
def test_files_of_a_corpus_are_held_against_its_accounts(changes):
    with pytest.raises(ValueError, match=r"The files hold \d chains and \d rejects, the accounts say"):
        replace(CORPUS, **changes).check()


def with_shard(index, **changes):
    return tuple(replace(entry, **changes) if number == index else entry for number, entry in enumerate(SHARDS.shards))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A shard is missing, stands in the wrong split, or was counted wrongly.
        ({"shards": SHARDS.shards[:2]}, "Component 'raw' \\(validation\\)"),
        ({"shards": with_shard(1, split="validation")}, "Component 'raw' \\(train\\)"),
        ({"shards": with_shard(1, num_rows=2)}, "b: rows by component do not sum to its 2 rows"),
        ({"shards": with_shard(1, num_rows=2, rows_by_component={"raw": 2})}, "Component 'raw' \\(train\\)"),
        ({"shards": with_shard(1, tokens_by_component={"raw": 31})}, "the shards hold 3 rows and 91 tokens"),
        # A component is in the shards but not in the totals, or the other way round.
        ({"components": {"raw": SHARDS.components["raw"]}}, "Component 'general' \\(train\\)"),
        ({"shards": with_shard(1, tokens_by_component={"raw": 32, "ghost": 5})}, "Component 'ghost' \\(train\\)"),
        (
            {"components": {**SHARDS.components, "raw": {"train": counts_of(3, 92)}}},
            "Component 'raw' \\(validation\\): the shards hold 1 rows and 20 tokens, the totals say 0 and 0",
        ),
        ({"components": {**SHARDS.components, "absent": {"train": counts_of(1, 1)}}}, "Component 'absent'"),
        # Rows are not filled by their tokens and their padding.
        ({"sequence_length": 31}, "1 rows of 31 tokens do not hold 32 tokens and 0 of padding"),
        # The rejects.
        ({"rejects": ()}, "The files of rejects do not hold the rejects counted"),
        ({"rejected_by_reason": {}}, "The files of rejects do not hold the rejects counted"),
    ],
)
def test_shards_are_held_against_the_totals(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SHARDS, **changes).check()


@pytest.mark.parametrize(("manifest", "read"), READERS)
def test_what_is_completed_is_read_back(tmp_path, manifest, read):
    complete = complete_artifact(str(tmp_path), manifest)
    assert complete.fingerprint == manifest_fingerprint(manifest) != ""
    assert manifest_fingerprint(complete) == complete.fingerprint
    # JSON has no tuples; everything else comes back as it was.
    assert json.loads(json.dumps(asdict(read(str(tmp_path))))) == json.loads(json.dumps(asdict(complete)))
    assert (tmp_path / "COMPLETED").read_text().strip() == complete.fingerprint


@pytest.mark.parametrize("manifest", [replace(CORPUS, num_chains=4), replace(SHARDS, rejects=())])
def test_sums_that_are_off_complete_nothing(tmp_path, manifest):
    with pytest.raises(ValueError, match="rejects"):
        complete_artifact(str(tmp_path), manifest)
    assert list(tmp_path.iterdir()) == []


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("manifest", "read"), READERS)
def test_a_manifest_changed_after_completion_is_refused(tmp_path, manifest, read):
    complete_artifact(str(tmp_path), manifest)
    edit(tmp_path / "manifest.json", lambda content: content["config"].update(seed=99))
    with pytest.raises(ValueError, match="the manifest was changed after completion"):
        read(str(tmp_path))
    # Not even when its own fingerprint is adjusted.
    changed = replace(manifest, config={**manifest.config, "seed": 99})
    edit(tmp_path / "manifest.json", lambda content: content.update(fingerprint=manifest_fingerprint(changed)))
    with pytest.raises(ValueError, match="the manifest was changed after completion"):
        read(str(tmp_path))
    mark_completed(str(tmp_path), fingerprint=manifest_fingerprint(changed))
    assert read(str(tmp_path)).config["seed"] == 99


@pytest.mark.parametrize(("manifest", "read"), READERS)
@pytest.mark.parametrize("version", [0, 1, None, "2"])
def test_another_schema_version_is_refused(tmp_path, manifest, read, version):
    complete_artifact(str(tmp_path), manifest)
    edit(tmp_path / "manifest.json", lambda content: content.update(schema_version=version))
    with pytest.raises(ValueError, match=f"has schema version {version!r}; this version of the tool reads 2"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"its manifest\.json is missing"),
        (lambda path: path.write_text("{"), "not valid JSON"),
        (lambda path: path.write_text("[]"), "is not the manifest expected here"),
        (lambda path: edit(path, lambda content: content.pop("rejects")), "is damaged: KeyError: 'rejects'"),
        (lambda path: edit(path, lambda content: content.pop("vocab_size")), "is damaged: TypeError"),
        (lambda path: edit(path, lambda content: content.update(surplus=1)), "is damaged: TypeError"),
        (lambda path: edit(path, lambda content: content.update(components=[])), "is damaged: AttributeError"),
        (lambda path: edit(path, lambda content: content["shards"][0].pop("sha256")), "is damaged: TypeError"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, damage, message):
    complete_artifact(str(tmp_path), SHARDS)
    damage(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match=message) as error:
        read_shard_manifest(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_one_artifact_is_not_taken_for_the_other(tmp_path):
    complete_artifact(str(tmp_path / "shards"), SHARDS)
    complete_artifact(str(tmp_path / "corpus"), CORPUS)
    with pytest.raises(ValueError, match="it has no 'accounts'"):
        read_augmented_corpus_manifest(str(tmp_path / "shards"))
    with pytest.raises(ValueError, match="it has no 'sequence_length'"):
        read_shard_manifest(str(tmp_path / "corpus"))


def test_what_is_not_completed_is_not_read(tmp_path):
    storage.write_json(str(tmp_path / "manifest.json"), asdict(SHARDS))
    with pytest.raises(ValueError, match="is not a completed artifact"):
        read_shard_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("manifest", "changes"),
    [
        (CORPUS, {"inputs": {"/elsewhere/corpus.jsonl": "1"}}),
        (CORPUS, {"config": {**CORPUS.config, "output": "there"}}),
        (CORPUS, {"config": {**CORPUS.config, "engine": {**CORPUS.config["engine"], "model": "/models/b"}}}),
        (SHARDS, {"tokenizer": TokenizerEntry(name="elsewhere", sha256="ef")}),
        (SHARDS, {"inputs": {}}),
        (SHARDS, {"config": {**SHARDS.config, "tokenizer": "elsewhere"}}),
    ],
)
def test_the_fingerprint_does_not_depend_on_locations(manifest, changes):
    changed = replace(manifest, **changes)
    assert changed != manifest
    assert manifest_fingerprint(changed) == manifest_fingerprint(manifest)


@pytest.mark.parametrize(
    ("manifest", "changes"),
    [
        (CORPUS, {"config": {**CORPUS.config, "seed": 4}}),
        (CORPUS, {"config": {**CORPUS.config, "engine": {**CORPUS.config["engine"], "sizes": (2, 1)}}}),
        (CORPUS, {"synthesizer_id": "another"}),
        (CORPUS, {"parts": (replace(CORPUS.parts[0], sha256="00"), CORPUS.parts[1])}),
        (CORPUS, {"num_pairs": 15}),
        (SHARDS, {"tokenizer": TokenizerEntry(name="folder", sha256="00")}),
        (SHARDS, {"shards": with_shard(0, sha256="00")}),
        (SHARDS, {"shards": SHARDS.shards[::-1]}),
        (SHARDS, {"special_ids": {"eos": 2, "pad": None}}),
        (SHARDS, {"sequence_length": 64}),
    ],
)
def test_the_fingerprint_depends_on_the_content(manifest, changes):
    assert manifest_fingerprint(replace(manifest, **changes)) != manifest_fingerprint(manifest)
