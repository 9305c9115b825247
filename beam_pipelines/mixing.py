"""How much of each component a mixture takes, in tokens, exact to one row.

A component is taken ``epochs`` times (a fraction takes part of it), or as many tokens as a ratio to other components
asks for (domain-adaptive recipe: general instructions 1:1 with the augmented texts). What is asked for in tokens is
turned into rows once, for the whole split, and shared out to the shards in proportion to the tokens each of them
holds (largest remainder), so that every shard is a sample of the same mixture.

Cost: proportional to components times shards; nothing here sees a text.

Source: Cheng et al. 2024 (arXiv 2406.14491), section 3.2, for the two mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """One component of a mixture.

    Args:
        name: Under which its rows, tokens and losses are reported.
        kind: What is read and how it is rendered: ``chains`` (an augmented corpus, through the templates),
            ``chain_documents`` (the raw documents of an augmented corpus), ``documents`` (raw text files) or
            ``instructions`` (records of any shape in `beam_pipelines.instruction_shapes`, or what ``self-instruct``
            wrote, as ``{instruction} {response}``).
        input: Folders of augmented or instruction corpora, or files, folders and globs of records.
        epochs: How often each text is seen; 0.5 takes half of the tokens, 4 takes each text four times.
        token_ratio: Instead of ``epochs``: so many tokens for each token of the components in ``relative_to``.
        relative_to: Names of components that are taken by ``epochs``.
    """

    name: str
    kind: Literal["chains", "chain_documents", "documents", "instructions"]
    input: list[str]
    epochs: float = 1.0
    token_ratio: float | None = None
    relative_to: list[str] = field(default_factory=list)


def check_components(components: Sequence[ComponentConfig]) -> None:
    """Refuses an impossible mixture.

    Raises:
        ValueError: No component, a name twice, a number out of range, or a reference to no or an unsuitable component.
    """
    if not components:
        raise ValueError("components is empty; a mixture needs at least one.")
    names = [component.name for component in components]
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"Components must have names, each its own, not {names}.")
    by_epochs = [component.name for component in components if component.token_ratio is None]
    for component in components:
        where = f"component {component.name!r}"
        if not component.input:
            raise ValueError(f"{where}: input is empty.")
        if component.token_ratio is None:
            if component.relative_to:
                raise ValueError(f"{where}: relative_to goes with token_ratio, which is not given.")
            if not 0 < component.epochs < float("inf"):
                raise ValueError(f"{where}: epochs is {component.epochs}; it must be above 0.")
            continue
        if not 0 < component.token_ratio < float("inf"):
            raise ValueError(f"{where}: token_ratio is {component.token_ratio}; it must be above 0.")
        if component.epochs != 1.0:
            raise ValueError(f"{where}: give epochs or token_ratio, not both.")
        unsuitable = [name for name in component.relative_to if name not in by_epochs]
        if not component.relative_to or unsuitable:
            raise ValueError(
                f"{where}: relative_to is {component.relative_to}; it must name components that are taken by epochs "
                f"({by_epochs})."
            )


def tokens_by_shard(
    components: Sequence[ComponentConfig], *, tokens: Mapping[str, Sequence[int]], sequence_length: int
) -> dict[str, list[int]]:
    """Tokens that each shard takes of each component.

    Args:
        components: The mixture, checked.
        tokens: For each component the tokens that each shard holds of it; all lists are equally long.
        sequence_length: Tokens a row.

    Returns:
        For each component the tokens of each shard. Whole epochs take every token so many times, so that the last row
        of a shard may hold padding; anything else is rounded to whole rows, at least one.

    Raises:
        ValueError: A component of the mixture has no token at all.
    """
    totals = {name: sum(by_shard) for name, by_shard in tokens.items()}
    taken: dict[str, list[int]] = {}
    for component in components:
        available = totals.get(component.name, 0)
        if not available:
            raise ValueError(
                f"Component {component.name!r} has no text: its input {component.input} holds nothing usable, or "
                "everything in it went to validation. Mend the input or take the component out."
            )
        held = tokens[component.name]
        if component.token_ratio is None and component.epochs == int(component.epochs):
            taken[component.name] = [int(component.epochs) * count for count in held]
            continue
        wanted = (
            component.epochs * available
            if component.token_ratio is None
            else component.token_ratio
            * sum(
                other.epochs * totals.get(other.name, 0) for other in components if other.name in component.relative_to
            )
        )
        num_rows = max(1, round(wanted / sequence_length))
        taken[component.name] = [sequence_length * share for share in share_out(num_rows, weights=held)]
    return taken


def share_out(total: int, *, weights: Sequence[int]) -> list[int]:
    """Shares a total out in proportion to weights by the largest remainder; equal remainders go to the first.

    Args:
        total: What is shared out, at least 0.
        weights: At least one above 0; a weight of 0 gets nothing.
    """
    weight_sum = sum(weights)
    assert total >= 0, total
    assert weight_sum > 0, weights
    shares = [total * weight // weight_sum for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: (-(total * weights[index] % weight_sum), index))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares
