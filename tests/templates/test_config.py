from dataclasses import asdict

import pytest
from jsonargparse import ArgumentParser

from templates import FamilyWeights, TemplateConfig


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="template family dialogue is"):
        FamilyWeights(dialogue=weight)


def test_weights_need_a_finite_sum_above_zero() -> None:
    with pytest.raises(ValueError, match=r"add up to 0\.0"):
        FamilyWeights(classic=0, numbered=0, inline_few_shot=0, next_turn=0, dialogue=0)
    with pytest.raises(ValueError, match="add up to inf"):
        FamilyWeights(classic=1e308, numbered=1e308)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="pairs_first_share"):
        TemplateConfig(pairs_first_share=share)


def test_the_config_is_read_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--templates", type=TemplateConfig, default=TemplateConfig())
    text = "{family_weights: {classic: 1, plain: 2}, pairs_first_share: 0.5}"
    parsed = parser.instantiate(parser.parse_args(["--templates", text])).templates
    assert parsed == TemplateConfig(family_weights=FamilyWeights(classic=1.0, plain=2.0), pairs_first_share=0.5)
    defaults = parser.instantiate(parser.parse_args([])).templates
    assert defaults == TemplateConfig()


def test_the_default_weights() -> None:
    config = TemplateConfig()
    several = {"classic": 80, "numbered": 5, "inline_few_shot": 5, "next_turn": 5, "dialogue": 5, "plain": 0}
    assert asdict(config.family_weights) == several
    assert asdict(config.few_pairs_family_weights) == {**dict.fromkeys(several, 0), "classic": 95, "dialogue": 5}
    assert config.pairs_first_share == 0.05
