"""`CountScores`: the score distributions of a run, from what its workers counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam

from contracts.score_histograms import histogram_from_counts
from synth_model.gates.judging import SCORE_EDGES


@dataclass(kw_only=True)
class CountScores(beam.PTransform):
    """(gate, (bin, whether the score failed)), one a score -> (gate, `ScoreHistogram`), one a gate.

    Beam's own counting combines partial counts before anything is shuffled, and sums do not depend on order.
    """

    def expand(self, scores: beam.PCollection) -> beam.PCollection:
        """Equal elements are counted, and the counts of a gate gathered: two a bin at most."""
        return (
            scores
            | "Count" >> beam.combiners.Count.PerElement()
            | "KeyByGate" >> beam.MapTuple(lambda key, count: (key[0], (key[1], count)))
            | "GroupByGate" >> beam.GroupByKey()
            | "Histogram" >> beam.MapTuple(_histogram)
        )


def _histogram(gate: str, counts: Iterable[tuple[tuple[int, bool], int]]) -> tuple[str, object]:
    return gate, histogram_from_counts(counts, edges=SCORE_EDGES[gate])
