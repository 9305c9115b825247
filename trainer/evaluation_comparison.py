"""``python -m trainer evaluate --compare FIRST SECOND …``: whether models differ, task by task.

Every folder is held against the first. Where both have the samples of a task, the models have answered the very same
prompts, and the difference is judged record by record: what is hard for both cancels out, and a difference shows that
the two standard errors alone would hide. Otherwise the errors are added as those of independent samples are.

Figures are compared only where the task is the same in all that its result depends on but the model: records, wording,
examples and limit. Others are named and left out.

Source: Miller 2024, Adding Error Bars to Evals (arXiv 2411.00640), for paired differences.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from contracts import storage
from contracts.artifact import completed_fingerprint
from trainer.answer_metrics import aggregate_of, items_of, paired_standard_error
from trainer.progress import CONSOLE

RESULTS_FILE = "results.json"
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How a figure of a second model differs from that of the first.

    Args:
        task: The task.
        metric: The metric.
        first: The figure of the first model.
        second: The figure of the second.
        standard_error: Of second minus first; None where a figure has none.
        is_paired: Whether it was judged record by record.
        higher_is_better: Of the metric; None where lm-eval does not say.
    """

    task: str
    metric: str
    first: float
    second: float
    standard_error: float | None
    is_paired: bool
    higher_is_better: bool | None

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


def compare(folders: Sequence[str]) -> list[list[Difference]]:
    """Prints, and returns, the differences of every folder from the first.

    Raises:
        ValueError: There are fewer than two folders, one is no completed evaluation, or two have no task in common.
    """
    if len(folders) < 2:
        raise ValueError("--compare takes two or more output folders of evaluate.")
    all_results = [_read_results(folder) for folder in folders]
    found = []
    for folder, results in zip(folders[1:], all_results[1:], strict=True):
        differences, left_out = differences_between(folders[0], folder, first=all_results[0], second=results)
        if not differences:
            raise ValueError(
                f"{folders[0]} and {folder} have no task in common that was asked in the same way "
                f"({'; '.join(left_out) or 'none has the same name'})."
            )
        _print(differences, first=all_results[0]["model"]["name"], second=results["model"]["name"])
        if left_out:
            CONSOLE.print(f"Left out: {'; '.join(left_out)}", markup=False, soft_wrap=True)
        found.append(differences)
    return found


def _read_results(folder: str) -> dict[str, Any]:
    completed_fingerprint(folder)
    if not storage.exists(storage.join(folder, RESULTS_FILE)):
        raise ValueError(f"{folder} is no output folder of evaluate: it has no {RESULTS_FILE}.")
    results: dict[str, Any] = storage.read_json(storage.join(folder, RESULTS_FILE))
    return results


def differences_between(
    first_folder: str, second_folder: str, *, first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[list[Difference], list[str]]:
    """The differences by task and metric, and the tasks that are left out, each with the reason."""
    differences, left_out = [], []
    for task in sorted({*first["tasks"], *second["tasks"]}):
        ours, theirs = first["tasks"].get(task), second["tasks"].get(task)
        if ours is None or theirs is None:
            left_out.append(f"{task} is only in {second_folder if ours is None else first_folder}")
            continue
        if ours["identity"] != theirs["identity"]:
            left_out.append(f"{task} differs in its records, wording, examples or limit")
            continue
        samples = [
            _read_samples(folder, results, task)
            for folder, results in zip((first_folder, second_folder), (first, second), strict=True)
        ]
        for metric in ours["metrics"]:
            differences.append(
                _difference(task, metric, ours["metrics"][metric], theirs["metrics"][metric], samples=samples)
            )
    return differences, left_out


def _difference(
    task: str, metric: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], *, samples: Sequence[Mapping[Any, Any]]
) -> Difference:
    errors = [figure["stderr"] for figure in (ours, theirs)]
    independent = None if None in errors else math.hypot(*errors)
    paired = _paired_standard_error(metric, samples)
    return Difference(
        task=task,
        metric=metric,
        first=ours["value"],
        second=theirs["value"],
        standard_error=independent if paired is None else paired,
        is_paired=paired is not None,
        higher_is_better=ours["higher_is_better"],
    )


def _read_samples(folder: str, results: Mapping[str, Any], task: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The items of a task by filter and record; none where they were not kept."""
    identity = results["tasks"][task]["identity"]
    name = next(name for name, known in results["identities"].items() if known == identity)
    url = storage.join(folder, SAMPLES_FOLDER, f"{name}-{identity[:12]}.jsonl.gz")
    if not storage.exists(url):
        return {}
    lines = gzip.decompress(storage.read_bytes(url)).decode("utf-8", "surrogatepass").split("\n")[:-1]
    return {
        (sample["filter"], sample["record"]): sample["items"]
        for sample in map(json.loads, lines)
        if sample["task"] == task
    }


def _paired_standard_error(metric: str, samples: Sequence[Mapping[Any, Any]]) -> float | None:
    name, _, filter_name = metric.partition(",")
    keys = [key for key in samples[0] if key[0] == (filter_name or "none")]
    if not keys or samples[0].keys() != samples[1].keys():
        return None
    values = [[own[key].get(name) for key in keys] for own in samples]
    if not all(isinstance(value, (int, float, list)) for value in (*values[0], *values[1])):
        return None
    first, second = map(items_of, values)
    aggregate = aggregate_of(name, first)
    if aggregate is None:
        return None
    error = paired_standard_error(first, second, aggregate=aggregate)
    return None if math.isnan(error) else error


def _print(differences: Sequence[Difference], *, first: str, second: str) -> None:
    table = Table(box=None, pad_edge=False, title=f"first: {first}\nsecond: {second}", title_justify="left")
    columns = ("task", "metric", "better", "first", "second", "difference", "± error", "errors", "judged by")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "metric", "better", "judged by") else "right")
    for entry in differences:
        error = entry.standard_error
        table.add_row(
            entry.task,
            entry.metric,
            {True: "higher", False: "lower", None: ""}[entry.higher_is_better],
            f"{entry.first:.4f}",
            f"{entry.second:.4f}",
            f"{entry.difference:+.4f}",
            "" if error is None else f"{error:.4f}",
            "" if not error else f"{entry.difference / error:+.1f}",
            "record" if entry.is_paired else "task",
        )
    CONSOLE.print(table)
