from dataclasses import replace

import pytest

from synth_model.engines import EngineConfig, load_engine, load_tokenizer
from synth_model.engines.fake_engine import FakeEngine, FakeOptions, FakeTokenizer
from synth_model.engines.transformers_engine import TransformersEngine
from synth_model.prompt_tokenizer import ModelTokenizer

FAKE = EngineConfig(kind="fake")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "transformers"}, "engine.model is empty"),
        ({"context_length": 0}, "engine.context_length is 0"),
        ({"max_batch_size": 0}, "engine.max_batch_size is 0"),
        ({"max_batch_tokens": -1}, "engine.max_batch_tokens is -1"),
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


def test_each_kind_loads_what_it_says(model_folder):
    assert isinstance(load_engine(FAKE), FakeEngine)
    assert isinstance(load_tokenizer(FAKE), FakeTokenizer)
    config = EngineConfig(model=model_folder, device="cpu", context_length=64)
    assert isinstance(load_engine(config), TransformersEngine)
    assert isinstance(load_tokenizer(config), ModelTokenizer)
