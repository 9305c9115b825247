import json

import pytest

from contracts import storage
from contracts.artifact import claim_output, completed_fingerprint, describe_run, inspect_output, mark_completed

CONFIG = {"output": "out", "seed": 0, "engine": {"kind": "fake", "sizes": (1, 2)}}


def run_of(**changes):
    return describe_run(command="synthesize", config={**CONFIG, **changes}, inputs={"a.jsonl": "5 bytes, 1"})


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "out")


def test_a_run_takes_a_free_folder_goes_on_in_it_and_finds_it_completed(folder):
    assert claim_output(folder, run=run_of()) == "fresh"
    assert claim_output(folder, run=run_of()) == "resume"
    storage.write_bytes_atomically(storage.join(folder, "part-0.parquet"), b"x")
    assert claim_output(folder, run=run_of()) == "resume"
    mark_completed(folder, fingerprint="abc123")
    assert claim_output(folder, run=run_of()) == "completed"
    assert completed_fingerprint(folder) == "abc123"


def test_looking_at_a_folder_takes_and_changes_nothing(folder):
    for _ in range(2):
        assert inspect_output(folder, run=run_of()) == "fresh"
        assert not storage.exists(folder)
    claim_output(folder, run=run_of())
    assert inspect_output(folder, run=run_of()) == "resume"
    with pytest.raises(ValueError, match="already holds another run"):
        inspect_output(folder, run=run_of(seed=1))
    assert len(storage.list_files(folder)) == 1


def test_another_location_is_the_same_run(folder):
    claim_output(folder, run=run_of())
    assert claim_output(folder, run=run_of(output="../out")) == "resume"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"config\.seed \(there 0, here 1\)"),
        ({"engine": {"kind": "fake", "sizes": (1, 3)}}, r"config\.engine\.sizes \(there \[1, 2\], here \[1, 3\]\)"),
        ({"engine": {"kind": "fake"}}, r"config\.engine\.sizes \(there \[1, 2\], here '\(absent\)'\)"),
        ({"new": None}, r"config\.new \(there '\(absent\)', here None\)"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(folder, changes, message):
    claim_output(folder, run=run_of())
    before = storage.read_text(storage.join(folder, "run.json"))
    with pytest.raises(ValueError, match=message) as error:
        claim_output(folder, run=run_of(**changes))
    assert folder in str(error.value)
    assert storage.read_text(storage.join(folder, "run.json")) == before


def test_another_command_or_input_is_refused(folder):
    claim_output(folder, run=run_of())
    with pytest.raises(ValueError, match=r"command \(there 'synthesize', here 'pack'\)"):
        claim_output(folder, run={**run_of(), "command": "pack"})
    with pytest.raises(ValueError, match=r"inputs\.a\.jsonl \(there '5 bytes, 1', here '6 bytes, 2'\)"):
        claim_output(folder, run={**run_of(), "inputs": {"a.jsonl": "6 bytes, 2"}})


def test_files_of_no_run_are_not_taken_over(folder):
    storage.write_bytes_atomically(storage.join(folder, "thesis.txt"), b"all my work")
    with pytest.raises(ValueError, match=r"belong to no run of this tool \(such as .*thesis\.txt"):
        claim_output(folder, run=run_of())
    assert [name.rsplit("/", 1)[-1] for name in storage.list_files(folder)] == ["thesis.txt"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_run_file_is_named(folder, content):
    storage.write_bytes_atomically(storage.join(folder, "run.json"), content)
    with pytest.raises(ValueError, match=r"run\.json|utf-8"):
        claim_output(folder, run=run_of())


@pytest.mark.parametrize("content", ["[]", "null", "3"])
def test_a_run_file_of_another_shape_is_refused(folder, content):
    storage.write_bytes_atomically(storage.join(folder, "run.json"), content.encode())
    with pytest.raises(ValueError, match="already holds another run"):
        claim_output(folder, run=run_of())


def test_the_run_file_can_be_read_by_people(folder):
    claim_output(folder, run=run_of())
    written = json.loads(storage.read_text(storage.join(folder, "run.json")))
    assert written["config"] == {"seed": 0, "engine": {"kind": "fake", "sizes": [1, 2]}}


def test_what_is_not_completed_has_no_fingerprint(folder):
    with pytest.raises(ValueError, match="no run is there"):
        completed_fingerprint(folder)
    claim_output(folder, run=run_of())
    with pytest.raises(ValueError, match="its run has not completed"):
        completed_fingerprint(folder)
