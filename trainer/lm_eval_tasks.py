"""Tasks as lm-eval evaluates them: its own by name, and those of `local_tasks`.

A local task becomes a ``ConfigurableTask`` whose records are finished strings, so that lm-eval's own templates have
nothing to do. Few-shot examples of a record are drawn by a hash of the seed and the record, never the record itself or
one with the same prompt, and stand in the order of their file: they depend neither on a limit nor on the order of
evaluation, and a file of five examples gives these five in its order.

A limit draws records by hash instead of taking the first ones, since files are often sorted by subject or class.

Cost: for lm-eval's own tasks some seconds once, in which it reads all of its task files.

Source: Gao et al., the Language Model Evaluation Harness (https://github.com/EleutherAI/lm-evaluation-harness).
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from contracts import storage
from contracts.seeding import rng, stable_hash
from trainer.answer_metrics import aggregate_of, entity_counts, exact_match, items_of, numeric_match, token_f1
from trainer.local_tasks import (
    LocalTask,
    Metric,
    TaskRecords,
    is_local_task,
    load_local_task,
    prompt_of,
    read_task_records,
)

_MEASURES: Mapping[str, Callable[..., Any]] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "numeric_match": numeric_match,
    "entity_f1": entity_counts,
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedTask:
    """A task that is ready to be evaluated.

    Args:
        name: What was asked for by name, or the name in the task's file.
        identity: Hash of all that a result depends on, but for the model; places of files are not part of it.
        loaded: What lm-eval evaluates: its tasks by name, under ``tasks``, and their groups.
        samples: For each of these tasks the records to evaluate; None evaluates all.
    """

    name: str
    identity: str
    loaded: Mapping[str, Any]
    samples: Mapping[str, list[int]] | None


def prepare_tasks(names: list[str], *, num_fewshot: int | None, limit: int | None, seed: int) -> list[PreparedTask]:
    """Loads tasks with their records, before any model is.

    Args:
        names: Names of lm-eval, and files of `local_tasks`.
        num_fewshot: Examples in front of each prompt; None leaves it to each task.
        limit: Evaluate at most so many records of each task, drawn by the seed.
        seed: Decides over examples and limits.

    Raises:
        ValueError: A task is unknown, its file or its data cannot be used, or two have one name.
    """
    manager = None
    prepared: dict[str, PreparedTask] = {}
    for name in names:
        if is_local_task(name):
            task = _prepare_local_task(name, num_fewshot=num_fewshot, limit=limit, seed=seed)
        else:
            manager = manager or _task_manager()
            task = _prepare_named_task(name, manager=manager, num_fewshot=num_fewshot, limit=limit, seed=seed)
        if task.name in prepared:
            raise ValueError(f"tasks names {task.name} twice; each task can be evaluated once in a run.")
        prepared[task.name] = task
    return list(prepared.values())


def _prepare_local_task(url: str, *, num_fewshot: int | None, limit: int | None, seed: int) -> PreparedTask:
    task = load_local_task(url)
    # What continues nothing has no prompt that examples could stand before.
    num_examples = task.num_fewshot if num_fewshot is None or task.kind == "perplexity" else num_fewshot
    records = read_task_records(task, num_fewshot=num_examples)
    samples = _draw(task.name, num_records=len(records.documents), limit=limit, seed=seed)
    definition = {key: value for key, value in asdict(task).items() if key not in ("file", "fewshot_file")}
    return PreparedTask(
        name=task.name,
        identity=storage.json_sha256(
            [{**definition, "num_fewshot": num_examples}, records.sha256, samples, seed if num_examples else None]
        ),
        loaded={"tasks": {task.name: as_lm_eval_task(task, records=records, num_fewshot=num_examples, seed=seed)}},
        samples=None if samples is None else {task.name: samples},
    )


def as_lm_eval_task(task: LocalTask, *, records: TaskRecords, num_fewshot: int, seed: int) -> Any:
    """A local task as an object of lm-eval, with so many examples in front of each prompt, decided by the seed."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    documents = datasets.Dataset.from_list(records.documents)
    settings: dict[str, Any]
    if task.kind == "multiple_choice":
        settings = {
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
        }
    elif task.kind == "free_text":
        settings = {
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "answers",
            "process_results": lambda document, responses: score_response(
                responses[0], answers=document["answers"], metrics=task.reported_metrics
            ),
            "generation_kwargs": {
                "until": list(task.stop),
                "max_gen_toks": task.max_new_tokens,
                "do_sample": False,
                "temperature": 0.0,
            },
        }
    else:
        settings = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    if task.continuation is not None:
        # lm-eval's way of saying that the choices are contexts: the text is an index, the target what follows them.
        settings |= {"doc_to_text": "gold", "doc_to_target": "continuation"}
    return ConfigurableTask(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: {"test": documents},
            "test_split": "test",
            # Of the same name wherever they come from: only then does the sampler learn which record asks.
            "fewshot_split": "test",
            "fewshot_config": {
                "sampler": _sampler_class(task.name, seed=seed),
                "process_docs": lambda _: records.examples,
            },
            "num_fewshot": num_fewshot,
            "description": "description",
            "target_delimiter": task.answer_separator,
            "metric_list": [_metric_settings(metric, kind=task.kind) for metric in task.reported_metrics],
            "metadata": {"version": task.version},
            **settings,
        }
    )


def score_response(response: str, *, answers: list[str], metrics: tuple[str, ...]) -> dict[str, Any]:
    """The items of a response by metric; see ``answer_metrics``."""
    return {metric: _MEASURES[metric](response.strip(), answers=answers) for metric in metrics}


def _metric_settings(metric: Metric, *, kind: str) -> dict[str, Any]:
    def aggregate(values: list[Any]) -> float:
        items = items_of(values)
        known = aggregate_of(metric, items)
        assert known is not None, metric
        return known(items)

    return {"metric": metric, "aggregation": aggregate, "higher_is_better": kind != "perplexity"}


def _sampler_class(name: str, *, seed: int) -> type:
    """A sampler that draws by record; lm-eval makes the object itself, so that the seed comes with the class."""
    from lm_eval.api.samplers import ContextSampler

    class ExampleSampler(ContextSampler):  # type: ignore[misc,unused-ignore]
        def __init__(self, df: Any = None, **settings: Any) -> None:
            super().__init__(df, **settings)
            self._pools: dict[str, list[Any]] = {}
            for example in df:
                self._pools.setdefault(example["group"], []).append(example)

        def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> list[Any]:
            pool = self._pools[eval_doc["group"]]
            order = rng(seed, "few-shot", name, eval_doc["record"], eval_doc["part"]).permutation(len(pool)).tolist()
            chosen: list[int] = []
            for index in order:
                if len(chosen) == n:
                    break
                if pool[index]["record"] != eval_doc["record"] and prompt_of(pool[index]) != prompt_of(eval_doc):
                    chosen.append(index)
            return [pool[index] for index in sorted(chosen)]

    return ExampleSampler


def _task_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _prepare_named_task(
    name: str, *, manager: Any, num_fewshot: int | None, limit: int | None, seed: int
) -> PreparedTask:
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks)
        raise ValueError(
            f"lm-eval knows no task {name!r}"
            + (f"; it knows {', '.join(near)}" if near else "")
            + ". A task of your own is named by its file, which ends in .yaml."
        )
    try:
        loaded = manager.load([name])
    except (OSError, ImportError, RuntimeError) as error:
        # Of a data set that is not there, not reachable, or that needs a package of its own.
        raise ValueError(
            f"The data of lm-eval's task {name} cannot be loaded: {error} It comes from the Hugging Face hub: evaluate "
            "once with a network, which keeps it, or write a task file of your own for a local copy."
        ) from error
    samples: dict[str, list[int]] = {}
    definitions = {}
    for task_name, task in sorted(loaded["tasks"].items()):
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(
                f"lm-eval's task {task_name} runs code that the model writes, which is not supported here."
            )
        # Where lm-eval's task says 0, its prompt is made for it; the same exception as in lm-eval itself.
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=stable_hash(seed, "few-shot", task_name))
        drawn = _draw(task_name, num_records=len(task.eval_docs), limit=limit, seed=seed)
        if drawn is not None:
            samples[task_name] = drawn
        num_records = len(task.eval_docs)
        # Not the data set's own fingerprint, which differs from run to run where lm-eval processes the records.
        ends = [repr(task.eval_docs[0]), repr(task.eval_docs[num_records - 1])]
        definitions[task_name] = [str(task.VERSION), task.get_config("num_fewshot"), num_records, ends]
    return PreparedTask(
        name=name,
        identity=storage.json_sha256([definitions, samples, seed]),
        loaded=loaded,
        samples=samples or None,
    )


def _draw(name: str, *, num_records: int, limit: int | None, seed: int) -> list[int] | None:
    """The records of a task that a limit leaves, in order; None for all of them."""
    if limit is None or limit >= num_records:
        return None
    drawn: list[int] = sorted(rng(seed, "limit", name).permutation(num_records)[:limit].tolist())
    return drawn


def seed_libraries(seed: int) -> None:
    """Seeds what lm-eval's own tasks may draw from: Python's, NumPy's and PyTorch's global generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)
