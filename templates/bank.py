"""The template bank: the wordings in ``bank/*.yaml``, checked against `SECTIONS` when they are loaded.

A file holds sections, a section is a list of entries. An entry is one wording, or, where a template has several parts,
one wording for each part. A section and its parts are declared in `SECTIONS` with the fields that a wording must and
may have. Adding a pattern means adding an entry to a file; nothing else changes.

The files are read as YAML nodes, not as values: nodes know their line for the error messages, and show a section that
stands twice in a file, which loading would drop in silence. No object is ever constructed from a file.

Cost: milliseconds, once a process. Not done here: choosing and rendering (`templates.style`, `templates.rendering`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TypeAlias

import yaml

from templates.option_labels import LABELS
from templates.patterns import Pattern, parse_pattern

Entry: TypeAlias = Mapping[str, Pattern]
"""The patterns of one template by part; a template of one part calls it `ONLY`."""

Bank: TypeAlias = Mapping[str, tuple[Entry, ...]]
"""The entries of every section of `SECTIONS`, in the order of the files."""

ONLY = "wording"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """Which fields a wording has: all of ``required``, any of ``optional``, at least one of ``one_of`` if it names any.

    ``ordered`` asks for the required fields in the order given.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    ordered: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A list of the bank: the file it stands in, and the parts of each entry with their fields."""

    file: str
    parts: Mapping[str, Fields]


_TEXT_FIRST = Fields(required=("text", "pairs"), ordered=True)
_PAIRS_FIRST = Fields(required=("pairs", "text"), ordered=True)

SECTIONS: Mapping[str, Section] = {
    # How one pair is worded, by its kind.
    "free_form": Section(file="pairs.yaml", parts={ONLY: Fields(required=("question", "response"))}),
    "multiple_choice": Section(file="pairs.yaml", parts={ONLY: Fields(required=("question", "options", "answer"))}),
    "chain_of_thought": Section(
        file="reasoning.yaml", parts={ONLY: Fields(required=("question", "response"), optional=("conclusion",))}
    ),
    "multiple_choice_chain_of_thought": Section(
        file="reasoning.yaml",
        parts={ONLY: Fields(required=("question", "options", "cue", "response"), optional=("answer",))},
    ),
    # How the options of a multiple-choice question look.
    "option_styles": Section(
        file="options.yaml",
        parts={
            "option": Fields(required=("option",), optional=LABELS),
            "between": Fields(),
            "answer": Fields(one_of=("option", *LABELS)),
        },
    ),
    "option_lists": Section(file="options.yaml", parts={ONLY: Fields(required=("question", "options"))}),
    # Families that lay out all pairs of a text together.
    "numbered": Section(
        file="numbered.yaml",
        parts={
            "question": Fields(required=("number", "question")),
            "response": Fields(required=("number", "response")),
            "between": Fields(),
            "whole": Fields(required=("questions", "responses"), ordered=True),
        },
    ),
    "inline_few_shot": Section(
        file="inline_few_shot.yaml",
        parts={
            "example": Fields(required=("question", "response"), ordered=True),
            "between": Fields(),
            "posed": Fields(required=("question", "response"), ordered=True),
            "whole": Fields(required=("examples", "posed"), ordered=True),
        },
    ),
    "next_turn": Section(
        file="next_turn.yaml",
        parts={
            "text_first": _TEXT_FIRST,
            "pairs_first": _PAIRS_FIRST,
            "first": Fields(required=("question", "response"), ordered=True),
            "next": Fields(required=("question", "response"), ordered=True),
            "between": Fields(),
        },
    ),
    "dialogue_speakers": Section(file="dialogue.yaml", parts={"asks": Fields(), "replies": Fields()}),
    "dialogue_markers": Section(
        file="dialogue.yaml", parts={"turn": Fields(required=("speaker", "words")), "between": Fields()}
    ),
    # How a text and its pairs are put together.
    "text_first": Section(file="openings.yaml", parts={ONLY: _TEXT_FIRST}),
    "pairs_first": Section(file="openings.yaml", parts={ONLY: _PAIRS_FIRST}),
    "dialogue_text_first": Section(file="dialogue.yaml", parts={ONLY: _TEXT_FIRST}),
    "dialogue_pairs_first": Section(file="dialogue.yaml", parts={ONLY: _PAIRS_FIRST}),
    "plain_text_first": Section(file="openings.yaml", parts={ONLY: _TEXT_FIRST}),
    "plain_pairs_first": Section(file="openings.yaml", parts={ONLY: _PAIRS_FIRST}),
    # What stands between pairs, and between the examples of a chain.
    "separators": Section(file="separators.yaml", parts={"pairs": Fields(), "examples": Fields()}),
}


@cache
def load_bank() -> Bank:
    """The bank of the package.

    Raises:
        ValueError: A file does not fit `SECTIONS`; the message names file, line and section.
    """
    return parse_bank(_bank_files())


@cache
def bank_sha256() -> str:
    """SHA-256 over the names and contents of the bank's files as hexadecimal characters: the version of the bank."""
    digest = hashlib.sha256()
    for name, content in sorted(_bank_files().items()):
        for part in (name.encode(), content.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _bank_files() -> dict[str, str]:
    folder = resources.files("templates").joinpath("bank")
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".yaml")}


def parse_bank(files: Mapping[str, str]) -> Bank:
    """Reads and checks a bank.

    Args:
        files: The content of each file by its name.

    Raises:
        ValueError: A file or section is unknown, missing or there twice, an entry is not of its section's form, a
            wording has wrong fields, or two entries of a section are the same.
    """
    known_files = {section.file for section in SECTIONS.values()}
    if set(files) != known_files:
        raise ValueError(
            f"The template bank has the files {sorted(files)}; it needs exactly {sorted(known_files)}. "
            "A new file is declared with its sections in templates.bank.SECTIONS."
        )
    bank: dict[str, tuple[Entry, ...]] = {}
    for file, content in sorted(files.items()):
        for name, node in _sections_of(file, content):
            place = f"{file}, line {_line(node)}, section {name!r}"
            if name not in SECTIONS or SECTIONS[name].file != file:
                allowed = [known for known, section in SECTIONS.items() if section.file == file]
                raise ValueError(f"{place}: no such section; {file} holds {', '.join(allowed)}.")
            if name in bank:
                raise ValueError(f"{place}: the section stands twice; put its entries into one list.")
            bank[name] = _entries(file, name, node)
    missing = [name for name in SECTIONS if name not in bank]
    if missing:
        raise ValueError(f"{SECTIONS[missing[0]].file}: the section {missing[0]!r} is missing.")
    return MappingProxyType(bank)


def _sections_of(file: str, content: str) -> list[tuple[str, yaml.Node]]:
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{file}: a file of the bank is a mapping from section names to lists of entries.")
    return [(str(key.value), node) for key, node in root.value]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _entries(file: str, section: str, node: yaml.Node) -> tuple[Entry, ...]:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise ValueError(f"{file}, line {_line(node)}, section {section!r}: a section is a list of at least one entry.")
    line_of: dict[tuple[tuple[str, Pattern], ...], int] = {}
    for item in node.value:
        line = _line(item)
        try:
            entry = _parse_entry(item, parts=SECTIONS[section].parts)
        except ValueError as error:
            raise ValueError(f"{file}, line {line}, section {section!r}: {error}.") from error
        if entry in line_of:
            raise ValueError(f"{file}, line {line}, section {section!r}: repeats the entry of line {line_of[entry]}.")
        line_of[entry] = line
    return tuple(MappingProxyType(dict(entry)) for entry in line_of)


def _parse_entry(node: yaml.Node, *, parts: Mapping[str, Fields]) -> tuple[tuple[str, Pattern], ...]:
    if set(parts) == {ONLY}:
        wordings = [(ONLY, node)]
    elif isinstance(node, yaml.MappingNode):
        wordings = [(str(key.value), value) for key, value in node.value]
    else:
        raise ValueError(f"the entry must be a mapping with the parts {', '.join(parts)}")
    if sorted(name for name, _ in wordings) != sorted(parts):
        raise ValueError(f"the entry has the parts {', '.join(name for name, _ in wordings)}, not {', '.join(parts)}")
    return tuple((name, _parse_wording(value, fields=parts[name])) for name, value in wordings)


def _parse_wording(node: yaml.Node, *, fields: Fields) -> Pattern:
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        raise ValueError("a wording is a string; put it in double quotes")
    wording: str = node.value
    try:
        pattern = parse_pattern(wording)
    except ValueError as error:
        raise ValueError(f"the wording {wording!r} {error}") from error
    allowed = {*fields.required, *fields.optional, *fields.one_of}
    for name in pattern.fields:
        if name not in allowed:
            raise ValueError(f"the wording {wording!r} has the unknown field {name!r}; allowed: {_either(allowed)}")
    for name in fields.required:
        if name not in pattern.fields:
            raise ValueError(f"the wording {wording!r} lacks the field {name!r}")
    if fields.one_of and not set(fields.one_of) & set(pattern.fields):
        raise ValueError(f"the wording {wording!r} needs one of the fields {_either(fields.one_of)}")
    if fields.ordered and tuple(name for name in pattern.fields if name in fields.required) != fields.required:
        raise ValueError(f"the wording {wording!r} must have its fields in the order {', '.join(fields.required)}")
    return pattern


def _either(names: set[str] | tuple[str, ...]) -> str:
    return ", ".join(sorted(names)) or "none"
