"""What a self-made instruction and its response must pass; each filter names its reason and gives its score.

- *Length*: in characters, since words are not separated in every script.
- *Repetition*: the share of word trigrams (in scripts written without spaces: of character trigrams) that occurred
  before in the same text. A model that is stuck in a loop scores near 1.
- *Language*: the probability that a text is in one of the wanted languages, by a classifier over byte n-grams
  (py3langid). Instruction and response are judged together: an instruction alone is often too short to tell.
- *Whole*: an empty text, one that its length limit cut off, or one that holds a special token of the model, which then
  has lost the format of the conversation.

Cost: linear in the length of the text; the language takes about a third of a millisecond, and the first one half a
second for the classifier's load. Not done here: duplicates (`beam_pipelines.near_duplicates`), and judging whether a
response is right.

Sources: Xu et al. 2024 (arXiv 2406.08464), section 2.2, for filtering what a model asks itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from synth_model.generation import Completion
from synth_model.language_identification import known_languages, language_probability

_UNIT = re.compile(r"[\u0e00-\u0e7f\u2e80-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u0e7f\u2e80-\u9fff\uf900-\ufaff]+")
_NGRAM_UNITS = 3


@dataclass(frozen=True, kw_only=True)
class InstructionFilterConfig:
    """Bounds of the filters.

    Args:
        min_instruction_characters: Shortest instruction.
        max_instruction_characters: Longest instruction.
        min_response_characters: Shortest response.
        max_response_characters: Longest response.
        max_repetition: Greatest share, from 0 to 1, of trigrams of a text that occurred in it before; 1 is off.
        languages: Codes (ISO 639-1) of the languages that are wanted; none turns the filter off.
        min_language_probability: Least probability, from 0 to 1, that the text is in one of them.
        max_similarity: Two instructions whose character 5-grams overlap more than this (Jaccard index, above 0 to 1)
            are near-duplicates, of which one stays; 1 finds equal ones only.
    """

    min_instruction_characters: int = 10
    max_instruction_characters: int = 2000
    min_response_characters: int = 2
    max_response_characters: int = 8000
    max_repetition: float = 0.3
    languages: list[str] = field(default_factory=lambda: ["en"])
    min_language_probability: float = 0.1
    max_similarity: float = 0.7

    def __post_init__(self) -> None:
        for side in ("instruction", "response"):
            least, most = getattr(self, f"min_{side}_characters"), getattr(self, f"max_{side}_characters")
            if not 1 <= least <= most:
                raise ValueError(
                    f"filters.min_{side}_characters is {least} and filters.max_{side}_characters {most}; they must be "
                    "at least 1 and in this order."
                )
        for name in ("max_repetition", "min_language_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"filters.{name} is {getattr(self, name)}; it must be from 0 to 1.")
        if not 0 < self.max_similarity <= 1:
            raise ValueError(f"filters.max_similarity is {self.max_similarity}; it must be above 0 and at most 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a text does not pass: a reason from a closed list, and the score with its bound."""

    reason: str
    detail: str


def check_languages(languages: Sequence[str]) -> None:
    """Refuses languages that the classifier does not know.

    Raises:
        ValueError: An unknown code, or the classifier is not installed.
    """
    if not languages:
        return
    unknown = sorted(set(languages) - set(known_languages()))
    if unknown:
        raise ValueError(f"filters.languages has {unknown}; known codes are {', '.join(known_languages())}.")


def refuse_instruction(
    completion: Completion, *, filters: InstructionFilterConfig, special_tokens: Sequence[str]
) -> Refusal | None:
    """Why an instruction does not pass, or None when it does."""
    return _refuse(
        completion,
        num_characters=(filters.min_instruction_characters, filters.max_instruction_characters),
        filters=filters,
        special_tokens=special_tokens,
    )


def refuse_response(
    completion: Completion, *, instruction: str, filters: InstructionFilterConfig, special_tokens: Sequence[str]
) -> Refusal | None:
    """Why a response, or the pair of instruction and response, does not pass, or None when both do."""
    refusal = _refuse(
        completion,
        num_characters=(filters.min_response_characters, filters.max_response_characters),
        filters=filters,
        special_tokens=special_tokens,
    )
    if refusal is not None or not filters.languages:
        return refusal
    probability = language_probability(f"{instruction}\n{completion.text}", languages=filters.languages)
    if probability < filters.min_language_probability:
        wanted = "/".join(filters.languages)
        return Refusal(
            reason="other_language",
            detail=f"probability {probability:.3f} of {wanted} is below {filters.min_language_probability}",
        )
    return None


def _refuse(
    completion: Completion,
    *,
    num_characters: tuple[int, int],
    filters: InstructionFilterConfig,
    special_tokens: Sequence[str],
) -> Refusal | None:
    text = completion.text.strip()
    if not text:
        return Refusal(reason="empty", detail=f"{completion.num_new_tokens} tokens without a word")
    if completion.finish_reason == "length":
        return Refusal(reason="cut_off", detail=f"cut off after {completion.num_new_tokens} tokens")
    found = next((token for token in special_tokens if token in text), None)
    if found is not None:
        return Refusal(reason="special_token", detail=f"holds the special token {found!r}")
    least, most = num_characters
    if len(text) < least:
        return Refusal(reason="too_short", detail=f"{len(text)} characters are below {least}")
    if len(text) > most:
        return Refusal(reason="too_long", detail=f"{len(text)} characters are above {most}")
    share = repetition(text)
    if share > filters.max_repetition:
        return Refusal(reason="repetitive", detail=f"repetition {share:.3f} is above {filters.max_repetition}")
    return None


def repetition(text: str) -> float:
    """The share, from 0 to below 1, of a text's trigrams that occurred in it before; 0 for a text without any."""
    units = _UNIT.findall(text.casefold())
    ngrams = [tuple(units[start : start + _NGRAM_UNITS]) for start in range(len(units) - _NGRAM_UNITS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
