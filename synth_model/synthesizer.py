"""Synthesizers: how a model is asked for pairs and how its answer is read. Two kinds behind one interface.

`WireFormatSynthesizer` speaks the format of a model tuned for the task; `ChatSynthesizer` asks any instruct model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from contracts.records import Document, Example, InstructionPair
from contracts.storage import json_sha256
from synth_model.chat_prompt import (
    ChatPromptWording,
    build_chat_prompt,
    build_chat_response_prompt,
    count_chat_pairs,
    load_wording,
    parse_chat_completion,
)
from synth_model.few_shot_examples import FewShotExamples, load_examples
from synth_model.generation import Completion, Prompt
from synth_model.markup import escape, unescape
from synth_model.wire_format import (
    MARKUP,
    QUESTION,
    RELEASED_MARKS,
    SequenceMarks,
    build_prompt,
    parse_completion,
    parse_response,
    render_instruction,
)


@dataclass(frozen=True, kw_only=True)
class SynthesizerConfig:
    """How pairs are asked for.

    Args:
        kind: ``wire_format`` for a model tuned as an instruction synthesizer, ``chat`` for any instruct model.
        prompt: For ``chat``: the name of a shipped wording (``english``, ``korean``, ``chinese``) or the path of a YAML
            file.
        examples: YAML file of few-shot examples, perhaps by source (`synth_model.few_shot_examples`); for ``chat``
            they stand in place of the wording's own. Empty for none, or the wording's own.
        marks: For ``wire_format``: the BOS and EOS that the model was tuned with. Those of the released weights by
            default; `finetune` writes down the ones it used.
    """

    kind: Literal["wire_format", "chat"] = "wire_format"
    prompt: str = "english"
    examples: str = ""
    marks: SequenceMarks = field(default_factory=SequenceMarks)


class Synthesizer(Protocol):
    """Builds prompts and reads completions."""

    @property
    def format_id(self) -> str:
        """Names the format, and the wording by a hash of it."""

    def build_prompt(self, examples: Sequence[Example], *, document: Document, special_tokens: Sequence[str]) -> Prompt:
        """The prompt for a document behind earlier examples of its chain, oldest first."""

    def parse(self, completion: Completion, *, special_tokens: Sequence[str]) -> list[InstructionPair]:
        """The valid pairs of a completion, in order."""

    def split_at_response(self, pair: InstructionPair, *, special_tokens: Sequence[str]) -> tuple[str, str]:
        """A pair as it follows the prompt: up to where the response begins, and the response."""

    def build_response_prompt(
        self, examples: Sequence[Example], *, document: Document, instruction: str, special_tokens: Sequence[str]
    ) -> Prompt:
        """The prompt for the response to a given instruction about a document, behind earlier examples."""

    def parse_response(self, completion: Completion, *, special_tokens: Sequence[str]) -> str:
        """The response in a completion of `build_response_prompt`; may be empty."""

    def count_begun_pairs(self, completion: Completion) -> int:
        """How many pairs a completion of `build_prompt` begins, those that `parse` does not give included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WireFormatSynthesizer:
    """The format of the tuned instruction synthesizer; see `synth_model.wire_format`."""

    few_shot: FewShotExamples = field(default_factory=FewShotExamples)
    marks: SequenceMarks = field(default_factory=SequenceMarks)

    @property
    def format_id(self) -> str:
        """``wire-format``, other marks than those of the released weights, a hash of few-shot examples if any."""
        parts = ["wire-format"]
        if self.marks != RELEASED_MARKS:
            parts.append(f"{self.marks.bos}{self.marks.eos}")
        if self.few_shot != FewShotExamples():
            parts.append(json_sha256(repr(self.few_shot))[:12])
        return "-".join(parts)

    def build_prompt(self, examples: Sequence[Example], *, document: Document, special_tokens: Sequence[str]) -> Prompt:
        """See `Synthesizer.build_prompt`."""
        shown = (*self.few_shot.for_source(document.source), *examples)
        return Prompt(text=build_prompt(shown, text=document.text, special_tokens=special_tokens, marks=self.marks))

    def parse(self, completion: Completion, *, special_tokens: Sequence[str]) -> list[InstructionPair]:
        """See `Synthesizer.parse`."""
        return parse_completion(completion.text, special_tokens=special_tokens)

    def split_at_response(self, pair: InstructionPair, *, special_tokens: Sequence[str]) -> tuple[str, str]:
        """See `Synthesizer.split_at_response`."""
        tokens = (*MARKUP, *special_tokens)
        return render_instruction(pair.instruction, tokens=tokens), f" {escape(pair.response, tokens=tokens)}"

    def build_response_prompt(
        self, examples: Sequence[Example], *, document: Document, instruction: str, special_tokens: Sequence[str]
    ) -> Prompt:
        """See `Synthesizer.build_response_prompt`; the pair is begun where the model would begin it."""
        prompt = self.build_prompt(examples, document=document, special_tokens=special_tokens)
        return replace(prompt, response_prefix=render_instruction(instruction, tokens=(*MARKUP, *special_tokens)))

    def parse_response(self, completion: Completion, *, special_tokens: Sequence[str]) -> str:
        """See `Synthesizer.parse_response`."""
        return parse_response(completion.text, special_tokens=special_tokens)

    def count_begun_pairs(self, completion: Completion) -> int:
        """See `Synthesizer.count_begun_pairs`."""
        return completion.text.count(QUESTION)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSynthesizer:
    """A chat prompt; see `synth_model.chat_prompt`."""

    wording: ChatPromptWording

    @property
    def format_id(self) -> str:
        """``chat-`` and a hash of the wording."""
        return f"chat-{json_sha256(repr(self.wording))[:12]}"

    def build_prompt(self, examples: Sequence[Example], *, document: Document, special_tokens: Sequence[str]) -> Prompt:
        """See `Synthesizer.build_prompt`."""
        return build_chat_prompt(examples, document=document, wording=self.wording, special_tokens=special_tokens)

    def parse(self, completion: Completion, *, special_tokens: Sequence[str]) -> list[InstructionPair]:
        """See `Synthesizer.parse`."""
        return parse_chat_completion(
            completion.text,
            wording=self.wording,
            is_cut=completion.finish_reason == "length",
            special_tokens=special_tokens,
        )

    def split_at_response(self, pair: InstructionPair, *, special_tokens: Sequence[str]) -> tuple[str, str]:
        """See `Synthesizer.split_at_response`; the question label ends the prompt."""
        instruction, response = (escape(side, tokens=special_tokens) for side in (pair.instruction, pair.response))
        return f" {instruction}\n{self.wording.answer_label}", f" {response}"

    def build_response_prompt(
        self, examples: Sequence[Example], *, document: Document, instruction: str, special_tokens: Sequence[str]
    ) -> Prompt:
        """See `Synthesizer.build_response_prompt`."""
        return build_chat_response_prompt(
            examples, document=document, instruction=instruction, wording=self.wording, special_tokens=special_tokens
        )

    def parse_response(self, completion: Completion, *, special_tokens: Sequence[str]) -> str:
        """See `Synthesizer.parse_response`."""
        return unescape(completion.text.strip(), tokens=special_tokens)

    def count_begun_pairs(self, completion: Completion) -> int:
        """See `Synthesizer.count_begun_pairs`."""
        return count_chat_pairs(completion.text, wording=self.wording)


def make_synthesizer(config: SynthesizerConfig) -> Synthesizer:
    """The synthesizer of a config.

    Raises:
        ValueError: The chat prompt's wording or the file of examples is missing or damaged.
    """
    few_shot = load_examples(config.examples) if config.examples else None
    if config.kind == "wire_format":
        return WireFormatSynthesizer(few_shot=few_shot or FewShotExamples(), marks=config.marks)
    wording = load_wording(config.prompt)
    return ChatSynthesizer(wording=wording if few_shot is None else replace(wording, examples=few_shot))
