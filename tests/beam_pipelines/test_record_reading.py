import gzip
import io
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_pipelines.record_reading import FieldNames, document_from_record, pair_from_record
from contracts import record_files, storage
from contracts.record_files import SUFFIXES, WHOLE_FILE, Record, byte_ranges, read_records
from contracts.records import Document, Reject
from contracts.schemas import rejects_to_table
from contracts.storage import InputFile

FIELDS = FieldNames()


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


def read_documents(url, fields=FIELDS):
    """What a corpus file comes to: its documents and rejects in order, as the pipeline makes them."""
    return [
        record if isinstance(record, Reject) else document_from_record(record, fields=fields)
        for record in read_records(url, text_field=fields.text)
    ]


def summary(outcomes, url):
    """Documents as their text, rejects as their reason with the place behind the file's name."""
    return [
        item.text
        if isinstance(item, Document)
        else f"{item.stage}/{item.reason} at {item.doc_id.removeprefix(url).lstrip(':') or 'file'}"
        for item in outcomes
    ]


def parquet_bytes(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


LINES = b'{"text": "first"}\n{"text": "second"}\n'
MANY_LINES = b"".join(b'{"text": "%d %s"}\n' % (number, str(hash(number) ** 7).encode()) for number in range(20_000))
ZSTD = zstandard.ZstdCompressor()
NOT_UTF8 = pa.StringArray.from_buffers(3, *pa.array([b"ok", b"\xff", b"fine"], pa.binary()).buffers()[1:])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("plain.jsonl", LINES, ["first", "second"]),
        ("no-last-newline.jsonl", LINES.rstrip(), ["first", "second"]),
        ("windows.jsonl", LINES.replace(b"\n", b"\r\n"), ["first", "second"]),
        ("packed.jsonl.gz", gzip.compress(LINES), ["first", "second"]),
        ("two-members.jsonl.gz", gzip.compress(LINES) * 2, ["first", "second"] * 2),
        ("packed.jsonl.zst", ZSTD.compress(LINES), ["first", "second"]),
        ("two-frames.jsonl.zst", ZSTD.compress(LINES) * 2, ["first", "second"] * 2),
        ("whole.txt", "Über\n\nalles".encode(), ["Über\n\nalles"]),
        ("rows.parquet", parquet_bytes(pa.table({"text": ["first", "second"], "n": [1, 2]})), ["first", "second"]),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES, ["first", "second"]),
        ("bom.txt", b"\xef\xbb\xbfwhole", ["whole"]),
        ("blank-lines.jsonl", b"\n  \n" + LINES + b"\n", ["first", "second"]),
        ("empty.jsonl", b"", []),
        ("empty.jsonl.gz", b"", []),
        ("empty.jsonl.zst", b"", []),
        ("empty.txt", b"", ["read/empty_text at file"]),
        ("empty.parquet", b"", ["read/unreadable_file at file"]),
        ("not-json.jsonl", b"{oops\n" + LINES, ["read/not_json at 1", "first", "second"]),
        ("after-blank.jsonl", b"\n\n{oops\n", ["read/not_json at 3"]),
        ("array.jsonl", b"[7]\n7\nnull\n" + LINES[:18], [*(f"read/not_an_object at {n}" for n in "123"), "first"]),
        ("no-text.jsonl", b'{"body": "x"}\n' + LINES, ["read/no_text at 1", "first", "second"]),
        ("null-text.jsonl", b'{"text": null}\n', ["read/no_text at 1"]),
        ("number.jsonl", b'{"text": 7}\n{"text": ["a"]}\n', ["read/no_text at 1", "read/no_text at 2"]),
        ("blank-text.jsonl", b'{"text": " \\n\\t "}\n{"text": ""}\n', ["read/empty_text at 1", "read/empty_text at 2"]),
        ("latin1.jsonl", b'{"text": "caf\xe9"}\n' + LINES, ["read/invalid_utf8 at 1", "first", "second"]),
        ("latin1.txt", b"caf\xe9", ["read/invalid_utf8 at file"]),
        ("half-pair.jsonl", b'{"text": "a\\ud83d"}\n' + LINES, ["read/invalid_unicode at 1", "first", "second"]),
        ("whole-pair.jsonl", b'{"text": "a\\ud83d\\ude00"}\n', ["a😀"]),
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n" + LINES, ["read/not_json at 1", "first", "second"]),
        ("digits.jsonl", b'{"text": "a", "n": ' + b"9" * 10_000 + b"}\n" + LINES[:18], ["read/not_json at 1", "first"]),
        ("no-gzip.jsonl.gz", LINES, ["read/unreadable_file at file"]),
        ("no-zstd.jsonl.zst", LINES, ["read/unreadable_file at file"]),
        ("no-parquet.parquet", LINES, ["read/unreadable_file at file"]),
        ("other-column.parquet", parquet_bytes(pa.table({"body": ["a"]})), ["read/no_text at row 0"]),
        ("null.parquet", parquet_bytes(pa.table({"text": ["a", None]})), ["a", "read/no_text at row 1"]),
        ("binary.parquet", parquet_bytes(pa.table({"text": [b"a"]})), ["read/no_text at row 0"]),
        ("latin1.parquet", parquet_bytes(pa.table({"text": NOT_UTF8})), ["ok", "read/invalid_utf8 at row 1", "fine"]),
        (
            "far-future.parquet",
            parquet_bytes(pa.table({"text": ["a", "b"], "when": pa.array([0, 2**62], pa.timestamp("us"))})),
            ["a", "read/unreadable_row at row 1"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_kind_of_input_becomes_documents_and_rejects_in_their_place(tmp_path, name, content, expected):
    url = write(tmp_path, name, content)
    outcomes = read_documents(url)
    assert summary(outcomes, url) == expected
    for reject in (item for item in outcomes if isinstance(item, Reject)):
        assert url in reject.detail
        assert reject.detail.startswith(reject.doc_id)
    rejects_to_table([item for item in outcomes if isinstance(item, Reject)])


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("zst", ZSTD.compress)])
def test_a_cut_file_gives_what_it_holds_and_one_reject(tmp_path, suffix, compress):
    packed = compress(MANY_LINES)
    *documents, last = read_documents(write(tmp_path, f"cut.jsonl.{suffix}", packed[: len(packed) // 2]))
    assert [type(document) for document in documents] == [Document] * len(documents)
    assert 1000 < len(documents) < 20_000
    assert (last.stage, last.reason) == ("read", "unreadable_file")


def test_a_corrupt_parquet_file_becomes_a_reject(tmp_path):
    content = bytearray(parquet_bytes(pa.table({"text": [f"text number {number}" for number in range(5000)]})))
    content[100:2000] = b"\x00" * 1900
    outcomes = read_documents(write(tmp_path, "corrupt.parquet", bytes(content)))
    assert (outcomes[-1].stage, outcomes[-1].reason) == ("read", "unreadable_file")


def test_nesting_that_can_be_read_but_not_shown_is_a_reject_all_the_same(tmp_path):
    # json.loads may succeed nearer to the top of the stack than where the record is turned into a document.
    value = "deep"
    for _ in range(100_000):
        value = [value]
    reject = document_from_record(Record(values={"text": value}, place="here:1"), fields=FIELDS)
    assert isinstance(reject, Reject)
    assert reject.reason == "no_text"


def test_a_reject_shows_what_was_refused_and_a_long_one_is_cut(tmp_path):
    url = write(tmp_path, "bad.jsonl", b"{caf\xe9 \n" + b"[" + b"x" * 9000 + b"\n")
    short, long = read_documents(url)
    assert short.text == "{caf\\xe9 "
    assert len(long.text) == 2000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=300), st.lists(st.sampled_from([*b'{}[]":,\\u\n\r d8text0 \xff\xef'])).map(bytes)
    )
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "txt", "parquet"])
def test_arbitrary_bytes_never_raise(tmp_path, suffix, content):
    outcomes = read_documents(write(tmp_path, f"any.{suffix}", content))
    rejects_to_table([item for item in outcomes if isinstance(item, Reject)])
    if suffix == "jsonl":
        num_lines = sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        assert len(outcomes) == num_lines


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(codec=None), max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


@given(
    values=st.fixed_dictionaries({"text": JSON_VALUES, "id": JSON_VALUES, "source": JSON_VALUES, "title": JSON_VALUES})
)
def test_any_record_becomes_a_document_or_a_reject_that_parquet_can_hold(values):
    outcome = document_from_record(Record(values=json.loads(json.dumps(values)), place="file:1"), fields=FIELDS)
    if isinstance(outcome, Reject):
        rejects_to_table([outcome])
    else:
        assert outcome.text == values["text"]
        assert outcome.doc_id
        assert outcome.source
        pa.array([outcome.doc_id, outcome.source, outcome.text, outcome.title], pa.string())


def test_fields_of_a_record_are_named_by_the_config():
    fields = FieldNames(text="body", id="key", title="head", source="origin", default_source="web")
    values = {"body": "b", "key": 7, "head": "h", "origin": "o"}
    assert document_from_record(Record(values=values, place=""), fields=fields) == Document(
        doc_id="7", source="o", text="b", title="h"
    )
    only_text = document_from_record(Record(values={"body": "b"}, place=""), fields=fields)
    assert (only_text.source, only_text.title, len(only_text.doc_id)) == ("web", None, 32)
    elsewhere = document_from_record(Record(values={"body": "b", "origin": "o"}, place=""), fields=fields)
    assert elsewhere.doc_id != only_text.doc_id


def test_pairs_come_stripped_and_a_missing_side_is_a_reject():
    record = Record(values={"id": "7", "instruction": " Why? ", "response": "So.\n"}, place="file:1")
    pair_id, pair = pair_from_record(record)
    assert (pair_id, pair.instruction, pair.response) == ("7", "Why?", "So.")
    for values in ({"instruction": "a"}, {"instruction": "a", "response": " "}, {"instruction": 1, "response": "b"}):
        reject = pair_from_record(Record(values=values, place="file:2"))
        assert (reject.stage, reject.reason, reject.doc_id) == ("read", "no_pair", "file:2")
    unnamed = {"instruction": "a", "response": "b"}
    assert (
        pair_from_record(Record(values=unnamed, place="x"))[0] == pair_from_record(Record(values=unnamed, place="y"))[0]
    )
    assert pair_from_record(Record(values={**unnamed, "id": "\ud800"}, place="x"))[0] == "\\ud800"


# Lines that begin or end in every way, among them empty ones and some that are no records.
BAD_LINES = st.sampled_from(
    [b"", b" ", b"\r", b"{oops", b"\xff", b"[7]", b'{"text": "caf\xe9"}', b'\xef\xbb\xbf{"text": "after a mark"}']
)
GOOD_LINES = st.integers(0, 99).map(lambda number: b'{"text": "%s"}' % (b"%d " % number * (number % 7)))


def without_places(outcomes):
    return [
        (item.reason, item.text) if isinstance(item, Reject) else ("record", item.values["text"]) for item in outcomes
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(BAD_LINES | GOOD_LINES, max_size=8),
    ending=st.sampled_from([b"", b"\n"]),
    num_skipped=st.sampled_from([1, 4]),
    data=st.data(),
)
@pytest.mark.parametrize("place", ["file", "memory"])
def test_any_ranges_of_bytes_hold_every_record_once(tmp_path, monkeypatch, place, lines, ending, num_skipped, data):
    monkeypatch.setattr(record_files, "_SKIPPED_BYTES", num_skipped)
    content = b"\n".join(lines) + ending
    url = "memory://ranges/any.jsonl"
    if place == "file":
        url = write(tmp_path, "any.jsonl", content)
    else:
        storage.write_bytes_atomically(url, content)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    ranges = list(zip([0, *cuts], [*cuts, None], strict=True))
    parts = [list(read_records(url, byte_range=byte_range)) for byte_range in ranges]
    whole = list(read_records(url))
    assert without_places(item for part in parts for item in part) == without_places(whole)
    # What begins where is what decides.
    starts = [sum(len(line) + 1 for line in lines[:number]) for number in range(len(lines))]
    for (start, end), part in zip(ranges, parts, strict=True):
        begun = [
            line.strip()
            for position, line in zip(starts, lines, strict=True)
            if start <= position < (len(content) if end is None else end)
        ]
        assert len(part) == sum(map(bool, begun))


def test_a_line_of_a_later_range_is_named_by_its_number_there(tmp_path):
    url = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}\n\n{oops\n{"text": "three"}\n')
    assert [item.place for item in read_records(url, byte_range=(0, 19))] == [f"{url}:1"]
    second, bad, third = read_records(url, byte_range=(19, None))
    assert (second.place, bad.doc_id, third.place) == tuple(f"{url}:{number} from byte 19" for number in (1, 3, 4))


def test_a_line_longer_than_memory_is_skipped_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "_SKIPPED_BYTES", 1000)
    url = write(tmp_path, "a.jsonl", b'{"text": "' + b"x" * 50_000 + b'"}\n{"text": "last"}\n')
    read = []

    class Watched(io.FileIO):
        def readline(self, size=-1):
            read.append(len(line := super().readline(size)))
            return line

    monkeypatch.setattr(record_files, "open_input", lambda url: Watched(url))
    assert list(read_records(url, byte_range=(1000, 3000))) == []
    assert sum(read) <= 3000
    assert max(read) <= 1000
    (record,) = read_records(url, byte_range=(3000, None))
    assert record.values == {"text": "last"}
    assert max(read[:-2]) <= 1000


@given(size_bytes=st.integers(0, 10**12), target_bytes=st.integers(1, 10**9), suffix=st.sampled_from(SUFFIXES))
def test_ranges_follow_each_other_and_have_the_length_asked_for(size_bytes, target_bytes, suffix):
    target_bytes = max(target_bytes, size_bytes // 1000)
    file = InputFile(url=f"a{suffix}", size_bytes=size_bytes, version="")
    ranges = byte_ranges(file, target_bytes=target_bytes)
    if suffix != ".jsonl" or size_bytes < 2 * target_bytes:
        assert ranges == [WHOLE_FILE]
        return
    edges = [start for start, _ in ranges]
    assert [end for _, end in ranges] == [*edges[1:], None]
    assert edges[0] == 0
    lengths = [end - start for start, end in itertools.pairwise([*edges, size_bytes])]
    assert target_bytes <= min(lengths)
    assert max(lengths) < 2 * target_bytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "text": st.sampled_from([b"ok", "Über".encode(), b"\xff", None]),
                "when": st.sampled_from([0, 2**40, 2**62, None]),
                "tags": st.sampled_from([[], ["a", None], None]),
            }
        ),
        max_size=12,
    )
)
def test_rows_of_parquet_come_as_they_would_one_by_one(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(record_files, "_PARQUET_BATCH_ROWS", 3)
    texts = pa.array([row["text"] for row in rows], pa.binary())
    table = pa.table(
        {
            "text": pa.StringArray.from_buffers(len(rows), *texts.buffers()[1:], texts.buffers()[0]),
            "when": pa.array([row["when"] for row in rows], pa.timestamp("us")),
            "tags": pa.array([row["tags"] for row in rows], pa.list_(pa.string())),
        }
    )
    url = write(tmp_path, "a.parquet", parquet_bytes(table))
    expected = [
        "invalid_utf8"
        if row["text"] == b"\xff"
        else "unreadable_row"
        if row["when"] == 2**62
        else (row["text"] and row["text"].decode(), row["tags"])
        for row in rows
    ]
    outcomes = list(read_records(url))
    assert [
        item.reason if isinstance(item, Reject) else (item.values["text"], item.values["tags"]) for item in outcomes
    ] == expected
    places = [item.doc_id if isinstance(item, Reject) else item.place for item in outcomes]
    assert places == [f"{url}:row {number}" for number in range(len(rows))]
