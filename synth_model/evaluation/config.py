"""What is evaluated: which synthesizers, on which datasets, shown how many examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from synth_model.engines import EngineConfig
from synth_model.generation import Sampling
from synth_model.synthesizer import SynthesizerConfig

GOLD = "gold"
"""Stands for the datasets' own pairs where systems are described side by side."""


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """A synthesizer to evaluate.

    Args:
        name: What it is called in the results.
        engine: The model. Systems with equal engines share one loaded model.
        synthesizer: How it is asked.
    """

    name: str
    engine: EngineConfig
    synthesizer: SynthesizerConfig = field(default_factory=SynthesizerConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluates instruction synthesizers against gold pairs.

    Args:
        systems: The synthesizers; the first is compared with each of the others, text by text.
        output: Folder for the results; belongs to this run alone.
        seen: Augmented corpora of gold pairs (made by ``tasks``) of datasets that a system was tuned on. Only texts
            that are not in ``tuning_corpora`` are used.
        unseen: The same of datasets that were left out of tuning.
        tuning_corpora: Augmented corpora that a system was tuned on. Their texts are left out, and a dataset of theirs
            is refused as unseen, one that is not theirs as seen. Empty when nothing was tuned here.
        max_texts: Most texts of one dataset, drawn by hash.
        max_questions: Most gold instructions of one text that responses are asked for, drawn by hash.
        shots: Lengths M of the chains that a text is asked in: 1 is the text alone, M shows M - 1 other texts of its
            dataset with their gold pairs before it.
        sampling: How pairs are generated. Responses are always taken greedily.
        max_response_tokens: Longest response to a gold instruction, in tokens.
        num_resamples: Resamples of the bootstrap.
        confidence: Coverage of the intervals.
        max_shown_texts: Texts of one dataset that the page shows.
        seed: Decides which texts, questions and examples are drawn, and the resamples.
    """

    systems: list[SystemConfig]
    output: str
    seen: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    tuning_corpora: list[str] = field(default_factory=list)
    max_texts: int = 50
    max_questions: int = 2
    shots: list[int] = field(default_factory=lambda: [1, 3])
    sampling: Sampling = field(default_factory=Sampling)
    max_response_tokens: int = 64
    num_resamples: int = 2000
    confidence: float = 0.95
    max_shown_texts: int = 5
    seed: int = 0

    @property
    def response_sampling(self) -> Sampling:
        """How responses to gold instructions are generated."""
        return Sampling(max_new_tokens=self.max_response_tokens)

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if not self.systems:
            raise ValueError("systems is empty; give at least one synthesizer with a name and an engine.")
        if not self.seen and not self.unseen:
            raise ValueError("seen and unseen are both empty; give at least one corpus made by `synth_model tasks`.")
        for name, count in Counter(system.name for system in self.systems).items():
            if not name.strip() or name == GOLD or count > 1:
                raise ValueError(f"systems: the name {name!r} is empty, taken ({GOLD!r}) or given {count} times.")
        for system in self.systems:
            system.engine.check()
        for name in ("max_texts", "max_questions", "max_response_tokens", "num_resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_shown_texts < 0:
            raise ValueError(f"max_shown_texts is {self.max_shown_texts}; it must be at least 0.")
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots is {self.shots}; give one or more different lengths of at least 1.")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence is {self.confidence}; it must be between 0 and 1.")

    def settings_of_the_result(self) -> dict[str, Any]:
        """What decides on the results, as JSON: how and where models run does not, nor where the results go."""
        values = asdict(self)
        del values["output"]
        for values_of_system, system in zip(values["systems"], self.systems, strict=True):
            values_of_system["engine"] = system.engine.settings_of_the_result()
        return values
