"""Counts the pairs of a completion where it is journaled, so that the journal alone tells how well a synthesis goes.

Cost: a second parse of each completion, microseconds beside the seconds that it took to generate. Gates come later and
may leave fewer pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import Completion
from synth_model.synthesizer import Synthesizer, SynthesizerConfig, make_synthesizer


@dataclass(frozen=True, kw_only=True)
class CountPairs:
    """A function from `Completion` to the number of its valid pairs, which travels to the workers as its settings.

    Args:
        engine: For its tokenizer.
        synthesizer: Reads completions.
    """

    engine: EngineConfig
    synthesizer: SynthesizerConfig

    def __call__(self, completion: Completion) -> int:
        """The number of pairs."""
        special_tokens = load_tokenizer(self.engine).special_tokens
        return len(self._parser.parse(completion, special_tokens=special_tokens))

    @cached_property
    def _parser(self) -> Synthesizer:
        return make_synthesizer(self.synthesizer)
