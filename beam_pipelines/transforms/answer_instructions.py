"""`AnswerInstructions`: the model that wrote instructions responds to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.instruction_filters import InstructionFilterConfig, Refusal, refuse_response
from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.transforms.complete_prompts import CompletePrompts
from beam_pipelines.transforms.draw_instructions import reject_draw
from contracts.records import GeneralInstruction
from contracts.seeding import stable_hash_hex
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import ChatMessage, Failure, Outcome, Prompt

PAIRS, REJECTS = "pairs", "rejects"
STAGE = "response"


@dataclass(kw_only=True)
class AnswerInstructions(beam.PTransform):
    """(number of the draw, instruction) -> ``pairs`` of `GeneralInstruction`, ``rejects`` of `Reject`.

    Args:
        engine: For its tokenizer.
        model_handler: Completes prompts.
        filters: What a response, and the pair, must pass.
        model_id: The model that wrote both sides.
        journal: Keyed completions of an earlier start of this run, or None on the first start.
    """

    engine: EngineConfig
    model_handler: EngineModelHandler
    filters: InstructionFilterConfig
    model_id: str
    journal: beam.PCollection | None = None

    def expand(self, instructions: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """The instruction is the only turn of a conversation, behind the model's own system turn if it has one."""
        return (
            instructions
            | "Prompt" >> beam.ParDo(_PromptForResponse(self.engine))
            | "Complete" >> CompletePrompts(model_handler=self.model_handler, journal=self.journal)
            | "Filter"
            >> beam.ParDo(_FilterResponse(self.engine, self.filters, self.model_id)).with_outputs(REJECTS, main=PAIRS)
        )


class _PromptForResponse(beam.DoFn):
    def __init__(self, engine: EngineConfig) -> None:
        self._engine = engine

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._engine)

    def process(self, instruction: tuple[int, str]) -> Iterable[tuple[tuple[int, str], Prompt]]:
        prompt = Prompt(messages=(ChatMessage(role="user", content=instruction[1]),))
        yield instruction, replace(prompt, num_tokens=self._tokenizer.count([prompt])[0])


class _FilterResponse(beam.DoFn):
    def __init__(self, engine: EngineConfig, filters: InstructionFilterConfig, model_id: str) -> None:
        self._engine = engine
        self._filters = filters
        self._model_id = model_id

    def setup(self) -> None:
        self._special_tokens: Sequence[str] = load_tokenizer(self._engine).special_tokens

    def process(self, keyed: tuple[tuple[int, str], Outcome]) -> Iterable[GeneralInstruction | TaggedOutput]:
        (number, instruction), outcome = keyed
        refusal: Refusal | Failure | None
        if isinstance(outcome, Failure):
            refusal, response = outcome, ""
        else:
            response = outcome.text.strip()
            refusal = refuse_response(
                outcome, instruction=instruction, filters=self._filters, special_tokens=self._special_tokens
            )
        if refusal is None:
            yield GeneralInstruction(
                id=stable_hash_hex(0, "pair", instruction, response),
                instruction=instruction,
                response=response,
                model_id=self._model_id,
            )
            return
        text = json.dumps({"instruction": instruction, "response": response}, ensure_ascii=False)
        yield TaggedOutput(
            REJECTS, reject_draw(number, stage=STAGE, refusal=refusal, model_id=self._model_id, text=text)
        )
