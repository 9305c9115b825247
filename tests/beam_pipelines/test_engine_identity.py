import pytest

from beam_pipelines import engine_identity
from beam_pipelines.engine_identity import check_engine
from synth_model.engines import EngineConfig


def test_an_adapter_that_is_not_there_is_told_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_identity, "load_tokenizer", lambda engine: pytest.fail("the tokenizer was loaded"))
    engine = EngineConfig(model="hub/model", adapter=str(tmp_path))
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        check_engine(engine, runner="DirectRunner")
    check_engine(engine, runner="DataflowRunner")
