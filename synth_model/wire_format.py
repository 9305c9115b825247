"""The wire format of the instruction synthesizer: how texts and pairs stand in a prompt, how a completion is read.

A prompt is, for each earlier example of the chain, ``<s> <CON> {text} </CON>``, a blank line, its pairs
``<QUE> {instruction} <ANS> {response} </END>`` with blank lines between, and ``</s>``; then the current text's
``<s> <CON> {text} </CON>`` and a blank line. BOS and EOS stand in the string, so whoever tokenizes it must add none.

``<s>`` and ``</s>`` are BOS and EOS of the released weights' tokenizer. A model whose tokenizer has others is tuned and
asked with these (`SequenceMarks`): a model stops at its own EOS only, and would write on behind a ``</s>`` that is just
three more tokens to it.

Texts, instructions and responses may hold any characters: what looks like markup in them is escaped (`markup`) on the
way in and restored on the way out, so that it neither acts as markup nor is changed.

Source: the format of the released weights ``instruction-pretrain/instruction-synthesizer`` (Cheng et al. 2024, arXiv
2406.14491, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contracts.records import Example, InstructionPair
from synth_model.markup import escape, unescape

BOS, EOS = "<s>", "</s>"
CONTEXT, END_CONTEXT = "<CON>", "</CON>"
QUESTION, ANSWER, END = "<QUE>", "<ANS>", "</END>"
MARKUP = (BOS, EOS, CONTEXT, END_CONTEXT, QUESTION, ANSWER, END)
_PAIR_SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class SequenceMarks:
    """What opens and closes an example.

    Args:
        bos: The BOS of the model's tokenizer, or of the released weights'.
        eos: The EOS of the model's tokenizer, at which it ends a completion.
    """

    bos: str = BOS
    eos: str = EOS

    def __post_init__(self) -> None:
        if not self.bos or not self.eos:
            raise ValueError(
                f"The marks of the wire format are {self.bos!r} and {self.eos!r}; neither may be empty. Give the BOS "
                "and EOS of the model's tokenizer."
            )


RELEASED_MARKS = SequenceMarks()


def build_prompt(
    examples: Sequence[Example],
    *,
    text: str,
    special_tokens: Sequence[str] = (),
    marks: SequenceMarks = RELEASED_MARKS,
) -> str:
    """The prompt for a text behind the earlier examples of its chain.

    Args:
        examples: Earlier examples with their pairs, oldest first; each has at least one pair.
        text: The text to write pairs for.
        special_tokens: The tokenizer's own special tokens, escaped in the data like the format's markup.
        marks: What opens and closes an example.
    """
    tokens = (*MARKUP, *special_tokens)
    shots = "".join(
        render_context(example.document.text, tokens=tokens, marks=marks)
        + render_pairs(example.pairs, tokens=tokens)
        + marks.eos
        for example in examples
    )
    return shots + render_context(text, tokens=tokens, marks=marks)


def render_context(text: str, *, tokens: Sequence[str] = MARKUP, marks: SequenceMarks = RELEASED_MARKS) -> str:
    """A text as a context, with the blank line behind it."""
    return f"{marks.bos} {CONTEXT} {escape(text, tokens=tokens)} {END_CONTEXT}\n\n"


def render_pairs(pairs: Sequence[InstructionPair], *, tokens: Sequence[str] = MARKUP) -> str:
    """Pairs as the synthesizer writes them, without the closing EOS."""
    return _PAIR_SEPARATOR.join(
        f"{render_instruction(pair.instruction, tokens=tokens)} {escape(pair.response, tokens=tokens)} {END}"
        for pair in pairs
    )


def render_instruction(instruction: str, *, tokens: Sequence[str] = MARKUP) -> str:
    """A pair up to where its response begins; the space behind belongs to the response's first word."""
    return f"{QUESTION} {escape(instruction, tokens=tokens)} {ANSWER}"


def parse_response(completion: str, *, special_tokens: Sequence[str] = ()) -> str:
    """The response that a completion behind `render_instruction` holds: all before the first markup, stripped."""
    tokens = (*MARKUP, *special_tokens)
    ends = [position for position in map(completion.find, tokens) if position >= 0]
    return unescape(completion[: min(ends, default=len(completion))].strip(), tokens=tokens)


def parse_completion(completion: str, *, special_tokens: Sequence[str] = ()) -> list[InstructionPair]:
    """The valid pairs of a completion, in order.

    What follows the last ``</END>`` is incomplete and dropped. A pair starts with ``<QUE>``, holds exactly one
    ``<ANS>``, and neither side is empty once stripped. An instruction seen before in this completion (whatever the
    case of its letters) is dropped.
    """
    tokens = (*MARKUP, *special_tokens)
    pairs: list[InstructionPair] = []
    seen: set[str] = set()
    for piece in completion.split(END)[:-1]:
        body = piece.strip()
        if not body.startswith(QUESTION) or body.count(ANSWER) != 1:
            continue
        instruction, response = (
            unescape(side.strip(), tokens=tokens) for side in body.removeprefix(QUESTION).split(ANSWER)
        )
        if not instruction.strip() or not response.strip() or instruction.lower() in seen:
            continue
        seen.add(instruction.lower())
        pairs.append(InstructionPair(instruction=instruction, response=response))
    return pairs
