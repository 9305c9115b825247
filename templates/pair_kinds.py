r"""What kind of pair an instruction-response pair is, by the conventions inside pairs.

* Multiple choice: the instruction ends with ``\nOptions:`` and two or more lines ``- option``, all different, and the
  response is one of them.
* Chain of thought: the instruction ends with ``\nLet's think step by step.`` and the response with a line
  ``Therefore, the answer is X``, after the reasoning.
* Multiple choice with chain of thought: both at once, where X is one of the options.
* Free form: everything else. Something that only looks like one of the above (a response that is none of the options,
  options that repeat) is free form too, and so rendered as it stands.

Options whose words refer to each other's labels are not taken for multiple choice, so that the pair stands as it is;
those that refer to the order are, but keep it (`templates.option_references`).

Cost: linear in the length of the pair. Source of the conventions: Cheng et al. 2024 (arXiv 2406.14491).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from contracts.records import InstructionPair
from templates.option_references import refers_to_labels, refers_to_order

OPTIONS_MARK = "\nOptions:\n"
OPTION_MARK = "- "
REASONING_CUE = "\nLet's think step by step."
CONCLUSION_MARK = "\nTherefore, the answer is "


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeForm:
    """A question of any form and its response."""

    question: str
    response: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MultipleChoice:
    """A question without options and cue, its options without labels, and which of them answers it.

    ``reasoning`` is what leads to the answer where the pair has a chain of thought too, without its conclusion.
    ``keeps_order`` says that the words refer to the order of the options.
    """

    question: str
    options: tuple[str, ...]
    answer_index: int
    reasoning: str | None = None
    keeps_order: bool = False

    def reordered(self, order: Sequence[int]) -> MultipleChoice:
        """The same question with option ``order[i]`` at place i; the answer goes with its option."""
        assert sorted(order) == list(range(len(self.options))), order
        return replace(
            self,
            options=tuple(self.options[index] for index in order),
            answer_index=list(order).index(self.answer_index),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainOfThought:
    """A question with its cue, the whole response (reasoning, then conclusion), and the X of the conclusion alone."""

    question: str
    response: str
    conclusion: str


PairKind: TypeAlias = FreeForm | MultipleChoice | ChainOfThought


def recognize_pair(pair: InstructionPair) -> PairKind:
    """The kind of a pair; free form when it follows no convention to the letter."""
    chain = _chain_of_thought(pair)
    if chain is None:
        choice = _multiple_choice(pair.instruction, answer=pair.response, reasoning=None)
        return choice or FreeForm(question=pair.instruction, response=pair.response)
    reasoning = pair.response.removesuffix(CONCLUSION_MARK + chain.conclusion)
    instruction = pair.instruction.removesuffix(REASONING_CUE)
    return _multiple_choice(instruction, answer=chain.conclusion, reasoning=reasoning) or chain


def _multiple_choice(instruction: str, *, answer: str, reasoning: str | None) -> MultipleChoice | None:
    question, mark, option_list = instruction.rpartition(OPTIONS_MARK)
    lines = option_list.split("\n")
    if not (mark and question.strip() and len(lines) >= 2 and all(line.startswith(OPTION_MARK) for line in lines)):
        return None
    options = tuple(line.removeprefix(OPTION_MARK) for line in lines)
    # Compared without surrounding space, so that no two options read the same.
    if not all(option.strip() for option in options) or len({option.strip() for option in options}) < len(options):
        return None
    if answer not in options:
        return None
    words_around = question if reasoning is None else f"{question}\n{reasoning}"
    if refers_to_labels(options, words_around=words_around):
        return None
    return MultipleChoice(
        question=question,
        options=options,
        answer_index=options.index(answer),
        reasoning=reasoning,
        keeps_order=refers_to_order(options, words_around=words_around),
    )


def _chain_of_thought(pair: InstructionPair) -> ChainOfThought | None:
    if not pair.instruction.endswith(REASONING_CUE) or not pair.instruction.removesuffix(REASONING_CUE).strip():
        return None
    reasoning, mark, conclusion = pair.response.rpartition(CONCLUSION_MARK)
    if not (mark and reasoning.strip() and conclusion.strip()) or "\n" in conclusion:
        return None
    return ChainOfThought(question=pair.instruction, response=pair.response, conclusion=conclusion)
