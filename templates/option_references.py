"""What ties the options of a multiple-choice pair to their places or to their labels.

Options are shuffled and labelled anew. That makes nonsense of a pair whose words refer to places ("All of the above",
"the first option") or to labels ("Both A and B", "option C"), so two questions are asked of its words:

* `refers_to_order`: the options must keep their order. Labels do no harm.
* `refers_to_labels`: the options have labels of their own, name labels, or could be mistaken for one. New labels would
  say something else than the pair does.

A wrong yes costs a little variety, a wrong no a wrong answer, so the patterns lean to yes.

Cost: linear in the length of the texts; every alternative is bounded by a word. Not done here: languages other than
English, and references in whole sentences ("whichever comes last").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from templates.option_labels import option_labels

# What stands in front of a word. A set of characters at the start of a pattern is found twice as fast as "\b" and more.
_START = r"[\s(\[\"'“‘]"
# For text in lower case, which is faster than ignoring case.
_REFERS_TO_PLACE = re.compile(
    # "the first option", "the last two", "the preceding answers"
    _START + r"(?:above|fifth|first|former|fourth|last|latter|preceding|previous|second|third)"
    r" (?:alternatives?|answers?|choices?|ones?|options?|three|two)\b"
)
_REFERS_TO_OTHERS = re.compile(
    # "all of the above", "none of these", "any two of them", "both the preceding"
    _START + r"(?:(?:all|any|both|each|either|more|most|neither|none|one|some|three|two)(?: of)?(?: the)?"
    r" (?:above|answers?|below|choices|foregoing|former|latter|options|others?|preceding|previous|them|these|those)\b"
    # A line that is nothing but "Both" or "Neither."
    r"|(?<=\n)(?:all|any|both|either|neither|none)\.?(?:\n|\Z))"
)
_REFERS_TO_LABEL = re.compile(
    # "option B", "choices 1 and 3", "both (A) and (C)"
    _START + r"(?:(?:[Aa]lternative|[Aa]nswer|[Bb]oth|[Cc]hoice|[Oo]ption)s? \(?(?:[A-H]|[1-9]|[IVX]{1,4})\b"
    r"|(?:[Ee]ither|[Nn]either|[Oo]nly) \(?[A-H]\b"
    # "A only", "II only", "A and C", "a, b", "B/C", "I and III"
    r"|(?:[A-H]|[IVX]{1,4})\)? only\b"
    r"|[A-Ha-h]\)?(?:,| and| or| nor| ?[&/+]) ?\(?[A-Ha-h]\b"
    r"|[IVX]{1,4}(?:,| and| or) [IVX]{1,4}\b"
    # "(C)", "C)"
    r"|[A-Ha-h]\))"
)
_OWN_LABEL = re.compile(r"\s*[(\[]?(?:[A-Za-z]|[0-9]{1,2}|[ivx]{1,4})[.):\]]+(?:\s|\Z)")


def refers_to_order(options: Sequence[str], *, words_around: str) -> bool:
    """Whether an option, or the words around the options, refer to places in the list.

    An option that sums up others ("none of these") belongs where it stands; in a question the same words do no harm.
    """
    return (
        _REFERS_TO_OTHERS.search(_as_lines(*options).lower()) is not None
        or _REFERS_TO_PLACE.search(_as_lines(*options, words_around).lower()) is not None
    )


def refers_to_labels(options: Sequence[str], *, words_around: str) -> bool:
    """Whether an option has a label or reads as one of this list, or anything refers to a label."""
    labels = _labels(len(options))
    return (
        any(_OWN_LABEL.match(option) or option.strip(" ()[].:").lower() in labels for option in options)
        or _REFERS_TO_LABEL.search(_as_lines(*options, words_around)) is not None
    )


def _as_lines(*texts: str) -> str:
    return "\n".join(("", *texts))


@cache
def _labels(num_options: int) -> frozenset[str]:
    return frozenset(label.lower() for index in range(num_options) for label in option_labels(index).values())
