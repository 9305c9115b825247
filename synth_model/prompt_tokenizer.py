"""Counts and encodes prompts with the model's own tokenizer and chat template.

BOS stands in the prompt, whether the wire format or the chat template put it there, so no special token is ever added
here. Needs transformers, not torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from synth_model.generation import ChatMessage, Prompt

# Stands for the user's words when a chat template is asked what stands before them.
_USER_WORDS = "6f1c0d0e-the-words-of-the-user"

# What may name a model of the hub.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


class ModelTokenizer:
    """A `synth_model.generation.PromptTokenizer` over a Hugging Face tokenizer.

    Args:
        name_or_path: Hub name or folder.
        trust_remote_code: Whether code that comes with the tokenizer may run.

    Raises:
        ValueError: There is no such tokenizer.
    """

    def __init__(self, name_or_path: str, *, trust_remote_code: bool = False) -> None:
        from transformers import AutoTokenizer

        if not os.path.isdir(name_or_path) and not HUB_NAME.match(name_or_path):
            raise ValueError(f"There is no model folder {name_or_path!r}, and it is no hub name (owner/model).")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        except Exception as error:
            # The tokenizers library raises plain exceptions for a definition that it does not understand.
            raise ValueError(
                f"No tokenizer could be loaded from {name_or_path!r}: give a hub name or a folder with a model. "
                f"({_first_line(error)})"
            ) from error
        self._name_or_path = name_or_path

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Strings that the tokenizer reads as single special tokens, those without a role of their own included."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        unique = dict.fromkeys((*self.tokenizer.all_special_tokens, *added))
        return tuple(token for token in unique if len(token) >= 2)

    def render(self, prompt: Prompt) -> str:
        """The string that a prompt stands for.

        Raises:
            ValueError: The prompt is a conversation and the model has no chat template, or one that refuses it.
        """
        if prompt.text:
            return prompt.text + prompt.response_prefix
        return self._apply_chat_template(prompt.messages, add_generation_prompt=True) + prompt.response_prefix

    def user_turn_start(self) -> str:
        """What the chat template puts before the user's first words, the model's own system turn included.

        A space at the end is left out: tokenizers join it to the word that follows.

        Raises:
            ValueError: The model has no chat template, or one that does not show the user's words.
        """
        rendered = self._apply_chat_template(
            (ChatMessage(role="user", content=_USER_WORDS),), add_generation_prompt=False
        )
        start, found, _ = rendered.partition(_USER_WORDS)
        if not found or not start.strip():
            raise ValueError(
                f"The chat template of {self._name_or_path!r} does not mark where the user's words begin; "
                "use an instruct model with another one."
            )
        return start.rstrip(" ")

    def _apply_chat_template(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer of {self._name_or_path!r} has no chat template; "
                "use an instruct model, or the wire-format synthesizer."
            )
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise ValueError(
                f"The chat template of {self._name_or_path!r} refuses the conversation: {_first_line(error)}"
            ) from error
        return rendered

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt, nothing added.

        Raises:
            ValueError: A prompt cannot be rendered, or holds a lone surrogate, which no tokenizer can read.
        """
        encoded = self._encode([self.render(prompt) for prompt in prompts])
        for index, prompt in enumerate(prompts):
            if prompt.text and prompt.response_prefix:
                # A model writes behind the prompt's own tokens, which the tokenizer may join with what follows.
                ids, prefix_ids = self._encode([prompt.text, prompt.response_prefix])
                if encoded[index][: len(ids)] != ids:
                    encoded[index] = ids + prefix_ids
        return encoded

    def count(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt as the engine will feed it, special tokens and chat template included."""
        return [len(ids) for ids in self.encode(prompts)]

    def count_text(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each plain text, without special tokens."""
        return [len(ids) for ids in self._encode(list(texts))]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        for text in texts:
            text.encode("utf-8")
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
