"""Synthesizers: how a model is asked for pairs and how its answer is read. Two kinds behind one interface.

`WireFormatSynthesizer` speaks the format of a model tuned for the task; `ChatSynthesizer` asks any instruct model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from contracts.records import Document, Example, InstructionPair
from contracts.storage import json_sha256
from synth_model.chat_prompt import (
    ChatPromptWording,
    build_chat_prompt,
    load_wording,
    parse_chat_completion,
)
from synth_model.generation import Completion, Prompt
from synth_model.wire_format import build_prompt, parse_completion


@dataclass(frozen=True, kw_only=True)
class SynthesizerConfig:
    """How pairs are asked for.

    Args:
        kind: ``wire_format`` for a model tuned as an instruction synthesizer, ``chat`` for any instruct model.
        prompt: For ``chat``: the name of a shipped wording (such as ``english``) or the path of a YAML file.
    """

    kind: Literal["wire_format", "chat"] = "wire_format"
    prompt: str = "english"


class Synthesizer(Protocol):
    """Builds prompts and reads completions."""

    @property
    def format_id(self) -> str:
        """Names the format, and the wording by a hash of it."""

    def build_prompt(self, examples: Sequence[Example], *, document: Document, special_tokens: Sequence[str]) -> Prompt:
        """The prompt for a document behind earlier examples of its chain, oldest first."""

    def parse(self, completion: Completion, *, special_tokens: Sequence[str]) -> list[InstructionPair]:
        """The valid pairs of a completion, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WireFormatSynthesizer:
    """The format of the tuned instruction synthesizer; see `synth_model.wire_format`."""

    format_id: str = "wire-format"

    def build_prompt(self, examples: Sequence[Example], *, document: Document, special_tokens: Sequence[str]) -> Prompt:
        """See `Synthesizer.build_prompt`."""
        return Prompt(text=build_prompt(examples, text=document.text, special_tokens=special_tokens))

    def parse(self, completion: Completion, *, special_tokens: Sequence[str]) -> list[InstructionPair]:
        """See `Synthesizer.parse`."""
        return parse_completion(completion.text, special_tokens=special_tokens)


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


def make_synthesizer(config: SynthesizerConfig) -> Synthesizer:
    """The synthesizer of a config.

    Raises:
        ValueError: The chat prompt's wording is missing or damaged.
    """
    if config.kind == "wire_format":
        return WireFormatSynthesizer()
    return ChatSynthesizer(wording=load_wording(config.prompt))
