"""Which language a text is in: a classifier over byte n-grams (py3langid), loaded once a process.

Cost: about a third of a millisecond a text of a few hundred characters; half a second for the first one, which loads
the classifier. Not done here: telling languages in one text apart. Below some forty characters it often errs.

Source: Lui and Baldwin 2012 (langid.py, ACL demo).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def check_available() -> None:
    """Refuses to start without the classifier.

    Raises:
        ValueError: It is not installed.
    """
    _classifier()


def known_languages() -> tuple[str, ...]:
    """The codes (ISO 639-1) that the classifier knows."""
    return tuple(_classifier().labels)


def language_probabilities(text: str) -> list[tuple[str, float]]:
    """Each known language with the probability, from 0 to 1, that the text is in it; most probable first."""
    return [(code, float(probability)) for code, probability in _classifier().rank(text)]


def language_probability(text: str, *, languages: Sequence[str]) -> float:
    """The probability, from 0 to 1, that a text is in one of the languages."""
    return sum(probability for code, probability in language_probabilities(text) if code in languages)


@lru_cache(maxsize=1)
def _classifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ValueError(
            "Languages are told by the package py3langid: install this project with its extra filters, or turn "
            "off what asks for the language."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
