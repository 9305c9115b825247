import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.tokenized_parts import (
    DOCUMENT_SCHEMA,
    NUM_KEYS,
    document_key,
    is_drawn,
    key_range,
    read_range,
    text_schema,
    write_part,
)

KEYS = st.integers(0, NUM_KEYS - 1) | st.sampled_from([0, NUM_KEYS - 1, NUM_KEYS // 2, NUM_KEYS // 2 - 1])


def documents(keys):
    return pa.table(
        [
            pa.array(keys, pa.uint64()),
            pa.array([f"doc-{number}" for number in range(len(keys))], pa.large_string()),
            pa.array(keys, pa.uint64()),
        ],
        schema=DOCUMENT_SCHEMA,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
def test_ranges_hold_every_key_once(count):
    ranges = [key_range(number, count=count) for number in range(count)]
    assert (ranges[0][0], ranges[-1][1]) == (0, NUM_KEYS)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    assert max(end - start for start, end in ranges) - min(end - start for start, end in ranges) <= 1


@given(keys=st.lists(KEYS, max_size=30), count=st.integers(1, 5), place=st.sampled_from(["memory://parts/", "file"]))
def test_a_range_is_read_as_a_scan_would_find_it(tmp_path_factory, keys, count, place):
    url = "memory://parts/p.arrow" if place != "file" else str(tmp_path_factory.mktemp("parts") / "p.arrow")
    write_part(url, documents(keys))
    in_order = sorted(range(len(keys)), key=lambda number: (keys[number], number))
    for number in range(count):
        first, end = key_range(number, count=count)
        found = read_range(url, (first, end), columns=["key", "doc_id"])
        assert found.column_names == ["key", "doc_id"]
        assert found.column("doc_id").to_pylist() == [f"doc-{n}" for n in in_order if first <= keys[n] < end]


def test_a_large_part_is_read_in_pieces(tmp_path):
    url = str(tmp_path / "p.arrow")
    keys = [document_key(str(number), seed=0) for number in range(2000)]
    ids = [np.full(200, number, "<u2").tobytes() for number in range(2000)]
    schema = text_schema(with_loss_spans=False)
    columns = [keys, [str(number) for number in range(2000)], [1] * 2000, [200] * 2000, ids]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    write_part(url, table)
    with pa.memory_map(url) as file:
        assert pa.ipc.open_file(file).num_record_batches == 16
    parts = [read_range(url, key_range(number, count=5), columns=schema.names) for number in range(5)]
    assert pa.concat_tables(parts).equals(table.take(pa.array(np.argsort(np.array(keys, np.uint64)))))
    assert min(part.num_rows for part in parts) > 300


def test_a_larger_fraction_draws_what_a_smaller_one_does_and_more():
    keys = np.array([document_key(str(number), seed=0) for number in range(5000)], np.uint64)
    assert is_drawn(keys, fraction=1.0).all()
    fifth, half = is_drawn(keys, fraction=0.2), is_drawn(keys, fraction=0.5)
    assert abs(fifth.mean() - 0.2) < 0.02
    assert abs(half.mean() - 0.5) < 0.02
    assert not (fifth & ~half).any()
    # What is drawn says nothing about where it goes.
    first, end = key_range(0, count=2)
    in_first = (keys >= np.uint64(first)) & (keys < np.uint64(end))
    assert abs(fifth[in_first].mean() - fifth[~in_first].mean()) < 0.03


def test_another_seed_gives_other_keys():
    assert document_key("a", seed=0) != document_key("a", seed=1)


def test_on_an_object_store(monkeypatch):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        s3fs = pytest.importorskip("s3fs")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("parts")
        keys = [document_key(str(number), seed=0) for number in range(200)]
        write_part("s3://parts/folder/p.arrow", documents(keys))
        first, end = key_range(1, count=3)
        found = read_range("s3://parts/folder/p.arrow", (first, end), columns=["key"])
        assert found.column("key").to_pylist() == sorted(key for key in keys if first <= key < end)
        assert found.num_rows > 30
    finally:
        server.stop()
