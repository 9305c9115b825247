"""How much of each component a mixture takes, in tokens, exact to one row.

First *which texts* a component may draw from: all of its inputs', a fraction of their documents, without the documents
of other components (the paper's general recipe: a fifth of the documents augmented, the others raw). Then *how many
tokens* of them: a number of epochs (whole ones take every text so often, a fraction of one takes part of the texts), as
many as a ratio to other components asks for (the domain-adaptive recipe: general instructions 1:1 with the augmented
texts), or a share of the whole mixture; at most a cap. What is asked for in tokens is turned into rows once, for the
whole split, and shared out to the shards in proportion to the tokens each of them holds (largest remainder), so that
every shard is a sample of the same mixture. No shard takes its texts more often than the mixture asks for: where a
shard's share in whole rows would, it takes what it has, and others take the rest.

Cost: proportional to components times shards; nothing here sees a text.

Source: Cheng et al. 2024 (arXiv 2406.14491), sections 3.1 and 3.2, for the two mixtures.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

ComponentKind = Literal["chains", "chain_documents", "documents", "instructions", "synthesizer_tuning"]
KINDS_OF_CHAINS = ("chains", "chain_documents", "synthesizer_tuning")
KINDS_WITH_LOSS_SPANS = ("synthesizer_tuning",)
_KINDS_OF_ONE_DOCUMENT = ("chain_documents", "documents", "instructions")


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    """One component of a mixture.

    Args:
        name: Under which its rows, tokens and losses are reported.
        kind: What is read and how it is rendered: ``chains`` (an augmented corpus, through the templates),
            ``chain_documents`` (the raw documents of an augmented corpus), ``documents`` (raw text files),
            ``instructions`` (records of any shape in `beam_pipelines.instruction_shapes`, or what ``self-instruct``
            wrote, as ``{instruction} {response}``) or ``synthesizer_tuning`` (an augmented corpus in the wire format,
            with the loss on pairs only).
        input: Folders of augmented or instruction corpora, or files, folders and globs of records.
        fraction: Share of the documents that it draws, by the hash of their ids: two components with the same
            fraction draw the same documents, one with a larger fraction draws these and more. A chain is drawn by its
            first document.
        exclude_documents_of: Names of components. A document that stands in a text that one of them draws is left out
            here, so that none is in both. For kinds whose texts are single documents.
        epochs: How often each text is seen; 0.5 takes half of the tokens, 4 takes each text four times.
        token_ratio: Instead of ``epochs``: so many tokens for each token of the components in ``relative_to``.
        relative_to: Names of components that are taken by ``epochs``.
        token_share: Instead of ``epochs``: this share of all tokens of the mixture, above 0 and below 1.
        max_tokens: Cap on the tokens taken by ``epochs`` or ``token_ratio``.
        max_epochs: The most often that ``token_ratio`` or ``token_share`` may repeat a text; asking for more than
            there is under that limit is an error.
    """

    name: str
    kind: ComponentKind
    input: list[str]
    fraction: float = 1.0
    exclude_documents_of: list[str] = field(default_factory=list)
    epochs: float = 1.0
    token_ratio: float | None = None
    relative_to: list[str] = field(default_factory=list)
    token_share: float | None = None
    max_tokens: int | None = None
    max_epochs: float | None = None

    @property
    def is_taken_by_epochs(self) -> bool:
        """Whether its tokens follow from its own texts alone."""
        return self.token_ratio is None and self.token_share is None


def has_loss_spans(components: Sequence[ComponentConfig]) -> bool:
    """Whether some rows of a mixture have targets in some of their tokens only."""
    return any(component.kind in KINDS_WITH_LOSS_SPANS for component in components)


def check_caps(components: Sequence[ComponentConfig], *, sequence_length: int) -> None:
    """Refuses caps that leave no row.

    Raises:
        ValueError: A cap is smaller than a row.
    """
    for component in components:
        if component.max_tokens is not None and component.max_tokens < sequence_length:
            raise ValueError(
                f"component {component.name!r}: max_tokens is {component.max_tokens}, which is less than a row "
                f"(sequence_length is {sequence_length}). Allow at least a row, or take the component out."
            )


def check_components(components: Sequence[ComponentConfig]) -> None:
    """Refuses an impossible mixture.

    Raises:
        ValueError: No component, a name twice, a number out of range, settings that exclude each other, or a reference
            to no or an unsuitable component.
    """
    if not components:
        raise ValueError("components is empty; a mixture needs at least one.")
    names = [component.name for component in components]
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"Components must have names, each its own, not {names}.")
    by_epochs = [component.name for component in components if component.is_taken_by_epochs]
    for component in components:
        _check_numbers(component)
        _check_references(component, components=components, by_epochs=by_epochs)
    total_share = sum(Fraction(str(component.token_share)) for component in components if component.token_share)
    if total_share and (total_share >= 1 or not by_epochs):
        raise ValueError(
            f"The token shares add up to {float(total_share):g}, and {by_epochs or 'no component'} is taken by epochs: "
            "the shares must add up to less than 1, and what they leave must be filled by a component taken by epochs."
        )


def _check_numbers(component: ComponentConfig) -> None:
    where = f"component {component.name!r}"
    if not component.input:
        raise ValueError(f"{where}: input is empty.")
    if component.kind not in get_args(ComponentKind):
        raise ValueError(f"{where}: kind is {component.kind!r}; it must be one of {get_args(ComponentKind)}.")
    if not 0 < component.fraction <= 1:
        raise ValueError(f"{where}: fraction is {component.fraction}; it must be above 0 and at most 1.")
    for name in ("epochs", "token_ratio", "token_share", "max_tokens", "max_epochs"):
        value = getattr(component, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{where}: {name} is {value}; it must be above 0.")
    if component.token_ratio is not None and component.token_share is not None:
        raise ValueError(f"{where}: give token_ratio or token_share, not both.")
    if component.is_taken_by_epochs:
        if component.relative_to:
            raise ValueError(f"{where}: relative_to goes with token_ratio, which is not given.")
        if component.max_epochs is not None:
            raise ValueError(f"{where}: max_epochs goes with token_ratio or token_share; here epochs says it all.")
    elif component.epochs != 1.0:
        raise ValueError(f"{where}: give epochs or token_ratio or token_share, not two of them.")
    if component.token_share is not None:
        if component.token_share >= 1:
            raise ValueError(f"{where}: token_share is {component.token_share}; it must be below 1.")
        if component.max_tokens is not None:
            raise ValueError(f"{where}: give token_share or max_tokens, not both: a share that is capped is another.")
        if component.relative_to:
            raise ValueError(f"{where}: relative_to goes with token_ratio; token_share is of the whole mixture.")


def _check_references(
    component: ComponentConfig, *, components: Sequence[ComponentConfig], by_epochs: Sequence[str]
) -> None:
    where = f"component {component.name!r}"
    if component.token_ratio is not None and (
        not component.relative_to
        or len(set(component.relative_to)) < len(component.relative_to)
        or any(name not in by_epochs for name in component.relative_to)
    ):
        raise ValueError(
            f"{where}: relative_to is {component.relative_to}; it must name components that are taken by epochs, each "
            f"once ({list(by_epochs)})."
        )
    if not component.exclude_documents_of:
        return
    if component.kind not in _KINDS_OF_ONE_DOCUMENT:
        raise ValueError(
            f"{where}: a text of kind {component.kind!r} may hold several documents, so none can be left out of it; "
            f"exclude_documents_of goes with {_KINDS_OF_ONE_DOCUMENT}."
        )
    others = [other.name for other in components if other is not component and not other.exclude_documents_of]
    if any(name not in others for name in component.exclude_documents_of):
        raise ValueError(
            f"{where}: exclude_documents_of is {component.exclude_documents_of}; it must name other components that "
            f"exclude none themselves ({others})."
        )


def requested_tokens(components: Sequence[ComponentConfig], *, available: Mapping[str, int]) -> dict[str, Fraction]:
    """Tokens that the mixture asks for, by component, before any rounding.

    Args:
        components: The mixture, checked.
        available: Tokens of the texts that each component draws, once each.

    Raises:
        ValueError: A component has no token at all, or more tokens are asked for than it has under its limit.
    """
    for component in components:
        if not available.get(component.name):
            raise ValueError(
                f"Component {component.name!r} has no text: its input {component.input} holds nothing usable, or "
                "everything in it went to validation or was excluded. Mend the input or take the component out."
            )
    # As fractions, so that 0.1 of 10 rows is one row wherever floating point would say 1.0000000000000002.
    tokens: dict[str, Fraction] = {}
    for component in components:
        if component.is_taken_by_epochs:
            tokens[component.name] = _capped(
                Fraction(str(component.epochs)) * available[component.name], component=component
            )
    for component in components:
        if component.token_ratio is not None:
            base = sum(tokens[name] for name in component.relative_to)
            tokens[component.name] = _capped(Fraction(str(component.token_ratio)) * base, component=component)
    shares = {
        component.name: Fraction(str(component.token_share))
        for component in components
        if component.token_share is not None
    }
    total = sum(tokens.values(), Fraction()) / (1 - sum(shares.values(), Fraction()))
    tokens.update({name: share * total for name, share in shares.items()})
    for component in components:
        _check_available(component, wanted=tokens[component.name], available=available[component.name])
    return tokens


def _capped(wanted: Fraction, *, component: ComponentConfig) -> Fraction:
    return wanted if component.max_tokens is None else min(wanted, Fraction(component.max_tokens))


def _check_available(component: ComponentConfig, *, wanted: Fraction, available: int) -> None:
    if component.max_epochs is not None and wanted > Fraction(str(component.max_epochs)) * available:
        raise ValueError(
            f"Component {component.name!r}: {round(wanted)} tokens are asked for, but its texts have {available}, and "
            f"max_epochs allows {component.max_epochs:g} times that ({int(component.max_epochs * available)} tokens). "
            "Ask for less, allow more epochs, or add input."
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
        of a shard may hold padding; anything else is rounded to whole rows, at least one, and to what a shard holds.

    Raises:
        ValueError: As `requested_tokens`.
    """
    available = {name: sum(by_shard) for name, by_shard in tokens.items()}
    requested = requested_tokens(components, available=available)
    taken: dict[str, list[int]] = {}
    for component in components:
        name, wanted = component.name, requested[component.name]
        if component.is_taken_by_epochs and wanted % available[name] == 0:
            taken[name] = [int(wanted / available[name]) * count for count in tokens[name]]
            continue
        # A cap is not rounded up.
        most = component.max_tokens // sequence_length if component.max_tokens else math.inf
        num_rows = int(max(1, min(round(wanted / sequence_length), most)))
        epochs: Fraction | int = math.ceil(wanted / available[name])
        if component.max_epochs is not None:
            epochs = min(epochs, Fraction(str(component.max_epochs)))
        taken[name] = _fill_shards(
            num_rows,
            wanted=wanted,
            weights=tokens[name],
            limits=[_most_tokens(count, epochs=epochs, sequence_length=sequence_length) for count in tokens[name]],
            sequence_length=sequence_length,
            may_exceed=component.max_tokens is None,
        )
    return taken


def _most_tokens(num_tokens: int, *, epochs: Fraction | int, sequence_length: int) -> int:
    """The most that a shard may take: whole epochs to their last token, and of another one whole rows only."""
    if epochs == int(epochs):
        return int(epochs) * num_tokens
    return max(int(epochs) * num_tokens, int(epochs * num_tokens) // sequence_length * sequence_length)


def _fill_shards(
    num_rows: int,
    *,
    wanted: Fraction,
    weights: Sequence[int],
    limits: Sequence[int],
    sequence_length: int,
    may_exceed: bool,
) -> list[int]:
    """Tokens by shard: rows shared out by weight, none beyond its limit, and what is over to where most room is.

    Args:
        num_rows: Rows to take.
        wanted: The tokens that they stand for.
        weights: What they are shared out by.
        limits: Most tokens of each shard.
        sequence_length: Tokens a row.
        may_exceed: Whether the sum may be above what is wanted, if that is nearer to it than what is below.
    """
    shares = share_out(num_rows, weights=weights)
    taken = [min(share * sequence_length, limit) for share, limit in zip(shares, limits, strict=True)]
    missing = min(wanted, Fraction(num_rows * sequence_length)) - sum(taken)
    with_most_room = [
        (taken[index] - limits[index], index) for index in range(len(taken)) if taken[index] < limits[index]
    ]
    heapq.heapify(with_most_room)
    while missing > 0 and with_most_room:
        minus_room, index = heapq.heappop(with_most_room)
        more = min(sequence_length, -minus_room)
        if (more > missing and not may_exceed) or abs(missing - more) >= missing:
            continue
        taken[index] += more
        missing -= more
        if more < -minus_room:
            heapq.heappush(with_most_room, (minus_room + more, index))
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
