"""What Beam counts while prompts are completed, and how a run tells of it.

All in the namespace ``inference``, one of each a step; a distribution has sum, count, minimum and maximum. They count
work, so a bundle that a runner does again counts again, and a second start of a run counts only its own.

======================================  =============================================================================
counter ``num_from_journal``            prompts that were completed by an earlier start of the run
counter ``num_completions``             prompts that the engine completed
counter ``num_failures_REASON``         prompts that it did not, by reason
counter ``num_scores``                  responses that the engine scored
distribution ``prompt_tokens``          tokens of a completed prompt
distribution ``new_tokens``             tokens of a completion
distribution ``batch_prompts``          prompts of a batch
distribution ``batch_fill_percent``     how full a batch is, of what its bounds allow
distribution ``batch_padding_percent``  share of a batch's prompt tokens that is padding, where the engine pads
distribution ``batch_milliseconds``     how long the engine took for a batch
distribution ``new_token_microseconds`` the same, divided by the tokens that the batch brought
======================================  =============================================================================

Beside them stand Beam's own, such as ``load_model_latency_milli_secs``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.metrics.metric import MetricResults

from beam_pipelines.prompt_batching import BatchBounds
from synth_model.generation import Completion, Outcome, Prompt

NAMESPACE = "inference"
_FAILURES = "num_failures_"


def count_from_journal() -> None:
    """A prompt needs no model."""
    Metrics.counter(NAMESPACE, "num_from_journal").inc()


def count_batch(prompts: Sequence[Prompt], outcomes: Sequence[Outcome], *, bounds: BatchBounds, seconds: float) -> None:
    """A batch came back from the engine.

    Args:
        prompts: The batch.
        outcomes: One a prompt.
        bounds: What a batch may hold.
        seconds: How long it took.
    """
    num_new_tokens = 0
    for outcome in outcomes:
        if isinstance(outcome, Completion):
            num_new_tokens += outcome.num_new_tokens
            Metrics.counter(NAMESPACE, "num_completions").inc()
            Metrics.distribution(NAMESPACE, "prompt_tokens").update(outcome.num_prompt_tokens)
            Metrics.distribution(NAMESPACE, "new_tokens").update(outcome.num_new_tokens)
        else:
            Metrics.counter(NAMESPACE, f"{_FAILURES}{outcome.reason}").inc()
    figures = {
        "batch_prompts": len(prompts),
        "batch_fill_percent": 100 * bounds.fill(prompts),
        "batch_padding_percent": 100 * bounds.padding_share(prompts),
        "batch_milliseconds": 1e3 * seconds,
    }
    if num_new_tokens:
        figures["new_token_microseconds"] = 1e6 * seconds / num_new_tokens
    for name, figure in figures.items():
        Metrics.distribution(NAMESPACE, name).update(round(figure))


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceFigures:
    """Totals over all steps of one start of a run."""

    num_from_journal: int
    num_completions: int
    failures_by_reason: dict[str, int]
    num_batches: int
    num_new_tokens: int
    engine_seconds: float
    mean_fill_percent: float
    mean_padding_percent: float


def read_figures(metrics: MetricResults) -> InferenceFigures:
    """The totals of a pipeline's metrics."""
    found = metrics.query(MetricsFilter().with_namespace(NAMESPACE))
    counters: dict[str, int] = defaultdict(int)
    sums: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for counter in found["counters"]:
        counters[counter.key.metric.name] += counter.result or 0
    for distribution in found["distributions"]:
        if distribution.result is not None:
            sums[distribution.key.metric.name] += distribution.result.sum
            counts[distribution.key.metric.name] += distribution.result.count

    def mean(name: str) -> float:
        return sums[name] / max(1, counts[name])

    return InferenceFigures(
        num_from_journal=counters["num_from_journal"],
        num_completions=counters["num_completions"],
        failures_by_reason={
            name.removeprefix(_FAILURES): count
            for name, count in sorted(counters.items())
            if name.startswith(_FAILURES)
        },
        num_batches=counts["batch_prompts"],
        num_new_tokens=sums["new_tokens"],
        engine_seconds=sums["batch_milliseconds"] / 1e3,
        mean_fill_percent=mean("batch_fill_percent"),
        mean_padding_percent=mean("batch_padding_percent"),
    )


def describe_figures(figures: InferenceFigures) -> str:
    """The few that matter, in a line."""
    parts = [f"{figures.num_completions} completions"]
    if figures.num_batches:
        parts += [
            f"{figures.num_batches} batches, {figures.mean_fill_percent:.0f} % full, "
            f"{figures.mean_padding_percent:.0f} % padding",
            f"{figures.engine_seconds:.1f} s in the engine",
            f"{figures.num_new_tokens / max(1e-3, figures.engine_seconds):.0f} new tokens/s",
        ]
    if figures.num_from_journal:
        parts.append(f"{figures.num_from_journal} completions from the journal")
    parts += [f"{count} failed: {reason}" for reason, count in figures.failures_by_reason.items()]
    return "engine      " + ", ".join(parts)
