r"""Turns an entry of a task dataset's file into texts with instruction-response pairs, as its layout says.

Conventions inside pairs: options follow the question as ``\nOptions:\n- a\n- b``, one a line; a pair with reasoning
has the cue ``\nLet's think step by step.`` behind its instruction and ``\nTherefore, the answer is X`` behind the
reasoning.

A question that its text does not answer gives no pair: the synthesizer is to write questions that a text answers.
It becomes a `Reject` of its own, like one whose answer is missing, whose label names no option, or whose answer is
none of the options; the text goes on with its other pairs. A record without a text, or in no known layout, is rejected
whole.

Cost: linear in the entry. Source of the conventions: Cheng et al. 2024 (arXiv 2406.14491).
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.accounting import GATE_STAGE
from contracts.record_files import lone_surrogate
from contracts.records import Document, InstructionPair, Reject
from contracts.seeding import stable_hash, stable_hash_hex
from synth_model.task_datasets.table import Layout, PairLayout, RepeatedPiece, TaskDataset
from synth_model.task_datasets.task_files import TaskEntry
from synth_model.task_datasets.wordings import Scopes, fill, fill_all, find_rows, find_scopes, find_values

TASK_STAGE = "task"
OPTIONS_MARK = "\nOptions:\n"
OPTION_MARK = "- "
REASONING_CUE = "\nLet's think step by step."
CONCLUSION_MARK = "\nTherefore, the answer is "

_MAX_REJECT_CHARACTERS = 2000
_UNSET = ("", "0", "false")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskText:
    """A text of a task dataset with its pairs, and what to know about where it comes from.

    Args:
        document: The text; its source is the dataset.
        pairs: The pairs in order; empty when no question could be used.
        license: See `synth_model.task_datasets.table.TaskDataset`, as are the next two.
        domain: What the text is about.
        task_type: What the questions ask for.
    """

    document: Document
    pairs: tuple[InstructionPair, ...]
    license: str
    domain: str
    task_type: str


class _UnusableQuestionError(Exception):
    """Why a question gives no pair; ``args`` is (reason, detail)."""


def convert_entry(entry: TaskEntry, *, dataset: TaskDataset) -> Iterator[TaskText | Reject]:
    """The texts of an entry in order, and a reject for each record and each question that is of no use."""
    for layout in dataset.layouts:
        records = find_scopes(layout.records, (entry.value,))
        if records and all(_has(records[0][0], field) for field in layout.requires):
            for number, scopes in enumerate(records):
                place = f"{entry.place}, record {number}" if len(records) > 1 else entry.place
                yield from _convert_record(scopes, place=place, dataset=dataset, layout=layout)
            return
    wanted = "; ".join(f"{layout.requires} ({layout.release})" for layout in dataset.layouts)
    yield _reject_record(
        entry.value,
        place=entry.place,
        source=dataset.name,
        reason="unknown_layout",
        detail=f"it has {_fields(entry.value)}, not one of: {wanted}",
    )


def _convert_record(scopes: Scopes, *, place: str, dataset: TaskDataset, layout: Layout) -> Iterator[TaskText | Reject]:
    record = scopes[0]
    name = fill(dataset.dataset, scopes) or dataset.name
    missing = [field for field in layout.requires if not _has(record, field)]
    if missing:
        yield _reject_record(
            record, place=place, source=name, reason="missing_field", detail=f"it has {_fields(record)}, not {missing}"
        )
        return
    text = "\n".join(filter(None, (_fill_piece(piece, scopes) for piece in layout.text)))
    text = text.removesuffix(layout.end_mark).strip()
    if not text:
        yield _reject_record(record, place=place, source=name, reason="no_text", detail="its text is empty")
        return
    # Behind the name of the set, since chains of different sets must not have the same ids.
    own_id = fill(layout.id, scopes).removeprefix(f"{name}-")
    doc_id = f"{name}-{own_id or stable_hash_hex(0, 'task text', text)}"
    title = fill(layout.title, scopes)
    if any(lone_surrogate(value) is not None for value in (name, text, doc_id, title)):
        yield _reject_record(record, place=place, source="", reason="invalid_unicode", detail="a lone surrogate")
        return
    pairs = []
    questions = [(row, *scopes) for row in find_rows(layout.questions, scopes)] if layout.questions else [scopes]
    for question in questions:
        for pair_layout in layout.pairs:
            try:
                pairs.append(_make_pair(question, layout=pair_layout))
            except _UnusableQuestionError as error:
                reason, detail = error.args
                yield Reject(
                    doc_id=doc_id,
                    source=name,
                    stage=GATE_STAGE,
                    reason=reason,
                    detail=_encodable(f"{place}: {detail}"),
                    text=_encodable(fill(pair_layout.instruction, question)),
                )
    yield TaskText(
        document=Document(doc_id=doc_id, source=name, text=text, title=title or None),
        pairs=tuple(pairs),
        license=fill(dataset.license, scopes) or "unknown",
        domain=fill(dataset.domain, scopes),
        task_type=fill(dataset.task_type, scopes),
    )


def _fill_piece(piece: str | RepeatedPiece, scopes: Scopes) -> str:
    if isinstance(piece, str):
        return fill(piece, scopes)
    parts = (fill(piece.text, (row, *scopes)) for row in find_rows(piece.each, scopes))
    return piece.separator.join(filter(None, parts))


def _make_pair(question: Scopes, *, layout: PairLayout) -> InstructionPair:
    instruction = fill(layout.instruction, question)
    if not instruction:
        raise _UnusableQuestionError("no_question", "the question is empty")
    if layout.unanswerable and any(map(_is_set, find_values(layout.unanswerable, question))):
        raise _UnusableQuestionError("unanswerable", "marked as not answered by the text")
    answer, options = _answer_and_options(instruction, question, layout=layout)
    if options:
        instruction += OPTIONS_MARK + "\n".join(f"{OPTION_MARK}{option}" for option in options)
    if layout.reasoning:
        reasoning = fill(layout.reasoning, question)
        if not reasoning:
            raise _UnusableQuestionError("no_reasoning", "the reasoning is empty")
        instruction, answer = f"{instruction}{REASONING_CUE}", f"{reasoning}{CONCLUSION_MARK}{_one_line(answer)}"
    if lone_surrogate(instruction + answer) is not None:
        raise _UnusableQuestionError("invalid_unicode", "a lone surrogate")
    return InstructionPair(instruction=instruction, response=answer)


def _answer_and_options(instruction: str, question: Scopes, *, layout: PairLayout) -> tuple[str, list[str]]:
    """The answer of a question and what it can be chosen from, which is nothing for an open question."""
    options = _one_line_texts(layout.options, question)
    if layout.label:
        answer = options[_option_index(question, num_options=len(options), layout=layout)]
    elif layout.correct:
        marks = find_values(layout.correct, question)
        if len(marks) != len(options):
            raise _UnusableQuestionError("unknown_label", f"{len(marks)} marks for {len(options)} options")
        answer = "\n".join(option for option, mark in zip(options, marks, strict=True) if _is_set(mark))
    else:
        answer = next(filter(None, (fill(wording, question) for wording in layout.answer)), "")
        answer = _one_line(answer) if layout.options or layout.distractors else answer
    if answer.casefold() in {text.casefold() for text in layout.no_answer}:
        raise _UnusableQuestionError("unanswerable", f"the answer is {answer!r}")
    if not answer:
        raise _UnusableQuestionError("no_answer", "the answer is empty")
    if layout.distractors:
        # By hash, so that the right one stands nowhere in particular.
        options = sorted(
            {answer, *_one_line_texts(layout.distractors, question)},
            key=lambda option: stable_hash(0, "option order", instruction, option),
        )
    elif layout.options and layout.answer and answer not in options:
        raise _UnusableQuestionError("answer_not_among_options", f"{answer!r} is none of {options}")
    return answer, [option for option in options if option]


def _option_index(question: Scopes, *, num_options: int, layout: PairLayout) -> int:
    label = fill(layout.label, question)
    labels = [own for wording in layout.option_labels for own in fill_all(wording, question)]
    index = -1
    if labels:
        index = labels.index(label) if label in labels else -1
    elif len(label) == 1 and label.upper() in string.ascii_uppercase:
        index = string.ascii_uppercase.index(label.upper())
    elif label.isdecimal():
        index = int(label) - layout.first_label
    if not 0 <= index < num_options:
        raise _UnusableQuestionError("unknown_label", f"{label!r} is the label of none of {num_options} options")
    return index


def _is_set(mark: Any) -> bool:
    """Whether a mark is set, in files of text (CSV) too."""
    return mark.strip().casefold() not in _UNSET if isinstance(mark, str) else bool(mark)


def _one_line_texts(wordings: Sequence[str], question: Scopes) -> list[str]:
    return [_one_line(text) for wording in wordings for text in fill_all(wording, question)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _has(record: Any, field: str | int) -> bool:
    if isinstance(field, int):
        return isinstance(record, Sequence) and not isinstance(record, str) and len(record) > field
    return isinstance(record, Mapping) and field in record


def _fields(record: Any) -> str:
    return f"the fields {sorted(record)[:20]}" if isinstance(record, Mapping) else f"a {type(record).__name__}"


def _reject_record(record: Any, *, place: str, source: str, reason: str, detail: str) -> Reject:
    return Reject(
        doc_id=place,
        source=source,
        stage=TASK_STAGE,
        reason=reason,
        detail=_encodable(f"{place}: {detail}"),
        text=json.dumps(record, default=str)[:_MAX_REJECT_CHARACTERS],
    )


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
