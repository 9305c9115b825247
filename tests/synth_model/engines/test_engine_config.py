import re
from dataclasses import replace

import jsonargparse
import pytest
import yaml

from synth_model.engines import EngineConfig, load_engine, load_tokenizer
from synth_model.engines.endpoint_engine import EndpointOptions
from synth_model.engines.fake_engine import FakeEngine, FakeOptions, FakeTokenizer
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.engines.vllm_engine import VllmOptions
from synth_model.prompt_tokenizer import ModelTokenizer
from tests.conftest import REPOSITORY

FAKE = EngineConfig(kind="fake")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "transformers"}, "engine.model is empty"),
        ({"context_length": 0}, "engine.context_length is 0"),
        ({"max_batch_size": 0}, "engine.max_batch_size is 0"),
        ({"max_batch_tokens": -1}, "engine.max_batch_tokens is -1"),
        ({"prefix_cache_bytes": -1}, "engine.prefix_cache_bytes is -1"),
        ({"max_batch_tokens": 2047}, r"engine.max_batch_tokens \(2047\) is below engine.context_length \(2048\)"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    FAKE.check()
    with pytest.raises(ValueError, match=message):
        replace(FAKE, **changes).check()


def test_the_fake_engine_is_identified_by_its_settings_and_a_model_by_its_name():
    assert FAKE.model_id == replace(FAKE, context_length=99, max_batch_size=1).model_id
    assert FAKE.model_id != replace(FAKE, fake=FakeOptions(seed=1)).model_id
    assert EngineConfig(model="hub/name").model_id == "hub/name"


@pytest.mark.parametrize(
    ("changes", "is_another_result"),
    [
        ({"model": "other"}, True),
        ({"adapter": "other"}, True),
        ({"dtype": "bfloat16"}, True),
        ({"context_length": 99}, True),
        ({"endpoint": EndpointOptions(prompt_form="text")}, True),
        ({"endpoint": EndpointOptions(base_url="http://other/v1", max_concurrency=1)}, False),
        ({"device": "cuda", "max_batch_size": 1, "batching": "continuous"}, False),
        ({"vllm": VllmOptions(num_gpus=2)}, False),
    ],
)
def test_how_a_model_runs_is_told_from_what_it_completes(changes, is_another_result):
    settings = FAKE.settings_of_the_result()
    assert (replace(FAKE, **changes).settings_of_the_result() != settings) == is_another_result


def test_each_kind_loads_what_it_says(model_folder):
    assert isinstance(load_engine(FAKE), FakeEngine)
    assert isinstance(load_tokenizer(FAKE), FakeTokenizer)
    config = EngineConfig(model=model_folder, device="cpu", context_length=64)
    assert isinstance(load_engine(config), TransformersEngine)
    assert isinstance(load_tokenizer(config), ModelTokenizer)


def test_the_guides_examples_are_configs():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--engine", type=EngineConfig)
    guide = (REPOSITORY / "docs" / "engines.md").read_text("utf-8")
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(engine:.*?)```", guide, re.DOTALL)]
    kinds = []
    for example in examples:
        engine = parser.instantiate(parser.parse_object(example)).engine
        engine.check()
        kinds.append(engine.kind)
    assert kinds == ["transformers", "openvino", "vllm", "endpoint"]
