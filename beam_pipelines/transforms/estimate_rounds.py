"""`EstimateRounds`: the prompts that a chain will need, with the model's tokenizer and without the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam

from contracts.records import InstructionPair
from synth_model.chain_state import ChainState, add_completion, visible_examples
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import Completion, Sampling
from synth_model.next_prompt import next_prompt
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer

_SMALLEST_BUCKET_TOKENS = 64
# One token in the vocabularies of today, with the space before it.
_STAND_IN_WORD = " and"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainEstimate:
    """What a chain takes.

    Args:
        text_tokens: Tokens of each of its texts alone.
        prompt_tokens: Tokens of the prompt of each round.
        num_left_out: Earlier examples that do not fit the prompt of each round.
    """

    text_tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    num_left_out: tuple[int, ...]


@dataclass(kw_only=True)
class EstimateRounds(beam.PTransform):
    """`ChainState` with all documents pending -> `ChainEstimate`.

    The prompt of the first round is the very one of a run. For later ones, each text before is taken to have got one
    pair of ``num_completion_tokens`` tokens; no text is taken to fail or to get none, which would make them shorter.

    Args:
        engine: For its tokenizer and its context length.
        synthesizer: Builds prompts.
        sampling: For the length of a completion.
        num_completion_tokens: How long a completion is taken to be.
    """

    engine: EngineConfig
    synthesizer: SynthesizerConfig
    sampling: Sampling
    num_completion_tokens: int

    def expand(self, states: beam.PCollection) -> beam.PCollection:
        """One chain at a time, all of its rounds."""
        return states | beam.ParDo(
            _EstimateChain(self.engine, self.synthesizer, self.sampling, self.num_completion_tokens)
        )


def length_bucket(num_tokens: int) -> int:
    """The upper bound of the bucket that a text's length falls into: a power of two, at least 64."""
    return max(_SMALLEST_BUCKET_TOKENS, 1 << max(0, num_tokens - 1).bit_length())


class _EstimateChain(beam.DoFn):
    def __init__(
        self, engine: EngineConfig, synthesizer: SynthesizerConfig, sampling: Sampling, num_completion_tokens: int
    ) -> None:
        self._engine = engine
        self._synthesizer_config = synthesizer
        self._max_prompt_tokens = engine.context_length - sampling.max_new_tokens
        words = _STAND_IN_WORD * num_completion_tokens
        self._stand_in = (InstructionPair(instruction="?", response=words.strip()),)
        self._completion = Completion(
            text="", finish_reason="stop", num_prompt_tokens=0, num_new_tokens=num_completion_tokens
        )

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._engine)
        self._synthesizer = make_synthesizer(self._synthesizer_config)

    def process(self, state: ChainState) -> Iterable[ChainEstimate]:
        text_tokens = self._tokenizer.count_text([document.text for document in state.pending])
        prompt_tokens: list[int] = []
        num_left_out: list[int] = []
        while state.pending:
            prompt, num_visible = next_prompt(
                state,
                synthesizer=self._synthesizer,
                tokenizer=self._tokenizer,
                max_prompt_tokens=self._max_prompt_tokens,
            )
            assert prompt.num_tokens is not None
            prompt_tokens.append(prompt.num_tokens)
            num_left_out.append(len(visible_examples(state)) - num_visible)
            state = add_completion(state, pairs=self._stand_in, completion=self._completion, num_visible=num_visible)
        yield ChainEstimate(
            text_tokens=tuple(text_tokens), prompt_tokens=tuple(prompt_tokens), num_left_out=tuple(num_left_out)
        )
