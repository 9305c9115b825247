import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contracts.seeding import rng
from synth_model.evaluation.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(num_resamples=2000, confidence=0.95, seed=0)


def normal(name, *, num_texts, mean=0.0):
    return rng(0, "test", name).normal(mean, size=num_texts)


def test_a_figure_over_datasets_is_the_mean_of_their_means():
    interval = BOOTSTRAP.interval({"small": np.array([1.0, 1.0]), "large": np.zeros(100)})
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_one_dataset_has_the_interval_of_the_percentile_bootstrap():
    values = normal("one", num_texts=80)
    interval = BOOTSTRAP.interval({"one": values})
    oracle = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((oracle.low, oracle.high), abs=0.03)


def test_several_datasets_have_the_interval_of_the_mean_of_means():
    values = {"a": normal("a", num_texts=40), "b": 3 * normal("b", num_texts=40), "c": normal("c", num_texts=30)}
    interval = BOOTSTRAP.interval(values)

    def mean_of_means(*samples, axis):
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    oracle = stats.bootstrap(
        tuple(values.values()), mean_of_means, n_resamples=20_000, method="percentile", vectorized=True, random_state=1
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((oracle.low, oracle.high), abs=0.06)


def test_about_as_many_intervals_hold_the_truth_as_they_say():
    """500 samples of 40 texts with mean 1: the share of intervals that hold it is near the confidence."""
    bootstrap = Bootstrap(num_resamples=400, confidence=0.9, seed=0)
    held = 0
    for number in range(500):
        interval = bootstrap.interval({"d": normal(str(number), num_texts=40, mean=1.0)})
        held += interval.low <= 1.0 <= interval.high
    assert 0.84 < held / 500 < 0.93


def test_paired_differences_are_those_of_the_same_texts():
    """Two systems that differ by a constant on every text: no text can make the difference larger or smaller."""
    theirs = normal("theirs", num_texts=30)
    ours = theirs + 0.1
    difference = BOOTSTRAP.interval({"d": ours - theirs})
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1))
    alone = BOOTSTRAP.interval({"d": ours}), BOOTSTRAP.interval({"d": theirs})
    assert alone[0].low < alone[1].high, "the systems' own intervals overlap"


def test_few_texts_of_many_datasets_hold_the_truth_as_often_as_they_say():
    """Drawing as many texts as there are would hold it in 89 % of the cases here."""
    bootstrap = Bootstrap(num_resamples=400, confidence=0.95, seed=0)
    held = 0
    for number in range(400):
        values = {str(index): normal(f"{number} {index}", num_texts=3) for index in range(20)}
        interval = bootstrap.interval(values)
        held += interval.low <= 0.0 <= interval.high
    assert 0.925 < held / 400 < 0.975


def test_one_text_has_no_interval():
    interval = BOOTSTRAP.interval({"one": np.array([0.4]), "two": np.array([0.2, 0.6])})
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.4), None, None)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.sampled_from([0.5, 0.9]))
def test_an_interval_lies_among_the_values_and_grows_with_the_confidence(values, confidence):
    of_dataset = {"d": np.array(values)}
    narrow = Bootstrap(num_resamples=200, confidence=confidence, seed=3).interval(of_dataset)
    wide = Bootstrap(num_resamples=200, confidence=0.99, seed=3).interval(of_dataset)
    assert min(values) - 1e-9 <= wide.low <= narrow.low <= narrow.high <= wide.high <= max(values) + 1e-9
    assert narrow.mean == pytest.approx(np.mean(values), abs=1e-9)


def test_the_seed_and_nothing_else_decides():
    values = {"d": normal("d", num_texts=9)}
    again = Bootstrap(num_resamples=2000, confidence=0.95, seed=0).interval(values)
    assert BOOTSTRAP.interval(values) == again
    assert BOOTSTRAP.interval(values) != Bootstrap(num_resamples=2000, confidence=0.95, seed=1).interval(values)


def test_datasets_are_drawn_apart():
    """Two datasets with the same values: chance evens out between them, which it would not if they shared draws."""
    values = normal("twice", num_texts=50)
    one = BOOTSTRAP.interval({"one": values})
    both = BOOTSTRAP.interval({"one": values, "other": values.copy()})
    assert (both.high - both.low) / (one.high - one.low) == pytest.approx(0.5**0.5, abs=0.08)
