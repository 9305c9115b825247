"""Settings of the templates: how often each family and layout is used.

The classes have no slots: jsonargparse reads the values of a default from its ``__dict__``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class FamilyWeights:
    """Relative weights of the template families; 0 leaves a family out.

    Args:
        classic: Each pair in a wording of its own kind (question and answer, multiple choice, chain of thought, both).
        numbered: All questions of a text as a numbered list, then all responses.
        inline_few_shot: All pairs of a text but the last as in-line examples, then the last one posed.
        next_turn: A conversation in which the text is a turn and the pairs are the turns after it.
        dialogue: Two speakers, one asking and one replying.
        plain: Text, questions and responses one after the other, without any wording.
    """

    classic: float = 80.0
    numbered: float = 5.0
    inline_few_shot: float = 5.0
    next_turn: float = 5.0
    dialogue: float = 5.0
    plain: float = 0.0

    def __post_init__(self) -> None:
        weights = asdict(self)
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"The weight of the template family {name} is {weight}; it must be 0 or more.")
        if not 0 < sum(weights.values()) < math.inf:
            raise ValueError(
                f"The weights of the template families add up to {sum(weights.values())}; they must add up to a finite "
                "number above 0, so give at least one family a weight."
            )


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """How chains become training texts.

    Args:
        family_weights: Families for a chain in which every text has two pairs or more.
        few_pairs_family_weights: Families for any other chain.
        pairs_first_share: Fraction of chains, from 0 to 1, whose pairs stand before their text instead of after it.
    """

    family_weights: FamilyWeights = field(default_factory=FamilyWeights)
    few_pairs_family_weights: FamilyWeights = field(
        default_factory=lambda: FamilyWeights(
            classic=95.0, numbered=0.0, inline_few_shot=0.0, next_turn=0.0, dialogue=5.0
        )
    )
    pairs_first_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.pairs_first_share <= 1:
            raise ValueError(f"pairs_first_share is {self.pairs_first_share}; it must be from 0 to 1.")


DEFAULT_CONFIG = TemplateConfig()
