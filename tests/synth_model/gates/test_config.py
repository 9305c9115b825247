import sys

import pytest

from synth_model import language_identification
from synth_model.gates.config import PairGateConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_grounding": 1.5}, r"gates\.min_grounding is 1\.5; it must be from 0 to 1"),
        ({"max_instruction_overlap": -0.1}, r"gates\.max_instruction_overlap is -0\.1"),
        ({"max_similarity_in_corpus": 0.0}, "above 0 and at most 1"),
        ({"max_repeats_in_corpus": -1}, r"gates\.max_repeats_in_corpus is -1; it must be at least 0"),
        ({"min_response_characters": 9, "max_response_characters": 8}, "nothing is both"),
    ],
)
def test_an_impossible_bound_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PairGateConfig(**settings)


def test_only_engines_that_can_score_take_the_gate_that_asks_the_model():
    gates = PairGateConfig(min_context_dependence=0.0)
    gates.check(engine_kind="transformers")
    gates.check(engine_kind="fake")
    with pytest.raises(ValueError, match=r"'endpoint' cannot\. Use one of \['transformers', 'fake'\].*null"):
        gates.check(engine_kind="endpoint")
    PairGateConfig().check(engine_kind="endpoint")


def test_a_missing_classifier_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language_identification._classifier.cache_clear()
    with pytest.raises(ValueError, match="package py3langid"):
        PairGateConfig(min_language_probability=0.1).check(engine_kind="fake")
    PairGateConfig().check(engine_kind="fake")
