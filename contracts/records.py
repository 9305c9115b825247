"""The records that pass between the parts: immutable values, without behaviour beyond their own consistency.

Source of the terms: Cheng et al. 2024 (arXiv 2406.14491), section 2: an *example* is a text with its
instruction-response pairs, an *M-shot example* (here: a chain) is M of them in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A raw text with its origin. ``doc_id`` is unique in a corpus; ``source`` groups texts that may share a chain."""

    doc_id: str
    source: str
    text: str
    title: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionPair:
    """An instruction about a text and the response to it, both non-empty."""

    instruction: str
    response: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A document with the pairs that were synthesized from it.

    Args:
        document: The raw text.
        pairs: The valid pairs in order; empty when the text is kept as raw text.
        inherits_previous: Whether the pairs were written with earlier examples of the chain in view.
        finish_reason: Why generation ended: ``"stop"``, ``"length"``, or ``"given"`` for pairs not generated here.
        num_prompt_tokens: Length of the prompt in the synthesizer's tokens.
        num_new_tokens: Length of the completion in the synthesizer's tokens.
    """

    document: Document
    pairs: tuple[InstructionPair, ...] = ()
    inherits_previous: bool = False
    finish_reason: str = "given"
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Up to M examples of one source in the order in which they were synthesized: one row of an augmented corpus."""

    chain_id: str
    source: str
    examples: tuple[Example, ...]
    synthesizer_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """An input that does not go on, with the stage that refused it, a reason from a closed list, and detail.

    ``detail`` names the place (file and line) or the figures; ``text`` is what was refused, as far as it is readable.
    """

    doc_id: str
    source: str
    stage: str
    reason: str
    detail: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneralInstruction:
    """An instruction that is about no text, with the response to it: one row of an instruction corpus.

    Args:
        id: Unique in a corpus.
        instruction: Not empty.
        response: Not empty.
        model_id: The model that wrote both.
    """

    id: str
    instruction: str
    response: str
    model_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedText:
    """A training text of one mixture component.

    Args:
        text_id: Unique in its component.
        component: Name of the mixture component.
        text: The whole text.
        template_id: Which template rendered it, ``"raw"`` for none.
        doc_ids: The documents in it, in order.
        group_id: Texts made from the same documents share it; a group is either in training or in validation.
        loss_spans: Half-open ranges of characters of ``text`` that are targets, ascending; None when all of it is. A
            text with loss spans says itself where its BOS and EOS stand.
    """

    text_id: str
    component: str
    text: str
    template_id: str
    doc_ids: tuple[str, ...]
    group_id: str
    loss_spans: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedRow:
    """A training row of texts of one component, packed one after the other.

    Args:
        input_ids: int64, shape (sequence_length,); behind the last segment stands padding.
        segment_lengths: int32, shape (num_segments,), each at least 1; their sum is at most ``sequence_length``.
        component: The mixture component that all of the row's texts belong to.
        text_ids: One per segment. A text that goes on in the next row is named in both.
        loss_spans: int32, shape (num_spans, 2), half-open ranges of positions of ``input_ids`` that are targets;
            None when every token is one.
    """

    input_ids: NDArray[np.int64]
    segment_lengths: NDArray[np.int32]
    component: str
    text_ids: tuple[str, ...]
    loss_spans: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        assert self.input_ids.ndim == 1, self.input_ids.shape
        assert len(self.segment_lengths) == len(self.text_ids), (self.segment_lengths, self.text_ids)
        assert (self.segment_lengths > 0).all(), self.segment_lengths
        assert int(self.segment_lengths.sum()) <= len(self.input_ids), (self.segment_lengths, len(self.input_ids))
