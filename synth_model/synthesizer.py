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
    load_wording,
    parse_chat_completion,
)
from synth_model.few_shot_examples import FewShotExamples, load_examples
from synth_model.generation import Completion, Prompt
from synth_model.markup import escape
from synth_model.wire_format import ANSWER, MARKUP, QUESTION, build_prompt, parse_completion


@dataclass(frozen=True, kw_only=True)
class SynthesizerConfig:
    """How pairs are asked for.

    Args:
        kind: ``wire_format`` for a model tuned as an instruction synthesizer, ``chat`` for any instruct model.
        prompt: For ``chat``: the name of a shipped wording (``english``, ``korean``, ``chinese``) or the path of a YAML
            file.
        examples: YAML file of few-shot examples, perhaps by source (`synth_model.few_shot_examples`); for ``chat``
            they stand in place of the wording's own. Empty for none, or the wording's own.
    """

    kind: Literal["wire_format", "chat"] = "wire_format"
    prompt: str = "english"
    examples: str = ""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class WireFormatSynthesizer:
    """The format of the tuned instruction synthesizer; see `synth_model.wire_format`."""

    few_shot: FewShotExamples = field(default_factory=FewShotExamples)

    @property
    def format_id(self) -> str:
        """``wire-format``, and a hash of the few-shot examples where there are any."""
        has_examples = self.few_shot != FewShotExamples()
        return f"wire-format-{json_sha256(repr(self.few_shot))[:12]}" if has_examples else "wire-format"

    def build_prompt(self, examples: Sequence[Example], *, document: Document, special_tokens: Sequence[str]) -> Prompt:
        """See `Synthesizer.build_prompt`."""
        shown = (*self.few_shot.for_source(document.source), *examples)
        return Prompt(text=build_prompt(shown, text=document.text, special_tokens=special_tokens))

    def parse(self, completion: Completion, *, special_tokens: Sequence[str]) -> list[InstructionPair]:
        """See `Synthesizer.parse`."""
        return parse_completion(completion.text, special_tokens=special_tokens)

    def split_at_response(self, pair: InstructionPair, *, special_tokens: Sequence[str]) -> tuple[str, str]:
        """See `Synthesizer.split_at_response`."""
        tokens = (*MARKUP, *special_tokens)
        instruction, response = (escape(side, tokens=tokens) for side in (pair.instruction, pair.response))
        return f"{QUESTION} {instruction} {ANSWER}", f" {response}"


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


def make_synthesizer(config: SynthesizerConfig) -> Synthesizer:
    """The synthesizer of a config.

    Raises:
        ValueError: The chat prompt's wording or the file of examples is missing or damaged.
    """
    few_shot = load_examples(config.examples) if config.examples else None
    if config.kind == "wire_format":
        return WireFormatSynthesizer(few_shot=few_shot or FewShotExamples())
    wording = load_wording(config.prompt)
    return ChatSynthesizer(wording=wording if few_shot is None else replace(wording, examples=few_shot))
