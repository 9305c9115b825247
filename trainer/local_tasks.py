r"""Evaluation tasks of one's own: a YAML file beside a file of records.

A task file says which records to read and, in Jinja2, what to make of one::

    name: arc_easy
    kind: multiple_choice
    file: data/arc_easy.jsonl.gz
    prompt: "Question: {{ question }}\nAnswer:"
    choices: choices
    answer: answer

Three kinds: ``multiple_choice`` compares the likelihoods of the choices as continuations of the prompt, ``free_text``
lets the model write and compares with the answers, ``perplexity`` asks how likely texts are. `LocalTask` has all keys.

Templates run in Jinja2's sandbox and are rendered here, once, when the records are read: lm-eval gets finished strings,
so that braces, digits and brackets in the data are never taken for more than what they are, and whatever is wrong with
a record is said with the record's place before the model is loaded. An evaluation set is complete or it is refused: a
damaged record would change the figure.

Cost: the records of a task are held in memory, a few times their size.

Does not evaluate; see ``lm_eval_tasks``. Does not read lm-eval's own task files, which may name Python functions to
run; lm-eval's tasks are asked for by name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, Template, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jsonargparse import ArgumentError, ArgumentParser

from contracts import storage
from contracts.record_files import SUFFIXES, lone_surrogate, read_records
from contracts.records import Reject

Kind = Literal["multiple_choice", "free_text", "perplexity"]
Metric = Literal[
    "acc",
    "acc_norm",
    "f1",
    "exact_match",
    "numeric_match",
    "entity_f1",
    "bits_per_byte",
    "byte_perplexity",
    "word_perplexity",
]

# Of each kind its metrics, and how many of them, from the first on, are reported where the file names none.
_METRICS: Mapping[Kind, tuple[tuple[Metric, ...], int]] = {
    "multiple_choice": (("acc", "acc_norm", "f1"), 2),
    "free_text": (("exact_match", "f1", "numeric_match", "entity_f1"), 2),
    "perplexity": (("bits_per_byte", "byte_perplexity", "word_perplexity"), 3),
}
_NEEDED: Mapping[Kind, tuple[str, ...]] = {
    "multiple_choice": ("prompt", "choices", "answer"),
    "free_text": ("prompt", "answer"),
    "perplexity": ("text",),
}
_ALLOWED_ONLY_IN: Mapping[str, tuple[Kind, ...]] = {
    "prompt": ("multiple_choice", "free_text"),
    "answer": ("multiple_choice", "free_text"),
    "choices": ("multiple_choice",),
    "continuation": ("multiple_choice",),
    "text": ("perplexity",),
    "fewshot_file": ("multiple_choice", "free_text"),
    "fewshot_group": ("multiple_choice", "free_text"),
    "description": ("multiple_choice", "free_text"),
}
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_NAME = re.compile(r"[\w.-]+")

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """An evaluation task on a file of records.

    Templates and expressions see the fields of a record by name.

    Args:
        name: What results call the task: letters, digits, ``_``, ``-`` and ``.``.
        kind: What is asked of the model.
        file: The records: ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst`` or ``.parquet``, local or at a URL. In this and
            the other file name, ``${NAME}`` stands for an environment variable.
        version: Raise it when the task changes, so that results tell which one they are of.
        expand: A field that holds a list of mappings: each of them, together with the fields of its record, is a
            record of its own.
        description: Template of what stands before the examples and the prompt; a blank line follows it.
        prompt: Template of the prompt. With continuation it is rendered for each choice, as ``choice``.
        choices: Expression for a list of texts, or a list of templates, one a choice.
        answer: Expression for the right answer: of choices the index, from 0 on, or the text; in free text a text or a
            list of texts, any of which is right.
        continuation: Template of what is the same after every choice: its likelihood is compared, not the choice's.
        text: Template of the text of a perplexity task.
        metrics: What to report; for multiple choice acc, acc_norm and f1 (by class, weighted), for free text
            exact_match, f1 (of words), numeric_match and entity_f1 (by line), for perplexity bits_per_byte,
            byte_perplexity and word_perplexity. An empty list reports the first two, of perplexity all.
        num_fewshot: Examples in front of each prompt.
        fewshot_file: Where they are drawn from; null draws them from the other records of file.
        fewshot_group: Expression: examples are drawn from records with the same value.
        answer_separator: Stands between prompt and answer.
        stop: Texts that end what the model writes, beside its own end of text.
        max_new_tokens: Most tokens that the model writes.
    """

    name: str
    kind: Kind
    file: str
    version: int = 1
    expand: str | None = None
    description: str | None = None
    prompt: str | None = None
    choices: list[str] | str | None = None
    answer: str | None = None
    continuation: str | None = None
    text: str | None = None
    metrics: list[Metric] = field(default_factory=list)
    num_fewshot: int = 0
    fewshot_file: str | None = None
    fewshot_group: str | None = None
    answer_separator: str = " "
    stop: list[str] = field(default_factory=lambda: ["\n"])
    max_new_tokens: int = 64

    def check(self) -> None:
        """Refuses what cannot work.

        Raises:
            ValueError: A key is missing, does not belong to this kind of task, or has an impossible value.
        """
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}; it must be letters, digits, '_', '-' and '.'.")
        for key in _NEEDED[self.kind]:
            if getattr(self, key) is None:
                raise ValueError(f"{key} is missing; kind {self.kind} needs {', '.join(_NEEDED[self.kind])}.")
        for key, kinds in _ALLOWED_ONLY_IN.items():
            if getattr(self, key) is not None and self.kind not in kinds:
                raise ValueError(f"{key} has no meaning for kind {self.kind}, only for {' and '.join(kinds)}.")
        allowed = set(_METRICS[self.kind][0]) - ({"acc_norm"} if self.continuation is not None else set())
        if unknown := [metric for metric in self.metrics if metric not in allowed]:
            raise ValueError(f"metrics has {unknown[0]}; here it takes {', '.join(sorted(allowed))}.")
        if self.num_fewshot < 0 or (self.num_fewshot and self.kind == "perplexity"):
            raise ValueError(f"num_fewshot is {self.num_fewshot}; it must be 0 or more, and 0 for kind perplexity.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        for key in ("description", "prompt", "continuation", "text"):
            if (source := getattr(self, key)) is not None:
                _compile(_JINJA.from_string, source, key=key)
        for key in ("choices", "answer", "fewshot_group"):
            source = getattr(self, key)
            for part in source if isinstance(source, list) else [] if source is None else [source]:
                _compile(_JINJA.from_string if isinstance(source, list) else _JINJA.compile_expression, part, key=key)

    @property
    def reported_metrics(self) -> tuple[Metric, ...]:
        """The metrics that the task reports."""
        known, num_by_default = _METRICS[self.kind]
        chosen = tuple(self.metrics) or known[:num_by_default]
        return tuple(metric for metric in chosen if self.continuation is None or metric != "acc_norm")


def is_local_task(name: str) -> bool:
    """Whether a task is named by a file of this format, rather than by its name in lm-eval."""
    return name.endswith((".yaml", ".yml"))


def load_local_task(url: str) -> LocalTask:
    """The task in a file.

    Raises:
        ValueError: There is no such file, it is not such a task, or a key is missing, unknown or impossible.
    """
    text = storage.read_text(url, missing=None)
    if text is None:
        raise ValueError(f"There is no task file {url}.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"The task file {url} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"The task file {url} holds no mapping of keys to values.")
    if "kind" not in values and ("task" in values or "group" in values):
        raise ValueError(
            f"{url} is a task file of lm-eval's own format, which may run code. Name the task instead of the file if "
            "lm-eval has it, or write a file with name, kind and file."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LocalTask)
    try:
        parsed = vars(parser.instantiate(parser.parse_object(values)))
        task = LocalTask(**parsed)
        task.check()
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"The task file {url}: {error}") from error
    return task


def resolve_variables(name: str) -> str:
    """A file name with ``${NAME}`` replaced by environment variables.

    Raises:
        ValueError: A variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ValueError(
                f"{name!r} needs the environment variable {match[1]}, which is not set: set it to the folder that "
                "holds the data."
            )
        return os.environ[match[1]]

    return _VARIABLE.sub(value, name)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskRecords:
    """The records of a task as lm-eval gets them.

    Args:
        documents: One a record, in the order of the file: of ``prompt``, ``choices``, ``gold`` (the index of the right
            choice), ``answers``, ``continuation`` and ``text`` what its kind needs, ready to use; ``record`` and
            ``part``, its numbers; ``description``; and ``group``, what its examples share with it.
        examples: The same for what examples are drawn from.
        sha256: Hash of the bytes of both files.
    """

    documents: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    sha256: str


def read_task_records(task: LocalTask, *, num_fewshot: int) -> TaskRecords:
    """Reads and renders the records of a task.

    Args:
        task: The task.
        num_fewshot: How many examples each record will need.

    Raises:
        ValueError: A file is missing, empty or damaged, a record lacks a field or has an impossible answer, or there
            are too few examples; the message names the record.
    """
    files = _files(task.file)
    documents = list(_documents(task, files, name=""))
    examples_files = _files(task.fewshot_file) if num_fewshot and task.fewshot_file is not None else files
    examples = documents if examples_files == files else list(_documents(task, examples_files, name="example "))
    if num_fewshot:
        _require_examples(task, documents=documents, examples=examples, num_fewshot=num_fewshot)
    sha256 = storage.json_sha256([[storage.file_sha256(url) for url in urls] for urls in (files, examples_files)])
    return TaskRecords(documents=documents, examples=examples, sha256=sha256)


def _files(name: str) -> list[str]:
    suffixes = [suffix for suffix in SUFFIXES if suffix != ".txt"]
    return [file.url for file in storage.find_input_files([resolve_variables(name)], suffixes=suffixes)]


def _documents(task: LocalTask, files: Sequence[str], *, name: str) -> Iterator[dict[str, Any]]:
    make = _maker(task)
    num_documents = 0
    records = (record for url in files for record in read_records(url))
    for number, record in enumerate(records, start=1):
        if isinstance(record, Reject):
            raise ValueError(f"The task {task.name} cannot be evaluated: {record.detail}.")
        try:
            for part, values in _parts(record.values, expand=task.expand):
                document = make(values)
                _require_unicode(document)
                num_documents += 1
                yield {"record": f"{name}{number}", "part": part, **document}
        except (TemplateError, ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(
                f"The task {task.name}, record {number} ({record.place}): {error}. "
                f"The record has the fields {', '.join(record.values)}."
            ) from error
    if not num_documents:
        raise ValueError(f"The task {task.name} has nothing to evaluate: there is no record in {', '.join(files)}.")


def _parts(values: Mapping[str, Any], *, expand: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The records that a record stands for, each with its number among them."""
    if expand is None:
        yield 1, values
        return
    parts = values.get(expand)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"expand: {expand!r} must be a list of mappings, not {parts!r}")
    for number, part in enumerate(parts, start=1):
        yield number, {**values, **part}


def _maker(task: LocalTask) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function from the fields of a record to a document of `TaskRecords`, but for its number."""

    def template(key: str) -> Template | None:
        source = getattr(task, key)
        return None if source is None else _compile(_JINJA.from_string, source, key=key)

    def expression(key: str) -> Callable[..., Any] | None:
        source = getattr(task, key)
        if source is None or isinstance(source, list):
            return None
        # Without None for what is undefined, so that it is found below.
        compiled: Callable[..., Any] = _compile(
            lambda text: _JINJA.compile_expression(text, undefined_to_none=False), source, key=key
        )
        return compiled

    templates = {key: template(key) for key in ("description", "prompt", "continuation", "text")}
    expressions = {key: expression(key) for key in ("choices", "answer", "fewshot_group")}
    choice_templates = [_JINJA.from_string(choice) for choice in task.choices] if isinstance(task.choices, list) else []

    def render(key: str, values: Mapping[str, Any], **others: Any) -> str:
        chosen = templates[key]
        return "" if chosen is None else _render(chosen, {**values, **others}, key=key)

    def evaluate(key: str, values: Mapping[str, Any]) -> Any:
        chosen = expressions[key]
        assert chosen is not None, key
        value = chosen(dict(values))
        if isinstance(value, Undefined):
            raise ValueError(f"{key}: {getattr(task, key)!r} is not among the fields")
        return value

    def make(values: Mapping[str, Any]) -> dict[str, Any]:
        if task.kind == "perplexity":
            text = render("text", values)
            if not text.strip():
                raise ValueError("text: it is empty")
            return {"text": text, "description": "", "group": ""}
        description = render("description", values)
        document = {
            "description": description and description + "\n\n",
            "group": "" if task.fewshot_group is None else str(evaluate("fewshot_group", values)),
        }
        if task.kind == "free_text":
            answers = _answers(evaluate("answer", values))
            return {**document, "prompt": render("prompt", values), "answers": answers}
        choices = (
            [_render(choice, values, key="choices") for choice in choice_templates]
            if choice_templates
            else evaluate("choices", values)
        )
        _require_choices(choices)
        gold = _index_of(evaluate("answer", values), choices=choices)
        if task.continuation is None:
            return {**document, "prompt": render("prompt", values), "choices": choices, "gold": gold}
        continuation = render("continuation", values)
        if not continuation.strip():
            raise ValueError("continuation: it is empty")
        prompts = [render("prompt", values, choice=choice) for choice in choices]
        return {**document, "choices": prompts, "gold": gold, "continuation": continuation}

    return make


def _compile(compiler: Callable[[str], Any], source: str, *, key: str) -> Any:
    try:
        return compiler(source)
    except TemplateError as error:
        raise ValueError(f"{key}: {source!r} is not valid Jinja2: {error}") from error


def _render(template: Template, values: Mapping[str, Any], *, key: str) -> str:
    try:
        return template.render(values)
    except TemplateError as error:
        raise ValueError(f"{key}: {error}") from error


def _answers(value: Any) -> list[str]:
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(isinstance(answer, (str, int, float)) for answer in answers):
        raise ValueError(f"answer: it must be a text or a list of texts, not {value!r}")
    texts = [str(answer) for answer in answers]
    if not all(text.strip() for text in texts):
        raise ValueError(f"answer: it is empty in {value!r}")
    return texts


def _require_choices(choices: Any) -> None:
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"choices: they must be a list of texts, not {choices!r}")
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise ValueError(f"choices: there must be two or more, none of them empty, in {choices!r}")


def _index_of(answer: Any, *, choices: list[str]) -> int:
    if isinstance(answer, str):
        if choices.count(answer) != 1:
            raise ValueError(f"answer: {answer!r} is not exactly one of the choices {choices!r}")
        return choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise ValueError(f"answer: it must be the index or the text of a choice, not {answer!r}")
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer: the index {answer} is not in range({len(choices)}), that of the choices")
    return answer


def _require_unicode(document: Mapping[str, Any]) -> None:
    for key, value in document.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and lone_surrogate(text) is not None:
                raise ValueError(f"{key}: half of a surrogate pair, which no tokenizer can hold")


def _require_examples(
    task: LocalTask, *, documents: list[dict[str, Any]], examples: list[dict[str, Any]], num_fewshot: int
) -> None:
    """Refuses a group that has too few examples for one of its records, whatever that record is."""
    sizes = Counter(example["group"] for example in examples)
    same_prompt = Counter((example["group"], prompt_of(example)) for example in examples)
    same_record = Counter((example["group"], example["record"]) for example in examples)
    same_both = Counter((example["group"], example["record"], prompt_of(example)) for example in examples)
    for document in documents:
        group, record, prompt = document["group"], document["record"], prompt_of(document)
        num_excluded = same_prompt[group, prompt] + same_record[group, record] - same_both[group, record, prompt]
        num_left = sizes[group] - num_excluded
        if num_left < num_fewshot:
            where = f" with {task.fewshot_group} = {group!r}" if task.fewshot_group is not None else ""
            raise ValueError(
                f"The task {task.name}, record {document['record']}: there are {num_left} other records{where} to draw "
                f"{num_fewshot} examples from. Lower num_fewshot, or give a fewshot_file with more."
            )


def prompt_of(document: Mapping[str, Any]) -> str:
    """What tells two documents of `TaskRecords` apart when one is not to be an example for the other."""
    prompt: str = document["prompt"] if "prompt" in document else "\n".join(document["choices"])
    return prompt
