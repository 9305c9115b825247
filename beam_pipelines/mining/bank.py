"""The mining bank: connectives that mark a relation in a text, and the wordings of the tasks made from it.

A bank is one YAML file, ``mining_bank/english.yaml`` or a file of the user's in another language:

* ``language``: the code that sentence splitting goes by, such as ``en``.
* ``connectives``: for each of `CONNECTIVES` the phrases that mark it. A phrase that begins a sentence may have a comma
  behind it in the text; one that is written with its comma must have it there. Letters match as they are written.
* ``unfinished_ends``: words that a whole clause does not end with. ``no_terms``: words that a term does not begin with.
* ``wordings``: for each of `FORMS` a list of instructions with the form's fields. Where the response is one of several
  options, a wording is a mapping: its ``question``, and the option for each relation.

Adding a wording means adding a line to the file; nothing else changes.

Cost: milliseconds. Not done here: reading a text (`beam_pipelines.mining.findings`), choosing (`...mining.tasks`).
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from contracts import storage
from templates.patterns import Pattern, parse_pattern


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a task shows and what it asks for.

    Args:
        fields: The values that its instruction quotes, each exactly once.
        response: The value that is its response; None where the response is an option of its wording.
    """

    fields: tuple[str, ...] = ()
    response: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The values without which the form cannot be taken."""
        return self.fields if self.response is None else (*self.fields, self.response)


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A relation found in a text: the kind of task it belongs to, and the forms that a task about it may take."""

    kind: str
    forms: tuple[str, ...]


FORMS: Mapping[str, Form] = {
    "title_of_text": Form(response="title"),
    "opening_from_title": Form(fields=("title",), response="opening"),
    "sentence_from_keywords": Form(fields=("keywords",), response="sentence"),
    "definition_of_term": Form(fields=("term",), response="definition"),
    "term_of_definition": Form(fields=("definition",), response="term"),
    "inference_label": Form(fields=("first", "second")),
    "entailed_sentence": Form(fields=("first",), response="second"),
    "neutral_sentence": Form(fields=("first",), response="second"),
    "contradicting_sentence": Form(fields=("first",), response="second"),
    "effect_of_cause": Form(fields=("cause",), response="effect"),
    "cause_of_effect": Form(fields=("effect",), response="cause"),
    "paraphrase_label": Form(fields=("first", "second")),
    "restated_sentence": Form(fields=("first",), response="second"),
    "differing_sentence": Form(fields=("first",), response="second"),
    "ending_of_passage": Form(fields=("passage",), response="ending"),
}

RELATIONS: Mapping[str, Relation] = {
    "title": Relation(kind="summary", forms=("title_of_text", "opening_from_title")),
    "keywords": Relation(kind="word_to_text", forms=("sentence_from_keywords",)),
    "definition": Relation(kind="word_to_text", forms=("definition_of_term", "term_of_definition")),
    "entailment": Relation(kind="inference", forms=("inference_label", "entailed_sentence")),
    "neutral": Relation(kind="inference", forms=("inference_label", "neutral_sentence")),
    "contradiction": Relation(kind="inference", forms=("inference_label", "contradicting_sentence")),
    "causation": Relation(kind="cause_effect", forms=("effect_of_cause", "cause_of_effect")),
    "restatement": Relation(kind="paraphrase", forms=("paraphrase_label", "restated_sentence")),
    "difference": Relation(kind="paraphrase", forms=("paraphrase_label", "differing_sentence")),
    "ending": Relation(kind="completion", forms=("ending_of_passage",)),
}

KINDS = tuple(dict.fromkeys(relation.kind for relation in RELATIONS.values()))

# What begins a sentence and tells how it stands to the one before it.
BETWEEN_SENTENCES = ("entailment", "neutral", "contradiction", "effect", "restatement", "difference")
# What stands inside a sentence between an effect and its cause, a term and its definition.
INSIDE_SENTENCES = ("cause", "definition")
CONNECTIVES = (*BETWEEN_SENTENCES, *INSIDE_SENTENCES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """One way to word a form; ``options`` gives the option for each relation, and is empty for an open response."""

    instruction: Pattern
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningBank:
    """A checked bank; ``sha256`` is the hash of its file. The other fields are described above."""

    language: str
    connectives: Mapping[str, tuple[str, ...]]
    unfinished_ends: frozenset[str]
    no_terms: frozenset[str]
    wordings: Mapping[str, tuple[Wording, ...]]
    sha256: str


def load_mining_bank(name_or_path: str) -> MiningBank:
    """A bank by the name of a shipped file (such as ``english``) or the path of a YAML file.

    Raises:
        ValueError: No such file, or it is not a bank; the message names the file, the section and the entry.
    """
    folder = importlib.resources.files("beam_pipelines") / "mining_bank"
    shipped = folder / f"{name_or_path}.yaml"
    if "/" not in name_or_path and shipped.is_file():
        return parse_mining_bank(shipped.read_text("utf-8"), origin=name_or_path)
    found = None if storage.is_folder(name_or_path) else storage.read_text(name_or_path, missing=None)
    if found is None:
        names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        raise ValueError(f"There is no mining bank {name_or_path!r}: give one of {names} or the path of a YAML file.")
    return parse_mining_bank(found, origin=name_or_path)


def parse_mining_bank(content: str, *, origin: str) -> MiningBank:
    """Reads and checks a bank.

    Args:
        content: The file as text.
        origin: Names the file in messages.

    Raises:
        ValueError: A section is missing or unknown, a phrase marks two relations, or a wording does not fit its form.
    """
    try:
        raw = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"The mining bank {origin!r} is not valid YAML: {error}") from error
    try:
        _check_keys(raw, allowed=("language", "connectives", "unfinished_ends", "no_terms", "wordings"))
        if not isinstance(raw["language"], str) or not raw["language"]:
            raise ValueError(f"language must be a code such as 'en', not {raw['language']!r}")
        return MiningBank(
            language=raw["language"],
            connectives=_parse_connectives(raw["connectives"]),
            unfinished_ends=frozenset(_phrases(raw["unfinished_ends"], "unfinished_ends")),
            no_terms=frozenset(_phrases(raw["no_terms"], "no_terms")),
            wordings=_parse_wordings(raw["wordings"]),
            sha256=hashlib.sha256(content.encode()).hexdigest(),
        )
    except ValueError as error:
        raise ValueError(f"The mining bank {origin!r}: {error}.") from error


def _check_keys(raw: Any, *, allowed: tuple[str, ...], place: str = "the file") -> None:
    if not isinstance(raw, dict) or set(raw) != set(allowed):
        given = sorted(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{place} must be a mapping with exactly the keys {sorted(allowed)}, not {given}")


def _phrases(raw: Any, section: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or not raw or not all(isinstance(item, str) and item.strip() == item for item in raw):
        raise ValueError(f"{section} must be a list of phrases without surrounding space, not {raw!r}")
    if "" in raw or len(set(raw)) < len(raw):
        raise ValueError(f"{section} has an empty phrase or one twice")
    return tuple(raw)


def _parse_connectives(raw: Any) -> dict[str, tuple[str, ...]]:
    _check_keys(raw, allowed=CONNECTIVES, place="connectives")
    connectives = {name: _phrases(raw[name], f"connectives.{name}") for name in CONNECTIVES}
    for places in (BETWEEN_SENTENCES, INSIDE_SENTENCES):
        marks: dict[str, str] = {}
        for name in places:
            for phrase in connectives[name]:
                first = marks.setdefault(phrase.removesuffix(","), name)
                if first != name:
                    raise ValueError(f"the connective {phrase!r} stands for both {first} and {name}; keep one of them")
    return connectives


def _parse_wordings(raw: Any) -> dict[str, tuple[Wording, ...]]:
    _check_keys(raw, allowed=tuple(FORMS), place="wordings")
    wordings: dict[str, tuple[Wording, ...]] = {}
    for form, entries in raw.items():
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"wordings.{form} must be a list of at least one wording")
        parsed = []
        for number, entry in enumerate(entries, start=1):
            try:
                parsed.append(_parse_wording(entry, form=form))
            except ValueError as error:
                raise ValueError(f"wordings.{form}, entry {number}: {error}") from error
        if len({wording.instruction for wording in parsed}) < len(parsed):
            raise ValueError(f"wordings.{form} has an instruction twice")
        wordings[form] = tuple(parsed)
    return wordings


def _parse_wording(entry: Any, *, form: str) -> Wording:
    options: dict[str, str] = {}
    instruction = entry
    if FORMS[form].response is None:
        relations = tuple(name for name, relation in RELATIONS.items() if form in relation.forms)
        _check_keys(entry, allowed=("question", *relations), place="a wording")
        options = {relation: entry[relation] for relation in relations}
        instruction = entry["question"]
        if not all(isinstance(option, str) and option.strip() and "\n" not in option for option in options.values()):
            raise ValueError("an option is a text of one line; put words such as Yes in quotes")
        if len(set(options.values())) < len(options):
            raise ValueError("two relations have the same option")
    if not isinstance(instruction, str):
        raise ValueError(f"an instruction is a text, not {instruction!r}")
    try:
        pattern = parse_pattern(instruction)
    except ValueError as error:
        raise ValueError(f"the instruction {instruction!r} {error}") from error
    if sorted(pattern.fields) != sorted(FORMS[form].fields):
        raise ValueError(f"the instruction {instruction!r} must have exactly the fields {list(FORMS[form].fields)}")
    return Wording(instruction=pattern, options=options)
