"""Every layout of the table, on a tiny file in the release's own format."""

import gzip

import pytest

from contracts.records import Reject
from synth_model.task_datasets.conversion import convert_entry
from synth_model.task_datasets.table import load_table
from synth_model.task_datasets.task_files import read_entries
from synth_model.tasks import gather_texts
from tests.synth_model.task_datasets.release_examples import RELEASE_EXAMPLES

IDS = [f"{example.dataset}-{example.file}" for example in RELEASE_EXAMPLES]


def layout_of(example, folder):
    """The layout that an example's records are in: the first that knows them when it is the only one."""
    path = folder / example.file
    path.write_bytes(example.as_bytes())
    dataset = load_table()[example.dataset]
    for layout in dataset.layouts:
        alone = type(dataset)(**{**{name: getattr(dataset, name) for name in dataset.__slots__}, "layouts": (layout,)})
        found = [item for entry in read_entries(str(path)) for item in convert_entry(entry, dataset=alone)]
        if not any(isinstance(item, Reject) and item.reason == "unknown_layout" for item in found):
            return layout
    raise AssertionError(example)


@pytest.mark.parametrize("example", RELEASE_EXAMPLES, ids=IDS)
def test_a_file_in_its_own_format_gives_the_pairs_written_here(example, tmp_path):
    path = tmp_path / example.file
    path.write_bytes(example.as_bytes())
    gathered = gather_texts([str(path)], dataset=load_table()[example.dataset])
    (text,) = gathered.texts.values()
    assert text.document.text == example.text
    assert text.document.title == example.title
    assert [(pair.instruction, pair.response) for pair in text.pairs] == list(example.pairs)
    assert [reject.reason for reject in gathered.rejects] == list(example.rejected)
    assert gathered.num_records == 1


@pytest.mark.parametrize("example", [e for e in RELEASE_EXAMPLES if e.file.endswith(("json", "jsonl"))][:6])
def test_a_compressed_file_gives_the_same(example, tmp_path):
    plain, compressed = tmp_path / example.file, tmp_path / f"{example.file}.gz"
    plain.write_bytes(example.as_bytes())
    compressed.write_bytes(gzip.compress(example.as_bytes()))
    dataset = load_table()[example.dataset]
    assert gather_texts([str(compressed)], dataset=dataset).texts == gather_texts([str(plain)], dataset=dataset).texts


def test_every_layout_of_the_table_has_an_example(tmp_path):
    covered = {repr(layout_of(example, tmp_path)) for example in RELEASE_EXAMPLES}
    missing = [
        f"{name}: {layout.release}"
        for name, dataset in load_table().items()
        for layout in dataset.layouts
        if repr(layout) not in covered
    ]
    assert missing == []
