"""Learning-rate schedules as pure functions from a step to a multiplier of the peak.

Both start with a linear warm-up. ``cosine`` then falls along half a cosine to ``min_lr_ratio`` (Loshchilov and Hutter
2017, arXiv 1608.03983). ``wsd`` (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395) stays at the peak and decays
over the last ``decay_fraction`` of the steps, here as one minus a square root, which Hägele et al. 2024
(arXiv 2405.18392) found best.

Since the multiplier depends on the step alone, a schedule has no state and nothing to put into a checkpoint.
"""

from __future__ import annotations

import math

from trainer.config import ScheduleConfig


def learning_rate_multiplier(step: int, *, num_steps: int, schedule: ScheduleConfig) -> float:
    """The factor of the peak learning rate at a step.

    Args:
        step: Counts from 0; ``step < num_steps``.
        num_steps: Steps of the whole run.
        schedule: Its kind and its parameters.

    Returns:
        A number in (0, 1]: no step is wasted on a rate of 0. A warm-up of n steps starts at 1/n and ends at 1.
    """
    assert 0 <= step < num_steps, (step, num_steps)
    num_warmup = num_warmup_steps(num_steps, schedule=schedule)
    if step < num_warmup:
        return (step + 1) / num_warmup
    if schedule.kind == "cosine":
        progress = (step - num_warmup) / (num_steps - num_warmup)
        decayed = (1 + math.cos(math.pi * progress)) / 2
    else:
        num_decay = min(round(schedule.decay_fraction * num_steps), num_steps - num_warmup)
        num_into_decay = max(step - (num_steps - num_decay), 0)
        decayed = 1 - math.sqrt(num_into_decay / num_decay) if num_decay else 1.0
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * decayed


def num_warmup_steps(num_steps: int, *, schedule: ScheduleConfig) -> int:
    """The steps of a run in which the learning rate rises."""
    asked = schedule.warmup_steps
    return min(num_steps, round(schedule.warmup_fraction * num_steps) if asked is None else asked)
