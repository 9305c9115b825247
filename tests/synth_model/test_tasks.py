import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import storage
from contracts.manifest import read_augmented_corpus_manifest
from contracts.records import Document, InstructionPair, Reject
from contracts.schemas import chain_from_row
from synth_model import tasks
from synth_model.__main__ import main as run_main
from synth_model.task_datasets.conversion import TaskText
from synth_model.task_datasets.table import load_table
from synth_model.tasks import TasksConfig, TaskSource, choose_texts, is_held_out_text, make_chains, read_tasks
from tests.conftest import REPOSITORY


def write_records(path, count, *, dataset="ferries", **changes):
    rows = [
        {
            "id": f"{dataset}-{number}",
            "dataset": dataset,
            "domain": "travel",
            "task_type": "extractive_qa",
            "context": f"Ferry {number} of {dataset} carries goats.",
            "pairs": [{"instruction": f"Question {n}?", "response": "Goats."} for n in range(1 + number % 3)],
            "license": "MIT",
            **changes,
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return rows


def read_chains(folder, manifest):
    return [
        chain_from_row(row) for entry in manifest.parts for row in pq.read_table(f"{folder}/{entry.path}").to_pylist()
    ]


def read_rejects(folder, manifest):
    return [Reject(**row) for entry in manifest.rejects for row in pq.read_table(f"{folder}/{entry.path}").to_pylist()]


def config_for(folder, **changes):
    return TasksConfig(
        **{
            "datasets": [TaskSource(name="normalized", input=[str(folder / "in")])],
            "output": str(folder / "out"),
            "chain_length": 2,
            **changes,
        }
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    write_records(tmp_path / "in" / "a.jsonl", 7)
    write_records(tmp_path / "in" / "b.jsonl", 4, dataset="trains")
    return tmp_path


def test_every_text_stands_in_one_chain_of_its_own_set(folder):
    manifest = read_tasks(config_for(folder))
    chains = read_chains(folder / "out", manifest)
    assert sorted(len(chain.examples) for chain in chains) == [1, 2, 2, 2, 2, 2]
    examples = [example for chain in chains for example in chain.examples]
    assert {len({example.document.source for example in chain.examples} | {chain.source}) for chain in chains} == {1}
    assert sorted(example.document.doc_id for example in examples) == sorted(
        [f"ferries-{n}" for n in range(7)] + [f"trains-{n}" for n in range(4)]
    )
    for example in examples:
        number = int(example.document.doc_id.rsplit("-", 1)[1])
        assert example.document.text == f"Ferry {number} of {example.document.source} carries goats."
        assert [pair.instruction for pair in example.pairs] == [f"Question {n}?" for n in range(1 + number % 3)]
        assert (example.finish_reason, example.inherits_previous) == ("given", False)
    assert len({chain.chain_id for chain in chains}) == len(chains)
    assert {chain.synthesizer_id for chain in chains} == {manifest.synthesizer_id}
    accounts = manifest.accounts
    assert (accounts.num_records, accounts.num_augmented, accounts.num_rejected) == (11, 11, 0)
    assert manifest.num_pairs == sum(len(example.pairs) for example in examples)
    assert manifest == read_augmented_corpus_manifest(str(folder / "out"))
    assert json.loads((folder / "out" / "datasets.json").read_text("utf-8"))["trains"] == {
        "licenses": ["MIT"],
        "domains": ["travel"],
        "task_types": ["extractive_qa"],
        "num_texts": 4,
        "num_pairs": 7,
    }


def test_the_same_files_in_another_folder_and_order_give_the_same_bytes(folder, tmp_path):
    first = read_tasks(config_for(folder, num_files=2))
    (folder / "in2").mkdir()
    # The files change their names, and so their order; every record stays in its file.
    (folder / "in2" / "0.jsonl").write_bytes((folder / "in" / "b.jsonl").read_bytes())
    (folder / "in2" / "1.jsonl").write_bytes((folder / "in" / "a.jsonl").read_bytes())
    source = TaskSource(name="normalized", input=[str(folder / "in2")])
    second = read_tasks(config_for(folder, output=str(folder / "out2"), datasets=[source], num_files=2))
    assert len(first.parts) == 2
    assert sorted(map(str, read_chains(folder / "out", first))) == sorted(
        map(str, read_chains(folder / "out2", second))
    )
    assert [entry.sha256 for entry in first.parts] == [entry.sha256 for entry in second.parts]
    other = read_tasks(config_for(folder, output=str(folder / "out3"), seed=1, num_files=2))
    assert [entry.sha256 for entry in first.parts] != [entry.sha256 for entry in other.parts]


def test_records_about_one_text_become_one_example(tmp_path):
    lines = [
        {"question": f"is it {w}", "title": "T", "answer": True, "passage": p}
        for w, p in zip("abc", "xyx", strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    source = TaskSource(name="boolq", input=[str(tmp_path / "train.jsonl")])
    manifest = read_tasks(TasksConfig(datasets=[source], output=str(tmp_path / "out")))
    pairs = {
        example.document.text: [pair.instruction.split("?")[0] for pair in example.pairs]
        for chain in read_chains(tmp_path / "out", manifest)
        for example in chain.examples
    }
    assert pairs == {"x": ["is it a", "is it c"], "y": ["is it b"]}
    assert manifest.accounts.num_records == 2
    summary = json.loads((tmp_path / "out" / "datasets.json").read_text("utf-8"))
    assert summary["boolq"]["licenses"] == ["CC-BY-SA-3.0"]


@pytest.mark.parametrize("num_files", [1, 3])
def test_the_sets_of_a_run_do_not_overwrite_each_others_files(folder, num_files):
    line = {"question": "is it", "title": "T", "answer": True, "passage": "A text."}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n{oops\n", "utf-8")
    (folder / "in" / "c.jsonl").write_text("{oops\n", "utf-8")
    sources = [
        TaskSource(name="boolq", input=[str(folder / "train.jsonl")]),
        TaskSource(name="normalized", input=[str(folder / "in")]),
    ]
    manifest = read_tasks(config_for(folder, datasets=sources, num_files=num_files))
    chains = read_chains(folder / "out", manifest)
    assert sum(len(chain.examples) for chain in chains) == manifest.accounts.num_augmented == 12
    assert {chain.source for chain in chains} == {"boolq", "ferries", "trains"}
    assert len(read_rejects(folder / "out", manifest)) == manifest.accounts.num_rejected == 2


def test_what_is_of_no_use_is_kept_with_its_reason_and_the_accounts_add_up(tmp_path):
    rows = write_records(tmp_path / "a.jsonl", 3)
    extra = [
        {**rows[0], "context": "Another text."},
        {**rows[1], "id": "ferries-9", "pairs": [{"instruction": "Why?", "response": " "}]},
        {**rows[1], "id": "ferries-8", "license": "secret"},
        {"context": "Nothing else."},
    ]
    with (tmp_path / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in extra) + "{oops\n")
    source = TaskSource(name="normalized", input=[str(tmp_path / "a.jsonl")])
    config = TasksConfig(datasets=[source], output=str(tmp_path / "out"), licenses=["MIT"], max_texts=2)
    manifest = read_tasks(config)
    accounts = manifest.accounts
    assert accounts.rejected_by_reason == {
        "read/not_json": 1,
        "task/duplicate_id": 1,
        "task/license": 1,
        "task/no_pair": 1,
        "task/over_max_texts": 1,
        "task/unknown_layout": 1,
    }
    assert (accounts.num_records, accounts.num_augmented, accounts.num_rejected) == (8, 2, 6)
    assert manifest.rejected_pairs_by_reason == {"gate/no_answer": 1}
    rejects = {reject.reason: reject for reject in read_rejects(tmp_path / "out", manifest)}
    assert (rejects["license"].text, rejects["license"].detail) == ("", "its licence is 'secret'")
    assert rejects["duplicate_id"].text == "Another text."
    # Of those in the set, the ones with the most pairs stay.
    assert rejects["over_max_texts"].doc_id == "ferries-0"
    assert rejects["not_json"].detail.startswith(f"{tmp_path}/a.jsonl:8: ")
    assert rejects["no_answer"].detail.startswith(f"{tmp_path}/a.jsonl:5: ")
    assert "2 taken + 6 rejected" in tasks.describe(manifest, output="x")


TEXTS = st.lists(st.integers(0, 4), max_size=12).map(
    lambda counts: [
        TaskText(
            document=Document(doc_id=f"d{n}", source=f"s{n % 2}", text=f"text {n}"),
            pairs=tuple(InstructionPair(instruction=f"q{k}", response="a") for k in range(count)),
            license="MIT",
            domain="",
            task_type="",
        )
        for n, count in enumerate(counts)
    ]
)


def tasks_config(**settings):
    return TasksConfig(datasets=[TaskSource(name="squad")], output="unused", **settings)


@given(TEXTS, st.integers(1, 4), st.integers(0, 2))
def test_of_each_set_the_texts_with_the_most_pairs_are_chosen(texts, max_texts, seed):
    config = tasks_config(max_texts=max_texts, seed=seed)
    chosen, rejects = choose_texts(texts, config=config)
    assert sorted(text.document.doc_id for members in chosen.values() for text in members) == sorted(
        {text.document.doc_id for text in texts} - {reject.doc_id for reject in rejects}
    )
    for source in ("s0", "s1"):
        members = [text for text in texts if text.document.source == source and text.pairs]
        best = sorted((len(text.pairs) for text in members), reverse=True)[:max_texts]
        assert [len(text.pairs) for text in chosen.get(source, [])] == best
    assert {reject.doc_id for reject in rejects if reject.reason == "no_pair"} == {
        text.document.doc_id for text in texts if not text.pairs
    }
    assert choose_texts(reversed(texts), config=config)[0] == dict(chosen)


@given(TEXTS, st.integers(1, 4), st.floats(0.1, 0.9))
def test_texts_are_held_out_or_taken_and_those_with_too_few_pairs_are_neither(texts, min_pairs, fraction):
    taken, held_out = (
        {
            text.document.doc_id
            for members in choose_texts(
                texts, config=tasks_config(min_pairs=min_pairs, held_out_fraction=fraction, take=take)
            )[0].values()
            for text in members
        }
        for take in ("rest", "held_out")
    )
    assert not taken & held_out
    assert taken | held_out == {text.document.doc_id for text in texts if len(text.pairs) >= min_pairs}
    # What is evaluated on as a set that was seen has been seen.
    sources = {text.document.doc_id: text.document.source for text in texts}
    assert {sources[doc_id] for doc_id in held_out} <= {sources[doc_id] for doc_id in taken}


def test_a_question_that_a_text_has_already_is_rejected_and_does_not_count_for_it(tmp_path):
    same = {"instruction": "Same?", "response": "Yes."}
    rows = write_records(tmp_path / "a.jsonl", 2)
    often = [{**rows[0], "id": "a", "pairs": [same, {**same, "instruction": "same? "}]}, {**rows[0], "id": "a"}]
    often[1]["pairs"] = [same, {"instruction": "Else?", "response": "No."}]
    few = {**rows[1], "id": "b", "pairs": [{"instruction": f"Q{n}?", "response": "A."} for n in range(3)]}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*often, few]), "utf-8")
    source = TaskSource(name="normalized", input=[str(tmp_path / "a.jsonl")])
    manifest = read_tasks(TasksConfig(datasets=[source], output=str(tmp_path / "out"), max_texts=1))
    assert manifest.rejected_pairs_by_reason == {"gate/repeated_question": 2}
    (chain,) = read_chains(tmp_path / "out", manifest)
    assert [pair.instruction for pair in chain.examples[0].pairs] == ["Q0?", "Q1?", "Q2?"]
    (left_out,) = (r for r in read_rejects(tmp_path / "out", manifest) if r.reason == "over_max_texts")
    assert left_out.doc_id == "ferries-a"


def test_long_texts_and_repeated_responses_are_left_out_before_the_texts_with_the_most_pairs_are_chosen(tmp_path):
    rows = write_records(tmp_path / "a.jsonl", 4)
    pairs = [
        [("Q0?", "Yes."), ("Q1?", "yes."), ("Q2?", "No."), ("Q3?", "Yes.")],
        [("Q0?", "A."), ("Q1?", "B."), ("Q2?", "C.")],
    ]
    many, few = ([{"instruction": q, "response": r} for q, r in items] for items in pairs)
    lines = [
        {**rows[0], "id": "same", "pairs": many},
        {**rows[1], "id": "other", "pairs": few},
        {**rows[2], "id": "long", "context": "x" * 200, "pairs": [*few, {"instruction": "Q9?", "response": "D."}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    source = TaskSource(name="normalized", input=[str(tmp_path / "a.jsonl")])
    settings = {"datasets": [source], "max_texts": 1, "max_characters": 200}
    manifest = read_tasks(TasksConfig(output=str(tmp_path / "out"), max_same_responses=1, **settings))
    (chain,) = read_chains(tmp_path / "out", manifest)
    assert chain.examples[0].document.doc_id == "ferries-other"
    assert manifest.rejected_pairs_by_reason == {"gate/repeated_response": 2}
    assert manifest.accounts.rejected_by_reason == {"task/over_max_texts": 1, "task/too_long": 1}
    manifest = read_tasks(TasksConfig(output=str(tmp_path / "twice"), max_same_responses=2, **settings))
    (chain,) = read_chains(tmp_path / "twice", manifest)
    assert [pair.instruction for pair in chain.examples[0].pairs] == ["Q0?", "Q1?", "Q2?"]
    with pytest.raises(ValueError, match="max_characters is -1; it must be 0"):
        tasks_config(max_characters=-1).check()


def test_nothing_of_a_text_under_another_licence_is_kept_not_even_a_bad_question(tmp_path):
    rows = write_records(tmp_path / "a.jsonl", 1)
    bad = {**rows[0], "license": "CC BY-NC 4.0", "pairs": [{"instruction": "SECRET?", "response": ""}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(bad) + "\n", "utf-8")
    source = TaskSource(name="normalized", input=[str(tmp_path / "a.jsonl")])
    manifest = read_tasks(TasksConfig(datasets=[source], output=str(tmp_path / "out"), licenses=["MIT"]))
    rejects = read_rejects(tmp_path / "out", manifest)
    assert {(reject.stage, reject.reason, reject.text) for reject in rejects} == {
        ("task", "license", ""),
        ("gate", "no_answer", ""),
    }
    assert "SECRET" not in repr(rejects)


def test_a_set_of_two_entries_has_one_limit(tmp_path):
    """Records in the set's own format and normalized ones of the same set."""
    squad = {
        "version": "1.1",
        "data": [
            {
                "title": "T",
                "paragraphs": [
                    {
                        "context": f"Context {n}.",
                        "qas": [{"id": str(n), "question": "Q?", "answers": [{"text": "Context", "answer_start": 0}]}],
                    }
                    for n in range(2)
                ],
            }
        ],
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad), "utf-8")
    rows = [{**row, "dataset": "squad"} for row in write_records(tmp_path / "a.jsonl", 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    sources = [
        TaskSource(name="squad", input=[str(tmp_path / "squad.json")]),
        TaskSource(name="normalized", input=[str(tmp_path / "a.jsonl")]),
    ]
    manifest = read_tasks(TasksConfig(datasets=sources, output=str(tmp_path / "out"), max_texts=3))
    assert manifest.accounts.num_augmented == 3
    assert manifest.accounts.rejected_by_reason == {"task/over_max_texts": 2}


def test_about_the_asked_fraction_is_held_out():
    share = sum(is_held_out_text(f"d{n}", fraction=0.2, seed=0) for n in range(2000)) / 2000
    assert 0.17 < share < 0.23


def test_texts_cannot_be_taken_that_are_not_held_out():
    with pytest.raises(ValueError, match="above 0 to take the texts held out"):
        tasks_config(take="held_out").check()


@given(st.integers(0, 9), st.integers(1, 4))
def test_chains_hold_every_text_once_and_do_not_depend_on_order(num_texts, chain_length):
    texts = [
        TaskText(
            document=Document(doc_id=f"d{n}", source="s", text=f"text {n}"),
            pairs=(InstructionPair(instruction=f"q{n}", response="a"),),
            license="MIT",
            domain="",
            task_type="",
        )
        for n in range(num_texts)
    ]
    chains = make_chains(texts, chain_length=chain_length, seed=0, synthesizer_id="x")
    assert make_chains(texts[::-1], chain_length=chain_length, seed=0, synthesizer_id="x") == chains
    examples = [example for chain in chains for example in chain.examples]
    assert {(e.document, e.pairs) for e in examples} == {(text.document, text.pairs) for text in texts}
    assert len(examples) == num_texts
    assert len(chains) == -(-num_texts // chain_length)
    assert all(len(chain.examples) <= chain_length for chain in chains)


def test_a_completed_run_is_left_alone_and_another_one_refused(folder, monkeypatch):
    manifest = read_tasks(config_for(folder))
    monkeypatch.setattr(tasks, "gather_texts", None)
    assert read_tasks(config_for(folder)) == manifest
    with pytest.raises(ValueError, match=r"already holds another run\. It differs in: config\.seed"):
        read_tasks(config_for(folder, seed=1))


def test_an_interrupted_run_starts_over(folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            storage,
            "write_json",
            lambda url, value, write=storage.write_json: (stop if "datasets" in url else write)(url, value),
        )
        with pytest.raises(KeyboardInterrupt):
            read_tasks(config_for(folder))
    assert not storage.exists(str(folder / "out" / "COMPLETED"))
    assert (
        read_tasks(config_for(folder)).num_pairs
        == read_tasks(config_for(folder, output=str(folder / "out2"))).num_pairs
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": []}, "datasets is empty; give one or more of normalized, "),
        ({"datasets": [TaskSource(name="squid")]}, "'squid', which is not in the table"),
        ({"datasets": [TaskSource(name="squad")] * 2}, "names 'squad' 2 times"),
        ({"datasets": [TaskSource(name="reclor")]}, "'reclor' is not on the hub; give its files"),
        ({"datasets": [TaskSource(name="squad", input=["nowhere.json"])]}, "No file matches 'nowhere.json'"),
        ({"chain_length": 0}, "chain_length is 0; it must be at least 1"),
        ({"max_texts": 0}, "max_texts is 0"),
        ({"num_files": 0}, "num_files is 0"),
        ({"max_texts_by_set": {"ferries": -1}}, "gives 'ferries' -1 texts; it must be 0 or more"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(folder, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_tasks(config_for(folder, **changes))
    assert not (folder / "out").exists()


def test_a_hub_that_cannot_be_reached_is_told_with_what_was_tried(monkeypatch):
    class NoNetworkError(Exception):
        pass

    def fail(patterns, **_):
        raise NoNetworkError("no route")

    monkeypatch.setattr(storage, "find_input_files", fail)
    with pytest.raises(
        ValueError, match=r"'squad' cannot be listed \(NoNetworkError: no route\)\. Tried hf://datasets/"
    ):
        tasks.find_files(TaskSource(name="squad"))


def test_the_hubs_files_are_read_through_the_same_file_systems(monkeypatch):
    asked = []
    monkeypatch.setattr(storage, "find_input_files", lambda patterns, **_: asked.extend(patterns) or [])
    tasks.find_files(TaskSource(name="boolq"))
    assert (
        asked
        == load_table()["boolq"].hub_files
        == ["hf://datasets/google/boolq@refs/convert/parquet/default/train/*.parquet"]
    )


def test_the_command_reads_its_config_and_says_what_it_did(folder, capsys):
    (folder / "tasks.yaml").write_text(
        json.dumps({"datasets": [{"name": "normalized", "input": [str(folder / "in")]}], "output": str(folder / "out")})
    )
    assert run_main(["tasks", "--config", str(folder / "tasks.yaml"), "--chain_length", "4"]) == 0
    assert "texts       11 = 11 taken + 0 rejected\npairs       20 in 3 chains" in capsys.readouterr().out
    assert run_main(["tasks", "--config", str(folder / "tasks.yaml")]) == 1
    assert "config.chain_length (there 4, here 3)" in capsys.readouterr().err
    (folder / "none.jsonl").write_text('{"context": "x"}\n')
    datasets = json.dumps([{"name": "normalized", "input": [str(folder / "none.jsonl")]}])
    assert run_main(["tasks", "--datasets", datasets, "--output", str(folder / "none")]) == 1
    assert "nothing could be used" in capsys.readouterr().out
    assert run_main([]) == run_main(["tunes"]) == 2
    assert run_main(["--help"]) == 0
    assert "read context-based task datasets" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        run_main(["tasks", "--outptu", "x"])
    assert exit_.value.code == 2


def test_the_command_runs_as_a_module_without_loading_beam_or_a_model_stack(folder):
    code = (
        "import sys; from synth_model.__main__ import main; "
        f"main(['tasks', '--datasets', '[{{name: normalized, input: [{folder}/in]}}]', '--output', '{folder}/out']); "
        "print({'apache_beam', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_the_shared_task_sets_are_read_whole(shared_folder, tmp_path):
    folder = shared_folder / "data" / "context_tasks"
    readme = (shared_folder / "data" / "README.md").read_text("utf-8")
    section = readme.split("## context_tasks")[1].split("\n## ")[0]
    counts = {
        cells[0]: (int(cells[3]), int(cells[4]))
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in section.splitlines()
            if line.startswith("| ")
        )
        if cells[3].isdecimal() and "total" not in cells[0]
    }
    assert len(counts) == len(list(folder.glob("*.jsonl.gz"))) > 20
    for name, (num_texts, num_pairs) in counts.items():
        gathered = tasks.gather_texts([str(folder / f"{name}.jsonl.gz")], dataset=load_table()["normalized"])
        assert {reject.reason for reject in gathered.rejects} <= {"repeated_question"}
        num_kept = sum(len(text.pairs) for text in gathered.texts.values())
        assert (len(gathered.texts), num_kept + len(gathered.rejects)) == (num_texts, num_pairs)
        assert len(gathered.rejects) < num_pairs / 4
        assert gathered.num_records == num_texts


def test_single_sets_may_have_limits_of_their_own(folder):
    config = config_for(folder, max_texts=2, max_texts_by_set={"ferries": 3, "trains": 0}, output=str(folder / "some"))
    every = read_chains(folder / "out", read_tasks(config_for(folder)))
    assert {chain.source for chain in every} == {"ferries", "trains"}
    chains = read_chains(folder / "some", read_tasks(config))
    assert {chain.source for chain in chains} == {"ferries"}
    assert sum(len(chain.examples) for chain in chains) == 3
    with pytest.raises(ValueError, match="names 'boats', but the files hold the sets ferries, trains"):
        read_tasks(config_for(folder, max_texts_by_set={"boats": 3}, output=str(folder / "other")))
    assert not (folder / "other" / "COMPLETED").exists()
