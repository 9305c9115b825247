"""What the systems are asked about a text: the response to each drawn gold instruction, and pairs of their own.

Both are asked at every number of shots. Examples that outgrow the context of any system are left out for all of them,
the earliest first, as in a chain (`synth_model.chain_state.fit_prompt`), so that systems are compared on the same
prompts; the text alone fits, or it would not have been drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from contracts.records import Example, InstructionPair
from synth_model.chain_state import fit_prompt
from synth_model.engines import load_tokenizer
from synth_model.evaluation.config import EvaluateConfig, SystemConfig
from synth_model.evaluation.text_selection import EvaluationText
from synth_model.generation import Prompt, PromptTokenizer, Sampling
from synth_model.synthesizer import Synthesizer, make_synthesizer

Task = Literal["response", "pairs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt of the evaluation.

    Args:
        system: Name of the system that is asked.
        task: ``response`` to a gold instruction, or ``pairs`` of the system's own.
        shots: M.
        text: Index of the text.
        question: Index of the gold instruction among the text's questions; 0 for ``pairs``.
        prompt: The prompt, counted.
        num_examples: How many examples it shows; fewer than M - 1 where a context or the dataset has no more.
    """

    system: str
    task: Task
    shots: int
    text: int
    question: int
    prompt: Prompt
    num_examples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """A system with what its prompts are made by."""

    config: SystemConfig
    synthesizer: Synthesizer
    tokenizer: PromptTokenizer

    def prompt(self, gold: Example, examples: Sequence[Example] = (), *, instruction: str | None) -> Prompt:
        """The counted prompt for the response to an instruction behind examples, or for pairs when there is none."""
        special_tokens = self.tokenizer.special_tokens
        if instruction is None:
            prompt = self.synthesizer.build_prompt(examples, document=gold.document, special_tokens=special_tokens)
        else:
            prompt = self.synthesizer.build_response_prompt(
                examples, document=gold.document, instruction=instruction, special_tokens=special_tokens
            )
        return replace(prompt, num_tokens=self.tokenizer.count([prompt])[0])

    def max_prompt_tokens(self, sampling: Sampling) -> int:
        """What the completion leaves of the context."""
        return self.config.engine.context_length - sampling.max_new_tokens


def make_system(config: SystemConfig) -> System:
    """A system from its config.

    Raises:
        ValueError: Its tokenizer, wording or file of examples is missing.
    """
    return System(
        config=config, synthesizer=make_synthesizer(config.synthesizer), tokenizer=load_tokenizer(config.engine)
    )


def fits_alone(
    gold: Example, questions: Sequence[InstructionPair], *, systems: Sequence[System], config: EvaluateConfig
) -> bool:
    """Whether a text without examples fits the context of every system, for pairs and for each question."""
    asked = [(None, config.sampling)] + [(pair.instruction, config.response_sampling) for pair in questions]
    return all(
        (system.prompt(gold, instruction=instruction).num_tokens or 0) <= system.max_prompt_tokens(sampling)
        for system in systems
        for instruction, sampling in asked
    )


def make_requests(
    texts: Sequence[EvaluationText], *, systems: Sequence[System], config: EvaluateConfig
) -> dict[str, list[Request]]:
    """All prompts for each system by its name, text by text; a prompt shows every system the same examples."""
    requests: dict[str, list[Request]] = {system.config.name: [] for system in systems}
    for index, text in enumerate(texts):
        asked: list[tuple[Task, int, str | None]] = [("pairs", 0, None)]
        asked += [("response", question, pair.instruction) for question, pair in enumerate(text.questions)]
        for (task, question, instruction), shots in itertools.product(asked, config.shots):
            sampling = sampling_of(task, config=config)
            examples = text.examples[max(0, len(text.examples) - (shots - 1)) :]
            fitted: dict[str, tuple[Prompt, int]] = {}
            for system in systems:
                # What one system has no room for, the next ones are not shown.
                fitted[system.config.name] = _fit(
                    examples, text=text, instruction=instruction, system=system, sampling=sampling
                )
                examples = examples[len(examples) - fitted[system.config.name][1] :]
            for system in systems:
                prompt, num_examples = fitted[system.config.name]
                if num_examples > len(examples):
                    prompt, num_examples = _fit(
                        examples, text=text, instruction=instruction, system=system, sampling=sampling
                    )
                assert num_examples == len(examples), "fewer examples leave more room"
                requests[system.config.name].append(
                    Request(
                        system=system.config.name,
                        task=task,
                        shots=shots,
                        text=index,
                        question=question,
                        prompt=prompt,
                        num_examples=num_examples,
                    )
                )
    return requests


def _fit(
    examples: Sequence[Example], *, text: EvaluationText, instruction: str | None, system: System, sampling: Sampling
) -> tuple[Prompt, int]:
    """The prompt with as many of the examples as fit, and how many these are."""
    fitted = fit_prompt(
        examples,
        build=partial(system.prompt, text.gold, instruction=instruction),
        fits=partial(_is_at_most, system.max_prompt_tokens(sampling)),
    )
    assert fitted is not None, f"text {text.gold.document.doc_id} was drawn though it does not fit"
    return fitted[0], fitted[1]


def _is_at_most(num_tokens: int, prompt: Prompt) -> bool:
    return (prompt.num_tokens or 0) <= num_tokens


def sampling_of(task: Task, *, config: EvaluateConfig) -> Sampling:
    """How completions for a task are generated."""
    return config.sampling if task == "pairs" else config.response_sampling
