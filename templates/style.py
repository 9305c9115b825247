"""The style of a chain: every choice that makes its text look the way it does, each drawn from a stream of its own.

A choice is made when it is first asked for and then stands for the whole chain, so that a chain of M examples is one
text in one style. Its number comes from `hash_fraction` of the seed, the chain and the *name of the choice*: two
choices share no randomness, hence no two of them move together, and asking in another order changes nothing. One
generator, or one seed, for several choices would tie them to each other and leave most combinations unreachable.

Cost: one short hash a choice, and one for the order of up to nine options. Source of the requirement, diverse
templates: Cheng et al. 2024 (arXiv 2406.14491), section 2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from contracts.seeding import hash_fraction, stable_hash
from templates.bank import ONLY, Bank, Entry
from templates.patterns import Pattern

# Keeps these draws apart from any other that takes the same seed and chain.
_STREAM = "templates"

# The places of so many steps of a shuffle come from one hash of 64 bits, far more than they need: hashing each is slow.
_STEPS_A_HASH = 8


class Style:
    """The choices of one chain.

    Args:
        bank: Where the entries come from.
        seed: The run's seed.
        chain_id: The chain.

    Attributes:
        choices: The choices made so far, in order: for a section of the bank the index of the entry, for a weighted
            choice the index of the name chosen.
    """

    __slots__ = ("_bank", "_chain_seed", "choices")

    def __init__(self, bank: Bank, *, seed: int, chain_id: str) -> None:
        self._bank = bank
        # Hashed once, so that each choice hashes its own name alone.
        self._chain_seed = stable_hash(seed, _STREAM, chain_id)
        self.choices: dict[str, int] = {}

    def entry(self, section: str) -> Entry:
        """The chain's entry of a section of the bank; all entries are equally likely."""
        entries = self._bank[section]
        if section not in self.choices:
            fraction = hash_fraction(self._chain_seed, section)
            self.choices[section] = int(fraction * len(entries))
        return entries[self.choices[section]]

    def wording(self, section: str) -> Pattern:
        """As `entry`, for a section whose entries have one part."""
        return self.entry(section)[ONLY]

    def weighted(self, name: str, weights: Mapping[str, float]) -> str:
        """The chain's choice of a name by weight; a weight of 0 is never chosen."""
        assert name not in self.choices, name
        bounds = list(accumulate(weights.values()))
        point = hash_fraction(self._chain_seed, name) * bounds[-1]
        # Rounding may take the point up to the last bound, which belongs to the last weight above 0.
        index = min(bisect_right(bounds, point), bounds.index(bounds[-1]))
        self.choices[name] = index
        return list(weights)[index]

    def option_order(self, num_options: int, *, example_index: int, pair_index: int) -> list[int]:
        """A random order of the options of one pair, independent of those of the other pairs.

        Returns:
            A permutation of ``range(num_options)``, each equally likely.
        """
        order = list(range(num_options))
        # Fisher-Yates; a hash is read as a number whose digits are the places.
        number = 0
        for step, last in enumerate(range(num_options - 1, 0, -1)):
            if step % _STEPS_A_HASH == 0:
                number = stable_hash(self._chain_seed, "option_order", example_index, pair_index, step)
            number, place = divmod(number, last + 1)
            order[last], order[place] = order[place], order[last]
        return order
