"""What pairs are like by themselves: their length, how varied the instructions are, how grounded the responses.

*Distinct-n* is the share of different n-grams among all n-grams of the instructions; *distinct openings* the share of
different first two words among the instructions; *self-BLEU* the mean BLEU of an instruction against all others, high
where they repeat each other. All three depend on how many instructions there are: compare systems on the same texts,
and with the gold pairs beside them.

Cost: linear, but for self-BLEU, which is quadratic and taken on at most `_MAX_SELF_BLEU` instructions chosen by hash.

Source: Li et al. 2016 (arXiv 1510.03055) for distinct-n; Zhu et al. 2018 (arXiv 1802.01886) for self-BLEU, here with
sacrebleu's sentence BLEU of the n-gram orders that an instruction has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from contracts.records import Document, InstructionPair
from contracts.seeding import stable_hash
from synth_model.evaluation.similarity import words
from synth_model.gates.pair_scores import content_units, grounding

_MAX_SELF_BLEU = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class PairDescription:
    """Figures of the pairs of some texts; None where there is nothing to take them from.

    Args:
        num_pairs: How many.
        instruction_words: Mean words of an instruction.
        response_words: Mean words of a response.
        grounding: Mean share of a response's content words that stand in its text.
        distinct_1: Distinct-1 of the instructions.
        distinct_2: Distinct-2 of the instructions.
        distinct_openings: Share of different first two words.
        self_bleu: From 0 to 1.
    """

    num_pairs: int
    instruction_words: float | None
    response_words: float | None
    grounding: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_openings: float | None
    self_bleu: float | None


def describe_pairs(texts: Sequence[tuple[Document, Sequence[InstructionPair]]]) -> PairDescription:
    """Describes the pairs of texts, all together."""
    instructions = [words(pair.instruction) for _, pairs in texts for pair in pairs]
    groundings = []
    for document, pairs in texts:
        known = content_units(f"{document.title or ''}\n{document.text}")
        groundings += [grounding(pair.response, known=known) for pair in pairs]
    return PairDescription(
        num_pairs=len(instructions),
        instruction_words=_mean([len(instruction) for instruction in instructions]),
        response_words=_mean([len(words(pair.response)) for _, pairs in texts for pair in pairs]),
        grounding=_mean(groundings),
        distinct_1=distinct(instructions, length=1),
        distinct_2=distinct(instructions, length=2),
        distinct_openings=_share_of_different([tuple(instruction[:2]) for instruction in instructions]),
        self_bleu=self_bleu([pair.instruction for _, pairs in texts for pair in pairs]),
    )


def distinct(instructions: Sequence[Sequence[str]], *, length: int) -> float | None:
    """Distinct-n of instructions in words; None without an n-gram."""
    return _share_of_different(
        [
            tuple(instruction[start : start + length])
            for instruction in instructions
            for start in range(len(instruction) - length + 1)
        ]
    )


def self_bleu(instructions: Sequence[str]) -> float | None:
    """The mean BLEU, from 0 to 1, of an instruction against the others; None for fewer than two."""
    chosen = sorted(instructions, key=lambda instruction: (stable_hash(0, "self-BLEU", instruction), instruction))
    chosen = chosen[:_MAX_SELF_BLEU]
    if len(chosen) < 2:
        return None
    return _mean(
        [
            float(_bleu().sentence_score(instruction, chosen[:index] + chosen[index + 1 :]).score) / 100
            for index, instruction in enumerate(chosen)
        ]
    )


@lru_cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # The order of n-grams is cut to what an instruction has; the library's tokenizer splits off punctuation.
    return BLEU(effective_order=True, lowercase=True)


def _share_of_different(values: Sequence[tuple[str, ...]]) -> float | None:
    return len(set(values)) / len(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
