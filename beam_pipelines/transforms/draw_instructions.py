"""`DrawInstructions`: a model that is given the start of a user's turn writes what a user might ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.instruction_filters import InstructionFilterConfig, Refusal, refuse_instruction
from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.transforms.complete_prompts import CompletePrompts
from contracts.records import Reject
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import Failure, Outcome, Prompt

INSTRUCTIONS, REJECTS = "instructions", "rejects"
STAGE = "instruction"
# Draws are numbered in blocks, so that a pipeline of a hundred million of them is submitted as quickly as one of ten.
_BLOCK_DRAWS = 1024


@dataclass(kw_only=True)
class DrawInstructions(beam.PTransform):
    """Begin -> ``instructions`` of (number of the draw, text), ``rejects`` of `Reject`.

    Args:
        num_draws: How many instructions are asked for.
        engine: For its tokenizer.
        model_handler: Completes prompts, with a temperature above 0, so that the draws differ.
        filters: What an instruction must pass.
        model_id: The source of rejects.
        journal: Keyed completions of an earlier start of this run, or None on the first start.
    """

    num_draws: int
    engine: EngineConfig
    model_handler: EngineModelHandler
    filters: InstructionFilterConfig
    model_id: str
    journal: beam.PCollection | None = None

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        """Each draw is the same prompt with a number of its own."""
        return (
            pbegin
            | "Blocks" >> beam.Create(list(range(0, self.num_draws, _BLOCK_DRAWS)))
            | "Draws" >> beam.FlatMap(_draws_of_block, self.num_draws)
            | "DealDraws" >> beam.Reshuffle()
            | "Prompt" >> beam.ParDo(_PromptForInstruction(self.engine))
            | "Complete" >> CompletePrompts(model_handler=self.model_handler, journal=self.journal)
            | "Filter"
            >> beam.ParDo(_FilterInstruction(self.engine, self.filters, self.model_id)).with_outputs(
                REJECTS, main=INSTRUCTIONS
            )
        )


def _draws_of_block(start: int, num_draws: int) -> Iterable[int]:
    return range(start, min(start + _BLOCK_DRAWS, num_draws))


def reject_draw(number: int, *, stage: str, refusal: Refusal | Failure, model_id: str, text: str) -> Reject:
    """The reject of a draw; a failure of the engine says its own reason."""
    return Reject(
        doc_id=f"draw-{number:09d}",
        source=model_id,
        stage=stage,
        reason=refusal.reason,
        detail=refusal.detail,
        text=text,
    )


class _PromptForInstruction(beam.DoFn):
    def __init__(self, engine: EngineConfig) -> None:
        self._engine = engine

    def setup(self) -> None:
        tokenizer = load_tokenizer(self._engine)
        text = tokenizer.user_turn_start()
        self._prompt = Prompt(text=text, num_tokens=tokenizer.count([Prompt(text=text)])[0])

    def process(self, number: int) -> Iterable[tuple[int, Prompt]]:
        yield number, replace(self._prompt, draw=number)


class _FilterInstruction(beam.DoFn):
    def __init__(self, engine: EngineConfig, filters: InstructionFilterConfig, model_id: str) -> None:
        self._engine = engine
        self._filters = filters
        self._model_id = model_id

    def setup(self) -> None:
        self._special_tokens: Sequence[str] = load_tokenizer(self._engine).special_tokens

    def process(self, keyed: tuple[int, Outcome]) -> Iterable[tuple[int, str] | TaggedOutput]:
        number, outcome = keyed
        refusal: Refusal | Failure | None
        if isinstance(outcome, Failure):
            refusal, text = outcome, ""
        else:
            text = outcome.text.strip()
            refusal = refuse_instruction(outcome, filters=self._filters, special_tokens=self._special_tokens)
        if refusal is None:
            yield number, text
            return
        yield TaggedOutput(
            REJECTS, reject_draw(number, stage=STAGE, refusal=refusal, model_id=self._model_id, text=text)
        )
