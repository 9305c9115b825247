import glob
import os
from dataclasses import replace

import pytest

from synth_model.command_line import parse_config
from synth_model.engines import EngineConfig
from synth_model.evaluation.config import EvaluateConfig, SystemConfig
from tests.conftest import REPOSITORY

SYSTEM = SystemConfig(name="one", engine=EngineConfig(kind="fake"))
CONFIG = EvaluateConfig(systems=[SYSTEM], output="out", unseen=["corpus"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": []}, "systems is empty"),
        ({"unseen": []}, "seen and unseen are both empty"),
        ({"systems": [SYSTEM, SYSTEM]}, "'one' is empty, taken .* or given 2 times"),
        ({"systems": [replace(SYSTEM, name="gold")]}, "'gold' is empty, taken"),
        ({"systems": [replace(SYSTEM, engine=EngineConfig())]}, r"engine\.model is empty"),
        ({"max_texts": 0}, "max_texts is 0"),
        ({"max_shown_texts": -1}, "max_shown_texts is -1"),
        ({"shots": []}, r"shots is \[\]"),
        ({"shots": [1, 0]}, r"shots is \[1, 0\]"),
        ({"shots": [2, 2]}, r"shots is \[2, 2\]"),
        ({"confidence": 1.0}, r"confidence is 1\.0"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    CONFIG.check()
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes).check()


def test_how_models_run_and_where_results_go_is_no_part_of_the_result():
    elsewhere = replace(
        CONFIG,
        output="other",
        systems=[replace(SYSTEM, engine=replace(SYSTEM.engine, max_batch_size=3, device="cpu"))],
    )
    assert elsewhere.settings_of_the_result() == CONFIG.settings_of_the_result()
    longer = replace(CONFIG, systems=[replace(SYSTEM, engine=replace(SYSTEM.engine, context_length=99))])
    assert longer.settings_of_the_result() != CONFIG.settings_of_the_result()
    assert replace(CONFIG, seed=1).settings_of_the_result() != CONFIG.settings_of_the_result()


def shipped():
    return sorted(glob.glob(str(REPOSITORY / "configs" / "evaluate_synthesizer" / "*.yaml")))


@pytest.mark.parametrize("path", shipped(), ids=os.path.basename)
def test_a_shipped_config_loads(path):
    parse_config(EvaluateConfig, arguments=["--config", path], command="evaluate").check()


def test_configs_are_shipped():
    assert shipped()
