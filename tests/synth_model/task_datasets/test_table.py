import re

import pytest
import yaml

from synth_model.task_datasets.table import load_table, parse_table, table_sha256

ENTRY = {
    "license": "CC0-1.0",
    "domain": "travel",
    "task_type": "extractive_qa",
    "layouts": [
        {"release": "ours", "requires": ["t"], "text": ["{t}"], "pairs": [{"instruction": "{q}", "answer": ["{a}"]}]}
    ],
}
# Identifiers of https://spdx.org/licenses, and the words that stand where there is none.
LICENSES = re.compile(
    r"Apache-2\.0|MIT|CC-BY(-NC)?(-SA|-ND)?-[34]\.0|non-commercial|research-only|mixed|unknown|\{license\}"
)


def parse(entry):
    return parse_table(yaml.safe_dump({"ferries": entry}))["ferries"]


def with_pair(**changes):
    layout = ENTRY["layouts"][0]
    return {**ENTRY, "layouts": [{**layout, "pairs": [{**layout["pairs"][0], **changes}]}]}


def test_the_shipped_table_says_of_each_set_where_it_is_and_what_may_be_done_with_it():
    table = load_table()
    assert {"squad", "hotpotqa", "race", "drop", "coqa", "quac", "boolq", "pubmedqa", "qasc", "dream", "multirc"} < set(
        table
    )
    assert {"narrativeqa", "wikitablequestions", "normalized"} < set(table)
    assert "shared" not in table
    for name, dataset in table.items():
        assert LICENSES.fullmatch(dataset.license), name
        assert dataset.domain, name
        assert dataset.task_type, name
        assert all(layout.release for layout in dataset.layouts), name
        assert not dataset.hub or re.fullmatch(r"[\w-]+/[\w.-]+", dataset.hub), name
    assert len(table_sha256()) == 64


def test_the_hubs_files_follow_from_repository_and_configuration():
    assert load_table()["squad"].hub_files == [
        "hf://datasets/rajpurkar/squad@refs/convert/parquet/plain_text/train/*.parquet"
    ]
    assert load_table()["reclor"].hub_files == []


def test_an_entry_is_read_as_it_stands():
    dataset = parse(ENTRY)
    assert (dataset.name, dataset.dataset, dataset.hub, dataset.license) == ("ferries", "ferries", "", "CC0-1.0")
    (layout,) = dataset.layouts
    assert (layout.requires, layout.text, layout.questions) == (("t",), ("{t}",), "")
    assert (layout.pairs[0].instruction, layout.pairs[0].answer) == ("{q}", ("{a}",))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**ENTRY, "licence": "x"}, "TaskDataset has the unknown keys ['licence'] and lacks the keys []"),
        ({k: v for k, v in ENTRY.items() if k != "domain"}, "lacks the keys ['domain']"),
        ({**ENTRY, "layouts": []}, "a set needs at least one layout"),
        ({**ENTRY, "layouts": [{**ENTRY["layouts"][0], "requires": []}]}, "needs required fields, text and pairs"),
        ({**ENTRY, "layouts": [{**ENTRY["layouts"][0], "records": "a["}]}, "'a[' is not a path"),
        ({**ENTRY, "layouts": [{**ENTRY["layouts"][0], "text": [{"each": "a[]"}]}]}, "lacks the keys ['text']"),
        ({**ENTRY, "layouts": [{**ENTRY["layouts"][0], "text": [{"each": "a[", "text": "b"}]}]}, "is not a path"),
        ({**ENTRY, "layouts": [{**ENTRY["layouts"][0], "title": "{a[]}"}]}, "must have a separator"),
        (with_pair(label="{l}"), "exactly one of answer, label and correct"),
        (with_pair(answer=[]), "exactly one of answer, label and correct"),
        (with_pair(answer=[], label="{l}"), "needs options for its label"),
        (with_pair(options=["{o[]}"], distractors=["{d}"]), "distractors go with an answer and without options"),
        (with_pair(reasoning="{r"), "a brace that belongs to no slot"),
        (with_pair(unanswerable="a["), "is not a path"),
    ],
)
def test_an_entry_of_another_form_is_refused(entry, message):
    with pytest.raises(ValueError, match=r"The table of task datasets, ferries: .*" + re.escape(message)):
        parse(entry)
