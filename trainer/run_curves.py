"""The curves of training runs, from their logs: what is drawn where, smoothed, and thinned out for drawing.

Smoothing: an exponential moving average over a two-hundredth of the points, divided by the sum of its weights so that
it starts at the first value (Kingma and Ba 2015, arXiv 1412.6980, section 3). Skipped steps have no part in it.

Thinning: a curve of more than 2,000 points is drawn by its ends and the smallest and the largest value of each of 999
equal stretches, so that no spike is lost.

Cost: linear in the number of logged steps.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.manifest import ShardManifest

MAX_POINTS = 2000
_NUM_TABLE_ROWS = 12
_NUM_SMOOTHED_STRETCHES = 200

_Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecords:
    """What a run's folder says of it.

    Args:
        name: What to call it: the folder's name, with as much of its path as tells it from the others.
        config: The config of its last start.
        inputs: Fingerprints of what it read, by name.
        metrics: The logged steps.
        validations: The logged validation losses.
        training: The content of ``training.json``; empty while the run goes on.
        shards: The shards' manifest; None when it is no longer where the run found it.
    """

    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    metrics: Sequence[_Record]
    validations: Sequence[_Record]
    training: Mapping[str, Any]
    shards: ShardManifest | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A line of a chart.

    Args:
        run: The number of its run on the page.
        name: What it shows beside its run, such as a component; may be empty.
        steps: Where it has values: steps done.
        tokens: The same places in tokens seen.
        values: Its values.
        smooth: The values smoothed, where the chart smooths; at the places of ``smooth_steps``.
        smooth_steps: Steps of ``smooth``; it has fewer places than the curve when that is a long one.
        smooth_tokens: The same places in tokens seen.
    """

    run: int
    name: str
    steps: Sequence[int]
    tokens: Sequence[float]
    values: Sequence[float]
    smooth: Sequence[float] = ()
    smooth_steps: Sequence[int] = ()
    smooth_tokens: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A skipped step: its run, its place in steps and tokens, and why it was skipped."""

    run: int
    step: int
    tokens: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart of the page.

    Args:
        chart_id: Tells it from the others.
        title: What it shows, with the unit.
        style: How numbers are written: ``number``, ``percent`` or ``power`` (as 3.0e-4).
        curves: Its lines.
        marks: Skipped steps.
        table: A few values of each curve as text, for readers who do not see the chart: a header, then rows.
    """

    chart_id: str
    title: str
    style: str
    curves: Sequence[Curve]
    marks: Sequence[Mark]
    table: Sequence[Sequence[str]]


def make_charts(runs: Sequence[RunRecords]) -> list[Chart]:
    """The charts for which there are any values."""
    marks = [mark for number, run in enumerate(runs) for mark in _skipped(run, number)]
    columns: list[tuple[str, str, str, bool, Callable[[_Record], Mapping[str, Any]]]] = [
        ("loss", "Training loss (nats a token)", "number", True, lambda record: {"": record.get("loss")}),
        (
            "loss-by-component",
            "Training loss by component (nats a token)",
            "number",
            True,
            lambda record: record.get("loss_by_component") or {},
        ),
        ("lr", "Learning rate", "power", False, lambda record: {"": record.get("lr")}),
        ("grad-norm", "Gradient norm before clipping", "number", True, lambda record: {"": record.get("grad_norm")}),
        ("throughput", "Tokens a second", "number", True, lambda record: {"": record.get("tokens_per_second")}),
        ("mfu", "Model FLOPs utilization (MFU)", "percent", True, lambda record: {"": record.get("mfu")}),
    ]
    charts = [
        _chart(
            chart_id,
            title,
            style=style,
            curves=[
                curve
                for number, run in enumerate(runs)
                for curve in _curves(run.metrics, number, values_of=values_of, is_smoothed=is_smoothed, places=run)
            ],
            runs=runs,
            marks=marks if chart_id in ("loss", "grad-norm") else [],
        )
        for chart_id, title, style, is_smoothed, values_of in columns
    ]
    validation = _chart(
        "validation",
        "Validation loss by component (nats a token)",
        style="number",
        curves=[
            curve
            for number, run in enumerate(runs)
            for curve in _curves(
                run.validations, number, values_of=lambda record: record["losses"], is_smoothed=False, places=run
            )
        ],
        runs=runs,
        marks=[],
    )
    return [chart for chart in (charts[0], validation, *charts[1:]) if chart.curves]


def _skipped(run: RunRecords, number: int) -> Iterator[Mark]:
    for record in run.metrics:
        if record.get("skipped"):
            yield Mark(run=number, step=record["step"], tokens=record["tokens"], reason=str(record["skipped"]))


def _curves(
    records: Sequence[_Record],
    run_number: int,
    *,
    values_of: Callable[[_Record], Mapping[str, Any]],
    is_smoothed: bool,
    places: RunRecords,
) -> Iterator[Curve]:
    """The curves of one run in one chart, by name, with the places where each has a finite value."""
    found: dict[str, list[tuple[int, float, bool]]] = {}
    for record in records:
        for name, value in values_of(record).items():
            if value is not None and math.isfinite(value):
                found.setdefault(name, []).append((record["step"], value, bool(record.get("skipped"))))
    tokens_at = _tokens_at(places.metrics)
    for name, points in sorted(found.items()):
        kept = [(step, value) for step, value, was_skipped in points if not was_skipped]
        smooth = smoothed([value for _, value in kept]) if is_smoothed else []
        chosen = downsampled([value for _, value, _ in points])
        chosen_smooth = downsampled(smooth)
        yield Curve(
            run=run_number,
            name=name,
            steps=[points[index][0] for index in chosen],
            tokens=[tokens_at(points[index][0]) for index in chosen],
            values=[_rounded(points[index][1]) for index in chosen],
            smooth=[_rounded(smooth[index]) for index in chosen_smooth],
            smooth_steps=[kept[index][0] for index in chosen_smooth],
            smooth_tokens=[tokens_at(kept[index][0]) for index in chosen_smooth],
        )


def _tokens_at(metrics: Sequence[_Record]) -> Callable[[int], float]:
    """Tokens seen after a step: as logged, and between two logged steps in proportion."""
    tokens: dict[int, int] = {0: 0, **{record["step"]: record["tokens"] for record in metrics}}
    logged = sorted(tokens)

    def look_up(step: int) -> float:
        if step in tokens:
            return float(tokens[step])
        after = min(bisect.bisect_right(logged, step), len(logged) - 1)
        low, high = logged[after - 1], logged[after]
        return round(tokens[low] + (tokens[high] - tokens[low]) * (step - low) / (high - low))

    return look_up


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential moving average over a two-hundredth of the values; one average for each value."""
    keep = 1 - 1 / max(1, len(values) // _NUM_SMOOTHED_STRETCHES)
    total = weight = 0.0
    averages = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        averages.append(total / weight)
    return averages


def downsampled(values: Sequence[float], *, max_points: int = MAX_POINTS) -> list[int]:
    """The indices of at most ``max_points`` values to draw: all, or the ends and the extremes of equal stretches."""
    if len(values) <= max_points:
        return list(range(len(values)))
    num_stretches = (max_points - 2) // 2
    chosen = {0, len(values) - 1}
    for number in range(num_stretches):
        stretch = range(number * len(values) // num_stretches, (number + 1) * len(values) // num_stretches)
        chosen |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(chosen)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _chart(
    chart_id: str,
    title: str,
    *,
    style: str,
    curves: Sequence[Curve],
    runs: Sequence[RunRecords],
    marks: Sequence[Mark],
) -> Chart:
    return Chart(
        chart_id=chart_id,
        title=title,
        style=style,
        curves=curves,
        marks=marks,
        table=_table(curves, runs=runs, style=style),
    )


def _table(curves: Sequence[Curve], *, runs: Sequence[RunRecords], style: str) -> list[list[str]]:
    """Values of the curves at a few steps: the last value at or before each."""
    steps = sorted({step for curve in curves for step in curve.steps})
    count = min(_NUM_TABLE_ROWS, len(steps))
    chosen = sorted({steps[round(index * (len(steps) - 1) / max(count - 1, 1))] for index in range(count)})
    names = [_curve_name(curve, runs=runs) or "value" for curve in curves]
    rows = [["steps", *names]]
    for step in chosen:
        row = [f"{step:,}"]
        for curve in curves:
            known = list(zip(curve.smooth_steps, curve.smooth, strict=True)) or list(
                zip(curve.steps, curve.values, strict=True)
            )
            values = [value for at, value in known if at <= step]
            row.append(_written(values[-1], style=style) if values else "")
        rows.append(row)
    return rows


def _curve_name(curve: Curve, *, runs: Sequence[RunRecords]) -> str:
    return " · ".join(part for part in (runs[curve.run].name if len(runs) > 1 else "", curve.name) if part)


def _written(value: float, *, style: str) -> str:
    return f"{value:.1%}" if style == "percent" else f"{value:.2e}" if style == "power" else f"{value:,.4g}"
