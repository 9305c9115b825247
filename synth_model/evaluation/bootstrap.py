"""Intervals by the bootstrap: texts are drawn anew with replacement, in each dataset by itself.

A figure over several datasets is the mean of the datasets' means, so a resample draws as many texts of each dataset as
there are and takes the mean of means again. All systems and measures of a dataset share the same draws: the difference
of two systems' resampled means is that of the same texts, which is a paired bootstrap. The interval is that between the
percentiles.

Not covered: another choice of datasets, and another drawing of examples and questions.

Cost: for each dataset num_resamples x num_texts draws, once, and as many additions for each figure.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; Koehn 2004 for paired systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from contracts.seeding import rng


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with the bounds of its interval."""

    mean: float
    low: float
    high: float


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
            values: By dataset one value a text, float64 of shape (num_texts,), at least one text. Pass the differences
                of two systems for the interval of their difference.
        """
        assert values, "a mean needs a dataset"
        assert all(map(len, values.values())), {name: len(of_dataset) for name, of_dataset in values.items()}
        means = np.mean([of_dataset.mean() for of_dataset in values.values()])
        resampled = np.mean(
            [
                of_dataset[_draws(name, len(of_dataset), self.num_resamples, self.seed)].mean(axis=1)
                for name, of_dataset in values.items()
            ],
            axis=0,
        )
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return Interval(mean=float(means), low=float(low), high=float(high))


@lru_cache(maxsize=32)
def _draws(dataset: str, num_texts: int, num_resamples: int, seed: int) -> NDArray[np.int32]:
    """Indices of texts, int32 of shape (num_resamples, num_texts)."""
    return rng(seed, "bootstrap", dataset).integers(num_texts, size=(num_resamples, num_texts), dtype=np.int32)
