"""What ``synth_model tasks`` writes is a component of kind ``chains``."""

import json

from beam_pipelines.mixing import ComponentConfig
from synth_model.tasks import TasksConfig, TaskSource, read_tasks
from tests.beam_pipelines.pipeline_runs import read_rows, run_pack
from tests.synth_model.task_datasets.release_examples import BOTH, RELEASE_EXAMPLES, TEXT


def test_task_datasets_are_packed_as_chains(tmp_path, tokenizer_folder):
    sources = []
    for name in ("squad", "coqa"):
        example = next(example for example in RELEASE_EXAMPLES if example.dataset == name)
        (tmp_path / example.file).write_bytes(example.as_bytes())
        sources.append(TaskSource(name=name, input=[str(tmp_path / example.file)]))
    manifest = read_tasks(TasksConfig(datasets=sources, output=str(tmp_path / "tasks")))
    component = ComponentConfig(name="tasks", kind="chains", input=[str(tmp_path / "tasks")])
    shards = run_pack([component], tmp_path / "shards", tokenizer=tokenizer_folder, sequence_length=1024)
    assert shards.components["tasks"]["train"].num_texts == manifest.num_chains == 2
    assert shards.components["tasks"]["train"].num_documents == 2

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [tokenizer.decode(row.input_ids) for _, row in read_rows(tmp_path / "shards", shards)]
    for part in (TEXT, *(side for pair in BOTH for side in pair)):
        assert "".join(rows).count(part) >= 2, json.dumps(part)
