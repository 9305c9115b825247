import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import ScheduleConfig
from trainer.schedules import learning_rate_multiplier


def multipliers(num_steps, **schedule):
    return [
        learning_rate_multiplier(step, num_steps=num_steps, schedule=ScheduleConfig(**schedule))
        for step in range(num_steps)
    ]


def test_cosine_by_its_definition():
    values = multipliers(12, kind="cosine", warmup_steps=4, min_lr_ratio=0.2)
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # Half-way through the decay: the middle between peak and minimum.
    assert values[8] == pytest.approx(0.6)
    assert values[11] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 7 / 8)) / 2)


def test_wsd_by_its_definition():
    values = multipliers(20, kind="wsd", warmup_steps=2, min_lr_ratio=0.0, decay_fraction=0.2)
    assert values[:2] == [0.5, 1.0]
    assert values[2:17] == [1.0] * 15
    assert values[17:] == pytest.approx([1 - math.sqrt(k / 4) for k in (1, 2, 3)])


def test_warmup_can_be_a_fraction_and_steps_win_over_it():
    assert multipliers(10, warmup_fraction=0.4)[:4] == [0.25, 0.5, 0.75, 1.0]
    assert multipliers(10, warmup_fraction=0.4, warmup_steps=0)[0] == 1.0


@given(
    num_steps=st.integers(1, 60),
    kind=st.sampled_from(["cosine", "wsd"]),
    warmup_steps=st.none() | st.integers(0, 80),
    warmup_fraction=st.floats(0, 1),
    min_lr_ratio=st.floats(0, 1),
    decay_fraction=st.floats(0, 1),
)
def test_rises_to_the_peak_and_never_rises_again(num_steps, **schedule):
    values = multipliers(num_steps, **schedule)
    assert all(0 < value <= 1 for value in values)
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert max(values) == pytest.approx(1) or schedule["warmup_steps"] is not None
