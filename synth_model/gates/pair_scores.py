"""What is measured on a pair and its text, without a model.

*Grounding* is the share of a response's content units that occur in the text it is about (title included): words of
four letters or more, compared by their first six letters so that inflected forms match; in scripts written without
spaces, and in Hangul, whose words are few syllables with changing ends, pairs of neighbouring characters. A response of
a model that has lost sight of the text scores low; one that says the text's own words scores near 1. A response without
any content unit (``Yes.``, ``42``) scores 1, since nothing speaks against it.

*Likeness* of two instructions, or of a response to its instruction, is the Jaccard index of their character 5-grams
(`synth_model.text_similarity`). Against the instruction it is symmetric on purpose: a response that names one of the
options it was given is all taken from the instruction and yet right, but it is not all of the instruction.

*Language* is the probability that a pair is in the language of its text: the lesser of that of the instruction and that
of the response. A side too short for the classifier is judged by script alone: the share of its letters that are of a
script the text uses.

Cost: linear in the length of text, instruction and response; some tens of microseconds a pair and a tenth of a
millisecond a text of 2,000 characters, and about a third of a millisecond more for each side and each text that the
language classifier sees. Not done: judging whether what a grounded response says is true.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from contracts.records import InstructionPair
from synth_model.language_identification import language_probabilities, language_probability

_WORD = re.compile(r"[^\W_]+")
_BY_CHARACTER = re.compile(r"[\u0e00-\u0e7f\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff]")
_MIN_WORD_LETTERS = 4
_COMPARED_LETTERS = 6
# What the classifier sees of a text or a side at most; more changes its mind no more.
_CLASSIFIED_CHARACTERS = 1000
# Scripts that one text mixes as a matter of course.
_SCRIPT_FAMILIES = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "BOPOMOFO": "CJK", "IDEOGRAPHIC": "CJK"}


def grounding(response: str, *, known: frozenset[str]) -> float:
    """The share, from 0 to 1, of the response's content units that are among those of its text."""
    units = list(_content_units(response))
    return sum(unit in known for unit in units) / len(units) if units else 1.0


def content_units(text: str) -> frozenset[str]:
    """The content units of a text, for `grounding`."""
    return frozenset(_content_units(text))


def _content_units(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.casefold()):
        if _BY_CHARACTER.search(word):
            yield from (word[index : index + 2] for index in range(len(word) - 1))
        elif len(word) >= _MIN_WORD_LETTERS:
            yield word[:_COMPARED_LETTERS]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLanguage:
    """The language of a text, None when it is too short to tell, and the scripts that it uses."""

    language: str | None
    scripts: frozenset[str]


def text_language(text: str, *, min_characters: int) -> TextLanguage:
    """The language and the scripts of a text of any length."""
    seen = text[:_CLASSIFIED_CHARACTERS]
    return TextLanguage(
        language=language_probabilities(seen)[0][0] if len(seen) >= min_characters else None,
        # By distinct characters: a long text has few.
        scripts=frozenset(map(_script, set(_letters("".join(set(text)))))),
    )


def language_match(pair: InstructionPair, *, text: TextLanguage, min_characters: int) -> float:
    """The probability, from 0 to 1, that both sides of a pair are in the language and the scripts of the text."""
    score = 1.0
    for side in (pair.instruction, pair.response):
        letters = list(_letters(side))
        if letters:
            score = min(score, sum(_script(letter) in text.scripts for letter in letters) / len(letters))
        if text.language is not None and len(side) >= min_characters:
            seen = side[:_CLASSIFIED_CHARACTERS]
            score = min(score, language_probability(seen, languages=(text.language,)))
    return score


def _letters(text: str) -> Iterator[str]:
    # Compatibility forms, such as full-width Latin or mathematical letters, count as the letters they stand for.
    return filter(str.isalpha, unicodedata.normalize("NFKC", text))


@lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    """The script of a letter: the first word of its name, near enough to the property that Python does not have."""
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _SCRIPT_FAMILIES.get(name, name)
