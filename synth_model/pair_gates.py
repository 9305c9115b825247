"""Gates that a synthesized pair must pass, each off or on by config; a pair that fails is rejected with its score.

*Grounding* is the share of a response's content units that occur in the text it is about (title included): words of
four letters or more, compared by their first six letters so that inflected forms match; in scripts written without
spaces, pairs of neighbouring characters. A response of a model that has lost sight of the text scores low; one that
says the text's own words scores near 1. A response without any content unit (``Yes.``, ``42``) scores 1, since nothing
speaks against it.

Cost: linear in the length of text and response. Not done: judging whether what a grounded response says is true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from contracts.accounting import GATE_STAGE
from contracts.records import Document, InstructionPair, Reject

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u2e80-\u9fff\uf900-\ufaff]")
_MIN_WORD_LETTERS = 4
_COMPARED_LETTERS = 6


@dataclass(frozen=True, kw_only=True)
class PairGateConfig:
    """Which gates are on.

    Args:
        min_grounding: Least share, from 0 to 1, of a response's content that occurs in its text; 0 is off.
    """

    min_grounding: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_grounding <= 1:
            raise ValueError(f"gates.min_grounding is {self.min_grounding}; it must be from 0 to 1.")


def grounding(response: str, *, text: str) -> float:
    """The share, from 0 to 1, of the response's content units that occur in the text."""
    units = list(_content_units(response))
    if not units:
        return 1.0
    known = set(_content_units(text))
    return sum(unit in known for unit in units) / len(units)


def _content_units(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.casefold()):
        if _UNSPACED.search(word):
            yield from (word[index : index + 2] for index in range(len(word) - 1))
        elif len(word) >= _MIN_WORD_LETTERS:
            yield word[:_COMPARED_LETTERS]


def apply_gates(
    pairs: Sequence[InstructionPair], *, document: Document, gates: PairGateConfig
) -> tuple[list[InstructionPair], list[Reject]]:
    """The pairs that pass, in order, and a reject for each of the others."""
    kept: list[InstructionPair] = []
    rejects: list[Reject] = []
    text = f"{document.title or ''}\n{document.text}"
    for pair in pairs:
        score = grounding(pair.response, text=text) if gates.min_grounding else 1.0
        if score >= gates.min_grounding:
            kept.append(pair)
            continue
        rejects.append(
            Reject(
                doc_id=document.doc_id,
                source=document.source,
                stage=GATE_STAGE,
                reason="ungrounded",
                detail=f"grounding {score:.3f} is below {gates.min_grounding}",
                text=json.dumps(asdict(pair), ensure_ascii=False),
            )
        )
    return kept, rejects
