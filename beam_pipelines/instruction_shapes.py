"""Finds the instruction and the response in a record, whichever of the usual shapes it has.

A record has the first of `SHAPES` whose fields it holds (a null counts as absent):

- a *conversation* is a list of turns, each with ``role`` and ``content``, or ``from`` and ``value``. The last turn of
  the assistant is the response, and everything before it the instruction, turn by turn with blank lines between: the
  text that is trained on is then the conversation as it went, and no later turn stands without what it refers to;
- a *pair* is two fields, in the Alpaca shape with a third one, ``input``, that follows the instruction.

Left out are system turns and prompts (a conversation's ``system`` turn, a field such as ``system_prompt``), which
address an assistant in service and are no part of the question, and turns of the user that nobody answered.

Cost: linear in the record. Not done here: calls of tools; a conversation with such a turn is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts.record_files import lone_surrogate
from contracts.records import InstructionPair


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Which fields make a pair.

    Args:
        instruction: The field of the instruction, or that of the list of turns.
        response: The field of the response; None for a list of turns.
        input: A field that follows the instruction where it is there and holds text.
    """

    instruction: str
    response: str | None
    input: str | None = None

    def __str__(self) -> str:
        names = [self.instruction, *([f"({self.input})"] if self.input else []), *filter(None, [self.response])]
        return ", ".join(names)


SHAPES = (
    Shape(instruction="messages", response=None),
    Shape(instruction="conversations", response=None),
    Shape(instruction="instruction", response="response", input="input"),
    Shape(instruction="instruction", response="output", input="input"),
    Shape(instruction="question", response="response"),
    Shape(instruction="question", response="answer"),
    Shape(instruction="prompt", response="response"),
    Shape(instruction="prompt", response="completion"),
)

_USER_ROLES = ("user", "human")
_ASSISTANT_ROLES = ("assistant", "gpt", "model", "bot")
_SYSTEM_ROLES = ("system", "developer")


def find_pair(values: Mapping[str, Any]) -> InstructionPair | str:
    """The pair of a record, both sides stripped, or in words why there is none."""
    for shape in SHAPES:
        if all(values.get(field) is not None for field in (shape.instruction, shape.response) if field is not None):
            break
    else:
        known = "; ".join(map(str, SHAPES))
        return f"the record has {sorted(values)[:20]}, which is none of the known shapes: {known}"
    found = (
        _pair_of_turns(values[shape.instruction])
        if shape.response is None
        else _pair_of_fields(values, instruction=shape.instruction, response=shape.response, extra=shape.input)
    )
    if isinstance(found, str):
        return f"field {shape.instruction!r}: {found}" if shape.response is None else found
    return found


def _pair_of_fields(
    values: Mapping[str, Any], *, instruction: str, response: str, extra: str | None
) -> InstructionPair | str:
    for field in (instruction, response):
        if not _is_text(values[field]):
            return f"field {field!r} holds no text; the record has {sorted(values)[:20]}"
    parts = [values[instruction].strip()]
    if extra is not None and values.get(extra):
        if not isinstance(values[extra], str) or lone_surrogate(values[extra]) is not None:
            return f"field {extra!r} holds no text; the record has {sorted(values)[:20]}"
        parts.append(values[extra].strip())
    return InstructionPair(instruction="\n\n".join(filter(None, parts)), response=values[response].strip())


def _pair_of_turns(turns: Any) -> InstructionPair | str:
    if not isinstance(turns, (list, tuple)):
        return f"holds a {type(turns).__name__}, not a list of turns"
    spoken: list[tuple[bool, str]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            return f"turn {number} is a {type(turn).__name__}, not an object with role and content"
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role in _SYSTEM_ROLES:
            continue
        if role not in (*_USER_ROLES, *_ASSISTANT_ROLES):
            known = ", ".join((*_USER_ROLES, *_ASSISTANT_ROLES, *_SYSTEM_ROLES))
            return f"turn {number} has the role {role!r}; known are {known}"
        if not _is_text(content):
            return f"turn {number} holds no text"
        spoken.append((role in _ASSISTANT_ROLES, content.strip()))
    while spoken and not spoken[-1][0]:
        spoken.pop()
    if len(spoken) < 2 or all(is_assistant for is_assistant, _ in spoken):
        return "has no turn of the user that the assistant answered"
    *before, (_, response) = spoken
    return InstructionPair(instruction="\n\n".join(text for _, text in before), response=response)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and lone_surrogate(value) is None
