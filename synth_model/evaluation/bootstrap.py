"""Intervals by the bootstrap: texts are drawn anew with replacement, in each dataset by itself.

A figure over several datasets is the mean of the datasets' means, so a resample draws texts of each dataset and takes
the mean of means again. Of n texts n - 1 are drawn: drawing n would make the intervals of small samples too narrow, by
the root of (n - 1) / n, which many datasets of five texts do not even out. All systems and measures of a dataset share
the same draws: the difference of two systems' resampled means is that of the same texts, which is a paired bootstrap.
The interval is that between the percentiles. One text says nothing of how far texts differ, so a dataset of one has no
interval.

Not covered: another choice of datasets, and another drawing of examples and questions.

Cost: for each dataset num_resamples x (num_texts - 1) draws, once, and as many additions for each figure.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; Rao and Wu 1988 for drawing n - 1
in each stratum; Koehn 2004 for paired systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from contracts.seeding import rng

MIN_TEXTS = 2
"""Fewest texts of a dataset that have an interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with the bounds of its interval, which are None where there is none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bootstrap:
    """How intervals are made.

    Args:
        num_resamples: Resamples.
        confidence: Coverage, between 0 and 1.
        seed: Another seed gives other draws.
    """

    num_resamples: int
    confidence: float
    seed: int

    def interval(self, values: Mapping[str, NDArray[np.float64]]) -> Interval:
        """The interval of the mean of means.

        Args:
            values: By dataset one value a text, float64 of shape (num_texts,), at least one text, and two for an
                interval. Pass the differences of two systems for the interval of their difference.
        """
        assert values, "a mean needs a dataset"
        assert all(map(len, values.values())), {name: len(of_dataset) for name, of_dataset in values.items()}
        mean = float(np.mean([of_dataset.mean() for of_dataset in values.values()]))
        if min(map(len, values.values())) < MIN_TEXTS:
            return Interval(mean=mean, low=None, high=None)
        resampled = np.mean(
            [
                of_dataset[_draws(name, len(of_dataset), self.num_resamples, self.seed)].mean(axis=1)
                for name, of_dataset in values.items()
            ],
            axis=0,
        )
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return Interval(mean=mean, low=float(low), high=float(high))


@lru_cache(maxsize=32)
def _draws(dataset: str, num_texts: int, num_resamples: int, seed: int) -> NDArray[np.int32]:
    """Indices of texts, int32 of shape (num_resamples, num_texts - 1)."""
    return rng(seed, "bootstrap", dataset).integers(num_texts, size=(num_resamples, num_texts - 1), dtype=np.int32)
