import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import SpikesConfig
from trainer.loss_spikes import SpikeHistory, reason_to_skip, spike_bound

SPIKES = SpikesConfig(threshold=3.0, window=4)
# Mean 2, standard deviation 1.
HISTORY = SpikeHistory(losses=(1.0, 3.0, 1.0, 3.0))


def reason(loss, *, grad_norm=1.0, history=HISTORY, spikes=SPIKES, **options):
    return reason_to_skip(loss, grad_norm, history=history, spikes=spikes, **options)


def test_a_loss_is_a_spike_from_so_many_deviations_above_the_mean():
    assert spike_bound(HISTORY, spikes=SPIKES) == 5.0
    assert reason(5.0) is None
    assert reason(5.01) == "the loss 5.0100 is above 5.0000"
    assert reason(-100.0) is None


def test_a_step_of_few_rows_may_scatter_more():
    """A quarter of the rows: twice the deviation."""
    assert spike_bound(HISTORY, spikes=SPIKES, relative_rows=0.25) == 8.0


def test_nothing_is_judged_before_the_window_is_full_or_without_a_threshold():
    assert reason(1e9, history=SpikeHistory(losses=(1.0, 1.0, 1.0))) is None
    assert reason(1e9, spikes=SpikesConfig(threshold=None, window=4)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_always_skipped(value):
    spikes = SpikesConfig(threshold=None)
    assert reason(value, spikes=spikes) == "the loss is not finite"
    assert reason(1.0, grad_norm=value, spikes=spikes) == "the gradient is not finite"


def test_equal_losses_leave_room_for_rounding():
    history = SpikeHistory(losses=(2.0,) * 4)
    assert reason(2.0000001, history=history) is None
    assert reason(2.05, history=history) is None
    assert reason(2.07, history=history) is not None


def test_two_components_at_different_levels_are_no_spikes():
    """A quarter of the steps lies forty of their neighbours' deviations higher, and is meant to."""
    levels = [3.0, 5.0, 2.95, 3.05] * 32
    assert reason(5.0, history=SpikeHistory(losses=tuple(levels)), spikes=SpikesConfig()) is None


@given(
    losses=st.lists(st.floats(0.1, 20), min_size=1, max_size=40),
    window=st.integers(2, 8),
    threshold=st.floats(0.5, 8),
)
def test_a_walk_against_a_brute_force_oracle(losses, window, threshold):
    spikes = SpikesConfig(threshold=threshold, window=window)
    history, kept, num_skipped = SpikeHistory(), [], 0
    for loss in losses:
        last = np.array(kept[-window:])
        bound = last.mean() + threshold * max(last.std(), 0.01 * last.mean()) if len(last) == window else np.inf
        skipped = reason(loss, history=history, spikes=spikes) is not None
        if not math.isclose(loss, bound, rel_tol=1e-9):
            assert skipped == (loss > bound)
        if skipped:
            history, num_skipped = history.after_skip(), num_skipped + 1
        else:
            history = history.after_update(loss, window=window)
            kept.append(loss)
            assert history.num_consecutive == 0
        assert history.losses == tuple(kept[-window:])
        assert history.num_skipped == num_skipped


def test_skips_in_a_row_are_counted():
    history = HISTORY.after_skip().after_skip()
    assert (history.num_skipped, history.num_consecutive, history.losses) == (2, 2, HISTORY.losses)
    history = history.after_update(7.0, window=4).after_skip()
    assert (history.num_skipped, history.num_consecutive, history.losses) == (3, 1, (3.0, 1.0, 3.0, 7.0))


@given(losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_goes_through_json_unharmed(losses):
    history = SpikeHistory(losses=tuple(losses), num_skipped=3, num_consecutive=1)
    assert SpikeHistory.from_json(json.loads(json.dumps(dataclasses.asdict(history)))) == history
