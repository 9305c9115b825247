"""Distributions of scores with fixed bins: exact counts, so that partial ones add up in any order to the same whole.

``edges`` of n rising values make n + 1 bins: below the first edge, from each edge up to the next, and from the last
edge on. A score that equals an edge belongs to the bin that begins there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreHistogram:
    """How the scores of one measurement are distributed.

    Args:
        edges: Where bins begin, rising.
        counts: Scores in each of the ``len(edges) + 1`` bins.
        num_failed: How many of all scores were outside their bound.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    num_failed: int

    def __post_init__(self) -> None:
        assert len(self.counts) == len(self.edges) + 1, (self.edges, self.counts)
        assert 0 <= self.num_failed <= sum(self.counts), (self.num_failed, self.counts)

    @property
    def num_scores(self) -> int:
        """Scores in all bins."""
        return sum(self.counts)

    def quantile_bin(self, share: float) -> tuple[float | None, float | None]:
        """The bin that holds the score below which ``share`` of all lie: its edges, None where it is open.

        Args:
            share: Above 0 and at most 1.
        """
        assert self.num_scores, "without scores there are no quantiles"
        assert 0 < share <= 1, share
        index = next(index for index, num in enumerate(accumulate(self.counts)) if num >= share * self.num_scores)
        lower = self.edges[index - 1] if index else None
        upper = self.edges[index] if index < len(self.edges) else None
        return lower, upper


def bin_index(score: float, *, edges: Sequence[float]) -> int:
    """Which bin a score belongs to, from 0 to ``len(edges)``."""
    return bisect_right(edges, score)


def histogram_from_counts(counts: Iterable[tuple[tuple[int, bool], int]], *, edges: Sequence[float]) -> ScoreHistogram:
    """A histogram from how often each pair of bin and whether the score failed occurred, in any order."""
    totals, num_failed = [0] * (len(edges) + 1), 0
    for (index, is_failed), count in counts:
        totals[index] += count
        num_failed += is_failed * count
    return ScoreHistogram(edges=tuple(edges), counts=tuple(totals), num_failed=num_failed)


def describe_histograms(histograms: Mapping[str, ScoreHistogram]) -> list[str]:
    """A line for each histogram: its quartiles, as the bins that hold them, and how many scores failed."""
    lines = []
    for name, histogram in histograms.items():
        quartiles = ", ".join(_bin_text(*histogram.quantile_bin(share)) for share in (0.25, 0.5, 0.75))
        failed = f"{histogram.num_failed} of {histogram.num_scores} failed"
        lines.append(f"{name.replace('_', ' ')}: quartiles {quartiles}; {failed}")
    return lines


def _bin_text(lower: float | None, upper: float | None) -> str:
    if lower is None:
        return f"below {upper:g}"
    return f"{lower:g} or more" if upper is None else f"{lower:g} to {upper:g}"
