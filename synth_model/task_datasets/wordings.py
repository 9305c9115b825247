"""The language of the table of task datasets: paths into a record, and wordings with slots for what paths find.

A *path* names values inside nested JSON: ``a.b`` is a field of a field, ``a[0]`` an element, ``a[]`` every element of a
list, ``a.*`` every value of an object; a path may begin with ``[`` or ``*`` for a record that is itself a list or an
object. A path that does not lead anywhere finds nothing, which is no error: sets leave fields out.

A *wording* is a text with slots: ``{path}`` for one value, ``{path:separator}`` for all values that a path with ``[]``
or ``*`` finds, joined. Values are inserted, never formatted. Text is inserted without surrounding space, truth values
as ``Yes`` and ``No``, numbers in digits, and what is neither (an object, a list, nothing) not at all.

Paths are looked up in *scopes*, innermost first: the question, the record it stands in, what the record stands in. The
first scope that has the path's first field decides.

Cost: linear in what is found. Paths and wordings are parsed once a process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

Scopes: TypeAlias = tuple[Any, ...]
"""JSON values that paths are looked up in, innermost first."""

_EACH = "[]"
_VALUES = "*"
_STEP = re.compile(r"(?:^|\.)(?P<name>[^.\[\]*{}:]+)|(?P<each>\[\])|\[(?P<index>\d+)\]|(?:^|\.)(?P<values>\*)")
_SLOT = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Slot:
    path: str
    separator: str | None


@cache
def _steps(path: str) -> tuple[str | int, ...]:
    """A path as field names, indices, `_EACH` and `_VALUES`."""
    steps: list[str | int] = []
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            raise ValueError(
                f"{path!r} is not a path (at {path[position:]!r}); a path is made of names, '.', '[]', '[0]' and '*'."
            )
        index = match["index"]
        steps.append(int(index) if index is not None else match["name"] or match["each"] or match["values"])
        position = match.end()
    return tuple(steps)


def check_path(path: str) -> None:
    """Raises ValueError when a text is not a path."""
    _steps(path)


def finds_many(path: str) -> bool:
    """Whether a path may find more than one value."""
    return _EACH in _steps(path) or _VALUES in _steps(path)


def find_values(path: str, scopes: Scopes) -> list[Any]:
    """The values that a path finds, in order; the empty path finds the innermost scope itself."""
    steps = _steps(path)
    found = list(scopes[:1])
    if steps and isinstance(steps[0], str) and steps[0] not in (_EACH, _VALUES):
        found = [scope for scope in scopes if isinstance(scope, Mapping) and steps[0] in scope][:1]
    for step in steps:
        found = [value for outer in found for value in _take(outer, step)]
    return found


def find_scopes(path: str, scopes: Scopes) -> list[Scopes]:
    """As `find_values` from the innermost scope on, each value with all that it stands in behind it."""
    found = [scopes]
    for step in _steps(path):
        found = [(value, *outer) for outer in found for value in _take(outer[0], step)]
    return found


def _take(value: Any, step: str | int) -> Sequence[Any]:
    if step == _EACH:
        return value if isinstance(value, list) else []
    if step == _VALUES:
        return list(value.values()) if isinstance(value, Mapping) else []
    if isinstance(step, int):
        return value[step : step + 1] if isinstance(value, list) else []
    return [value[step]] if isinstance(value, Mapping) and step in value else []


def text_of(value: Any) -> str:
    """A single value as text without surrounding space; empty for what is no single value."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, float)) else ""


@cache
def _parts(wording: str) -> tuple[str | _Slot, ...]:
    """A wording as literal texts and slots in turn."""
    parts: list[str | _Slot] = []
    position = 0
    for match in _SLOT.finditer(wording):
        parts += [wording[position : match.start()], _Slot(path=match[1], separator=match[2])]
        position = match.end()
    return (*parts, wording[position:])


def check_wording(wording: str) -> None:
    """Refuses a wording that cannot be filled.

    Raises:
        ValueError: A slot holds no path, a brace is left over, or a separator is missing or has nothing to separate.
    """
    for part in _parts(wording):
        if isinstance(part, str):
            if "{" in part or "}" in part:
                raise ValueError(f"the wording {wording!r} has a brace that belongs to no slot.")
        elif finds_many(part.path) != (part.separator is not None):
            raise ValueError(
                f"the wording {wording!r}: the slot {part.path!r} must have a separator exactly when it finds many "
                "values, as in '{path[]:, }'."
            )


def fill(wording: str, scopes: Scopes) -> str:
    """A wording with its slots filled, without surrounding space; joined values keep their places, empty ones too."""
    filled = []
    for part in _parts(wording):
        if isinstance(part, str):
            filled.append(part)
        else:
            filled.append((part.separator or "").join(map(text_of, find_values(part.path, scopes))))
    return "".join(filled).strip()


def fill_all(wording: str, scopes: Scopes) -> list[str]:
    """The texts that a wording gives where several are asked for.

    ``{path[]}`` and nothing else gives a text for every value found (empty ones too: positions count), any other
    wording its one filled text.
    """
    match = _SLOT.fullmatch(wording)
    if match is None or match[2] is not None or not finds_many(match[1]):
        return [fill(wording, scopes)]
    return [text_of(value) for value in find_values(match[1], scopes)]


def check_list_wording(wording: str) -> None:
    """As `check_wording`, for a wording that `fill_all` takes."""
    match = _SLOT.fullmatch(wording)
    if match is None or match[2] is not None or not finds_many(match[1]):
        check_wording(wording)


def find_rows(rows: str | Mapping[str, str], scopes: Scopes) -> list[Any]:
    """Repeated parts of a record: the values of a path, or columns (each the values of a path) as rows.

    Columns are lists in parallel, as the hub's files store a list of objects; they end with the shortest.
    """
    if isinstance(rows, str):
        return find_values(rows, scopes)
    columns = [find_values(path, scopes) for path in rows.values()]
    return [dict(zip(rows, values, strict=True)) for values in zip(*columns, strict=False)]
