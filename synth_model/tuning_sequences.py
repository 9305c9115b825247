"""Tuning data of a synthesizer: chains as training texts in the wire format, with the loss on what it is to write.

A text is examples of one chain, hence of one dataset, one behind the other as in a prompt: ``<s> <CON> {text} </CON>``,
a blank line, the pairs, ``</s>``; or with the BOS and EOS of the tokenizer at hand (`synth_model.wire_format`). The
pairs and the EOS behind them are what a synthesizer writes; these are the loss spans, and contexts are only read. A
chain longer than a row goes on in a text of its own, cut between examples only: with chains of many examples
(``chain_length`` of ``python -m synth_model tasks``) every text but the last of a chain fills its row as far as whole
examples do.

The strings of the format and the tokenizer's special tokens inside the data are escaped as in synthesis, so that a
sequence is tokenized with special tokens read as such and BOS and EOS stand where the format has them.

Cost: two tokenizations of each example, to choose the cuts and to confirm them.

Source: Cheng et al. 2024 (arXiv 2406.14491), section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from contracts.records import Chain, Example, Reject, RenderedText
from synth_model.wire_format import MARKUP, RELEASED_MARKS, SequenceMarks, render_context, render_pairs

Spans = tuple[tuple[int, int], ...]
TokenCounter = Callable[[Sequence[str], Sequence[Spans]], Sequence[int]]
RENDER_STAGE = "render"
_NUMBER_MARK = "#"


def tuning_sequences(
    chain: Chain,
    *,
    component: str,
    max_tokens: int,
    special_tokens: Sequence[str],
    count_tokens: TokenCounter,
    marks: SequenceMarks = RELEASED_MARKS,
) -> Iterator[RenderedText | Reject]:
    """The training texts of a chain in order, and a reject for every example that stands in none.

    Args:
        chain: Examples without pairs are rejected: there is nothing in them to learn.
        component: Mixture component of the texts.
        max_tokens: Longest text; an example that is longer by itself is rejected, since a part of it would teach to
            answer about a text that is not there.
        special_tokens: The tokenizer's special tokens.
        count_tokens: Tokens of each of some texts with these loss spans, as they are packed.
        marks: What opens and closes an example.
    """
    blocks: list[tuple[Example, str, Spans]] = []
    for example in chain.examples:
        if example.pairs:
            blocks.append((example, *render_sequence([example], special_tokens=special_tokens, marks=marks)))
        else:
            yield _reject(example, "no_pairs", f"an example of the chain {chain.chain_id} has no pairs to learn")
    lengths = count_tokens([text for _, text, _ in blocks], [spans for _, _, spans in blocks]) if blocks else []
    fitting: list[tuple[Example, int]] = []
    for (example, _, _), length in zip(blocks, lengths, strict=True):
        if length <= max_tokens:
            fitting.append((example, length))
        else:
            detail = f"{length} tokens in the wire format; a row has room for {max_tokens}"
            yield _reject(example, "longer_than_a_row", detail)
    start = number = 0
    while start < len(fitting):
        end = _end_by_sum(fitting, start=start, max_tokens=max_tokens)
        while True:
            examples = [example for example, _ in fitting[start:end]]
            text, spans = render_sequence(examples, special_tokens=special_tokens, marks=marks)
            # Tokens may differ where two examples meet, so the sum of their lengths is only a guess.
            if len(examples) == 1 or count_tokens([text], [spans])[0] <= max_tokens:
                break
            end -= 1
        yield RenderedText(
            text_id=f"{chain.chain_id}{_NUMBER_MARK}{number}",
            component=component,
            text=text,
            template_id="wire_format",
            doc_ids=tuple(example.document.doc_id for example in examples),
            group_id=chain.chain_id,
            loss_spans=spans,
        )
        start = end
        number += 1


def chain_id_of_sequence(text_id: str) -> str:
    """The chain that a text of `tuning_sequences` was made from."""
    return text_id.rpartition(_NUMBER_MARK)[0]


def render_sequence(
    examples: Sequence[Example], *, special_tokens: Sequence[str], marks: SequenceMarks = RELEASED_MARKS
) -> tuple[str, Spans]:
    """Examples in the wire format, each with its closing EOS, and their loss spans.

    Args:
        examples: Each has at least one pair.
        special_tokens: The tokenizer's special tokens, escaped in the data like the format's markup.
        marks: What opens and closes an example.

    Returns:
        The text, and for each example the half-open range of characters of its pairs and EOS.
    """
    tokens = (*MARKUP, *special_tokens)
    text = ""
    spans = []
    for example in examples:
        assert example.pairs, example.document.doc_id
        text += render_context(example.document.text, tokens=tokens, marks=marks)
        start = len(text)
        text += render_pairs(example.pairs, tokens=tokens) + marks.eos
        spans.append((start, len(text)))
    return text, tuple(spans)


def _end_by_sum(fitting: Sequence[tuple[Example, int]], *, start: int, max_tokens: int) -> int:
    """Where the examples from ``start`` on no longer fit together by the sum of their lengths; at least one does."""
    total = 0
    for index in range(start, len(fitting)):
        total += fitting[index][1]
        if total > max_tokens:
            return max(index, start + 1)
    return len(fitting)


def _reject(example: Example, reason: str, detail: str) -> Reject:
    document = example.document
    return Reject(
        doc_id=document.doc_id,
        source=document.source,
        stage=RENDER_STAGE,
        reason=reason,
        detail=detail,
        text=document.text,
    )
