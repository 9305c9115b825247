import gzip
import json

import pytest
import zstandard

from contracts.records import Reject
from synth_model.task_datasets.task_files import SUFFIXES, TaskEntry, read_entries

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return [
        f"{item.stage}/{item.reason} at {item.doc_id.removeprefix(str(path))}"
        if isinstance(item, Reject)
        else item.value
        for item in read_entries(str(path))
    ]


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = b'a,b\r\n1,"x, ""y""\nz"\r\n\r\n2,w\r\n'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("list.json", json.dumps(ROWS).encode(), ROWS),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), ROWS),
        ("object.json", json.dumps(ROWS[0]).encode(), ROWS[:1]),
        ("object.txt", json.dumps(ROWS[0]).encode(), ROWS[:1]),
        ("nested.json", b"[[1], [2]]", [[1], [2]]),
        ("list.json.gz", gzip.compress(json.dumps(ROWS).encode()), ROWS),
        ("list.json.zst", zstandard.compress(json.dumps(ROWS).encode()), ROWS),
        ("empty.json", b"[]", []),
        ("lines.jsonl", LINES, ROWS),
        ("lines.jsonlines", LINES, ROWS),
        ("lines.jsonl.gz", gzip.compress(LINES), ROWS),
        ("bad-line.jsonl", b"{oops\n" + LINES, ["read/not_json at :1", *ROWS]),
        ("table.csv", TABLE, [{"a": "1", "b": 'x, "y"\nz'}, {"a": "2", "b": "w"}]),
        ("table.tsv", b'a\tb\n1\t"x\n2\ty"\n', [{"a": "1", "b": '"x'}, {"a": "2", "b": 'y"'}]),
        (
            "ragged.csv",
            b"a,b\n1\n2,3\n4,5,6\n",
            ["read/wrong_columns at :2", {"a": "2", "b": "3"}, "read/wrong_columns at :4"],
        ),
        ("long.csv", b"a\n" + b"x" * 200_000 + b"\n", [{"a": "x" * 200_000}]),
        ("empty.csv", b"", []),
        ("not.json", b"{", ["read/unreadable_file at "]),
        ("latin.json", '["é"]'.encode("latin-1"), ["read/unreadable_file at "]),
        ("latin.csv", "a\né\n".encode("latin-1"), ["read/unreadable_file at "]),
        ("cut.json.gz", gzip.compress(json.dumps(ROWS).encode())[:-9], ["read/unreadable_file at "]),
        ("deep.json", b"[" * 100_000, ["read/unreadable_file at "]),
        ("open-quote.csv", b'a,b\n1,2\n"x,3\n', [{"a": "1", "b": "2"}, "read/unreadable_file at "]),
    ],
)
def test_entries_and_rejects_come_in_their_places(tmp_path, name, content, expected):
    assert name.endswith(SUFFIXES)
    assert read(tmp_path, name, content) == expected


def test_a_missing_file_is_one_reject(tmp_path):
    (reject,) = read_entries(str(tmp_path / "none.json"))
    assert (reject.reason, "FileNotFoundError" in reject.detail) == ("unreadable_file", True)


def test_places_name_line_and_element(tmp_path):
    (tmp_path / "x.csv").write_bytes(TABLE)
    (tmp_path / "x.json").write_bytes(b"[1, 2]")
    places = [entry.place for name in ("x.csv", "x.json") for entry in read_entries(str(tmp_path / name))]
    # The first row of the table stands on two lines.
    assert [place.removeprefix(f"{tmp_path}/") for place in places] == [
        "x.csv:3",
        "x.csv:5",
        "x.json:element 0",
        "x.json:element 1",
    ]
    assert isinstance(next(read_entries(str(tmp_path / "x.json"))), TaskEntry)
