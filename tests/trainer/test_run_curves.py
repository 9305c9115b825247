"""Curves from logs: smoothed by its definition, thinned without losing a spike, in the right places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.run_curves import MAX_POINTS, RunRecords, downsampled, make_charts, smoothed

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=500)


def records(*metrics, validations=(), name="a-run"):
    return RunRecords(
        name=name, config={}, inputs={}, metrics=metrics, validations=validations, training={}, shards=None
    )


def step(number, loss, **others):
    return {"step": number, "tokens": 100 * number, "loss": loss, **others}


def charts_of(*runs):
    return {chart.chart_id: chart for chart in make_charts(runs)}


@given(VALUES)
def test_smoothing_is_the_weighted_mean_of_what_came_before(values):
    keep = 1 - 1 / max(1, len(values) // 200)
    for index, average in enumerate(smoothed(values)):
        weights = keep ** np.arange(index, -1, -1)
        assert average == pytest.approx(np.average(values[: index + 1], weights=weights), abs=1e-6)


def test_smoothing_smooths_long_curves_only():
    noise = [(-1.0) ** index for index in range(2000)]
    assert max(map(abs, smoothed(noise)[100:])) < 0.2
    assert smoothed(noise[:100]) == noise[:100]


@given(VALUES, st.integers(4, 60))
def test_thinning_keeps_the_ends_and_every_extreme(values, max_points):
    chosen = downsampled(values, max_points=max_points)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_points
    assert {chosen[0], chosen[-1]} == {0, len(values) - 1}
    kept = [values[index] for index in chosen]
    assert (min(kept), max(kept)) == (min(values), max(values))


def test_thinning_keeps_every_spike():
    values = np.sin(np.arange(100_000) / 5000)
    spikes = [7, 31_234, 50_001, 99_990]
    values[spikes] += 5
    chosen = downsampled(values.tolist())
    assert 1000 < len(chosen) <= MAX_POINTS
    assert set(spikes) <= set(chosen)


def test_skipped_steps_are_marked_drawn_and_not_smoothed():
    run = records(step(1, 3.0), step(2, 50.0, skipped="spike"), step(3, None, skipped="not finite"), step(4, 2.0))
    chart = charts_of(run)["loss"]
    [curve] = chart.curves
    assert (curve.steps, curve.values) == ([1, 2, 4], [3.0, 50.0, 2.0])
    assert (curve.smooth_steps, curve.smooth) == ([1, 4], [3.0, 2.0])
    assert [(mark.step, mark.tokens, mark.reason) for mark in chart.marks] == [
        (2, 200, "spike"),
        (3, 300, "not finite"),
    ]


def test_components_that_a_step_lacks_leave_no_hole():
    run = records(
        step(1, 3.0, loss_by_component={"raw": 3.5, "augmented": 2.5}), step(2, 2.0, loss_by_component={"raw": 2.0})
    )
    curves = {curve.name: curve for curve in charts_of(run)["loss-by-component"].curves}
    assert curves["raw"].steps == [1, 2]
    assert curves["augmented"].steps == [1]


def test_validations_stand_at_the_tokens_of_their_step():
    """Also where the step itself was not logged: half the way between steps 4 and 8, and before the first."""
    validations = [{"step": at, "losses": {"all": 5.0 - at}} for at in (0, 6, 8)]
    run = records(step(4, 1.0), step(8, 1.0), validations=validations)
    [curve] = charts_of(run)["validation"].curves
    assert curve.tokens == [0, 600, 800]
    assert curve.values == [5.0, -1.0, -3.0]


def test_charts_without_a_value_are_left_out():
    assert set(charts_of(records(step(1, 1.0, mfu=None)))) == {"loss"}
    assert set(charts_of(records(step(1, 1.0, mfu=0.5, lr=1e-3)))) == {"loss", "lr", "mfu"}


def test_the_table_has_values_for_those_who_do_not_see_the_chart():
    first = records(*(step(number, float(number)) for number in range(1, 101)), name="first")
    second = records(step(50, 9.0), name="second")
    table = charts_of(first, second)["loss"].table
    assert table[0] == ["steps", "first", "second"]
    assert table[1] == ["1", "1", ""]
    assert table[-1] == ["100", "100", "9"]
    assert len(table) == 13
