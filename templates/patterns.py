r"""A template pattern: wording with named fields, such as ``"Question: {question}\nAnswer: {response}"``.

A pattern is split into literal parts and field names once, when the bank is loaded. Filling it joins the literals with
the values, so a value is inserted and never read: braces, percent signs and backslashes in a corpus stay what they are.

Cost: linear in the length of the result. Not offered: conversions, format widths, literal braces, conditions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FIELD = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """Wording around fields: ``literals[0]``, field 0, ``literals[1]``, field 1, …, ``literals[-1]``."""

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.literals) == len(self.fields) + 1, (self.literals, self.fields)

    def fill(self, **values: str) -> str:
        """The wording with each field replaced by its value; values of fields that it does not have are ignored."""
        parts = [self.literals[0]]
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            parts += (values[name], literal)
        return "".join(parts)


def parse_pattern(wording: str) -> Pattern:
    """Splits a wording at its ``{field}`` marks.

    Raises:
        ValueError: It is empty, has a brace that belongs to no field, a field twice, or two fields with nothing
            between them.
    """
    parts = _FIELD.split(wording)
    pattern = Pattern(literals=tuple(parts[::2]), fields=tuple(parts[1::2]))
    if not wording:
        raise ValueError("is empty")
    if any(brace in literal for literal in pattern.literals for brace in "{}"):
        raise ValueError("has a brace outside a field; a field is written {name} in lower-case letters and underscores")
    if len(set(pattern.fields)) != len(pattern.fields):
        raise ValueError(f"names a field twice; its fields are {', '.join(pattern.fields)}")
    if "" in pattern.literals[1:-1]:
        raise ValueError("has two fields with nothing between them; their values would run together")
    return pattern
