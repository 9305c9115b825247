"""The whole command: an augmented corpus that pack takes, the same bytes from any layout, accounts that add up."""

import json
import re

import pytest
from rich.console import Console

from beam_pipelines.command_line import beam_options
from beam_pipelines.commands import run_command
from beam_pipelines.mine import MineConfig, describe, mine
from beam_pipelines.mining.bank import KINDS
from beam_pipelines.mining.document_parts import split_document
from beam_pipelines.mining.keywords import KeywordConfig
from beam_pipelines.mixing import ComponentConfig
from contracts.artifact import completed_fingerprint
from contracts.records import Document
from tests.beam_pipelines.mining.mining_texts import HARBOUR
from tests.beam_pipelines.pipeline_runs import (
    IN_MEMORY,
    parquet_digests,
    read_chains,
    read_rejects,
    run_pack,
    write_jsonl,
)

KEYWORD_SENTENCE = "Zooplankton and phytoplankton drift with the thermocline."
RECORDS = [
    *[
        {"id": f"bay-{number}", "source": "web", "title": f"Bay {number}", "text": f"Bay {number} is small. {HARBOUR}"}
        for number in range(12)
    ],
    *[{"id": f"sea-{number}", "source": "sea", "text": f"Station {number}. {KEYWORD_SENTENCE}"} for number in range(6)],
    {"id": "long", "source": "sea", "title": "Long", "text": "\n\n".join(f"{n}. {HARBOUR}" for n in range(6))},
    {"id": "endless", "source": "sea", "text": "word " * 3000},
    {"id": "bay-0", "source": "web", "text": "Another text of the same id."},
    {"body": "no text"},
]
# Six times 70 words, cut at paragraphs into parts of at most 150.
NUM_PARTS = 4


def config_for(inputs, output, *, tokenizer="", **settings):
    keywords = KeywordConfig(general_tokenizer=tokenizer, min_count=3)
    return MineConfig(
        **{"input": [str(path) for path in inputs], "output": str(output), "max_words": 150, "keywords": keywords}
        | settings
    )


def run_mine(inputs, output, *, beam=IN_MEMORY, **settings):
    return mine(config_for(inputs, output, **settings), options=beam_options(beam), console=Console(quiet=True))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        write_jsonl(folder / f"{number}.jsonl", RECORDS[number::2])
    return folder


@pytest.fixture(scope="module")
def mined(corpus, tokenizer_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("mined") / "out"
    return output, run_mine([corpus], output, tokenizer=tokenizer_folder, num_files=2)


def test_the_accounts_add_up(mined):
    output, manifest = mined
    accounts = manifest.accounts
    assert accounts.num_records == len(RECORDS)
    assert accounts.rejected_by_reason == {"read/no_text": 1, "chain/duplicate_id": 1}
    assert (accounts.num_documents_split, accounts.num_parts) == (1, NUM_PARTS)
    # What says nothing of itself is kept as raw text, however long: the endless one, and the other text of an id.
    assert accounts.num_kept_raw == 2
    assert accounts.num_augmented == len(RECORDS) - 5 + NUM_PARTS
    chains = read_chains(output)
    assert all(len(chain.examples) == 1 for chain in chains)
    assert sum(len(example.pairs) for chain in chains for example in chain.examples) == manifest.num_pairs
    assert manifest.finish_reasons == {"given": len(chains)}
    assert (manifest.num_prompt_tokens, manifest.num_new_tokens) == (0, 0)
    assert {chain.synthesizer_id for chain in chains} == {manifest.synthesizer_id}
    assert re.fullmatch("mined@[0-9a-f]{16}", manifest.synthesizer_id)
    assert {reject.reason for reject in read_rejects(output)} == {"no_text", "duplicate_id"}


def test_the_texts_are_those_of_the_input(mined):
    output, _ = mined
    documents = {
        example.document.doc_id: example.document for chain in read_chains(output) for example in chain.examples
    }
    for record in RECORDS[:18]:
        assert documents[record["id"]].text in (record["text"], "Another text of the same id.")
    parts = [documents[f"long#part-{number:04d}"] for number in range(1, NUM_PARTS + 1)]
    assert " ".join(part.text for part in parts).split() == RECORDS[18]["text"].split()
    assert [part.title for part in parts] == ["Long", *[None] * (NUM_PARTS - 1)]


def test_keywords_come_from_the_domain(mined):
    output, manifest = mined
    report = json.loads((output / "mining.json").read_text("utf-8"))
    assert {"Zooplankton", "phytoplankton", "thermocline"} <= set(report["keywords"])
    assert set(report["num_tasks"]) == set(KINDS)
    assert sum(report["num_tasks"].values()) == manifest.num_pairs
    asked = [
        pair
        for chain in read_chains(output)
        for pair in chain.examples[0].pairs
        if pair.response == KEYWORD_SENTENCE and "Zooplankton, phytoplankton" in pair.instruction
    ]
    assert len(asked) == 6
    text = describe(manifest, output=str(output))
    assert f"keywords    {len(report['keywords'])}" in text
    assert f"{report['num_tasks']['inference']} inference" in text


def test_the_same_bytes_from_another_order_and_other_files(mined, tokenizer_folder, tmp_path):
    output, _ = mined
    for name, records in (("z", RECORDS[15:]), ("a", RECORDS[4:15]), ("m", RECORDS[:4])):
        write_jsonl(tmp_path / "corpus" / f"{name}.jsonl", reversed(records))
    run_mine([tmp_path / "corpus"], tmp_path / "out", tokenizer=tokenizer_folder, num_files=2)
    assert parquet_digests(tmp_path / "out") == parquet_digests(output)
    assert (tmp_path / "out" / "mining.json").read_bytes() == (output / "mining.json").read_bytes()


@pytest.mark.slow
def test_the_same_bytes_from_two_processes(mined, corpus, tokenizer_folder, tmp_path):
    output, _ = mined
    beam = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    run_mine([corpus], tmp_path / "out", beam=beam, tokenizer=tokenizer_folder, num_files=2)
    assert parquet_digests(tmp_path / "out") == parquet_digests(output)


def test_another_seed_mines_other_tasks_from_the_same_texts(mined, corpus, tokenizer_folder, tmp_path):
    output, manifest = mined
    other = run_mine([corpus], tmp_path / "out", tokenizer=tokenizer_folder, num_files=2, seed=1)
    assert other.accounts == manifest.accounts
    assert not set(parquet_digests(tmp_path / "out").values()) & set(parquet_digests(output).values())


def test_without_a_general_tokenizer_there_are_no_keywords(corpus, tmp_path):
    run_mine([corpus], tmp_path / "out")
    report = json.loads((tmp_path / "out" / "mining.json").read_text("utf-8"))
    assert report["keywords"] == []
    assert report["num_tasks"]["word_to_text"] > 0


def test_a_completed_run_is_left_alone_and_another_is_refused(mined, corpus, tokenizer_folder):
    output, manifest = mined
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run_mine([corpus], output, tokenizer=tokenizer_folder, num_files=2) == manifest
    assert completed_fingerprint(str(output)) == manifest.fingerprint
    with pytest.raises(
        ValueError, match=r"already holds another run\. It differs in: config\.seed \(there 0, here 1\)"
    ):
        run_mine([corpus], output, tokenizer=tokenizer_folder, num_files=2, seed=1)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_an_interrupted_run_is_done_again(mined, corpus, tokenizer_folder, tmp_path):
    output, manifest = mined
    settings = {"tokenizer": tokenizer_folder, "num_files": 2}
    run_mine([corpus], tmp_path / "out", **settings)
    for name in ("COMPLETED", "manifest.json", "part-00001-of-00002.parquet"):
        (tmp_path / "out" / name).unlink()
    assert run_mine([corpus], tmp_path / "out", **settings).parts == manifest.parts
    assert parquet_digests(tmp_path / "out") == parquet_digests(output)


def test_pack_takes_what_was_mined(mined, tokenizer_folder, tmp_path):
    output, manifest = mined
    component = ComponentConfig(name="mined", kind="chains", input=[str(output)])
    packed = run_pack([component], tmp_path / "shards", tokenizer=tokenizer_folder, sequence_length=256)
    counts = packed.components["mined"]["train"]
    assert counts.num_documents == manifest.accounts.num_augmented + manifest.accounts.num_kept_raw
    assert counts.num_tokens > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "[]"], "input is empty"),
        (["--num_files", "0"], "num_files is 0; it must be at least 1"),
        (["--max_words=-1"], "max_words is -1; it must be at least 0"),
        (["--keywords.vocab_size", "7"], "keywords.vocab_size is 7"),
        (["--keywords.general_tokenizer", "no/such-folder/there"], "There is no model folder"),
        (["--bank", "klingon"], "no mining bank 'klingon'"),
        (["--", "--runer=FnApiRunner"], "Beam knows no option"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(corpus, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = [f"--input=['{corpus}']", f"--output={tmp_path / 'out'}"]
    assert run_command(["mine", *own, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_corpus_without_a_document_fails(tmp_path, capsys):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"body": "no text"}])
    arguments = [f"--input=['{corpus}']", f"--output={tmp_path / 'out'}", "--", *IN_MEMORY]
    assert run_command(["mine", *arguments]) == 1
    assert "every document was rejected" in capsys.readouterr().out


@pytest.mark.parametrize(("max_words", "num_parts"), [(0, 1), (30, 1), (29, 2), (10, 3), (7, 1)])
def test_long_documents_are_split_at_sentences(max_words, num_parts):
    text = "One two three four five six. Seven eight nine ten.\n\n" + "Again " * 9 + "end. " + "More " * 9 + "end."
    document = Document(doc_id="d", source="web", text=text, title="T")
    parts = split_document(document, max_words=max_words)
    # A limit below the longest sentence leaves the document whole.
    assert len(parts) == num_parts
    assert " ".join(part.text for part in parts).split() == text.split()
    if num_parts > 1:
        assert all(len(part.text.split()) <= max_words for part in parts)
        assert [part.doc_id for part in parts] == [f"d#part-{number:04d}" for number in range(1, num_parts + 1)]
        assert [part.title for part in parts] == ["T", *[None] * (num_parts - 1)]
    else:
        assert parts == [document]
