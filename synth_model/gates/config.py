"""Which gates are on, and their bounds."""

from __future__ import annotations

from dataclasses import dataclass

from synth_model import language_identification
from synth_model.scoring import SCORING_KINDS

_SHARES = (
    "min_grounding",
    "max_instruction_overlap",
    "max_similarity_in_text",
    "min_language_probability",
    "max_similarity_in_corpus",
)
_COUNTS = (
    "min_language_characters",
    "min_instruction_characters",
    "max_instruction_characters",
    "min_response_characters",
    "max_response_characters",
    "max_same_responses_in_text",
    "max_repeats_in_corpus",
)


@dataclass(frozen=True, kw_only=True)
class PairGateConfig:
    """Bounds of the gates; by default each is off. See `synth_model.gates.pair_scores` for what is measured.

    Args:
        min_grounding: Least share, from 0 to 1, of a response's content that occurs in its text; 0 is off.
        max_instruction_overlap: Greatest likeness, from 0 to 1, of a response to its instruction; 1 is off.
        max_similarity_in_text: Greatest likeness, from 0 to 1, of an instruction to an earlier one of the same text;
            1 is off.
        max_same_responses_in_text: How many pairs of a text may have one and the same response, case and white space
            aside; 0 is off.
        min_language_probability: Least probability, from 0 to 1, that instruction and response are in the language of
            the text; 0 is off.
        min_language_characters: A side of a pair shorter than this is judged by its script alone.
        min_instruction_characters: Shortest instruction; 0 is off.
        max_instruction_characters: Longest instruction; 0 is off.
        min_response_characters: Shortest response; 0 is off.
        max_response_characters: Longest response; 0 is off.
        min_context_dependence: Least gain, in nats a token, of the response's likelihood from the text; null is off.
            The model of the engine is asked twice for each pair, which costs about as much as reading the text again.
        max_repeats_in_corpus: How many equal or similar instructions may stand in the whole corpus; 0 is off.
        max_similarity_in_corpus: Likeness, above 0 to 1, above which instructions count as similar for that; at 1 only
            equal ones do.
        report_only: Measure and count, but reject nothing.
    """

    min_grounding: float = 0.0
    max_instruction_overlap: float = 1.0
    max_similarity_in_text: float = 1.0
    max_same_responses_in_text: int = 0
    min_language_probability: float = 0.0
    min_language_characters: int = 40
    min_instruction_characters: int = 0
    max_instruction_characters: int = 0
    min_response_characters: int = 0
    max_response_characters: int = 0
    min_context_dependence: float | None = None
    max_repeats_in_corpus: int = 0
    max_similarity_in_corpus: float = 0.9
    report_only: bool = False

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"gates.{name} is {getattr(self, name)}; it must be from 0 to 1.")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"gates.{name} is {getattr(self, name)}; it must be at least 0.")
        if not self.max_similarity_in_corpus:
            raise ValueError("gates.max_similarity_in_corpus is 0; it must be above 0 and at most 1.")
        for side in ("instruction", "response"):
            least, most = getattr(self, f"min_{side}_characters"), getattr(self, f"max_{side}_characters")
            if most and least > most:
                raise ValueError(
                    f"gates.min_{side}_characters is {least} and gates.max_{side}_characters {most}: nothing is both; "
                    "give them in this order, or 0 for none."
                )

    def check(self, *, engine_kind: str) -> None:
        """Refuses gates that cannot work here, before any work.

        Args:
            engine_kind: The kind of the engine that writes the pairs.

        Raises:
            ValueError: The engine cannot score, or a package is not installed.
        """
        if self.min_context_dependence is not None and engine_kind not in SCORING_KINDS:
            raise ValueError(
                f"gates.min_context_dependence needs an engine that tells how likely a given response is; engine.kind "
                f"{engine_kind!r} cannot. Use one of {list(SCORING_KINDS)}, or turn the gate off with null."
            )
        if self.min_language_probability:
            language_identification.check_available()
