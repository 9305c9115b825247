from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.score_histograms import ScoreHistogram, bin_index, describe_histograms, histogram_from_counts

EDGES = (0.0, 0.25, 0.5, 1.0)


def histogram(scores, *, failed=()):
    counts = Counter((bin_index(score, edges=EDGES), score in failed) for score in scores)
    return histogram_from_counts(counts.items(), edges=EDGES)


def test_a_score_on_an_edge_belongs_to_the_bin_that_begins_there():
    made = histogram([-1.0, 0.0, 0.1, 0.25, 0.49, 0.5, 1.0, 7.0], failed=(-1.0, 0.1))
    assert made == ScoreHistogram(edges=EDGES, counts=(1, 2, 2, 1, 2), num_failed=2)
    assert made.num_scores == 8


@given(scores=st.lists(st.floats(-2, 3), min_size=1), cut=st.integers(0, 50))
def test_counts_are_those_of_numpy_and_partial_ones_add_up_in_any_order(scores, cut):
    failed = {score for score in scores if score < 0.3}
    expected, _ = np.histogram(scores, bins=[-np.inf, *EDGES, np.inf])
    whole = histogram(scores, failed=failed)
    assert whole.counts == tuple(expected)
    assert whole.num_failed == sum(score < 0.3 for score in scores)
    parts = [Counter((bin_index(score, edges=EDGES), score in failed) for score in part)
             for part in (scores[cut:], scores[:cut])]  # fmt: skip
    assert histogram_from_counts([item for part in parts for item in part.items()], edges=EDGES) == whole


@given(scores=st.lists(st.floats(-2, 3), min_size=1), share=st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_a_quantile_lies_in_its_bin(scores, share):
    lower, upper = histogram(scores).quantile_bin(share)
    value = np.quantile(scores, share, method="inverted_cdf")
    assert lower is None or lower <= value
    assert upper is None or value < upper


def test_histograms_are_described_by_their_quartiles():
    scores = [-1.0] * 2 + [0.3] * 4 + [2.0] * 2
    assert describe_histograms({"context_dependence": histogram(scores, failed=(-1.0,))}) == [
        "context dependence: quartiles below 0, 0.25 to 0.5, 0.25 to 0.5; 2 of 8 failed"
    ]
    assert "1 or more" in describe_histograms({"grounding": histogram([5.0])})[0]


def test_a_histogram_that_contradicts_itself_cannot_be_made():
    with pytest.raises(AssertionError):
        ScoreHistogram(edges=EDGES, counts=(1, 2), num_failed=0)
    with pytest.raises(AssertionError):
        ScoreHistogram(edges=(0.5,), counts=(1, 2), num_failed=4)
