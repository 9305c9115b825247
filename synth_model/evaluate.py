"""``python -m synth_model evaluate``: synthesizers against gold pairs, with intervals, a table and a page.

Every system is asked about the same texts: for the responses to gold instructions, and for pairs of its own, with and
without examples before the text (`synth_model.evaluation`). Completions are kept as they are made, so that the command,
started again, goes on where it was killed. The output folder ends up with

- ``results.json``: every figure, what became of every text, the config, and what the models and corpora were;
- ``texts.jsonl``: each text with its gold pairs and what each system made of it, one a line;
- ``report.html``: tables and samples side by side, in one file without anything from elsewhere;
- ``completions/``: what the models wrote; ``COMPLETED`` last.

Cost: for T texts with Q questions, S systems and K numbers of shots, S K T (Q + 1) prompts. The rest is seconds.
Source: Cheng et al. 2024 (arXiv 2406.14491), section 5.1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from contracts import storage
from contracts.artifact import claim_output, describe_run, mark_completed
from contracts.manifest import read_augmented_corpus_manifest
from synth_model.command_line import parse_config
from synth_model.engines.model_identity import identify_model
from synth_model.evaluation import similarity
from synth_model.evaluation.bootstrap import Bootstrap
from synth_model.evaluation.completing import LoadedEngine, complete_prompts
from synth_model.evaluation.completion_log import CompletionLog
from synth_model.evaluation.config import EvaluateConfig
from synth_model.evaluation.judging import Judgement, describe, judge, make_figures
from synth_model.evaluation.known_texts import find_known_texts
from synth_model.evaluation.report import print_report, render_page
from synth_model.evaluation.requests import Request, System, fits_alone, make_requests, make_system, sampling_of
from synth_model.evaluation.text_selection import (
    SPLITS,
    DatasetAccounts,
    EvaluationText,
    check_splits,
    read_gold_examples,
    select_texts,
)
from synth_model.generation import Failure, Outcome, completion_key

RESULTS_FILE, TEXTS_FILE, PAGE_FILE = "results.json", "texts.jsonl", "report.html"
SCHEMA_VERSION = 1

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A request with the key of its completion."""

    request: Request
    key: str


def evaluate(config: EvaluateConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Evaluates, or goes on evaluating, or finds that it is done; returns the content of ``results.json``.

    Args:
        config: What to evaluate.
        console: Where progress is shown; None shows none.

    Raises:
        ValueError: The settings, the corpora, the models or the output folder do not allow it.
    """
    config.check()
    similarity.check_available()
    systems = [make_system(system) for system in config.systems]
    inputs = _identify_inputs(config, systems=systems)
    run = describe_run(command="evaluate", config=config.settings_of_the_result(), inputs=inputs)
    results_url = storage.join(config.output, RESULTS_FILE)
    if claim_output(config.output, run=run) == "completed":
        completed: dict[str, Any] = storage.read_json(results_url)
        return completed
    texts, accounts = _select(config, systems=systems)
    asked = {
        name: [
            _Asked(
                request=request,
                key=completion_key(
                    request.prompt,
                    model_id=inputs[f"model of {name}"],
                    sampling=sampling_of(request.task, config=config),
                ),
            )
            for request in requests
        ]
        for name, requests in make_requests(texts, systems=systems, config=config).items()
    }
    outcomes = _complete(asked, config=config, console=console)
    judgements = [
        judgement
        for system in systems
        for judgement in judge(
            texts,
            requests=[item.request for item in asked[system.config.name]],
            outcomes=[outcomes[item.key] for item in asked[system.config.name]],
            system=system,
        )
    ]
    bootstrap = Bootstrap(num_resamples=config.num_resamples, confidence=config.confidence, seed=config.seed)
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "figures": [asdict(figure) for figure in make_figures(judgements, texts=texts, bootstrap=bootstrap)],
        "descriptions": [asdict(description) for description in describe(judgements, texts=texts)],
        "datasets": [asdict(account) for account in accounts],
        "failures": _count_failures(asked, outcomes),
        "config": run["config"],
        "inputs": inputs,
    }
    _write(config, results=results, texts=texts, judgements=judgements)
    return results


def _identify_inputs(config: EvaluateConfig, *, systems: Sequence[System]) -> dict[str, str]:
    """The versions of corpora, models and prompts by what they are; a config has only the paths of wordings."""
    folders = dict.fromkeys([*config.seen, *config.unseen, *config.tuning_corpora])
    inputs = {folder: read_augmented_corpus_manifest(folder).fingerprint for folder in folders}
    for system in systems:
        name, engine = system.config.name, system.config.engine
        settings = storage.json_sha256(engine.settings_of_the_result())[:16]
        inputs[f"model of {name}"] = f"{identify_model(engine)} {settings}"
        inputs[f"format of {name}"] = system.synthesizer.format_id
    return inputs


def _select(config: EvaluateConfig, *, systems: Sequence[System]) -> tuple[list[EvaluationText], list[DatasetAccounts]]:
    """The texts of both splits and where the others went.

    Raises:
        ValueError: A dataset is not what it is called, or no text is left.
    """
    examples = [
        [example for folder in folders for example in read_gold_examples(folder)]
        for folders in (config.seen, config.unseen)
    ]
    names_tuned_on: set[str] = set()
    known = find_known_texts(
        (example.document.text for of_split in examples for example in of_split),
        tuned_on=_texts_tuned_on(config, names=names_tuned_on),
    )
    texts: list[EvaluationText] = []
    accounts: list[DatasetAccounts] = []
    for split, of_split in zip(SPLITS, examples, strict=True):
        selected, accounts_of_split = select_texts(
            of_split,
            split=split,
            known=known,
            max_texts=config.max_texts,
            max_questions=config.max_questions,
            num_examples=max(config.shots) - 1,
            fits=lambda gold, questions: fits_alone(gold, questions, systems=systems, config=config),
            seed=config.seed,
        )
        texts += selected
        accounts += accounts_of_split
    check_splits(
        seen=[account.dataset for account in accounts if account.split == "seen"],
        unseen=[account.dataset for account in accounts if account.split == "unseen"],
        tuned_on=frozenset(names_tuned_on),
    )
    if not texts:
        raise ValueError(
            "No text is left to evaluate on: "
            + "; ".join(
                f"{account.dataset} has {account.num_texts}, of which {account.num_tuned_on} were tuned on and "
                f"{account.num_too_long} are too long for a context"
                for account in accounts
            )
        )
    return texts, accounts


def _texts_tuned_on(config: EvaluateConfig, *, names: set[str]) -> Iterator[str]:
    """The texts of the tuning corpora, which may be large, one by one; the names of their datasets into ``names``."""
    for folder in config.tuning_corpora:
        for example in read_gold_examples(folder):
            names.add(example.document.source)
            yield example.document.text


def _complete(asked: dict[str, list[_Asked]], *, config: EvaluateConfig, console: Console | None) -> dict[str, Outcome]:
    """An outcome for every key, from the log or by asking; systems with one engine are asked behind each other."""
    log = CompletionLog(storage.join(config.output, "completions"))
    outcomes: dict[str, Outcome] = dict(log.read())
    num_prompts = len({item.key for items in asked.values() for item in items})
    num_known = len({item.key for items in asked.values() for item in items if item.key in outcomes})
    with _progress(console, num_prompts=num_prompts, num_known=num_known) as report:
        for engine in _distinct(system.engine for system in config.systems):
            with LoadedEngine(engine) as load:
                for sampling in _distinct([config.response_sampling, config.sampling]):
                    prompts = {
                        item.key: item.request.prompt
                        for system in config.systems
                        if system.engine == engine
                        for item in asked[system.name]
                        if sampling_of(item.request.task, config=config) == sampling and item.key not in outcomes
                    }
                    outcomes |= complete_prompts(
                        prompts, engine=engine, sampling=sampling, load=load, log=log, report=report
                    )
    return outcomes


def _distinct(values: Iterable[_Value]) -> list[_Value]:
    """Values that may not be hashable, each once, in order."""
    kept: list[_Value] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


@contextmanager
def _progress(console: Console | None, *, num_prompts: int, num_known: int) -> Iterator[Callable[[int], object]]:
    """A bar over prompts; gives what is told of how many were done."""
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("", total=num_prompts, completed=num_known)
        yield lambda count: progress.advance(task, count)


def _count_failures(asked: dict[str, list[_Asked]], outcomes: dict[str, Outcome]) -> dict[str, dict[str, int]]:
    """Failed requests by system and reason."""
    counts = {}
    for name, items in asked.items():
        found = (outcomes[item.key] for item in items)
        counts[name] = dict(sorted(Counter(o.reason for o in found if isinstance(o, Failure)).items()))
    return counts


def _write(
    config: EvaluateConfig,
    *,
    results: dict[str, Any],
    texts: Sequence[EvaluationText],
    judgements: Sequence[Judgement],
) -> None:
    by_text: dict[int, list[Judgement]] = {}
    for judgement in judgements:
        by_text.setdefault(judgement.text, []).append(judgement)
    lines = [
        {**asdict(text.gold), "split": text.split, "questions": [asdict(pair) for pair in text.questions]}
        | {"systems": [_without_text(judgement) for judgement in by_text[index]]}
        for index, text in enumerate(texts)
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    storage.write_bytes_atomically(storage.join(config.output, TEXTS_FILE), content.encode("utf-8", "backslashreplace"))
    page = render_page(results, texts=texts, judgements=judgements, max_texts=config.max_shown_texts)
    storage.write_bytes_atomically(storage.join(config.output, PAGE_FILE), page.encode("utf-8", "backslashreplace"))
    storage.write_json(storage.join(config.output, RESULTS_FILE), results)
    mark_completed(config.output, fingerprint=storage.json_sha256(results))


def _without_text(judgement: Judgement) -> dict[str, Any]:
    return {name: value for name, value in asdict(judgement).items() if name != "text"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit status."""
    config = parse_config(EvaluateConfig, arguments=arguments, command="evaluate")
    results = evaluate(config, console=Console(stderr=True))
    print_report(results, console=Console())
    print(f"results     {storage.join(config.output, RESULTS_FILE)}")
    print(f"page        {storage.join(config.output, PAGE_FILE)}")
    return 0
