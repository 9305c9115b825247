"""Audit of the templates' diversity: are all choices drawn as often as they should be, and independently?

For chains of several shapes, alike but for their ids, ``num_draws`` of each are rendered and their choices tallied:

* *Combinations*: how many distinct combinations of choices came up, against the expected number if every choice were
  drawn on its own. A group of K equally likely combinations with total probability q contributes
  ``K · (1 - (1 - q/K)^draws)``. Choices that move together fall far below that.
* *Frequencies*: a chi-square test of each choice against its weights.
* *Pairs*: a chi-square test of independence for each two choices made together, where every cell of their table expects
  five draws or more.

The p-values use the Wilson-Hilferty approximation. The audit passes when every shape reaches
`MIN_DIVERSITY` of the expected combinations and no p-value is below `FAMILY_WISE_ERROR` divided by the number of tests
(Bonferroni).

Cost: about 0.1 ms a draw and shape. It does not judge the wordings; the printed samples are there to be read.
Source: Wilson & Hilferty 1931, "The distribution of chi-square", PNAS 17.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from contracts.records import Chain, Document, Example, InstructionPair
from templates.bank import bank_sha256, load_bank
from templates.config import DEFAULT_CONFIG, FamilyWeights, TemplateConfig
from templates.rendering import layout_weights, render_with_style
from templates.style import Style

MIN_DIVERSITY = 0.95
FAMILY_WISE_ERROR = 0.001
MIN_EXPECTED_CELL = 5

_FREE_FORM = InstructionPair(instruction="What lives in the pond?", response="Two frogs.")
_MULTIPLE_CHOICE = InstructionPair(
    instruction="Which animal sleeps?\nOptions:\n- The heron\n- The newt\n- The pike\n- The frog", response="The newt"
)
_CHAIN_OF_THOUGHT = InstructionPair(
    instruction="How many legs do the frogs have together?\nLet's think step by step.",
    response="There are two frogs, and a frog has four legs.\nTherefore, the answer is 8",
)
_MULTIPLE_CHOICE_CHAIN_OF_THOUGHT = InstructionPair(
    instruction=_MULTIPLE_CHOICE.instruction + "\nLet's think step by step.",
    response="The heron hunts at dawn, and the text has only one animal at rest.\nTherefore, the answer is The newt",
)

_NUM_OPTIONS = 4
_OPTION_ORDERS = list(permutations(range(_NUM_OPTIONS)))

SHAPES: Mapping[str, tuple[tuple[InstructionPair, ...], ...]] = {
    "free form": ((_FREE_FORM, _FREE_FORM), (_FREE_FORM, _FREE_FORM)),
    "multiple choice": ((_MULTIPLE_CHOICE, _MULTIPLE_CHOICE), (_MULTIPLE_CHOICE, _MULTIPLE_CHOICE)),
    "chain of thought": ((_CHAIN_OF_THOUGHT, _CHAIN_OF_THOUGHT), (_CHAIN_OF_THOUGHT, _CHAIN_OF_THOUGHT)),
    "choice + thought": ((_MULTIPLE_CHOICE_CHAIN_OF_THOUGHT, _MULTIPLE_CHOICE_CHAIN_OF_THOUGHT),) * 2,
    "every kind": (
        (_MULTIPLE_CHOICE, _FREE_FORM, _CHAIN_OF_THOUGHT),
        (_FREE_FORM, _MULTIPLE_CHOICE_CHAIN_OF_THOUGHT),
    ),
    "one pair": ((_FREE_FORM,),),
}
"""The pairs of each example of the chains that are audited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChiSquareTest:
    """A test by name. ``p_value`` is the chance of a deviation at least as large if the draws are as they should be."""

    name: str
    num_draws: int
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeAudit:
    """What the draws of one shape of chain gave."""

    shape: str
    num_distinct: int
    expected_distinct: float
    frequencies: tuple[ChiSquareTest, ...]
    pairs: tuple[ChiSquareTest, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The audit of all shapes, and one sample text by family and layout."""

    num_draws: int
    seed: int
    shapes: tuple[ShapeAudit, ...]
    samples: Mapping[str, str]

    @property
    def problems(self) -> list[str]:
        """What keeps the audit from passing, one sentence each."""
        tests = [(shape.shape, test) for shape in self.shapes for test in (*shape.frequencies, *shape.pairs)]
        threshold = FAMILY_WISE_ERROR / len(tests)
        return [
            f"{shape.shape}: {shape.num_distinct} combinations, "
            f"under {MIN_DIVERSITY:.0%} of the expected {shape.expected_distinct:.0f}."
            for shape in self.shapes
            if shape.num_distinct < MIN_DIVERSITY * shape.expected_distinct
        ] + [
            f"{shape}: {test.name} has p = {test.p_value:.2g}, under {threshold:.2g}."
            for shape, test in tests
            if test.p_value < threshold
        ]


def audit(*, draws: int = 10_000, seed: int = 0, templates: TemplateConfig = DEFAULT_CONFIG) -> int:
    """Audits the diversity of the templates and prints the report.

    Args:
        draws: Chains to render for each shape.
        seed: Seed of the choices.
        templates: Weights of families and layouts.

    Returns:
        The exit status: 0 when the audit passes, else 1.
    """
    result = run_audit(num_draws=draws, seed=seed, config=templates)
    print(format_audit(result))
    return 1 if result.problems else 0


def run_audit(*, num_draws: int, seed: int, config: TemplateConfig = DEFAULT_CONFIG) -> Audit:
    """Audits every shape.

    Raises:
        ValueError: ``num_draws`` is below 1.
    """
    if num_draws < 1:
        raise ValueError(f"The number of draws is {num_draws}; it must be at least 1.")
    return Audit(
        num_draws=num_draws,
        seed=seed,
        shapes=tuple(_audit_shape(shape, num_draws=num_draws, seed=seed, config=config) for shape in SHAPES),
        samples={
            f"{family}, {layout}": render_with_style(
                _chain("every kind", chain_id=f"sample-{family}"), seed=seed, config=_only(family, layout)
            )[0]
            for family in asdict(config.family_weights)
            for layout in layout_weights(config)
        },
    )


def _chain(shape: str, *, chain_id: str) -> Chain:
    texts = ("Two frogs live in the pond, next to a newt that sleeps.", "The heron comes at dawn and leaves hungry.")
    return Chain(
        chain_id=chain_id,
        source="audit",
        examples=tuple(
            Example(document=Document(doc_id=f"{chain_id}-{index}", source="audit", text=text), pairs=pairs)
            for index, (text, pairs) in enumerate(zip(texts, SHAPES[shape], strict=False))
        ),
        synthesizer_id="audit",
    )


def _only(family: str, layout: str) -> TemplateConfig:
    """A config that leaves no other family and layout."""
    weights = FamilyWeights(**{item.name: float(item.name == family) for item in fields(FamilyWeights)})
    return TemplateConfig(
        family_weights=weights,
        few_pairs_family_weights=weights,
        pairs_first_share=float(layout == "pairs_first"),
    )


def _audit_shape(shape: str, *, num_draws: int, seed: int, config: TemplateConfig) -> ShapeAudit:
    drawn: list[Mapping[str, int]] = []
    orders: list[tuple[int, int]] = []
    for index in range(num_draws):
        _, style = render_with_style(_chain(shape, chain_id=f"{shape}-{index}"), seed=seed, config=config)
        drawn.append(style.choices)
        if shape in ("multiple choice", "choice + thought"):
            orders.append((_option_order(style, pair_index=0), _option_order(style, pair_index=1)))

    choices = {
        name: np.array([made.get(name, -1) for made in drawn])
        for name in sorted({name for made in drawn for name in made})
    }
    num_distinct = len(np.unique(np.stack(list(choices.values())), axis=1).T)
    if orders:
        choices["options of pair 1"], choices["options of pair 2"] = np.array(orders).T

    families = _family_weights(shape, config)
    return ShapeAudit(
        shape=shape,
        num_distinct=num_distinct,
        expected_distinct=_expected_distinct(shape, families=families, num_draws=num_draws, config=config),
        frequencies=tuple(
            _frequency_test(name, values, weights=_weights(name, families=families, config=config))
            for name, values in choices.items()
        ),
        pairs=tuple(
            test
            for first, second in combinations(choices, 2)
            if (test := _independence_test(f"{first} x {second}", choices[first], choices[second]))
        ),
    )


def _option_order(style: Style, *, pair_index: int) -> int:
    """The order of the options of a pair of the first example, as an index into all orders."""
    return _OPTION_ORDERS.index(tuple(style.option_order(_NUM_OPTIONS, example_index=0, pair_index=pair_index)))


def _family_weights(shape: str, config: TemplateConfig) -> dict[str, float]:
    few = min(len(pairs) for pairs in SHAPES[shape]) < 2
    return asdict(config.few_pairs_family_weights if few else config.family_weights)


def _weights(name: str, *, families: Mapping[str, float], config: TemplateConfig) -> NDArray[np.float64]:
    """What a choice should follow: float64, shape (num_values,), sum 1."""
    if name == "family":
        weights = list(families.values())
    elif name == "layout":
        weights = list(layout_weights(config).values())
    else:
        weights = [1.0] * (len(_OPTION_ORDERS) if name.startswith("options of") else len(load_bank()[name]))
    return np.array(weights, np.float64) / sum(weights)


def _expected_distinct(shape: str, *, families: Mapping[str, float], num_draws: int, config: TemplateConfig) -> float:
    """The expected number of distinct combinations if every choice were drawn independently of all others."""
    expected = 0.0
    for family, family_weight in families.items():
        for layout, layout_share in layout_weights(config).items():
            share = family_weight / sum(families.values()) * layout_share
            # Which sections a family draws from in a layout does not depend on the draws.
            _, style = render_with_style(_chain(shape, chain_id="any"), seed=0, config=_only(family, layout))
            sections = [name for name in style.choices if name not in ("family", "layout")]
            num_combinations = math.prod(len(load_bank()[section]) for section in sections)
            expected += num_combinations * (1 - (1 - share / num_combinations) ** num_draws)
    return expected


def _frequency_test(name: str, values: NDArray[np.int64], *, weights: NDArray[np.float64]) -> ChiSquareTest:
    """Tests the draws of a choice (int64, shape (num_draws,), -1 where it was not made) against its weights."""
    counts = np.bincount(values[values >= 0], minlength=len(weights))
    expected = counts.sum() * weights
    possible = weights > 0
    if counts[~possible].any():
        p_value = 0.0
    else:
        statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
        p_value = chi_square_p_value(statistic, degrees_of_freedom=int(possible.sum()) - 1)
    return ChiSquareTest(name=name, num_draws=int(counts.sum()), p_value=p_value)


def _independence_test(name: str, first: NDArray[np.int64], second: NDArray[np.int64]) -> ChiSquareTest | None:
    """Tests two choices (as in `_frequency_test`) for independence where both were made; None with too few draws."""
    both = (first >= 0) & (second >= 0)
    if not both.any():
        return None
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first[both], second[both]), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    degrees_of_freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    if degrees_of_freedom == 0 or expected.min() < MIN_EXPECTED_CELL:
        return None
    statistic = float(((table - expected) ** 2 / expected).sum())
    p_value = chi_square_p_value(statistic, degrees_of_freedom=degrees_of_freedom)
    return ChiSquareTest(name=name, num_draws=int(both.sum()), p_value=p_value)


def chi_square_p_value(statistic: float, *, degrees_of_freedom: int) -> float:
    """The chance that a chi-square variable exceeds the statistic; 1 without a degree of freedom.

    Wilson and Hilferty: the cube root of ``statistic / k`` is nearly normal with mean ``1 - 2/(9k)`` and variance
    ``2/(9k)``. The error is at most 0.05 for one degree of freedom and 0.004 from four on; far out the result is too
    high rather than too low, so the approximation raises no false alarm there.
    """
    if degrees_of_freedom == 0:
        return 1.0
    variance = 2 / (9 * degrees_of_freedom)
    deviation = ((statistic / degrees_of_freedom) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)
    return 0.5 * math.erfc(deviation / math.sqrt(2))


def format_audit(result: Audit) -> str:
    """The audit as a report to read."""
    lines = [f"{result.num_draws} draws a shape, seed {result.seed}, bank {bank_sha256()[:12]}", "", "Combinations"]
    for shape in result.shapes:
        share = shape.num_distinct / shape.expected_distinct
        lines.append(
            f"  {shape.shape:<18}{shape.num_distinct:>8} distinct, "
            f"{shape.expected_distinct:>8.0f} expected: {share:.1%}"
        )
    lines += ["", "Frequencies (chi-square against the weights)"]
    for shape in result.shapes:
        lines += [f"  {shape.shape:<18}{_format_test(test)}" for test in shape.frequencies]
    lines += ["", "Independence (chi-square of each two choices; the lowest p-value of each shape)"]
    for shape in result.shapes:
        if shape.pairs:
            lowest = min(shape.pairs, key=lambda test: test.p_value)
            lines.append(f"  {shape.shape:<18}{_format_test(lowest)}, of {len(shape.pairs)} pairs")
    for name, text in result.samples.items():
        lines += ["", f"===== Sample: {name} =====", text]
    lines += ["", "PROBLEMS" if result.problems else "The audit passes.", *result.problems]
    return "\n".join(lines)


def _format_test(test: ChiSquareTest) -> str:
    return f"{test.name:<40} n = {test.num_draws:>6}  p = {test.p_value:.3f}"
