import math
import subprocess
import sys

import numpy as np
import pytest

from contracts import seeding
from contracts.seeding import rng
from templates import TemplateConfig, style
from templates.audit import SHAPES, chi_square_p_value, format_audit, run_audit
from templates.bank import load_bank
from templates.config import FamilyWeights


def test_the_choices_are_independent_and_follow_their_weights() -> None:
    result = run_audit(num_draws=4000, seed=1)
    assert result.problems == []
    assert [shape.shape for shape in result.shapes] == list(SHAPES)
    assert all(shape.num_distinct >= 0.95 * shape.expected_distinct for shape in result.shapes)


def test_the_audit_finds_choices_that_share_their_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the audit is for: with one number for all choices of a chain, few combinations are ever reached."""
    monkeypatch.setattr(style, "hash_fraction", lambda seed, *names: seeding.hash_fraction(seed))
    result = run_audit(num_draws=1500, seed=1)
    for shape in result.shapes:
        assert shape.num_distinct < 0.5 * shape.expected_distinct
        begin = f"{shape.shape}: {shape.num_distinct} combinations"
        assert any(problem.startswith(begin) for problem in result.problems)
    assert any(" x " in problem for problem in result.problems)


def test_the_audit_finds_a_choice_that_ignores_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "hash_fraction", lambda seed, *names: seeding.hash_fraction(seed, *names) ** 1.5)
    result = run_audit(num_draws=1500, seed=1)
    assert any("every kind: free_form has p" in problem for problem in result.problems)


def test_the_expected_number_of_combinations_is_what_independent_drawing_gives() -> None:
    """Oracle: draws of the combinations of one family and layout from a generator."""
    only_numbered = FamilyWeights(classic=0, numbered=1, inline_few_shot=0, next_turn=0, dialogue=0)
    config = TemplateConfig(family_weights=only_numbered, pairs_first_share=0)
    result = run_audit(num_draws=700, seed=3, config=config)
    free_form = result.shapes[0]
    # What a numbered chain of free-form pairs draws from.
    num_combinations = math.prod(len(load_bank()[name]) for name in ("numbered", "text_first", "separators"))
    simulated = [len(set(rng(0, trial).integers(num_combinations, size=700).tolist())) for trial in range(200)]
    assert free_form.expected_distinct == pytest.approx(np.mean(simulated), rel=0.01)
    assert free_form.num_distinct == pytest.approx(free_form.expected_distinct, rel=0.05)


def test_p_values_are_near_their_closed_forms() -> None:
    for statistic in np.linspace(0, 40, 81):
        assert chi_square_p_value(statistic, degrees_of_freedom=1) == pytest.approx(
            math.erfc(math.sqrt(statistic / 2)), abs=0.05
        )
        assert chi_square_p_value(statistic, degrees_of_freedom=4) == pytest.approx(
            math.exp(-statistic / 2) * (1 + statistic / 2), abs=0.004
        )
    assert chi_square_p_value(124.342, degrees_of_freedom=100) == pytest.approx(0.05, abs=0.0005)
    assert chi_square_p_value(0.0, degrees_of_freedom=0) == 1


def test_the_report_shows_a_sample_of_each_family() -> None:
    report = format_audit(run_audit(num_draws=20, seed=0))
    for family in ("classic", "numbered", "inline_few_shot", "next_turn", "dialogue", "plain"):
        assert f"Sample: {family}, text_first" in report
        assert f"Sample: {family}, pairs_first" in report
    assert report.endswith("The audit passes.")


def test_no_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="it must be at least 1"):
        run_audit(num_draws=0, seed=0)


def test_the_command_prints_the_report() -> None:
    command = [sys.executable, "-m", "templates", "audit", "--draws", "50", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "50 draws a shape, seed 7" in done.stdout


def test_the_command_refuses_bad_weights_in_one_sentence() -> None:
    command = [sys.executable, "-m", "templates", "audit", "--templates.family_weights.plain", "-3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: The weight of the template family plain is -3.0; it must be 0 or more.\n"
