"""What passes between a synthesizer and an engine: prompts in, one outcome a prompt out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from contracts.seeding import stable_hash
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
        response_prefix: How what the model writes begins; not repeated in the completion.
        draw: Which of several completions of the same words is meant; with a temperature, each draw has its own.
        num_tokens: Its length by the model's tokenizer, where that was counted: what batches are made by. It follows
            from the rest, and is no part of the prompt's identity.
    """

    text: str = ""
    messages: tuple[ChatMessage, ...] = ()
    response_prefix: str = ""
    draw: int = 0
    num_tokens: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert bool(self.text) != bool(self.messages), "a prompt is a string or a conversation"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Args:
        max_new_tokens: Longest completion, in tokens.
        frequency_penalty: Subtracted from the logit of a token for each time the completion holds it already; the
            prompt does not count. 0 is off.
        presence_penalty: Subtracted once from the logit of every token that the completion holds already; likewise. It
            keeps a small model that always takes the most probable token from asking the same question again.
        temperature: Logits are divided by it before a token is drawn; 0 takes the most probable token, without a draw.
        top_p: A token is drawn from the most probable ones that together reach this probability; 1 is all of them.
        seed: Another seed draws other tokens; see `prompt_seed`.
    """

    max_new_tokens: int = 256
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from -2 to 2.")
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature is {self.temperature}; it must be from 0 (greedy) to 2.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


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

    def user_turn_start(self) -> str:
        """A conversation up to where the user's first words stand: what a model continues with a user's words.

        Raises:
            ValueError: The model knows no conversations.
        """


class Engine(Protocol):
    """A loaded model that completes prompts."""

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order. A bad prompt is a `Failure` of its own, never of its batch."""


def completion_key(prompt: Prompt, *, model_id: str, sampling: Sampling) -> str:
    """The identity of a completion: a hash of model, sampling and prompt (64 hexadecimal characters)."""
    values = asdict(sampling)
    if not sampling.presence_penalty:
        # Journals from before there was one stay valid.
        del values["presence_penalty"]
    return json_sha256({"model": model_id, "sampling": values, "prompt": _identity(prompt)})


def prompt_seed(prompt: Prompt, *, sampling: Sampling) -> int:
    """The seed, 63 bits, of all draws for a prompt: a hash of the sampling's seed and the prompt.

    It depends on nothing else, so that a completion is the same in whatever batch and order its prompt comes.
    """
    return stable_hash(sampling.seed, "prompt", json_sha256(_identity(prompt))) >> 1


def _identity(prompt: Prompt) -> dict[str, Any]:
    return {name: value for name, value in asdict(prompt).items() if name != "num_tokens"}
