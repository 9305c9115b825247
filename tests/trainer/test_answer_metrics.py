"""Measures of single answers, their aggregates, and standard errors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from trainer.answer_metrics import (
    aggregate_of,
    bits_per_byte,
    corpus_f1,
    entity_counts,
    exact_match,
    items_of,
    mean,
    numeric_match,
    paired_standard_error,
    perplexity,
    standard_error,
    token_f1,
    weighted_f1,
)

WORDS = st.lists(st.sampled_from(["a", "the", "gene", "Gene,", "cell", "wall", "42"]), min_size=1, max_size=6).map(
    " ".join
)


@pytest.mark.parametrize(
    ("response", "answers", "expected"),
    [
        ("The Wright brothers.", ["wright brothers"], 1.0),
        ("a cell", ["the Cell!"], 1.0),
        ("cells", ["cell"], 0.0),
        ("one", ["two", "one"], 1.0),
        ("", ["one"], 0.0),
    ],
)
def test_exact_match(response, answers, expected):
    assert exact_match(response, answers=answers) == expected


@pytest.mark.parametrize(
    ("response", "answers", "expected"),
    [
        # Two of three words found, two of two right: 2 * (2/2 * 2/3) / (2/2 + 2/3).
        ("cell wall", ["the cell wall protein"], 0.8),
        ("cell cell", ["cell wall"], 0.5),
        ("gene", ["cell", "the gene"], 1.0),
        ("", ["cell"], 0.0),
        ("protein", ["cell"], 0.0),
    ],
)
def test_token_f1(response, answers, expected):
    assert token_f1(response, answers=answers) == pytest.approx(expected)


@given(response=WORDS, answers=st.lists(WORDS, min_size=1, max_size=3))
def test_f1_is_one_for_a_match_and_the_same_both_ways(response, answers):
    score = token_f1(response, answers=answers)
    assert 0 <= score <= 1
    if exact_match(response, answers=answers):
        assert score == 1
    assert token_f1(response, answers=answers[:1]) == token_f1(answers[0], answers=[response])


@pytest.mark.parametrize(
    ("response", "answers", "expected"),
    [
        ("It was $1,568.6 million.", ["1568.6"], 1.0),
        ("25%", ["0.25"], 1.0),
        ("0.2498 or so", ["0.25"], 1.0),
        ("0.2", ["0.25"], 0.0),
        ("-52.5", ["-0.525"], 1.0),
        ("52.5", ["-0.525"], 0.0),
        ("0", ["0.0"], 1.0),
        ("none", ["5"], 0.0),
        ("in 2014 it was 5", ["5"], 0.0),
        (".5", ["0.5"], 1.0),
    ],
)
def test_numeric_match(response, answers, expected):
    assert numeric_match(response, answers=answers) == expected


def test_entities_are_lines_and_add_up_over_records():
    assert entity_counts("Acme Inc, ORG\n acme inc, org\nPeter, PER\n", answers=["ACME Inc, ORG\nParis, LOC"]) == (
        1,
        2,
        2,
    )
    assert entity_counts("", answers=["Paris, LOC"]) == (0, 0, 1)
    # 1 and 3 right of 2 and 4 found, of 2 and 3 to find.
    assert corpus_f1(items_of([[1, 2, 2], [3, 4, 3]])) == pytest.approx(2 * 4 / (6 + 5))
    assert corpus_f1(items_of([[0, 0, 0]])) == 0


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_weighted_f1_is_that_of_scikit_learn(pairs):
    gold, taken = zip(*pairs, strict=True)
    expected = f1_score(gold, taken, average="weighted", zero_division=0)
    assert weighted_f1(items_of(pairs)) == pytest.approx(expected)


def test_likelihoods_are_added_before_they_are_divided():
    items = items_of([[-8 * math.log(2), 4], [-2 * math.log(2), 1]])
    assert bits_per_byte(items) == pytest.approx(10 / 5)
    assert perplexity(items) == pytest.approx(4)


@given(values=st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_the_standard_error_of_a_mean(values):
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    assert standard_error(items_of(values), aggregate=mean) == pytest.approx(expected)


def test_the_bootstrap_agrees_with_the_formula_where_there_is_one():
    values = np.random.default_rng(1).normal(size=400)
    ratio = np.stack([-values, np.ones(400)], axis=1)
    # With equal denominators the ratio of sums is a mean.
    formula = np.std(values, ddof=1) / math.sqrt(400) / math.log(2)
    assert standard_error(ratio, aggregate=bits_per_byte) == pytest.approx(formula, rel=0.1)
    assert standard_error(ratio, aggregate=bits_per_byte) == standard_error(ratio, aggregate=bits_per_byte)


def test_a_pair_is_judged_record_by_record():
    noise = np.random.default_rng(2).normal(size=(300, 1))
    first, second = np.hstack([noise, np.ones((300, 1))]), np.hstack([noise + 0.5, np.ones((300, 1))])
    for columns, aggregate in ((slice(0, 1), mean), (slice(0, 2), bits_per_byte)):
        own = standard_error(first[:, columns], aggregate=aggregate)
        paired = paired_standard_error(first[:, columns], second[:, columns], aggregate=aggregate)
        assert own > 0.04
        assert paired == pytest.approx(0, abs=1e-9)
    other = np.random.default_rng(3).normal(size=(300, 1))
    expected = np.std(other - noise, ddof=1) / math.sqrt(300)
    assert paired_standard_error(noise, other, aggregate=mean) == pytest.approx(expected)


def test_one_record_has_no_standard_error():
    assert math.isnan(standard_error(items_of([1.0]), aggregate=mean))
    one = items_of([[1, 2]])
    assert math.isnan(standard_error(one, aggregate=weighted_f1))
    assert math.isnan(paired_standard_error(one, one, aggregate=weighted_f1))


def test_the_aggregate_follows_from_the_items():
    assert aggregate_of("f1", items_of([0.5])) is mean
    assert aggregate_of("f1", items_of([[0, 1]])) is weighted_f1
    assert aggregate_of("mcc", items_of([[0, 1]])) is None
