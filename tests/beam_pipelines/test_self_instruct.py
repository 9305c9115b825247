import json
import os
import sys

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from beam_pipelines import journal, model_handler, near_duplicates
from beam_pipelines.command_line import beam_options
from beam_pipelines.instruction_filters import InstructionFilterConfig
from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.self_instruct import SelfInstructConfig, describe, main, self_instruct
from beam_pipelines.status import read_status
from contracts.manifest import read_instruction_corpus_manifest
from contracts.records import GeneralInstruction
from synth_model import language_identification
from synth_model.engines import EngineConfig, load_engine
from synth_model.engines.fake_engine import FakeTokenizer
from synth_model.generation import Completion, Failure, Sampling
from synth_model.text_similarity import jaccard, normalize, shingles
from tests.beam_pipelines.pipeline_runs import (
    IN_MEMORY,
    fake_engine,
    parquet_digests,
    read_rejects,
    read_rows,
    run_pack,
    run_synthesize,
    write_jsonl,
)

NUM_DRAWS = 120
HOT = Sampling(max_new_tokens=40, temperature=1.0)
LONG = Sampling(max_new_tokens=200)


def make_config(output, **settings):
    return SelfInstructConfig(
        **{
            "output": str(output),
            "num_draws": NUM_DRAWS,
            "num_files": 2,
            "engine": fake_engine(max_batch_size=8, failure_rate=0.1),
            "instruction_sampling": HOT,
            "response_sampling": LONG,
            **settings,
        }
    )


def run(output, *, beam=IN_MEMORY, **settings):
    return self_instruct(make_config(output, **settings), options=beam_options(beam), console=Console(quiet=True))


def read_instructions(folder, manifest):
    return [
        GeneralInstruction(**row)
        for entry in manifest.parts
        for row in pq.read_table(os.path.join(folder, entry.path)).to_pylist()
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("self_instruct") / "out"
    return folder, run(folder)


def test_every_draw_is_a_pair_or_a_reject(finished):
    folder, manifest = finished
    instructions, rejects = read_instructions(folder, manifest), read_rejects(folder)
    assert len(instructions) == manifest.num_instructions > 30
    assert len(instructions) + len(rejects) == manifest.num_draws == NUM_DRAWS
    assert len({reject.doc_id for reject in rejects}) == len(rejects)
    assert set(manifest.rejected_by_reason) >= {
        "instruction/empty",
        "instruction/generation_failed",
        "duplicates/near_duplicate",
        "response/generation_failed",
    }
    for reject in rejects:
        assert reject.source == manifest.model_id
        assert reject.detail
    similar = [reject for reject in rejects if reject.stage == "duplicates"]
    assert all(reject.text and "similarity " in reject.detail for reject in similar)
    unanswered = [json.loads(reject.text) for reject in rejects if reject.stage == "response"]
    assert all(pair["instruction"] and pair["response"] == "" for pair in unanswered)


def test_a_corpus_holds_pairs_that_do_not_resemble_each_other(finished):
    folder, manifest = finished
    instructions = read_instructions(folder, manifest)
    assert len({instruction.id for instruction in instructions}) == len(instructions)
    assert all(instruction.model_id == manifest.model_id and instruction.response for instruction in instructions)
    texts = [instruction.instruction for instruction in instructions]
    for number, text in enumerate(texts):
        assert all(jaccard(shingles(text), shingles(other)) < 0.75 for other in texts[:number])


def test_nobody_is_asked_to_answer_what_is_refused(finished):
    folder, manifest = finished
    segments = [entry for url in journal.list_segments(str(folder)) for entry in journal.read_segment(url)]
    keys = [key for key, _ in segments]
    assert len(set(keys)) == len(keys)
    answered = manifest.num_instructions
    drawn = NUM_DRAWS - manifest.rejected_by_reason["instruction/generation_failed"]
    assert len(keys) == drawn + answered
    progress = journal.read_progress(str(folder))
    assert progress.num_planned == NUM_DRAWS + answered + manifest.rejected_by_reason["response/generation_failed"]
    assert read_status(str(folder)).progress.num_done == len(keys)
    assert describe(manifest, output=str(folder)).startswith(f"instructions  {answered} with responses, of 120 drawn")


def test_a_second_start_does_nothing_and_another_run_is_refused(finished, monkeypatch):
    folder, manifest = finished
    before = parquet_digests(folder)
    monkeypatch.setattr(model_handler, "load_engine", lambda config: pytest.fail("the model was loaded"))
    assert run(folder) == manifest == read_instruction_corpus_manifest(str(folder))
    with pytest.raises(ValueError, match=r"already holds another run.*instruction_sampling\.seed \(there 0, here 1\)"):
        run(folder, instruction_sampling=Sampling(max_new_tokens=40, temperature=1.0, seed=1))
    assert parquet_digests(folder) == before


def test_another_seed_draws_other_instructions(finished, tmp_path):
    folder, manifest = finished
    other = run(tmp_path / "out", instruction_sampling=Sampling(max_new_tokens=40, temperature=1.0, seed=1))
    mine, others = (
        {instruction.instruction for instruction in read_instructions(where, found)}
        for where, found in ((folder, manifest), (tmp_path / "out", other))
    )
    assert len(mine & others) < len(mine) / 2


class InterruptionError(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("num_prompts", [40, NUM_DRAWS + 24])
def test_an_interrupted_run_goes_on_with_what_is_missing(finished, tmp_path, monkeypatch, num_prompts):
    folder, _ = finished
    asked, limit = [], [num_prompts]

    class Engine:
        def __init__(self, engine):
            self._engine = engine

        def generate(self, prompts, *, sampling):
            if len(asked) + len(prompts) > limit[0]:
                raise InterruptionError
            outcomes = self._engine.generate(prompts, sampling=sampling)
            asked.extend(outcomes)
            return outcomes

    monkeypatch.setattr(model_handler, "load_engine", lambda config: Engine(load_engine(config)))
    output = tmp_path / "out"
    with pytest.raises(Exception, match="InterruptionError"):
        run(output)
    paid = sum(isinstance(outcome, Completion) for outcome in asked)
    assert 0 < paid <= num_prompts
    assert not (output / "COMPLETED").exists()
    asked.clear()
    limit[0] = 10_000
    run(output)
    total = sum(1 for url in journal.list_segments(str(folder)) for _ in journal.read_segment(url))
    assert sum(isinstance(outcome, Completion) for outcome in asked) == total - paid
    assert parquet_digests(output) == parquet_digests(folder)
    assert parquet_digests(output, "rejects/*") == parquet_digests(folder, "rejects/*")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(finished, tmp_path):
    folder, manifest = finished
    beam = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert run(tmp_path / "out", beam=beam).fingerprint == manifest.fingerprint
    assert parquet_digests(tmp_path / "out") == parquet_digests(folder)


def outcome_for(prompt, sampling):
    """An engine whose outcome follows from the number of the draw, or from the words of the instruction."""
    completion = {"num_prompt_tokens": 3, "num_new_tokens": 9}
    if prompt.text:
        assert prompt.text == FakeTokenizer().user_turn_start()
        assert sampling.temperature == 1.0
        text, finish_reason = {
            0: ("Name three rivers that flow through more than two countries.", "stop"),
            1: ("  Name three rivers that flow\nthrough more than two countries. ", "stop"),
            2: ("Name three rivers that flow through more than six countries.", "stop"),
            3: ("Explain why the sea tastes of salt while lakes mostly do", "length"),
            4: ("Hi", "stop"),
            5: ("Go on and on and on and on and on and on and on.", "stop"),
            6: ("What is a <|fake_end|> good for in a conversation?", "stop"),
            7: ("Nenne drei Gründe, warum Brot beim Backen aufgeht.", "stop"),
            8: ("Write down how one measures the height of a tree.", "stop"),
            9: ("Suggest a title for an essay about silence.", "stop"),
            10: ("Please fail to answer what I am asking you here.", "stop"),
        }[prompt.draw]
        return Completion(text=text, finish_reason=finish_reason, **completion)
    (message,) = prompt.messages
    assert (message.role, sampling.temperature) == ("user", 0.0)
    if "fail" in message.content:
        return Failure(reason="generation_failed", detail="as asked")
    text, finish_reason = {
        "Name": ("The Danube, the Rhine and the Nile.\n", "stop"),
        "Nenn": ("Weil die Hefe Gas bildet, das der Teig festhält.", "stop"),
        "Writ": ("Measure its shadow and that of a stick, and compare the two, then", "length"),
        "Sugg": ("", "stop"),
    }[message.content[:4]]
    return Completion(text=text, finish_reason=finish_reason, **completion)


def test_each_draw_meets_the_fate_that_it_deserves(tmp_path, monkeypatch):
    class Engine:
        def generate(self, prompts, *, sampling):
            return [outcome_for(prompt, sampling) for prompt in prompts]

    monkeypatch.setattr(model_handler, "load_engine", lambda config: Engine())
    manifest = run(tmp_path / "out", num_draws=11, num_files=1)
    (kept,) = read_instructions(tmp_path / "out", manifest)
    assert kept.instruction == "Name three rivers that flow through more than two countries."
    assert kept.response == "The Danube, the Rhine and the Nile."
    fates = {int(r.doc_id.removeprefix("draw-")): f"{r.stage}/{r.reason}" for r in read_rejects(tmp_path / "out")}
    assert fates == {
        1: "duplicates/duplicate",
        2: "duplicates/near_duplicate",
        3: "instruction/cut_off",
        4: "instruction/too_short",
        5: "instruction/repetitive",
        6: "instruction/special_token",
        7: "response/other_language",
        8: "response/cut_off",
        9: "response/empty",
        10: "response/generation_failed",
    }


def test_pack_reads_the_folder_and_not_its_rejects_or_journal(finished, tmp_path, tokenizer_folder):
    folder, manifest = finished
    others = write_jsonl(tmp_path / "more.jsonl", [{"question": "Why?", "answer": "So."}, {"body": "neither"}])
    component = ComponentConfig(name="general", kind="instructions", input=[str(folder), others])
    packed = run_pack([component], tmp_path / "shards", tokenizer=tokenizer_folder, sequence_length=64)
    ids = {text_id for _, row in read_rows(tmp_path / "shards", packed) for text_id in row.text_ids}
    own = {instruction.id for instruction in read_instructions(folder, manifest)}
    assert own < ids
    assert len(ids) == len(own) + 1 == packed.components["general"]["train"].num_texts
    assert packed.rejected_by_reason == {"read/no_pair": 1}
    assert packed.inputs[str(folder)] == manifest.fingerprint


def test_pack_refuses_folders_of_other_and_unfinished_runs(tmp_path, tokenizer_folder):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "A text of its own."}])
    run_synthesize([corpus], tmp_path / "augmented")
    with pytest.raises(ValueError, match="is not the manifest expected here: it has no 'num_draws'"):
        pack_instructions(tmp_path / "augmented", tmp_path, tokenizer_folder)
    (tmp_path / "augmented" / "COMPLETED").unlink()
    with pytest.raises(ValueError, match="its run has not completed"):
        pack_instructions(tmp_path / "augmented", tmp_path, tokenizer_folder)
    assert not (tmp_path / "shards").exists()


def pack_instructions(folder, tmp_path, tokenizer_folder):
    component = ComponentConfig(name="general", kind="instructions", input=[str(folder)])
    run_pack([component], tmp_path / "shards", tokenizer=tokenizer_folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 0}, "num_draws is 0; it must be at least 1"),
        ({"num_files": 0}, "num_files is 0; it must be at least 1"),
        ({"instruction_sampling": LONG}, "instruction_sampling.temperature is 0: every draw"),
        ({"response_sampling": Sampling(max_new_tokens=2048)}, r"response_sampling.max_new_tokens \(2048\) leaves"),
        ({"engine": EngineConfig()}, "engine.model is empty"),
        ({"engine": EngineConfig(model="/nowhere")}, "There is no model folder '/nowhere'"),
        ({"filters": InstructionFilterConfig(languages=["xx"])}, r"filters.languages has \['xx'\]"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ValueError, match="package datasketch: install this project with its extra filters"):
        run(tmp_path / "out")
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language_identification._classifier.cache_clear()
    with pytest.raises(ValueError, match="package py3langid: install this project with its extra filters"):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Without what needs them it works without them.
    near_duplicates.bands_for.cache_clear()
    filters = InstructionFilterConfig(languages=[], max_similarity=1.0)
    manifest = run(tmp_path / "out", num_draws=20, filters=filters)
    texts = [normalize(instruction.instruction) for instruction in read_instructions(tmp_path / "out", manifest)]
    assert len(set(texts)) == len(texts) > 5


def test_the_command_tells_what_it_did(tmp_path, capsys):
    assert main(make_config(tmp_path / "good", num_draws=10), IN_MEMORY) == 0
    assert "with responses, of 10 drawn" in capsys.readouterr().out
    nothing = make_config(tmp_path / "bad", num_draws=5, engine=fake_engine(no_pair_rate=1.0))
    assert main(nothing, IN_MEMORY) == 1
    assert "every instruction was rejected" in capsys.readouterr().out
