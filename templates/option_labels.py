"""Labels of multiple-choice options: A, B, …; a, b, …; 1, 2, …; i, ii, …, for any number of options."""

from __future__ import annotations

from functools import cache

LABELS = ("upper", "lower", "number", "roman")
"""The kinds of labels: the fields that stand for them in a wording."""

_ROMAN_NUMERALS = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l")),
    *((40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)


@cache
def option_labels(index: int) -> dict[str, str]:
    """The label of each kind for the option at an index, counted from 0."""
    letters = _letters(index + 1)
    labels = {"upper": letters, "lower": letters.lower(), "number": str(index + 1), "roman": _roman(index + 1)}
    assert tuple(labels) == LABELS, labels
    return labels


def _letters(number: int) -> str:
    """A to Z, then AA, AB, …: base 26 without a digit for zero."""
    letters = ""
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def _roman(number: int) -> str:
    numeral = ""
    for value, symbol in _ROMAN_NUMERALS:
        count, number = divmod(number, value)
        numeral += symbol * count
    return numeral
