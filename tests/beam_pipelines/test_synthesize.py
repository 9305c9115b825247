import gzip
import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipelines import model_handler
from beam_pipelines.synthesize import describe
from contracts.artifact import completed_fingerprint
from contracts.record_files import read_records
from contracts.records import Document
from synth_model.chain_assignment import form_chains
from synth_model.engines import load_engine
from synth_model.gates.config import PairGateConfig
from synth_model.generation import Sampling
from synth_model.synthesizer import SynthesizerConfig
from tests.beam_pipelines.pipeline_runs import (
    fake_engine,
    make_documents,
    make_text,
    parquet_digests,
    read_chains,
    read_examples,
    read_rejects,
    run_synthesize,
    write_jsonl,
)

MARKUP_TEXTS = {
    "wire": "The tag <QUE> asks, <ANS> answers, </END> ends; <CON> and </CON> enclose it, <s> and </s> the whole.",
    "chat": "A turn is <|im_start|>user\nhello<|im_end|> and <|fake_end|> ends it. Question: why? Answer: because.",
    "format": "A template has {braces}, {0}, {text}, %s, %(name)d, ${HOME}, \\n and \\u0041.",
    "odd": "Joiners \u2060<\u2060QUE> stay, as do\u2028separators\u0085and \ufeff marks, emoji 😀 and NUL \x00 too.",
    "space": "  Leading, trailing \t and\r\ninner white space stay as they are.  \n\n",
    "last": "</END>",
}


def write_mixed_corpus(folder):
    """Good documents next to every kind of bad input."""
    good = make_documents(20)
    write_jsonl(folder / "good.jsonl", good)
    write_jsonl(folder / "again.jsonl", [good[0], {**good[1], "text": "Another text of the same id."}])
    write_jsonl(
        folder / "markup.jsonl", [{"id": f"markup-{name}", "text": text} for name, text in MARKUP_TEXTS.items()]
    )
    long_text = "\n\n".join(make_text(f"paragraph{number}", num_sentences=6) for number in range(40))
    endless = " ".join(["word"] * 3000)
    write_jsonl(
        folder / "long.jsonl",
        [{"id": "long", "source": "books", "text": long_text}, {"id": "endless", "source": "books", "text": endless}],
    )
    (folder / "bad.jsonl").write_bytes(
        b"\xef\xbb\xbf\n"
        b"{not json\n"
        b'["not an object"]\n'
        b'{"id": "no-text"}\n'
        b'{"text": 7}\n'
        b'{"text": "  "}\n'
        b'{"text": "caf\xe9"}\n'
        b'{"text": "half \\ud83d a pair"}\n'
        b'{"text": ' + b"[" * 100_000 + b"\n"
        b'{"id": "\\ud800", "source": ["web"], "text": "An identifier that no file can hold as it is."}\n'
        b'{"text": "A good one behind the bad ones.", "meta": ' + b"[" * 300 + b"]" * 300 + b"}\n"
    )
    (folder / "note.txt").write_text("A note of its own.\n\nWith two paragraphs.", "utf-8")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "no-gzip.jsonl.gz").write_bytes(b'{"text": "not packed"}\n')
    packed = gzip.compress(b"".join(b'{"id": "cut-%d", "text": "Packed line %d."}\n' % (n, n) for n in range(3)))
    (folder / "cut.jsonl.gz").write_bytes(packed[:-8])
    pq.write_table(pa.table({"text": ["A row.", None], "id": ["row-0", "row-1"]}), folder / "rows.parquet")
    pq.write_table(pa.table({"body": ["A row."]}), folder / "other.parquet")
    (folder / "corrupt.parquet").write_bytes(b"PAR1 is how it begins and ends PAR1")


BAD_INPUT = {
    "read/not_json": 2,
    "read/not_an_object": 1,
    "read/no_text": 4,
    "read/empty_text": 1,
    "read/invalid_utf8": 1,
    "read/invalid_unicode": 1,
    "read/unreadable_file": 3,
    "chain/duplicate_id": 2,
    "split/sentence_too_long": 1,
}
NUM_RECORDS = 20 + 2 + len(MARKUP_TEXTS) + 2 + 10 + 1 + 0 + 1 + 4 + 2 + 1 + 1


@pytest.fixture(scope="module", params=["wire_format", "chat"])
def mixed_run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "corpus").mkdir()
    write_mixed_corpus(folder / "corpus")
    manifest = run_synthesize(
        [folder / "corpus"],
        folder / "out",
        engine=fake_engine(context_length=800),
        synthesizer=SynthesizerConfig(kind=request.param),
        num_files=2,
    )
    return folder, manifest


def test_the_accounts_of_a_corpus_with_every_kind_of_bad_input_add_up(mixed_run):
    folder, manifest = mixed_run
    accounts = manifest.accounts
    assert accounts.num_records == NUM_RECORDS
    assert accounts.rejected_by_reason == BAD_INPUT
    assert (accounts.num_rejected, accounts.num_documents_split) == (sum(BAD_INPUT.values()), 1)
    assert accounts.num_parts >= 3
    assert accounts.num_augmented + accounts.num_kept_raw + accounts.num_rejected == accounts.num_texts
    assert accounts.num_texts == NUM_RECORDS - 1 + accounts.num_parts

    chains, rejects = read_chains(folder / "out"), read_rejects(folder / "out")
    examples = [example for chain in chains for example in chain.examples]
    assert sum(bool(example.pairs) for example in examples) == accounts.num_augmented > 5
    assert sum(not example.pairs for example in examples) == accounts.num_kept_raw > 0
    assert sum(len(example.pairs) for example in examples) == manifest.num_pairs
    assert sum(example.num_new_tokens for example in examples) == manifest.num_new_tokens
    assert Counter(example.finish_reason for example in examples) == Counter(manifest.finish_reasons)
    assert Counter(f"{reject.stage}/{reject.reason}" for reject in rejects) == BAD_INPUT
    assert len({entry.path for entry in (*manifest.parts, *manifest.rejects)}) == 4


def test_rejects_name_file_and_line(mixed_run):
    folder, _ = mixed_run
    by_line = {
        reject.doc_id.rpartition(":")[2]: reject.reason
        for reject in read_rejects(folder / "out")
        if reject.doc_id.startswith(f"{folder}/corpus/bad.jsonl:")
    }
    assert by_line == {
        "2": "not_json",
        "3": "not_an_object",
        "4": "no_text",
        "5": "no_text",
        "6": "empty_text",
        "7": "invalid_utf8",
        "8": "invalid_unicode",
        "9": "not_json",
    }


def test_texts_full_of_markup_come_through_byte_by_byte(mixed_run):
    folder, _ = mixed_run
    examples = read_examples(folder / "out")
    for name, text in MARKUP_TEXTS.items():
        assert examples[f"markup-{name}"].document.text == text
    assert examples["\\ud800"].document.source == "corpus"


def test_a_long_document_is_split_and_nothing_of_it_is_lost(mixed_run):
    folder, manifest = mixed_run
    examples = read_examples(folder / "out")
    ids = sorted(id_ for id_ in examples if id_.startswith("long#"))
    assert ids == [f"long#part-{number:04d}" for number in range(1, manifest.accounts.num_parts + 1)]
    (original,) = [
        record.values["text"] for record in read_records(f"{folder}/corpus/long.jsonl") if record.values["id"] == "long"
    ]
    assert " ".join(examples[id_].document.text for id_ in ids).split() == original.split()
    (endless,) = [reject for reject in read_rejects(folder / "out") if reject.stage == "split"]
    assert (endless.doc_id, endless.text) == ("endless", " ".join(["word"] * 3000))
    assert "736 tokens" in endless.detail


def test_a_chain_holds_documents_of_one_source(mixed_run):
    folder, _ = mixed_run
    chains = read_chains(folder / "out")
    assert {chain.source for chain in chains} == {"web", "books", "corpus"}
    for chain in chains:
        assert {example.document.source for example in chain.examples} == {chain.source}
        assert 1 <= len(chain.examples) <= 2


def test_an_artifact_describes_itself(mixed_run):
    folder, manifest = mixed_run
    assert completed_fingerprint(str(folder / "out")) == manifest.fingerprint
    digests = parquet_digests(folder / "out") | parquet_digests(folder / "out", "rejects/*.parquet")
    assert {entry.path: entry.sha256 for entry in (*manifest.parts, *manifest.rejects)} == digests
    described = describe(manifest, output="OUT")
    assert f"documents   {manifest.accounts.num_texts} = " in described
    assert "rejected    2 chain/duplicate_id" in described
    assert "1 long documents into" in described


CHAIN_LENGTH = 3


@pytest.fixture(scope="module")
def troubled_run(tmp_path_factory):
    """Prompts that fail and prompts without a pair, and a count of how often the engine was loaded and asked."""
    folder = tmp_path_factory.mktemp("troubled")
    loads, prompts = [], []

    class CountingEngine:
        def __init__(self, engine):
            self._engine = engine

        def generate(self, batch, *, sampling):
            prompts.extend(batch)
            return self._engine.generate(batch, sampling=sampling)

    def load(config):
        loads.append(config)
        return CountingEngine(load_engine(config))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(model_handler, "load_engine", load)
        manifest = run_synthesize(
            [write_jsonl(folder / "in.jsonl", make_documents(60))],
            folder / "out",
            engine=fake_engine(no_pair_rate=0.3, failure_rate=0.2),
            sampling=Sampling(max_new_tokens=128),
            chain_length=CHAIN_LENGTH,
        )
    return folder, manifest, loads, prompts


def test_the_model_is_loaded_once_for_all_rounds(troubled_run):
    _, _, loads, prompts = troubled_run
    assert len(loads) == 1
    assert len(prompts) == len(set(prompts)) == 60
    assert sum(prompt.text.count("<CON>") == CHAIN_LENGTH for prompt in prompts) > 3


def test_prompts_that_fail_become_rejects_with_their_text(troubled_run):
    folder, manifest, _, _ = troubled_run
    texts = {document["id"]: document["text"] for document in make_documents(60)}
    rejects = read_rejects(folder / "out")
    assert manifest.accounts.rejected_by_reason == {"synthesize/generation_failed": len(rejects)}
    assert 3 <= len(rejects) <= 30
    assert {reject.text for reject in rejects} == {texts[reject.doc_id] for reject in rejects}
    kept = read_examples(folder / "out")
    assert {*kept, *(reject.doc_id for reject in rejects)} == set(texts)
    assert manifest.accounts.num_texts == 60


def test_a_text_without_a_pair_is_kept_raw_and_breaks_the_chain(troubled_run):
    folder, _, _, prompts = troubled_run
    examples = read_examples(folder / "out")
    texts_of_prompts = [re.findall(r"<CON> (.*?) </CON>", prompt.text) for prompt in prompts]
    shown_before = {texts[-1]: texts[:-1] for texts in texts_of_prompts}
    documents = [Document(doc_id=record.pop("id"), **record) for record in make_documents(60)]
    breaks = Counter()
    for state in form_chains(documents, chain_length=CHAIN_LENGTH, seed=0)[0]:
        visible = []
        for document in state.pending:
            assert shown_before[document.text] == visible
            example = examples.get(document.doc_id)
            if example is not None:
                assert example.document == document
                assert example.inherits_previous == bool(visible and example.pairs)
            if example is None or not example.pairs:
                breaks["failure" if example is None else "no pair"] += bool(visible)
                visible = []
            else:
                visible = [*visible, document.text]
    assert min(breaks["failure"], breaks["no pair"]) > 0
    assert sum(example.inherits_previous for example in examples.values()) > 5


def test_pairs_that_fail_a_gate_are_rejected_and_accounted_for(tmp_path):
    manifest = run_synthesize(
        [write_jsonl(tmp_path / "in.jsonl", make_documents(12))],
        tmp_path / "out",
        gates=PairGateConfig(min_grounding=0.75),
    )
    rejects = read_rejects(tmp_path / "out")
    assert manifest.rejected_pairs_by_reason == {"gate/ungrounded": len(rejects)}
    assert len(rejects) > 0
    assert manifest.accounts.num_rejected == 0
    assert manifest.accounts.num_augmented + manifest.accounts.num_kept_raw == 12
    assert all(json.loads(reject.text)["response"].startswith("It says") for reject in rejects)


def test_a_corpus_without_a_usable_text_is_completed_with_its_rejects(tmp_path):
    manifest = run_synthesize([write_jsonl(tmp_path / "in.jsonl", [{"body": "x"}] * 3)], tmp_path / "out")
    assert manifest.accounts.rejected_by_reason == {"read/no_text": 3}
    assert (manifest.num_chains, manifest.parts) == (0, ())


def test_a_prompt_that_leaves_no_room_for_text_ends_the_run_with_the_steps_own_message(tmp_path):
    corpus = write_jsonl(tmp_path / "in.jsonl", [{"text": make_text("long", num_sentences=20)}])
    with pytest.raises(
        ValueError, match=r"^The prompt takes \d+ tokens before any text, but only 4 are left.*prompt\.$"
    ):
        run_synthesize([corpus], tmp_path / "out", engine=fake_engine(context_length=68))
    assert not (tmp_path / "out" / "COMPLETED").exists()


def test_pipelines_read_and_write_any_file_system():
    import fsspec

    with fsspec.open("memory://synthesize-test/in.jsonl", "wb") as file:
        file.write(b"".join(json.dumps(document).encode() + b"\n" for document in make_documents(4)))
    manifest = run_synthesize(["memory://synthesize-test/in.jsonl"], "memory://synthesize-test/out")
    assert manifest.accounts.num_texts == 4
    assert fsspec.filesystem("memory").exists("/synthesize-test/out/part-00000-of-00001.parquet")
