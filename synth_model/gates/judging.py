"""Holds the pairs of a text against the gates: each gate that is on measures each pair, and the first one that a pair
fails rejects it, with its score.

Every pair is measured by every gate that is on, whether or not another one has refused it, so that each distribution
of scores is that of all pairs. Two gates see fewer: context dependence, which costs inference, is asked about pairs
that have passed the others (`synth_model.gates.context_dependence`), and repeats in the corpus are counted among the
pairs that have passed everything (`beam_pipelines.transforms.limit_repeated_instructions`).

Within a text, a pair is compared with the earlier ones that passed here. Nothing depends on other
texts, so neither on order nor on workers. With ``report_only`` everything is measured just so, and nothing rejected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from contracts.accounting import GATE_STAGE
from contracts.records import Document, InstructionPair, Reject
from contracts.score_histograms import bin_index
from synth_model.gates.config import PairGateConfig
from synth_model.gates.pair_scores import content_units, grounding, language_match, text_language
from synth_model.text_similarity import jaccard, normalize, shingles

_SHARE_EDGES = tuple(step / 20 for step in range(1, 21))
_COUNT_EDGES = tuple(float(count) for count in range(1, 17))
_CHARACTER_EDGES = tuple(float(1 << power) for power in range(14))

GROUNDING = "grounding"
INSTRUCTION_OVERLAP = "instruction_overlap"
SIMILARITY_IN_TEXT = "similarity_in_text"
SAME_RESPONSES_IN_TEXT = "same_responses_in_text"
LANGUAGE = "language_probability"
INSTRUCTION_CHARACTERS = "instruction_characters"
RESPONSE_CHARACTERS = "response_characters"
CONTEXT_DEPENDENCE = "context_dependence"
SIMILARITY_IN_CORPUS = "similarity_in_corpus"

SCORE_EDGES: Mapping[str, tuple[float, ...]] = {
    GROUNDING: _SHARE_EDGES,
    INSTRUCTION_OVERLAP: _SHARE_EDGES,
    SIMILARITY_IN_TEXT: _SHARE_EDGES,
    SAME_RESPONSES_IN_TEXT: _COUNT_EDGES,
    LANGUAGE: _SHARE_EDGES,
    INSTRUCTION_CHARACTERS: _CHARACTER_EDGES,
    RESPONSE_CHARACTERS: _CHARACTER_EDGES,
    CONTEXT_DEPENDENCE: tuple(step / 4 for step in range(-8, 25)),
    SIMILARITY_IN_CORPUS: _SHARE_EDGES,
}
"""Where the bins of each gate's histogram begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a pair does not pass: a reason from a closed list, and the score with its bound."""

    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The score of a pair at a gate, None when there could be none, and the refusal that follows, if one does."""

    gate: str
    score: float | None
    refusal: Refusal | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPair:
    """A pair with its measurements, in the order of the gates."""

    pair: InstructionPair
    measurements: tuple[Measurement, ...]

    @property
    def refusal(self) -> Refusal | None:
        """Of the first gate that the pair fails; None when it passes all."""
        return next((item.refusal for item in self.measurements if item.refusal), None)


def score_counts(judged: Iterable[JudgedPair]) -> Iterator[tuple[str, tuple[int, bool]]]:
    """What the histograms count of some pairs: gate, then bin and whether the score is outside its bound."""
    for item in judged:
        for measurement in item.measurements:
            if measurement.score is not None:
                index = bin_index(measurement.score, edges=SCORE_EDGES[measurement.gate])
                yield measurement.gate, (index, measurement.refusal is not None)


def at_least(gate: str, score: float, *, bound: float, reason: str) -> Measurement:
    """The measurement of a score that must not be below its bound."""
    refusal = Refusal(reason=reason, detail=f"{_label(gate)} {score:.3f} is below {bound:g}") if score < bound else None
    return Measurement(gate=gate, score=score, refusal=refusal)


def at_most(gate: str, score: float, *, bound: float, reason: str) -> Measurement:
    """The measurement of a score that must not be above its bound."""
    refusal = Refusal(reason=reason, detail=f"{_label(gate)} {score:.3f} is above {bound:g}") if score > bound else None
    return Measurement(gate=gate, score=score, refusal=refusal)


def _label(gate: str) -> str:
    return gate.replace("_", " ")


def judge_pairs(pairs: Sequence[InstructionPair], *, document: Document, gates: PairGateConfig) -> list[JudgedPair]:
    """The pairs of one text, in order, measured by every gate that is on and needs no model."""
    text = f"{document.title or ''}\n{document.text}"
    min_characters = gates.min_language_characters
    known = content_units(text) if gates.min_grounding else frozenset()
    language = text_language(text, min_characters=min_characters) if gates.min_language_probability else None
    compares = gates.max_instruction_overlap < 1 or gates.max_similarity_in_text < 1
    passed: list[frozenset[str]] = []
    responses: Counter[str] = Counter()
    judged: list[JudgedPair] = []
    for pair in pairs:
        asked = shingles(pair.instruction) if compares else frozenset()
        measurements = _measure_lengths(pair, gates)
        if gates.min_grounding:
            score = grounding(pair.response, known=known)
            measurements.append(at_least(GROUNDING, score, bound=gates.min_grounding, reason="ungrounded"))
        if gates.max_instruction_overlap < 1:
            score = jaccard(asked, shingles(pair.response))
            bound = gates.max_instruction_overlap
            measurements.append(at_most(INSTRUCTION_OVERLAP, score, bound=bound, reason="repeats_instruction"))
        if language is not None:
            score = language_match(pair, text=language, min_characters=min_characters)
            bound = gates.min_language_probability
            measurements.append(at_least(LANGUAGE, score, bound=bound, reason="other_language"))
        if gates.max_similarity_in_text < 1:
            score = max((jaccard(asked, other) for other in passed), default=0.0)
            bound = gates.max_similarity_in_text
            measurements.append(at_most(SIMILARITY_IN_TEXT, score, bound=bound, reason="similar_in_text"))
        if gates.max_same_responses_in_text:
            count = 1 + responses[normalize(pair.response)]
            measurements.append(_count_same_response(count, bound=gates.max_same_responses_in_text))
        judged.append(JudgedPair(pair=pair, measurements=tuple(measurements)))
        if judged[-1].refusal is None:
            passed.append(asked)
            responses[normalize(pair.response)] += 1
    return judged


def _count_same_response(count: int, *, bound: int) -> Measurement:
    refusal = None
    if count > bound:
        detail = f"{count} pairs of the text with this response are above {bound}"
        refusal = Refusal(reason="repeated_response", detail=detail)
    return Measurement(gate=SAME_RESPONSES_IN_TEXT, score=float(count), refusal=refusal)


def _measure_lengths(pair: InstructionPair, gates: PairGateConfig) -> list[Measurement]:
    measurements = []
    for gate, side, text, least, most in (
        (
            INSTRUCTION_CHARACTERS,
            "instruction",
            pair.instruction,
            gates.min_instruction_characters,
            gates.max_instruction_characters,
        ),
        (RESPONSE_CHARACTERS, "response", pair.response, gates.min_response_characters, gates.max_response_characters),
    ):
        refusal = None
        if len(text) < least:
            refusal = Refusal(reason=f"{side}_too_short", detail=f"{len(text)} characters are below {least}")
        elif most and len(text) > most:
            refusal = Refusal(reason=f"{side}_too_long", detail=f"{len(text)} characters are above {most}")
        if least or most:
            measurements.append(Measurement(gate=gate, score=float(len(text)), refusal=refusal))
    return measurements


def settle(
    judged: Sequence[JudgedPair], *, document: Document, gates: PairGateConfig
) -> tuple[list[InstructionPair], list[Reject]]:
    """The pairs of a text that stay, in order, and a reject for each of the others; none with ``report_only``."""
    kept: list[InstructionPair] = []
    rejects: list[Reject] = []
    for item in judged:
        if item.refusal is None or gates.report_only:
            kept.append(item.pair)
        else:
            rejects.append(reject_pair(item.pair, document=document, refusal=item.refusal))
    return kept, rejects


def reject_pair(pair: InstructionPair, *, document: Document, refusal: Refusal) -> Reject:
    """The record of a pair that does not pass; its text goes on without it."""
    return Reject(
        doc_id=document.doc_id,
        source=document.source,
        stage=GATE_STAGE,
        reason=refusal.reason,
        detail=refusal.detail,
        text=json.dumps(asdict(pair), ensure_ascii=False),
    )
