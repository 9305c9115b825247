"""Decoded shards on disk: found again, made anew when damaged, never a wrong row."""

import errno
import multiprocessing
import os
import shutil
from collections import namedtuple

import pyarrow as pa
import pytest

from contracts import storage
from contracts.manifest import read_shard_manifest
from contracts.seeding import rng
from tests.shard_fixtures import make_rows, write_example_shards, write_shards
from trainer import row_cache
from trainer.row_cache import DamagedRowError, RowCache, default_cache_folder
from trainer.shard_dataset import ShardDataset, labels_of


@pytest.fixture
def shards(tmp_path):
    """Two shards of 6 and 3 rows with loss spans, and their rows."""
    rows = [*make_rows(5, component="raw", with_loss_spans=True), *make_rows(4, component="chat", with_loss_spans=True)]
    folder = str(tmp_path / "shards")
    write_shards(folder, {"train": [rows[:6], rows[6:]]}, tokenizer_folder="tokenizer", tokenizer_sha256="0")
    return folder, rows


@pytest.fixture
def cache(shards, tmp_path):
    return RowCache(str(tmp_path / "cache"), shards=shards[0], manifest=read_shard_manifest(shards[0]))


def open_train(folder, cache_folder):
    return ShardDataset(folder, manifest=read_shard_manifest(folder), split="train", cache=str(cache_folder))


def assert_rows(dataset, rows):
    assert len(dataset) == len(rows)
    for number, expected in enumerate(rows):
        row = dataset.row(number)
        assert row.input_ids.tolist() == expected.input_ids.tolist()
        assert row.segment_lengths.tolist() == expected.segment_lengths.tolist()
        assert row.component == expected.component
        assert row.loss_spans.tolist() == expected.loss_spans.tolist()


def files_of(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".arrow"))


def test_decodes_once_and_is_found_by_others(shards, tmp_path):
    folder, rows = shards
    assert_rows(open_train(folder, tmp_path / "cache"), rows)
    files = files_of(tmp_path / "cache")
    assert len(files) == 2
    manifest = read_shard_manifest(folder)
    for entry in manifest.shards:
        os.remove(os.path.join(folder, entry.path))
    # Not the shards, which are gone: what was decoded of them.
    assert_rows(open_train(folder, tmp_path / "cache"), rows)
    assert files_of(tmp_path / "cache") == files


def test_other_shards_share_a_folder_without_meeting(shards, tmp_path):
    folder, rows = shards
    other = write_example_shards(str(tmp_path / "other"))
    assert_rows(open_train(folder, tmp_path / "cache"), rows)
    assert len(open_train(other, tmp_path / "cache")) == 21
    assert_rows(open_train(folder, tmp_path / "cache"), rows)
    assert len(files_of(tmp_path / "cache")) == 5


def test_a_file_under_the_name_of_another_shard_is_not_taken(tmp_path):
    """Though it has as many rows, of the same components."""
    rows = make_rows(6, component="raw", with_loss_spans=True)
    folder = str(tmp_path / "shards")
    write_shards(folder, {"train": [rows[:3], rows[3:]]}, tokenizer_folder="tokenizer", tokenizer_sha256="0")
    cache = RowCache(str(tmp_path / "cache"), shards=folder, manifest=read_shard_manifest(folder))
    cache.open_split("train")
    first, second = (cache.path_of(entry) for entry in read_shard_manifest(folder).shards)
    shutil.copy(first, second)
    assert_rows(open_train(folder, tmp_path / "cache"), rows)


def test_a_damaged_file_never_gives_a_wrong_row(shards, tmp_path, cache):
    """Every byte of a file in turn is changed: what can be read of it is right, or known to be wrong."""
    folder, rows = shards
    cache.open_split("train")
    entry = read_shard_manifest(folder).shards[0]
    path = cache.path_of(entry)
    with open(path, "rb") as file:
        content = file.read()
    num_refused, num_damaged, num_right = 0, 0, 0
    for position in rng(0, "positions").permutation(len(content))[:700].tolist():
        with open(path, "wb") as file:
            file.write(content[:position] + bytes([content[position] ^ 0x15]) + content[position + 1 :])
        shard = cache._open(entry)
        if shard is None:
            num_refused += 1
            continue
        for index in range(entry.num_rows):
            try:
                row = shard.row(index)
            except DamagedRowError:
                num_damaged += 1
                continue
            num_right += 1
            assert row.input_ids.tolist() == rows[index].input_ids.tolist()
            assert row.component == rows[index].component
            assert labels_of(row).tolist() == labels_of(rows[index]).tolist()
    assert min(num_refused, num_damaged, num_right) > 30


def test_a_row_moved_to_another_component_would_shift_the_others_and_is_found_at_opening(shards, cache):
    cache.open_split("train")
    entry = read_shard_manifest(shards[0]).shards[0]
    with pa.OSFile(cache.path_of(entry), "rb") as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    assert batch.column("component_id").to_pylist() == [1, 1, 1, 1, 1, 0]
    number = batch.schema.get_field_index("component_id")
    changed = batch.set_column(number, batch.schema.field(number), pa.array([1, 1, 0, 1, 1, 0], pa.int16()))
    with pa.ipc.new_file(cache.path_of(entry), batch.schema) as writer:
        writer.write_batch(changed)
    assert cache._open(entry) is None


def test_rows_in_another_order_are_not_taken_for_each_other(shards, tmp_path, cache):
    """Each with its checksum and everything."""
    folder, rows = shards
    cache.open_split("train")
    entry = read_shard_manifest(folder).shards[0]
    with pa.OSFile(cache.path_of(entry), "rb") as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    with pa.ipc.new_file(cache.path_of(entry), batch.schema) as writer:
        writer.write_batch(batch.take(pa.array([0, 2, 1, 3, 4, 5])))
    shard = cache._open(entry)
    assert shard.row(0).input_ids.tolist() == rows[0].input_ids.tolist()
    for index in (1, 2):
        with pytest.raises(DamagedRowError):
            shard.row(index)
    assert_rows(open_train(folder, tmp_path / "cache"), rows)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_cut_file_is_made_anew(shards, tmp_path, cache, size):
    folder, rows = shards
    cache.open_split("train")
    path = cache.path_of(read_shard_manifest(folder).shards[0])
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:size])
    assert_rows(open_train(folder, tmp_path / "cache"), rows)
    with open(path, "rb") as file:
        assert file.read() == content


def damage_rows(path, row):
    """Changes the tokens of a row wherever they stand in the file."""
    with open(path, "rb+") as file:
        content = file.read()
        tokens = row.input_ids.astype("<u2").tobytes()
        position = content.index(tokens)
        file.seek(position + 8)
        file.write(bytes([content[position + 8] ^ 1]))


def test_a_row_damaged_while_the_file_is_open_is_decoded_again(shards, tmp_path, cache, caplog):
    folder, rows = shards
    dataset = open_train(folder, tmp_path / "cache")
    entry = read_shard_manifest(folder).shards[1]
    damage_rows(cache.path_of(entry), rows[7])
    with caplog.at_level("WARNING", logger="trainer"):
        assert_rows(dataset, rows)
    assert f"is damaged; decoding {entry.path} again" in caplog.text


def test_a_damaged_row_whose_shard_is_gone_is_an_error(shards, tmp_path, cache):
    folder, rows = shards
    dataset = open_train(folder, tmp_path / "cache")
    entry = read_shard_manifest(folder).shards[1]
    damage_rows(cache.path_of(entry), rows[7])
    os.remove(os.path.join(folder, entry.path))
    assert dataset.row(6).input_ids.tolist() == rows[6].input_ids.tolist()
    with pytest.raises(ValueError, match="is missing, though the manifest lists it"):
        dataset.row(7)


def test_a_cache_removed_while_it_is_open_goes_on_and_comes_back(shards, tmp_path):
    folder, rows = shards
    dataset = open_train(folder, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    assert_rows(dataset, rows)
    assert_rows(open_train(folder, tmp_path / "cache"), rows)


def test_files_are_not_kept_open(shards, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    dataset = open_train(shards[0], tmp_path / "cache")
    assert len(os.listdir("/proc/self/fd")) == before
    assert_rows(dataset, shards[1])


def test_a_full_disk_is_found_before_the_work_and_named(shards, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(row_cache.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 100, 100))
    with pytest.raises(ValueError, match=r"disk is full \(0.00 GB are needed, 0.00 free\).*data.cache"):
        open_train(shards[0], tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


def test_a_disk_that_fills_up_meanwhile_leaves_whole_files_only(shards, tmp_path, monkeypatch):
    folder, rows = shards
    original = pa.RecordBatchFileWriter.write_batch
    num_written = 0

    def write_one(self, batch):
        nonlocal num_written
        num_written += 1
        if num_written > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(pa.RecordBatchFileWriter, "write_batch", write_one, raising=False)
        patch.setattr(row_cache, "_MAX_THREADS", 1)
        with pytest.raises(ValueError, match=r"the disk is full .*No space left on device.*data.cache"):
            open_train(folder, tmp_path / "cache")
    assert len(files_of(tmp_path / "cache")) == 1
    assert not [name for name in os.listdir(tmp_path / "cache") if storage.is_partial(name)]
    assert_rows(open_train(folder, tmp_path / "cache"), rows)


def test_what_a_killed_process_left_behind_is_removed(shards, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".abc.arrow.123.partial").write_bytes(b"half")
    open_train(shards[0], tmp_path / "cache")
    assert not (tmp_path / "cache" / ".abc.arrow.123.partial").exists()


def _open_and_count(folder, cache_folder, log):
    original = row_cache._read_shard

    def read(*arguments, **options):
        with open(log, "a") as file:
            file.write(options["entry"].path + "\n")
        return original(*arguments, **options)

    row_cache._read_shard = read
    assert len(open_train(folder, cache_folder)) == 21


def test_of_many_processes_one_decodes(tmp_path):
    folder = write_example_shards(str(tmp_path))
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_open_and_count, args=(folder, tmp_path / "cache", tmp_path / "log")) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    manifest = read_shard_manifest(folder)
    assert sorted((tmp_path / "log").read_text().splitlines()) == [entry.path for entry in manifest.shards_of("train")]


def test_shards_on_other_storage_than_a_local_disk(shards, tmp_path):
    import fsspec

    folder, rows = shards
    remote = f"memory://{tmp_path.name}"
    fs = fsspec.filesystem("memory")
    fs.put(folder + "/", remote + "/", recursive=True)
    assert_rows(open_train(remote, tmp_path / "cache"), rows)


def test_a_file_where_the_folder_should_be_is_named(shards, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made: .*Choose another data.cache"):
        open_train(shards[0], tmp_path / "cache")


def test_the_default_folder_is_the_runs_own(tmp_path):
    assert default_cache_folder(str(tmp_path)) == str(tmp_path / "rows")
    assert default_cache_folder(f"file://{tmp_path}") == str(tmp_path / "rows")
    remote = default_cache_folder("memory://runs/a")
    assert remote == default_cache_folder("memory://runs/a") != default_cache_folder("memory://runs/b")
    assert os.path.isabs(remote)
