"""Shows an evaluation: a table for the terminal, and a page with all figures and samples side by side.

The page is one file: styles and script stand in it, nothing is loaded from elsewhere. What texts and models wrote is
data in it: jinja2 escapes all of it. It shows light or dark as the reader's system does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from synth_model.evaluation.judging import MEASURES, Judgement
from synth_model.evaluation.text_selection import SPLITS, EvaluationText

HEADLINE = ("response_f1", "response_exact_match", "pair_f1", "valid_pair_rate", "num_pairs")
COUNTS = frozenset({"num_pairs", "num_examples"})
TITLES: Mapping[str, str] = {
    "response_f1": "response F1",
    "response_exact_match": "exact match",
    "pair_f1": "pair F1",
    "pair_precision": "pair precision",
    "pair_recall": "pair recall",
    "pair_rouge_l": "pair ROUGE-L",
    "pair_chrf": "pair chrF",
    "valid_pair_rate": "texts with a pair",
    "num_pairs": "pairs a text",
    "well_formed_share": "well-formed",
    "num_examples": "examples shown",
}
_LEAST_MISSING_EXAMPLES = 0.05
_DESCRIBED: Mapping[str, str] = {
    "num_pairs": "pairs",
    "instruction_words": "words an instruction",
    "response_words": "words a response",
    "grounding": "grounding",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_openings": "distinct openings",
    "self_bleu": "self-BLEU",
}
_SHARES = frozenset({"grounding", "distinct_1", "distinct_2", "distinct_openings", "self_bleu"})


def format_value(measure: str, value: float | None, *, sign: str = "") -> str:
    """A figure as it is shown: shares as percentages without the sign, counts as they are, ``–`` for none."""
    if value is None:
        return "–"
    # Adding zero makes a rounded -0.0 a 0.0.
    return f"{round(value, 2) + 0.0:{sign}.2f}" if measure in COUNTS else f"{round(100 * value, 1) + 0.0:{sign}.1f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of a table of figures: a system (or a difference of two), and its figures by split and measure."""

    system: str
    versus: str
    shots: int
    dataset: str
    figures: Mapping[tuple[str, str], Mapping[str, Any]]


def figure_rows(results: Mapping[str, Any], *, is_difference: bool, by_dataset: bool) -> list[Row]:
    """The figures of ``results.json`` as lines: for whole splits, or for each dataset."""
    rows: dict[tuple[str, str, int, str], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for figure in results["figures"]:
        if bool(figure["versus"]) == is_difference and bool(figure["dataset"]) == by_dataset:
            key = figure["system"], figure["versus"], figure["shots"], figure["dataset"]
            rows.setdefault(key, {})[figure["split"], figure["measure"]] = figure
    ordered = sorted(rows.items(), key=lambda item: item[0][3]) if by_dataset else rows.items()
    return [
        Row(system=system, versus=versus, shots=shots, dataset=dataset, figures=figures)
        for (system, versus, shots, dataset), figures in ordered
    ]


def print_report(results: Mapping[str, Any], *, console: Console) -> None:
    """Prints the headline figures of both splits, and the differences, for a person."""
    confidence = results["config"]["confidence"]
    for is_difference, title in ((False, "Systems"), (True, "Differences")):
        rows = figure_rows(results, is_difference=is_difference, by_dataset=False)
        if not rows:
            continue
        console.print()
        console.print(Text(f"{title} (mean over datasets, {100 * confidence:g} % interval by texts)", style="bold"))
        table = Table(box=None, pad_edge=False)
        for name in ("system", "shots", "datasets"):
            table.add_column(name, no_wrap=True)
        for measure in HEADLINE:
            table.add_column(TITLES[measure], justify="right")
        for row in rows:
            name = f"{row.system} − {row.versus}" if is_difference else row.system
            for split in SPLITS:
                if (split, HEADLINE[0]) in row.figures:
                    cells = [
                        _interval_text(measure, row.figures[split, measure], sign="+" if is_difference else "")
                        for measure in HEADLINE
                    ]
                    table.add_row(Text(name), shots_text(row, split), split, *cells)
        console.print(table)
    failed = {system: sum(reasons.values()) for system, reasons in results["failures"].items()}
    for system, count in failed.items():
        if count:
            console.print(Text(f"{system}: {count} prompts failed ({results['failures'][system]})"), soft_wrap=True)
    console.print()


def shots_text(row: Row, split: str) -> str:
    """M, and how many examples were shown on average where that is not M - 1."""
    shown = row.figures[split, "num_examples"]["mean"]
    as_asked = row.versus or abs(shown - (row.shots - 1)) < _LEAST_MISSING_EXAMPLES
    return str(row.shots) if as_asked else f"{row.shots} ({shown:.1f} shown)"


def _interval_text(measure: str, figure: Mapping[str, Any], *, sign: str) -> str:
    if figure["low"] is None:
        return format_value(measure, figure["mean"], sign=sign)
    mean, low, high = (format_value(measure, figure[name], sign=sign) for name in ("mean", "low", "high"))
    return f"{mean}\n({low}, {high})"


def render_page(
    results: Mapping[str, Any],
    *,
    texts: Sequence[EvaluationText],
    judgements: Sequence[Judgement],
    max_texts: int,
) -> str:
    """The page as HTML.

    Args:
        results: The content of ``results.json``.
        texts: The texts.
        judgements: What every system made of each.
        max_texts: Most texts of one dataset to show.
    """
    page: str = _template().render(
        results=results,
        config=json.dumps(results["config"], ensure_ascii=False, indent=2),
        splits=[split for split in SPLITS if any(text.split == split for text in texts)],
        headline=HEADLINE,
        measures=tuple(MEASURES),
        meanings=MEASURES,
        titles=TITLES,
        counts=COUNTS,
        systems=figure_rows(results, is_difference=False, by_dataset=False),
        differences=figure_rows(results, is_difference=True, by_dataset=False),
        by_dataset=figure_rows(results, is_difference=False, by_dataset=True),
        described=_DESCRIBED,
        describe=_described_value,
        format_value=format_value,
        shots_text=shots_text,
        samples=_samples(texts, judgements=judgements, max_texts=max_texts),
        datasets=sorted({text.dataset for text in texts}),
    )
    return page


def _described_value(name: str, description: Mapping[str, Any]) -> str:
    value = description["pairs"][name]
    if value is None:
        return "–"
    if name == "num_pairs":
        return str(value)
    return f"{100 * value:.1f}" if name in _SHARES else f"{value:.1f}"


def _samples(
    texts: Sequence[EvaluationText], *, judgements: Sequence[Judgement], max_texts: int
) -> list[tuple[EvaluationText, list[Judgement]]]:
    """The first texts of each dataset, which were drawn by hash, with what the systems made of them."""
    shown: dict[str, int] = {}
    samples = []
    for index, text in enumerate(texts):
        shown[text.dataset] = shown.get(text.dataset, 0) + 1
        if shown[text.dataset] <= max_texts:
            samples.append((text, [judgement for judgement in judgements if judgement.text == index]))
    return samples


@lru_cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("synth_model.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")
