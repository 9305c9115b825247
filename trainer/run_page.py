"""``python -m trainer page RUN [RUN ...]``: one page with the curves of a run, or of several laid over each other.

The page is a single HTML file that needs no network and no server: scripts, styles and data stand in it, and its
content policy lets the browser load nothing else. It shows training loss (raw and smoothed, in all and by component),
validation loss by component, learning rate, gradient norm, throughput and MFU over steps or tokens, with skipped steps
marked; then losses before and after, totals, provenance and config. A run that is still going on can be looked at too.

Everything comes from the run's own files, and from its shards' manifest while that is where the run found it. Strings
from there are text: Jinja escapes them, and the script sets no markup.

Cost: the whole logs in memory, about a second for 100,000 logged steps. The same runs give the same bytes.

Does not watch: a page is what was logged when it was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jsonargparse import ArgumentParser

from contracts import storage
from contracts.artifact import RUN_FILE
from contracts.manifest import ShardManifest, read_shard_manifest
from trainer.command_line import run_command
from trainer.metrics_log import read_log
from trainer.run_curves import RunRecords, make_charts

# Not config.json, which is what makes a folder a Hugging Face model.
CONFIG_FILE = "resolved_config.json"
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
TRAINING_FILE = "training.json"
REPORT_FILE = "report.html"


def read_runs(folders: Sequence[str]) -> list[RunRecords]:
    """Reads what the runs' folders say of them.

    Raises:
        ValueError: A folder holds no training run, or one without a logged step.
    """
    return [_read_run(folder, name=name) for folder, name in zip(folders, _distinct_names(folders), strict=True)]


def _read_run(folder: str, *, name: str) -> RunRecords:
    def read(file: str) -> Any:
        url = storage.join(folder, file)
        return storage.read_json(url) if storage.exists(url) else {}

    run, config, training = read(RUN_FILE), read(CONFIG_FILE), read(TRAINING_FILE)
    if run.get("command") != "pretrain":
        raise ValueError(f"{folder} holds no training run; name the folder that was the run's output.")
    metrics = read_log(storage.join(folder, METRICS_FILE))
    if not metrics:
        raise ValueError(f"The run in {folder} has not logged a step yet.")
    return RunRecords(
        name=name,
        config=config or run["config"],
        inputs=run["inputs"],
        metrics=metrics,
        validations=read_log(storage.join(folder, VALIDATION_FILE)),
        training=training,
        shards=_read_shards(config.get("shards"), fingerprint=run["inputs"]["shards"]),
    )


def _read_shards(folder: str | None, *, fingerprint: str) -> ShardManifest | None:
    """The manifest of a run's shards, unless they were moved or made anew since: the page then does without."""
    if folder is None:
        return None
    try:
        manifest = read_shard_manifest(folder)
    except (ValueError, OSError):
        return None
    return manifest if manifest.fingerprint == fingerprint else None


def _distinct_names(folders: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many of them as it takes for all names to differ."""
    parts = [folder.rstrip("/").split("/") for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"A run is named twice: {', '.join(folders)}.")


def _totals(run: RunRecords) -> dict[str, str]:
    """The totals of a run as they are at its last logged step."""
    last = run.metrics[-1]
    seconds = last["seconds"]
    waited = sum(record.get("data_seconds") or 0.0 for record in run.metrics)
    utilization = [record["mfu"] for record in run.metrics if record.get("mfu") is not None]
    totals = {
        "state": "completed" if run.training else "not completed",
        "steps": f"{last['step']:,}",
        "epochs": f"{last['epoch']:.3f}",
        "tokens seen": f"{last['tokens']:,}",
        "hours in steps": f"{seconds / 3600:.2f}",
        "tokens a second": f"{last['tokens'] / seconds:,.0f}" if seconds else "",
        "MFU, mean": f"{sum(utilization) / len(utilization):.1%}" if utilization else "",
        "waited for data": f"{waited / seconds:.2%}" if seconds else "",
        "skipped steps": f"{sum(bool(record.get('skipped')) for record in run.metrics):,}",
    }
    if run.training:
        totals["parameters"] = f"{run.training['model']['num_parameters']:,}"
    return totals


def _losses(run: RunRecords) -> list[list[str]]:
    """First and last validation loss by component, as rows of text."""
    if not run.validations:
        return []
    first, last = run.validations[0], run.validations[-1]
    return [
        [
            name,
            f"{first['losses'][name]:.4f}",
            f"{last['losses'][name]:.4f}",
            f"{last['losses'][name] - first['losses'][name]:+.4f}",
            f"{math.exp(min(last['losses'][name], 700.0)):.4g}",
        ]
        for name in first["losses"]
        if name in last["losses"]
    ]


def _provenance(run: RunRecords) -> dict[str, str]:
    """Where a run's model and data came from."""
    known = {f"{name} fingerprint": value for name, value in run.inputs.items()}
    if run.training:
        known = {"model": run.training["model"]["name"], **known}
    if run.shards is not None:
        known |= {
            "shards": str(run.config.get("shards", "")),
            "row length": f"{run.shards.sequence_length:,} tokens",
            "tokenizer": f"{run.shards.tokenizer.name} ({run.shards.tokenizer.sha256[:12]})",
            **{f"source: {name}": version for name, version in run.shards.inputs.items()},
        }
    return known


def _components(run: RunRecords) -> list[list[str]]:
    """The components of a run's training rows, as rows of text."""
    if run.shards is None:
        return []
    return [
        [name, f"{train.num_texts:,}", f"{train.num_rows:,}", f"{train.num_tokens:,}", f"{train.epochs:.2f}"]
        for name, by_split in run.shards.components.items()
        if (train := by_split.get("train")) is not None
    ]


def _side_by_side(tables: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Tables of the same kind, of one run each, as rows with a value a run; a row says whether they differ."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    rows = [(name, [table.get(name, "") for table in tables]) for name in names]
    return [{"name": name, "values": values, "differs": len(set(values)) > 1} for name, values in rows]


def _flat(values: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def render_page(runs: Sequence[RunRecords]) -> str:
    """The page of one run or several."""
    environment = Environment(
        loader=PackageLoader("trainer", "run_page_assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = make_charts(runs)
    chart_data = [{key: value for key, value in asdict(chart).items() if key != "table"} for chart in charts]
    return environment.get_template("page.html.jinja").render(
        names=[run.name for run in runs],
        charts=charts,
        data={"runs": [run.name for run in runs], "charts": chart_data},
        totals=_side_by_side([_totals(run) for run in runs]),
        losses=[(run.name, _losses(run)) for run in runs if run.validations],
        components=[(run.name, _components(run)) for run in runs if run.shards is not None],
        provenance=_side_by_side([_provenance(run) for run in runs]),
        config=_side_by_side([dict(_flat(run.config)) for run in runs]),
    )


def write_run_page(folders: Sequence[str], *, url: str) -> None:
    """Writes the page of the runs in some folders to a file.

    Raises:
        ValueError: A folder holds no training run, or one without a logged step.
    """
    storage.write_bytes_atomically(url, render_page(read_runs(folders)).encode())


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""

    def work() -> int:
        parser = ArgumentParser(prog="python -m trainer page", description="A page with the curves of training runs.")
        parser.add_argument("runs", nargs="+", help="Output folders of runs; several are compared.")
        parser.add_argument("--output", default=None, help="The file to write; for one run RUN/report.html.")
        options = parser.parse_args(list(arguments))
        if options.output is None and len(options.runs) > 1:
            raise ValueError("Several runs are compared in a page of its own: give --output FILE.html.")
        url = options.output or storage.join(options.runs[0], REPORT_FILE)
        write_run_page(options.runs, url=url)
        print(f"Wrote {url}")
        return 0

    return run_command(work)
