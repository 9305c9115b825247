import gzip
import hashlib
import json
import os
import uuid

import numpy as np
import pyarrow as pa
import pytest

from contracts import storage


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.fixture(params=["file", "memory"])
def folder(request, tmp_path):
    """A fresh folder on the local disk and one in fsspec's memory file system, which stands for an object store."""
    return str(tmp_path / "data") if request.param == "file" else f"memory://{uuid.uuid4().hex}/data"


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("a", "b"), "a/b"),
        (("a/", "b", "c"), "a/b/c"),
        (("/", "b"), "//b"),
        (("s3://bucket", "x.json"), "s3://bucket/x.json"),
    ],
)
def test_join(parts, joined):
    assert storage.join(*parts) == joined


def test_what_is_written_is_read(folder):
    url = storage.join(folder, "deep", "er", "notes.txt")
    assert not storage.exists(url)
    storage.write_bytes_atomically(url, "naïve ☕\n".encode())
    assert storage.exists(url)
    assert storage.is_folder(folder)
    assert not storage.is_folder(url)
    assert storage.read_bytes(url) == "naïve ☕\n".encode()
    assert storage.read_text(url) == "naïve ☕\n"
    storage.write_bytes_atomically(url, b"second")
    assert storage.read_text(url) == "second"
    storage.remove_folder(folder)
    assert not storage.exists(url)
    storage.remove_folder(folder)


def write_half(url, error):
    with storage.open_atomic_output(url) as file:
        file.write(b"half of it")
        raise error


def test_an_error_while_writing_leaves_nothing(folder):
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_half(storage.join(folder, "part.parquet"), RuntimeError("disk on fire"))
    assert storage.list_files(folder) == []


def test_an_error_while_writing_keeps_the_old_file(folder):
    url = storage.join(folder, "part.parquet")
    storage.write_bytes_atomically(url, b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(url, KeyboardInterrupt())
    assert [os.path.basename(name) for name in storage.list_files(folder)] == ["part.parquet"]
    assert storage.read_bytes(url) == b"old"


def test_a_file_appears_only_once_it_is_whole(folder):
    url = storage.join(folder, "part.parquet")
    with storage.open_atomic_output(url) as file:
        file.write(b"x" * 100_000)
        file.flush()
        assert not storage.exists(url)
    assert storage.read_bytes(url) == b"x" * 100_000


def test_a_missing_text_is_an_error_or_the_default(folder):
    url = storage.join(folder, "absent.txt")
    assert storage.read_text(url, missing=None) is None
    assert storage.read_text(url, missing="nothing") == "nothing"
    with pytest.raises(FileNotFoundError):
        storage.read_text(url)


def test_json_keeps_order_and_letters(folder):
    url = storage.join(folder, "value.json")
    storage.write_json(url, {"b": ["é", 1, None], "a": {"x": 0.1}})
    assert storage.read_json(url) == {"b": ["é", 1, None], "a": {"x": 0.1}}
    text = storage.read_text(url)
    assert "é" in text
    assert text.index('"b"') < text.index('"a"')
    storage.write_bytes_atomically(url, b"{broken")
    with pytest.raises(ValueError, match=r"value\.json is not valid JSON"):
        storage.read_json(url)


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)],
)
def test_input_is_decompressed_by_its_name(folder, name, compress):
    lines = b"".join(json.dumps({"text": f"line {number}"}).encode() + b"\n" for number in range(2000))
    url = storage.join(folder, name)
    storage.write_bytes_atomically(url, compress(lines))
    with storage.open_input(url) as file:
        assert file.read() == lines
    with storage.open_input(url) as file:
        assert [json.loads(line)["text"] for line in file][1999] == "line 1999"


def test_frames_of_zstd_one_after_the_other_are_all_read(folder):
    # Tools that compress in parallel, or append, write several frames into one file.
    url = storage.join(folder, "a.jsonl.zst")
    storage.write_bytes_atomically(url, zstd(b"one\n") + zstd(b"two\n"))
    with storage.open_input(url) as file:
        assert file.read() == b"one\ntwo\n"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_that_breaks_off_is_an_error(folder, name):
    compress = gzip.compress if name.endswith(".gz") else zstd
    data = compress(np.random.default_rng(0).bytes(300_000))
    url = storage.join(folder, name)
    storage.write_bytes_atomically(url, data[: len(data) // 2])
    with storage.open_input(url) as file, pytest.raises((EOFError, OSError)):
        file.read()


def test_a_removed_file_is_gone_and_a_missing_one_is_fine(folder):
    url = storage.join(folder, "sub", "a.txt")
    storage.write_bytes_atomically(url, b"x")
    storage.write_bytes_atomically(storage.join(folder, "sub", "b.txt"), b"y")
    for _ in range(2):
        storage.remove_file(url)
        assert not storage.exists(url)
    assert storage.exists(storage.join(folder, "sub", "b.txt"))


def test_list_files_is_sorted_and_filtered(folder):
    assert storage.list_files(folder) == []
    for name in ("b.txt", "a.jsonl", "below/c.jsonl", "a.jsonl.gz"):
        storage.write_bytes_atomically(storage.join(folder, name), b"x")
    every = storage.list_files(folder)
    assert [name.split("/data/")[1] for name in every] == ["a.jsonl", "a.jsonl.gz", "b.txt", "below/c.jsonl"]
    assert storage.list_files(folder, suffixes=(".jsonl",)) == [every[0], every[3]]
    assert all(storage.read_bytes(name) == b"x" for name in every)


SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")


def found(patterns):
    return [file.url.split("/data/")[1] for file in storage.find_input_files(patterns, suffixes=SUFFIXES)]


def test_input_files_come_once_each_and_sorted(folder):
    for name in ("b.txt", "a.jsonl", "below/c.jsonl", "notes.md"):
        storage.write_bytes_atomically(storage.join(folder, name), b"12345")
    everything = ["a.jsonl", "b.txt", "below/c.jsonl"]
    assert found([folder]) == everything
    assert found([storage.join(folder, "*.jsonl"), folder, storage.join(folder, "a.jsonl")]) == everything
    assert found([storage.join(folder, "**/*.jsonl"), storage.join(folder, "b.txt")]) == everything
    assert found([storage.join(folder, "[ab].*")]) == ["a.jsonl", "b.txt"]
    (only,) = storage.find_input_files([storage.join(folder, "b.txt")], suffixes=SUFFIXES)
    assert only.size_bytes == 5


def test_another_version_of_a_file_is_told_apart(folder):
    url = storage.join(folder, "a.jsonl")
    storage.write_bytes_atomically(url, b"12345")
    (first,) = storage.find_input_files([url], suffixes=SUFFIXES)
    assert storage.find_input_files([url], suffixes=SUFFIXES) == [first]
    storage.write_bytes_atomically(url, b"54321")
    if not url.startswith("memory"):
        os.utime(url, (0, 0))
    (second,) = storage.find_input_files([url], suffixes=SUFFIXES)
    assert (first.url, first.size_bytes) == (second.url, second.size_bytes)
    assert first.version != second.version


def test_a_relative_path_is_the_file_itself(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("x")
    monkeypatch.chdir(tmp_path)
    files = storage.find_input_files(["a.jsonl", str(tmp_path / "a.jsonl"), "./*.jsonl"], suffixes=SUFFIXES)
    assert [file.url for file in files] == [str(tmp_path / "a.jsonl")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("absent.jsonl", "No file matches"),
        ("absent/*.jsonl", "No file matches"),
        ("notes.md", "cannot be read: a file must end in .jsonl, .jsonl.gz, .txt"),
        ("*", "cannot be read"),
        ("only_notes", "holds no file that ends in"),
    ],
)
def test_input_that_cannot_be_read_is_named(folder, pattern, message):
    for name in ("a.jsonl", "notes.md", "only_notes/notes.md"):
        storage.write_bytes_atomically(storage.join(folder, name), b"x")
    with pytest.raises(ValueError, match=message) as error:
        storage.find_input_files([storage.join(folder, "a.jsonl"), storage.join(folder, pattern)], suffixes=SUFFIXES)
    assert folder.removeprefix("memory://") in str(error.value)


def test_hashes_of_files_and_values(folder):
    url = storage.join(folder, "abc")
    storage.write_bytes_atomically(url, b"abc")
    # FIPS 180-4, first example of SHA-256.
    assert storage.file_sha256(url) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert storage.json_sha256({"a": [1, 2], "b": "é"}) == storage.json_sha256({"b": "é", "a": (1, 2)})
    assert storage.json_sha256({"a": 1}) != storage.json_sha256({"a": "1"})
    storage.json_sha256("a lone surrogate: \ud800")


def test_a_file_of_several_blocks_hashes_as_a_whole(tmp_path):
    data = bytes(range(256)) * 10_000
    (tmp_path / "large").write_bytes(data)
    assert storage.file_sha256(str(tmp_path / "large")) == hashlib.sha256(data).hexdigest()


def test_names_below_a_folder(folder):
    for name in ("b.parquet", "a/c.parquet", "a/d"):
        storage.write_bytes_atomically(storage.join(folder, name), b"x")
    assert storage.relative_names(folder) == ["a/c.parquet", "a/d", "b.parquet"]
    assert storage.relative_names(storage.join(folder, "a")) == ["c.parquet", "d"]
    assert storage.relative_names(storage.join(folder, "absent")) == []


def test_a_file_is_read_in_any_order(folder):
    url = storage.join(folder, "data")
    storage.write_bytes_atomically(url, bytes(range(100)))
    file = storage.open_random_access(url)
    assert file.size() == 100
    for position in (90, 0, 50):
        file.seek(position)
        assert file.read(3) == bytes(range(position, position + 3))
