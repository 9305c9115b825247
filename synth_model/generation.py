"""What passes between a synthesizer and an engine: prompts in, one outcome a prompt out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from contracts.storage import json_sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a model is asked to continue: a string as it is, or a conversation for the model's chat template.

    Args:
        text: The whole prompt, special tokens included; empty for a conversation.
        messages: The conversation; empty for a string.
        response_prefix: How the model's turn begins, behind a conversation; not repeated in the completion.
    """

    text: str = ""
    messages: tuple[ChatMessage, ...] = ()
    response_prefix: str = ""

    def __post_init__(self) -> None:
        assert bool(self.text) != bool(self.messages), "a prompt is a string or a conversation"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Args:
        max_new_tokens: Longest completion, in tokens.
        frequency_penalty: Subtracted from the logit of a token for each time the completion holds it already; the
            prompt does not count. 0 is off.
    """

    max_new_tokens: int = 256
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not -2.0 <= self.frequency_penalty <= 2.0:
            raise ValueError(f"frequency_penalty is {self.frequency_penalty}; it must be from -2 to 2.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A finished generation. ``finish_reason`` is ``"stop"`` or, when ``max_new_tokens`` ended it, ``"length"``."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_new_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A prompt that got no completion, with a reason from a closed list an engine and what was seen."""

    reason: str
    detail: str


Outcome = Completion | Failure


class PromptTokenizer(Protocol):
    """The model's own measure of length."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Strings that the tokenizer reads as single special tokens."""

    def count(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt as the engine will feed it, special tokens and chat template included."""

    def count_text(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each plain text, without special tokens."""


class Engine(Protocol):
    """A loaded model that completes prompts."""

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order. A bad prompt is a `Failure` of its own, never of its batch."""


def completion_key(prompt: Prompt, *, model_id: str, sampling: Sampling) -> str:
    """The identity of a completion: a hash of model, sampling and prompt (64 hexadecimal characters)."""
    return json_sha256({"model": model_id, "sampling": asdict(sampling), "prompt": asdict(prompt)})
