"""The table of task datasets, ``datasets.yaml``: which sets can be read, under which licence, in which layouts.

A set has one or more layouts, since its own release and the hub's Parquet files differ. A layout says which fields a
record must have (that decides which layout a record is in), where its text, title and questions stand, and which pairs
each question gives, in paths and wordings of `synth_model.task_datasets.wordings`. The file is checked when it is
loaded. Adding a set means adding an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import yaml

from synth_model.task_datasets.wordings import check_list_wording, check_path, check_wording

_Entry = TypeVar("_Entry")


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedPiece:
    """A piece of a text that stands there once for each of several parts of the record.

    Args:
        each: Path of the parts, or paths of columns by the names that ``text`` calls them.
        text: Wording of one part.
        separator: What stands between parts.
    """

    each: str | Mapping[str, str]
    text: str
    separator: str = "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairLayout:
    r"""How one instruction-response pair is made from a question.

    The response comes from exactly one of ``answer``, ``label`` and ``correct``.

    Args:
        instruction: Wording of the instruction, without its options.
        answer: Wordings of the response; the first that is not empty counts.
        options: Wordings of the answers to choose from, in order; shown as ``\nOptions:\n- a\n- b``.
        distractors: Wordings of the wrong answers; with the answer among them, by hash, they are the options.
        label: Wording of the option that is right: its place among ``option_labels``, else a letter, else a number.
        option_labels: Wordings of the set's own labels of the options.
        first_label: The number of the first option, where labels are numbers.
        correct: Path of a mark for each option, true for those that are right; they are the response, one a line.
        reasoning: Wording of the reasoning that comes before the answer in the response.
        unanswerable: Path of a mark that is set where the text does not answer the question.
        no_answer: Answers, in any case of letters, that say that the text does not answer the question.
    """

    instruction: str
    answer: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    label: str = ""
    option_labels: tuple[str, ...] = ()
    first_label: int = 0
    correct: str = ""
    reasoning: str = ""
    unanswerable: str = ""
    no_answer: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where everything stands in the records of one release of a set.

    Args:
        release: Which release the layout is of.
        requires: Fields that every record has; an index stands for an element of a record that is a list.
        text: Pieces of the text, each on lines of its own.
        pairs: The pairs that each question gives.
        records: Path of the records in an entry of a file: a line, a row, or an element of a JSON file.
        questions: Path of the questions in a record, or paths of columns by name; empty: the record is the question.
        title: Wording of the text's title.
        id: Wording of the text's identifier; without one it follows from the text.
        end_mark: What the set puts behind its texts for its own purposes; taken off.
    """

    release: str
    requires: tuple[str | int, ...]
    text: tuple[str | RepeatedPiece, ...]
    pairs: tuple[PairLayout, ...]
    records: str = ""
    questions: str | Mapping[str, str] = ""
    title: str = ""
    id: str = ""
    end_mark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDataset:
    """A set of the table.

    Args:
        name: Its key in the table.
        license: SPDX identifier; where there is none ``non-commercial``, ``research-only``, ``mixed`` or ``unknown``.
        domain: What its texts are about.
        task_type: What its questions ask for.
        layouts: Its layouts; the first whose required fields a record has counts.
        dataset: The name that texts are filed under. As ``license``, ``domain`` and ``task_type`` a wording.
        hub: Repository on the Hugging Face hub.
        hub_config: Name of the configuration there.
    """

    name: str
    license: str
    domain: str
    task_type: str
    layouts: tuple[Layout, ...]
    dataset: str
    hub: str = ""
    hub_config: str = "default"

    @property
    def hub_files(self) -> list[str]:
        """The training files that the hub converts every set into; empty for a set that is not there."""
        if not self.hub:
            return []
        return [f"hf://datasets/{self.hub}@refs/convert/parquet/{self.hub_config}/train/*.parquet"]


@cache
def load_table() -> Mapping[str, TaskDataset]:
    """The sets of the shipped table by name.

    Raises:
        ValueError: An entry does not have the form of `TaskDataset`; the message says which and why.
    """
    return parse_table(_table_text())


@cache
def table_sha256() -> str:
    """SHA-256 of the table as hexadecimal characters: the version of what the sets are read as."""
    return hashlib.sha256(_table_text().encode()).hexdigest()


def _table_text() -> str:
    return (resources.files("synth_model") / "task_datasets" / "datasets.yaml").read_text(encoding="utf-8")


def parse_table(text: str) -> dict[str, TaskDataset]:
    """Reads and checks a table; see `load_table`. The key ``shared`` is left out: it holds what entries refer to."""
    raw = yaml.safe_load(text)
    return {name: _task_dataset(name, entry) for name, entry in raw.items() if name != "shared"}


def _task_dataset(name: str, raw: Any) -> TaskDataset:
    try:
        return _checked(_build(TaskDataset, {"dataset": name, **raw, "name": name, "layouts": _layouts(raw)}))
    except (ValueError, TypeError) as error:
        raise ValueError(f"The table of task datasets, {name}: {error}") from error


def _layouts(raw: Mapping[str, Any]) -> tuple[Layout, ...]:
    return tuple(
        _build(
            Layout,
            {
                **layout,
                "text": [piece if isinstance(piece, str) else _build(RepeatedPiece, piece) for piece in layout["text"]],
                "pairs": [_build(PairLayout, pair) for pair in layout["pairs"]],
            },
        )
        for layout in raw.get("layouts") or ()
    )


def _build(entry_class: type[_Entry], raw: Mapping[str, Any]) -> _Entry:
    """An entry from its YAML; lists become tuples."""
    known = {field.name: field for field in fields(entry_class)}  # type: ignore[arg-type]
    unknown = sorted(set(raw) - set(known))
    missing = sorted(name for name, field in known.items() if field.default is MISSING and name not in raw)
    if unknown or missing:
        raise ValueError(f"{entry_class.__name__} has the unknown keys {unknown} and lacks the keys {missing}.")
    return entry_class(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})


def _checked(dataset: TaskDataset) -> TaskDataset:
    if not dataset.layouts:
        raise ValueError("a set needs at least one layout.")
    for wording in (dataset.dataset, dataset.license, dataset.domain, dataset.task_type):
        check_wording(wording)
    for layout in dataset.layouts:
        if not layout.requires or not layout.text or not layout.pairs:
            raise ValueError(f"the layout {layout.release!r} needs required fields, text and pairs.")
        for path in (layout.records, *_paths(layout.questions)):
            check_path(path)
        for wording in (layout.title, layout.id, *(piece for piece in layout.text if isinstance(piece, str))):
            check_wording(wording)
        for piece in layout.text:
            if isinstance(piece, RepeatedPiece):
                check_wording(piece.text)
                for path in _paths(piece.each):
                    check_path(path)
        for pair in layout.pairs:
            _check_pair(pair)
    return dataset


def _paths(rows: str | Mapping[str, str]) -> list[str]:
    return [rows] if isinstance(rows, str) else list(rows.values())


def _check_pair(pair: PairLayout) -> None:
    if sum(map(bool, (pair.answer, pair.label, pair.correct))) != 1:
        raise ValueError(f"the pair {pair.instruction!r} needs exactly one of answer, label and correct.")
    if (pair.label or pair.correct) and not pair.options:
        raise ValueError(f"the pair {pair.instruction!r} needs options for its label or its marks.")
    if pair.distractors and (pair.options or not pair.answer):
        raise ValueError(f"the pair {pair.instruction!r}: distractors go with an answer and without options.")
    for wording in (pair.instruction, pair.label, pair.reasoning, *pair.answer):
        check_wording(wording)
    for wording in (*pair.options, *pair.distractors, *pair.option_labels):
        check_list_wording(wording)
    for path in (pair.correct, pair.unanswerable):
        check_path(path)
