"""The chat-prompt synthesizer's format: asks any instruct model for labelled questions and answers about a text.

The wording is data (``prompts/*.yaml`` or a file of the user's): a system message, the request behind a text, and the
labels that begin an instruction and a response. Earlier examples of a chain stand as earlier turns of the
conversation, so the model sees its own format; few-shot examples of the file (`synth_model.few_shot_examples`) stand
before those.

Reading a completion: a line that begins with the question label opens a pair, one that begins with the answer label
opens its response, other lines continue what is open. A completion that was cut by its length loses its last pair.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache

import yaml

from contracts import storage
from contracts.records import Document, Example, InstructionPair
from synth_model.few_shot_examples import EXAMPLES, EXAMPLES_BY_SOURCE, FewShotExamples, parse_examples
from synth_model.generation import ChatMessage, Prompt
from synth_model.markup import escape, unescape

_TEXT_FIELD = "{text}"
# What models put before a label: numbering, list marks, emphasis.
_LABEL_DECORATION = re.compile(r"^[\s*#>\-]*(?:\d{1,3}[.)]\s*)?[\s*]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPromptWording:
    """The words of a chat prompt.

    Args:
        system: The system message.
        request: The user's turn; ``{text}`` stands for the text, which is inserted, never formatted.
        question_label: Begins an instruction, for example ``Question:``.
        answer_label: Begins a response.
        examples: Few-shot examples, perhaps by source.
    """

    system: str
    request: str
    question_label: str
    answer_label: str
    examples: FewShotExamples = field(default_factory=FewShotExamples)


def load_wording(name_or_path: str) -> ChatPromptWording:
    """A wording by the name of a shipped file (such as ``english``) or the path of a YAML file.

    Raises:
        ValueError: No such file, or it is not a wording; the message names the file and the key.
    """
    shipped = importlib.resources.files("synth_model") / "prompts" / f"{name_or_path}.yaml"
    if "/" not in name_or_path and shipped.is_file():
        content = shipped.read_text("utf-8")
    else:
        found = None if storage.is_folder(name_or_path) else storage.read_text(name_or_path, missing=None)
        if found is None:
            folder = importlib.resources.files("synth_model") / "prompts"
            names = sorted(
                entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
            )
            raise ValueError(
                f"There is no chat prompt {name_or_path!r}: give one of {names} or the path of a YAML file."
            )
        content = found
    return _parse_wording(content, origin=name_or_path)


@lru_cache(maxsize=16)
def _parse_wording(content: str, *, origin: str) -> ChatPromptWording:
    try:
        raw = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"The chat prompt {origin!r} is not valid YAML: {error}") from error
    optional = {EXAMPLES, EXAMPLES_BY_SOURCE}
    required = {field.name for field in fields(ChatPromptWording)} - optional
    if not isinstance(raw, dict) or set(raw) - required - optional or required - set(raw):
        given = sorted(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(
            f"The chat prompt {origin!r} must have the keys {sorted(required)} and may have {sorted(optional)}; "
            f"it has {given}."
        )
    for key in sorted(required):
        if not isinstance(raw[key], str) or not raw[key].strip():
            raise ValueError(f"The chat prompt {origin!r}: {key} must be a text that is not empty, not {raw[key]!r}.")
    if raw["request"].count(_TEXT_FIELD) != 1:
        raise ValueError(f"The chat prompt {origin!r}: request must hold {_TEXT_FIELD} exactly once.")
    return ChatPromptWording(
        system=raw["system"].strip(),
        request=raw["request"].strip("\n"),
        question_label=raw["question_label"].strip(),
        answer_label=raw["answer_label"].strip(),
        examples=parse_examples(raw, origin=f"The chat prompt {origin!r}"),
    )


def build_chat_prompt(
    examples: Sequence[Example], *, document: Document, wording: ChatPromptWording, special_tokens: Sequence[str] = ()
) -> Prompt:
    """The conversation that asks for pairs about a document, behind the earlier examples of its chain, oldest first."""
    messages = [ChatMessage(role="system", content=wording.system)]
    for example in (*wording.examples.for_source(document.source), *examples):
        messages.append(_request(example.document, wording, special_tokens))
        messages.append(
            ChatMessage(role="assistant", content=escape(_render_pairs(example.pairs, wording), tokens=special_tokens))
        )
    messages.append(_request(document, wording, special_tokens))
    return Prompt(messages=tuple(messages), response_prefix=wording.question_label)


def build_chat_response_prompt(
    examples: Sequence[Example],
    *,
    document: Document,
    instruction: str,
    wording: ChatPromptWording,
    special_tokens: Sequence[str] = (),
) -> Prompt:
    """The conversation that asks for the response to an instruction about a document.

    The user gives the text and behind it the instruction, the model is to respond: what an instruct model is made for,
    without the wording's labels. Examples, the wording's own first, stand as earlier turns about their first pair.
    """
    messages: list[ChatMessage] = []
    for example in (*wording.examples.for_source(document.source), *examples):
        shown = example.pairs[0]
        messages.append(_instruction_turn(example.document, shown.instruction, special_tokens))
        messages.append(ChatMessage(role="assistant", content=escape(shown.response, tokens=special_tokens)))
    messages.append(_instruction_turn(document, instruction, special_tokens))
    return Prompt(messages=tuple(messages))


def _instruction_turn(document: Document, instruction: str, special_tokens: Sequence[str]) -> ChatMessage:
    text = f"{_titled_text(document)}\n\n{instruction}"
    return ChatMessage(role="user", content=escape(text, tokens=special_tokens))


def _titled_text(document: Document) -> str:
    return f"{document.title}\n\n{document.text}" if document.title else document.text


def _request(document: Document, wording: ChatPromptWording, special_tokens: Sequence[str]) -> ChatMessage:
    before, after = wording.request.split(_TEXT_FIELD)
    return ChatMessage(role="user", content=before + escape(_titled_text(document), tokens=special_tokens) + after)


def _render_pairs(pairs: Sequence[InstructionPair], wording: ChatPromptWording) -> str:
    return "\n\n".join(
        f"{wording.question_label} {pair.instruction}\n{wording.answer_label} {pair.response}" for pair in pairs
    )


def parse_chat_completion(
    completion: str, *, wording: ChatPromptWording, is_cut: bool, special_tokens: Sequence[str] = ()
) -> list[InstructionPair]:
    """The valid pairs of a completion, in order: both sides filled, no question and no answer for a second time.

    Args:
        completion: What the model wrote behind the prompt's response prefix.
        wording: The wording of the prompt.
        is_cut: Whether the completion was ended by its length; its last pair is incomplete then.
        special_tokens: The tokenizer's special tokens that were escaped in the prompt.
    """
    drafts: list[tuple[list[str], list[str]]] = []
    is_answer = False
    for line in (wording.question_label + completion).split("\n"):
        question = _after_label(line, wording.question_label)
        answer = _after_label(line, wording.answer_label)
        if question is not None:
            drafts.append(([question], []))
            is_answer = False
        elif answer is not None and drafts and not is_answer:
            drafts[-1][1].append(answer)
            is_answer = True
        elif drafts:
            drafts[-1][is_answer].append(line)
    pairs: list[InstructionPair] = []
    seen: set[str] = set()
    answered: set[str] = set()
    for question_lines, answer_lines in drafts[:-1] if is_cut else drafts:
        instruction, response = (
            unescape(_unquoted("\n".join(lines).strip()), tokens=special_tokens).strip()
            for lines in (question_lines, answer_lines)
        )
        asked, answer = instruction.lower(), response.lower()
        if not instruction or not response or asked in seen or answer in answered or asked == answer:
            continue
        seen.add(asked)
        answered.add(answer)
        pairs.append(InstructionPair(instruction=instruction, response=response))
    return pairs


def count_chat_pairs(completion: str, *, wording: ChatPromptWording) -> int:
    """How many pairs a completion begins, well-formed or not; the prompt's response prefix begins the first."""
    lines = (wording.question_label + completion).split("\n")
    return sum(_after_label(line, wording.question_label) is not None for line in lines)


def _after_label(line: str, label: str) -> str | None:
    """What stands behind the label that a line begins with; None when it begins with another thing."""
    rest, content = line, None
    # More than once: the prompt ends with a label, and a model may write it again.
    while match := _label_pattern(label).match(_LABEL_DECORATION.sub("", rest)):
        rest = content = match[1].strip()
    return content


@lru_cache(maxsize=64)
def _label_pattern(label: str) -> re.Pattern[str]:
    """The label in any case, perhaps numbered (``Question 1:``) or in bold, and what follows it."""
    stem = label.rstrip(":：")
    end = r"\s{0,3}\d{0,3}\**[:：]\**" if stem != label else r"\**"
    return re.compile(re.escape(stem) + end + "(.*)", re.IGNORECASE | re.DOTALL)


def _unquoted(text: str) -> str:
    """The text without a pair of double quotes around the whole of it."""
    is_quoted = len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1] if is_quoted else text
