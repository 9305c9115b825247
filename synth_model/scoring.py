"""How likely a model finds given words: requests in, one outcome a request out.

The counterpart of `synth_model.generation` for engines that can tell the probability of a text they did not write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from contracts.storage import json_sha256
from synth_model.generation import Failure, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringRequest:
    """Words whose likelihood is asked for, and what stands before them.

    Args:
        prompt: What comes first; requests with the same one are computed together.
        lead: What follows it and is not scored; not empty.
        continuation: What is scored, behind both.
    """

    prompt: Prompt
    lead: str
    continuation: str

    def __post_init__(self) -> None:
        assert self.lead, "something must stand between the prompt and what is scored"
        assert self.continuation, "there must be something to score"


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The natural logarithm of a continuation's probability, summed over its tokens, and how many these are."""

    log_likelihood: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.log_likelihood / self.num_tokens


ScoringOutcome = Score | Failure


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScores:
    """The outcomes of all requests about one text, in their order: what is computed, and journaled, together."""

    outcomes: tuple[ScoringOutcome, ...]


def text_scores_from_fields(*, outcomes: Sequence[dict[str, Any]]) -> TextScores:
    """`TextScores` without a failure, from their fields as a journal holds them."""
    return TextScores(outcomes=tuple(Score(**fields) for fields in outcomes))


class ScoringEngine(Protocol):
    """A loaded model that scores continuations."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringOutcome]:
        """One outcome a request, in the requests' order. A bad request is a `Failure` of its own."""


def scoring_key(requests: Sequence[ScoringRequest], *, model_id: str) -> str:
    """The identity of the scores of some requests: a hash of model and requests (64 hexadecimal characters)."""
    return json_sha256({"model": model_id, "scoring": [asdict(request) for request in requests]})


SCORING_KINDS = ("transformers", "fake")
"""Kinds of engines that can score."""
