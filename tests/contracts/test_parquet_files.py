import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.parquet_files import write_packed_rows
from contracts.schemas import packed_row_schema

SCHEMA = packed_row_schema(sequence_length=2, vocab_size=10)


def row_group(number):
    row = {"input_ids": [number, number + 1], "segment_lengths": [2], "component": "raw", "text_ids": [f"t{number}"]}
    return pa.Table.from_pylist([row], schema=SCHEMA)


def test_row_groups_stand_in_their_order(tmp_path):
    entry = write_packed_rows(str(tmp_path), path="a.parquet", schema=SCHEMA, row_groups=map(row_group, range(5)))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert (entry.num_rows, file.num_row_groups) == (5, 5)
    assert file.read().column("text_ids").to_pylist() == [[f"t{number}"] for number in range(5)]


def test_no_row_group_makes_an_empty_file(tmp_path):
    entry = write_packed_rows(str(tmp_path), path="a.parquet", schema=SCHEMA, row_groups=[])
    assert (entry.num_rows, pq.read_table(tmp_path / "a.parquet").num_rows) == (0, 0)


@pytest.mark.parametrize("num_good", [0, 1, 3])
def test_a_row_group_that_cannot_be_made_leaves_no_file(tmp_path, num_good):
    def row_groups():
        yield from map(row_group, range(num_good))
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_packed_rows(str(tmp_path), path="a.parquet", schema=SCHEMA, row_groups=row_groups())
    assert not list(tmp_path.iterdir())
