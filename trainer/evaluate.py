"""``python -m trainer evaluate --config FILE``: how good a model is at tasks, by lm-eval.

A task is one of lm-eval's own, by name, or a file of one's own (see ``local_tasks``). With a local model and files of
one's own nothing is asked of any network.

``output/`` belongs to one model and one way of asking; it holds

- ``run.json``: whose folder it is;
- ``tasks/NAME-HASH.json``: the figures of a task, written when it is done and named after all that they depend on, so
  that a run which is started again, or with other tasks besides, evaluates only what is missing;
- ``samples/NAME-HASH.jsonl.gz``: every prompt with what the model made of it and what that was worth;
- ``results.json``: the model, and the figures of all the tasks of the last start;
- ``COMPLETED``: written last.

``python -m trainer evaluate --compare FOLDER FOLDER`` holds such folders against each other; see
``evaluation_comparison``.

The same model, tasks, settings and machine give the same bytes. Batches and device are no part of a run: they change
how fast it is, and figures by rounding only.

Cost: for multiple choice one forward pass a choice, for free text the generation; a task's samples are held in memory.

Does not use more than one GPU, and does not apply chat templates: it is for models that continue text.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from contracts import storage
from contracts.artifact import COMPLETED_FILE, claim_output, describe_run, mark_completed
from trainer.answer_metrics import aggregate_of, items_of, standard_error
from trainer.command_line import run_command
from trainer.config import parse_config
from trainer.evaluated_model import Device, Dtype, EvaluatedModel, find_evaluated_model, load_for_lm_eval
from trainer.evaluation_comparison import RESULTS_FILE, SAMPLES_FOLDER, compare
from trainer.lm_eval_tasks import PreparedTask, prepare_tasks, seed_libraries
from trainer.local_tasks import is_local_task
from trainer.progress import CONSOLE

_log = logging.getLogger(__name__)

_TASKS_FOLDER = "tasks"
# lm-eval draws so many samples for the standard errors that it estimates itself.
_NUM_BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluate a model on tasks.

    Args:
        model: Model folder, output folder of a run, checkpoint, adapter folder, GGUF file, URL or name on the hub.
        tasks: Names of lm-eval's tasks, and ``.yaml`` files of one's own.
        output: Folder for the results; it belongs to this model and these settings.
        base_model: For an adapter, the model under it; null takes the one that the adapter names.
        tokenizer: Folder or hub name of another tokenizer than the model's own.
        num_fewshot: Examples in front of each prompt, for all tasks; null leaves it to each task.
        limit: Evaluate at most so many records of each task, drawn by the seed.
        batch_size: Prompts that pass through the model at once.
        seed: Decides over examples and limits.
        samples: Keep every prompt and answer, which a paired comparison needs.
        device: ``auto`` takes a GPU when there is one; ``cuda`` without a GPU is an error.
        dtype: ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        cache: Folder for models converted from GGUF or copied from a URL.
        trust_remote_code: Run Python code that comes with the model; leave it off unless you have read that code.
    """

    model: str
    tasks: list[str]
    output: str
    base_model: str | None = None
    tokenizer: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    seed: int = 0
    samples: bool = True
    device: Device = "auto"
    dtype: Dtype = "auto"
    cache: str = ".cache/models"
    trust_remote_code: bool = False

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if not self.tasks:
            raise ValueError("tasks is empty; give names of lm-eval's tasks or .yaml files of your own.")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot is {self.num_fewshot}; it must be 0 or more.")
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""

    def work() -> int:
        if arguments and arguments[0] == "--compare":
            compare(arguments[1:])
            return 0
        config = parse_config(EvaluateConfig, arguments=arguments, program="python -m trainer evaluate")
        _stay_offline(config)
        evaluate(config)
        return 0

    if not sys.stderr.isatty():
        # lm-eval's bars cannot be switched off; in a log file a line a minute is enough.
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    return run_command(work)


def _stay_offline(config: EvaluateConfig) -> None:
    """Keeps the libraries from asking the hub about what is all here; they read this when they are imported."""
    if os.path.isdir(config.model) and all(is_local_task(name) for name in config.tasks):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates what has not been evaluated yet; returns and prints the content of ``results.json``.

    Raises:
        ValueError: A setting is impossible, the model or a task cannot be used, or the folder holds another run.
    """
    config.check()
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("Evaluation needs lm-eval: pip install 'instruction-pretraining[evaluate]'.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = find_evaluated_model(
        config.model,
        base_model=config.base_model,
        tokenizer=config.tokenizer,
        cache=config.cache,
        trust_remote_code=config.trust_remote_code,
    )
    tasks = prepare_tasks(config.tasks, num_fewshot=config.num_fewshot, limit=config.limit, seed=config.seed)
    results_url = storage.join(config.output, RESULTS_FILE)
    if claim_output(config.output, run=_describe_run(config, model=model)) == "completed":
        results: dict[str, Any] = storage.read_json(results_url)
        if results["identities"] == {task.name: task.identity for task in tasks}:
            _log.info("The evaluation in %s is complete.", config.output)
            print_results(results)
            return results
        # Other tasks of the same model: the folder is not complete until they are done.
        storage.remove_file(storage.join(config.output, COMPLETED_FILE))
    entries = _evaluate_missing(config, tasks=tasks, model=model)
    results = {
        "model": {"name": model.name, "identity": model.identity, "adapter": model.adapter},
        "lm_eval": importlib.metadata.version("lm_eval"),
        "config": asdict(config),
        "identities": {task.name: task.identity for task in tasks},
        "tasks": entries,
    }
    storage.write_json(results_url, results)
    mark_completed(config.output, fingerprint=storage.json_sha256([model.identity, entries]))
    print_results(results)
    return results


def _describe_run(config: EvaluateConfig, *, model: EvaluatedModel) -> dict[str, Any]:
    """Tasks are not part of it: each one's figures are told apart by their own hash."""
    return describe_run(
        command="evaluate",
        config={"dtype": config.dtype, "seed": config.seed, "num_fewshot": config.num_fewshot, "limit": config.limit},
        inputs={"model": model.identity, "lm_eval": importlib.metadata.version("lm_eval")},
    )


def _evaluate_missing(
    config: EvaluateConfig, *, tasks: Sequence[PreparedTask], model: EvaluatedModel
) -> dict[str, dict[str, Any]]:
    """The figures by the name of lm-eval's task or group: those that are there, and those that are not yet."""
    lm = None
    entries: dict[str, dict[str, Any]] = {}
    for task in tasks:
        name = f"{task.name}-{task.identity[:12]}"
        url = storage.join(config.output, _TASKS_FOLDER, f"{name}.json")
        samples_url = storage.join(config.output, SAMPLES_FOLDER, f"{name}.jsonl.gz")
        if storage.exists(url) and (not config.samples or storage.exists(samples_url)):
            _log.info("%s has been evaluated earlier", task.name)
        else:
            lm = lm or load_for_lm_eval(
                model,
                device=config.device,
                dtype=config.dtype,
                batch_size=config.batch_size,
                trust_remote_code=config.trust_remote_code,
            )
            started = time.monotonic()
            figures, samples = run_task(task, lm=lm, seed=config.seed)
            if config.samples:
                storage.write_bytes_atomically(samples_url, _as_lines(samples))
            storage.write_json(url, figures)
            _log.info("%s: %s in %.0f s", task.name, _headline(figures), time.monotonic() - started)
        entries |= storage.read_json(url)
    return entries


def run_task(task: PreparedTask, *, lm: Any, seed: int) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Evaluates one task.

    Args:
        task: The task.
        lm: The model as lm-eval knows it.
        seed: For what lm-eval's own tasks draw.

    Returns:
        The figures by the name of lm-eval's task or group, and the samples, one a record and filter.

    Raises:
        ValueError: There are fewer tokens in the model's context than the task wants to generate.
    """
    import lm_eval

    seed_libraries(seed)
    try:
        found = lm_eval.evaluate(
            lm=lm,
            task_dict=task.loaded,
            samples=None if task.samples is None else dict(task.samples),
            bootstrap_iters=_NUM_BOOTSTRAP_SAMPLES,
            log_samples=True,
        )
    except AssertionError as error:
        # lm-eval asserts what only the task and the model together tell.
        raise ValueError(f"The task {task.name} cannot be evaluated with this model: {error}") from error
    assert found is not None, "there is one process"
    samples = [_sample(name, sample) for name in sorted(found["samples"]) for sample in found["samples"][name]]
    figures = {}
    for name in sorted(found["results"]):
        own = [sample for sample in samples if sample["task"] == name]
        figures[name] = {
            "version": found["versions"].get(name),
            "num_fewshot": found["n-shot"].get(name),
            "num_records": len({sample["record"] for sample in own}) or None,
            "num_truncated": _count_truncated(own, lm=lm),
            "identity": task.identity,
            "metrics": _metrics(found["results"][name], found["higher_is_better"].get(name, {}), own),
        }
    return figures, samples


def _sample(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a record: what was asked, what came, and the items of each metric."""
    return {
        "task": task,
        "record": sample["doc_id"],
        "filter": sample["filter"],
        "prompt_hash": sample["prompt_hash"],
        "target": _plain(sample["target"]),
        "requests": _plain(sample["arguments"]),
        "responses": _plain(sample["filtered_resps"]),
        "items": {name: _plain(sample[name]) for name in sample["metrics"]},
    }


def _plain(value: Any) -> Any:
    """A value of lm-eval as JSON: tuples as lists, NumPy's numbers as Python's, what JSON does not know as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _metrics(
    found: Mapping[str, Any], is_better_when_higher: Mapping[str, bool], samples: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Each metric with its standard error; lm-eval writes them as ``acc,none`` and ``acc_stderr,none``."""
    metrics: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = found.get(f"{metric}_stderr,{filter_name}")
        if not isinstance(error, (int, float)):
            error = _own_standard_error(metric, filter_name, samples)
        name = metric if filter_name == "none" else key
        metrics[name] = {
            "value": float(value),
            "stderr": None if error is None or math.isnan(error) else float(error),
            "higher_is_better": is_better_when_higher.get(metric),
        }
    return metrics


def _own_standard_error(metric: str, filter_name: str, samples: Sequence[Mapping[str, Any]]) -> float | None:
    values = [sample["items"][metric] for sample in samples if sample["filter"] == filter_name]
    if not values or not all(isinstance(value, (int, float, list)) for value in values):
        return None
    items = items_of(values)
    aggregate = aggregate_of(metric, items)
    return None if aggregate is None else standard_error(items, aggregate=aggregate)


def _count_truncated(samples: Sequence[Mapping[str, Any]], *, lm: Any) -> int:
    """Records with a prompt that lost its beginning, since the model's context does not hold it."""
    num_truncated = 0
    for sample in samples:
        num_tokens = []
        for request in sample["requests"]:
            if len(request) < 2:
                continue  # a text whose likelihood is asked for goes through the model in windows
            prompt, continuation = request[:2]
            if isinstance(continuation, dict):
                num_tokens.append(len(lm.tok_encode(prompt)) + continuation["max_gen_toks"])
            else:
                # The last token is only predicted.
                num_tokens.append(len(lm.tok_encode(prompt + continuation)) - 1)
        num_truncated += max(num_tokens, default=0) > lm.max_length
    return num_truncated


def _as_lines(samples: Sequence[Mapping[str, Any]]) -> bytes:
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    # Without the time, so that the same samples are the same bytes.
    return gzip.compress(lines.encode("utf-8", "surrogatepass"), mtime=0)


def _headline(figures: Mapping[str, Mapping[str, Any]]) -> str:
    name, entry = next(iter(figures.items()))
    metric, figure = next(iter(entry["metrics"].items()))
    return f"{name} {metric} {figure['value']:.4f}" if len(figures) > 1 else f"{metric} {figure['value']:.4f}"


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the figures as a table, a line a metric."""
    table = Table(box=None, pad_edge=False, title=results["model"]["name"], title_justify="left")
    for column in ("task", "version", "records", "examples", "metric", "value", "± standard error"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", overflow="fold")
    for name, entry in results["tasks"].items():
        shown = [str(value) if value is not None else "" for value in (entry["num_records"], entry["num_fewshot"])]
        first = (name, str(entry["version"]), *shown)
        for metric, figure in entry["metrics"].items():
            error = "" if figure["stderr"] is None else f"{figure['stderr']:.4f}"
            table.add_row(*first, metric, f"{figure['value']:.4f}", error)
            first = ("", "", "", "")
    CONSOLE.print(table)
    for name, entry in results["tasks"].items():
        if entry["num_truncated"]:
            _log.info(
                "%s: %d prompts are longer than the model's context and lost their beginning",
                name,
                entry["num_truncated"],
            )
