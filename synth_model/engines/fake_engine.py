"""A deterministic engine without a model: for tests, rehearsals of large jobs, and measuring everything else.

It writes pairs about the words of the prompt, in the wire format for a string and as labelled lines for a
conversation, and an instruction behind the start of a user's turn. What it answers depends on the prompt, its options
and, with a temperature, the prompt's own seed, never on the batch or the order.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.seeding import hash_fraction, rng
from synth_model.generation import Completion, Failure, Outcome, Prompt, Sampling, prompt_seed
from synth_model.markup import escape
from synth_model.scoring import Score, ScoringOutcome, ScoringRequest
from synth_model.wire_format import ANSWER, CONTEXT, END_CONTEXT, MARKUP

_WORD = re.compile(r"\w+|[^\w\s]")
_USER_TURN = "<|fake_user|>\n"
_TASKS = ("Explain", "Summarize", "Compare", "Describe", "List", "Rank", "Criticize", "Plan", "Teach me", "Question")
_SUBJECTS = ("rivers", "bread", "taxes", "poems", "bridges", "chess", "gardens", "engines", "winter", "markets", "bees")
_READERS = ("a child", "a nurse", "my neighbour", "a beginner", "an expert", "the committee", "a tired reader")


@dataclass(frozen=True, kw_only=True)
class FakeOptions:
    """How the fake engine behaves.

    Args:
        seed: Another seed gives other answers.
        max_pairs: A prompt gets from one pair to this many.
        no_pair_rate: Share of prompts that are answered without a valid pair, or without an instruction.
        failure_rate: Share of prompts that fail, and of requests for a score.
        seconds_per_prompt: How long each prompt takes.
        question_label: Begins an instruction in answer to a conversation.
        answer_label: Begins a response in answer to a conversation.
    """

    seed: int = 0
    max_pairs: int = 3
    no_pair_rate: float = 0.1
    failure_rate: float = 0.0
    seconds_per_prompt: float = 0.0
    question_label: str = "Question:"
    answer_label: str = "Answer:"


class FakeTokenizer:
    """Counts words and punctuation marks; a special token counts as its characters do."""

    special_tokens: tuple[str, ...] = ("<|fake_end|>", _USER_TURN.strip())

    def count(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt."""
        return self.count_text([_content(prompt) for prompt in prompts])

    def count_text(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(_WORD.findall(text)) for text in texts]

    def user_turn_start(self) -> str:
        """What makes the fake engine write an instruction."""
        return _USER_TURN


def _content(prompt: Prompt) -> str:
    if prompt.text:
        return prompt.text + prompt.response_prefix
    return "\n".join([message.content for message in prompt.messages] + [prompt.response_prefix])


class FakeEngine:
    """See the module's description. ``context_length`` bounds prompt and completion together, in its own tokens."""

    def __init__(self, options: FakeOptions, *, context_length: int) -> None:
        self._options = options
        self._context_length = context_length
        self._tokenizer = FakeTokenizer()

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in order."""
        return [self._complete(prompt, sampling) for prompt in prompts]

    def _complete(self, prompt: Prompt, sampling: Sampling) -> Outcome:
        options = self._options
        if options.seconds_per_prompt:
            time.sleep(options.seconds_per_prompt)
        content = _content(prompt)
        # What the answer depends on: with a temperature, each draw of the same words has another one.
        identity = f"{content}{prompt_seed(prompt, sampling=sampling)}" if sampling.temperature else content
        (num_prompt_tokens,) = self._tokenizer.count([prompt])
        if num_prompt_tokens + sampling.max_new_tokens > self._context_length:
            return Failure(
                reason="prompt_too_long",
                detail=f"{num_prompt_tokens} tokens and {sampling.max_new_tokens} new exceed {self._context_length}.",
            )
        if hash_fraction(options.seed, "failure", identity) < options.failure_rate:
            return Failure(reason="generation_failed", detail="failure_rate of the fake engine")
        if prompt.text == _USER_TURN:
            text = "" if self._has_no_pair(identity) else self._instruction(identity)
        else:
            text = "Nothing to ask." if self._has_no_pair(identity) else self._pairs(prompt, content, identity)
        words = _WORD.findall(text)
        is_cut = len(words) > sampling.max_new_tokens
        if is_cut:
            text = " ".join(words[: sampling.max_new_tokens])
        return Completion(
            text=text,
            finish_reason="length" if is_cut else "stop",
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=min(len(words), sampling.max_new_tokens),
        )

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringOutcome]:
        """One outcome a request, in order: a word that stands in the prompt or the lead is likelier than another."""
        return [self._score(request) for request in requests]

    def _score(self, request: ScoringRequest) -> ScoringOutcome:
        known = set(_WORD.findall(f"{_content(request.prompt)}{request.lead}"))
        words = _WORD.findall(request.continuation)
        identity = f"{_content(request.prompt)}{request.lead}{request.continuation}"
        if not words or hash_fraction(self._options.seed, "scoring failure", identity) < self._options.failure_rate:
            return Failure(reason="scoring_failed", detail="failure_rate of the fake engine, or no word to score")
        likelihoods = (
            -(0.5 if word in known else 4.0) - hash_fraction(self._options.seed, "likelihood", word) for word in words
        )
        return Score(log_likelihood=sum(likelihoods), num_tokens=len(words))

    def _has_no_pair(self, identity: str) -> bool:
        return hash_fraction(self._options.seed, "no pair", identity) < self._options.no_pair_rate

    def _instruction(self, identity: str) -> str:
        random = rng(self._options.seed, "instruction", identity)
        task, subject, other, reader = (
            words[int(random.integers(len(words)))] for words in (_TASKS, _SUBJECTS, _SUBJECTS, _READERS)
        )
        return f"{task} what {subject} and {other} have in common, in words that suit {reader}."

    def _pairs(self, prompt: Prompt, content: str, identity: str) -> str:
        random = rng(self._options.seed, "pairs", identity)
        subject = (
            content.rpartition(CONTEXT)[2].partition(END_CONTEXT)[0] if prompt.text else prompt.messages[-1].content
        )
        words = _WORD.findall(subject) or ["text"]
        pairs = []
        for number in range(1, int(random.integers(1, self._options.max_pairs, endpoint=True)) + 1):
            asked, answered = (
                " ".join(words[int(random.integers(len(words)))] for _ in range(int(random.integers(2, 6))))
                for _ in range(2)
            )
            pairs.append((f"What does part {number} say about {asked}?", f"It says: {answered}."))
        if prompt.text:
            pairs = [(escape(asked, tokens=MARKUP), escape(answered, tokens=MARKUP)) for asked, answered in pairs]
            text = "\n\n".join(f"<QUE> {asked} <ANS> {answered} </END>" for asked, answered in pairs)
            # Behind an instruction only its response is left to write, and the next pairs.
            return text.partition(ANSWER)[2] if prompt.response_prefix else text
        labels = self._options.question_label, self._options.answer_label
        text = "\n\n".join(f"{labels[0]} {asked}\n{labels[1]} {answered}" for asked, answered in pairs)
        return text.removeprefix(prompt.response_prefix)
