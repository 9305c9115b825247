"""Few-shot examples: texts with pairs that stand before the texts of every chain, whichever kind of prompt is used.

They come from a YAML file: ``examples`` is a list, ``examples_by_source`` maps patterns of a document's source (as
`fnmatch` reads them, ``medical*``) to lists that stand in place of the former; the first pattern that matches counts.
So a corpus of several domains shows each of its texts examples of its own kind. In a chain all documents are of one
source: all its rounds show the same examples.

Not done here: choosing examples by what a text says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import yaml

from contracts import storage
from contracts.records import Document, Example, InstructionPair

EXAMPLES, EXAMPLES_BY_SOURCE = "examples", "examples_by_source"


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShotExamples:
    """Examples by source.

    Args:
        default: For a source that no pattern matches.
        by_source: Patterns with their examples, in the order in which they are tried.
    """

    default: tuple[Example, ...] = ()
    by_source: tuple[tuple[str, tuple[Example, ...]], ...] = ()

    def for_source(self, source: str) -> tuple[Example, ...]:
        """The examples that a text of a source is shown."""
        for pattern, examples in self.by_source:
            if fnmatchcase(source, pattern):
                return examples
        return self.default


def load_examples(path: str) -> FewShotExamples:
    """The examples of a YAML file.

    Raises:
        ValueError: No such file, or it holds something else; the message names the file and the entry.
    """
    content = None if storage.is_folder(path) else storage.read_text(path, missing=None)
    if content is None:
        raise ValueError(f"There is no file of examples {path!r}; give the path of a YAML file.")
    return _parse_file(content, origin=path)


@lru_cache(maxsize=16)
def _parse_file(content: str, *, origin: str) -> FewShotExamples:
    try:
        raw = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"The file of examples {origin!r} is not valid YAML: {error}") from error
    allowed = {EXAMPLES, EXAMPLES_BY_SOURCE}
    if not isinstance(raw, dict) or not raw or set(raw) - allowed:
        given = sorted(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"The file of examples {origin!r} may have the keys {sorted(allowed)}, not {given}.")
    return parse_examples(raw, origin=f"The file of examples {origin!r}")


def parse_examples(raw: Mapping[str, Any], *, origin: str) -> FewShotExamples:
    """The examples in a mapping that was read from YAML; other keys are left alone.

    Args:
        raw: The mapping.
        origin: What it was read from, for messages.

    Raises:
        ValueError: An entry is no example.
    """
    by_source = raw.get(EXAMPLES_BY_SOURCE) or {}
    if not isinstance(by_source, dict):
        raise ValueError(f"{origin}: {EXAMPLES_BY_SOURCE} must map sources to lists of examples, not {by_source!r}.")
    return FewShotExamples(
        default=_parse_list(raw.get(EXAMPLES) or [], origin=f"{origin}: {EXAMPLES}"),
        by_source=tuple(
            (str(pattern), _parse_list(entries or [], origin=f"{origin}: {EXAMPLES_BY_SOURCE}.{pattern}"))
            for pattern, entries in by_source.items()
        ),
    )


def _parse_list(entries: Any, *, origin: str) -> tuple[Example, ...]:
    if not isinstance(entries, list):
        raise ValueError(f"{origin} must be a list, not {entries!r}.")
    return tuple(_parse_example(entry, origin=origin) for entry in entries)


def _parse_example(entry: Any, *, origin: str) -> Example:
    try:
        text, pairs = entry["text"], [(pair["question"], pair["answer"]) for pair in entry["pairs"]]
        is_complete = bool(pairs) and all(part is not None and str(part).strip() for part in (text, *sum(pairs, ())))
    except (TypeError, KeyError):
        is_complete = False
    if not is_complete:
        raise ValueError(f"{origin}: an example needs text and pairs of question and answer; got {entry!r}.")
    return Example(
        document=Document(doc_id="", source="", text=str(text).strip()),
        pairs=tuple(
            InstructionPair(instruction=str(question).strip(), response=str(answer).strip())
            for question, answer in pairs
        ),
    )
