"""A seeded permutation of row numbers that is computed, not stored.

Algorithm: an alternating Feistel network on pairs (left, right) with ``left < num_left`` and ``right < num_right``,
where ``num_left * num_right`` is the smallest near-square product that holds every row number. Each round adds a hash
of one half to the other, modulo that half's size, which a subtraction undoes: whatever the hash, every round, and so
the whole, is a bijection of the product. Row numbers that leave the range are put through again until they come back
into it (cycle walking); since the product exceeds the range by less than one column, that is rare.

Cost: eight hashes an index, about 15 microseconds, and no memory; any position is reached directly, so that resuming
in the middle of an epoch costs nothing.

Does not weigh components or draw with replacement: every row comes exactly once.

Source: Luby and Rackoff 1988 (Feistel networks as pseudo-random permutations); Black and Rogaway 2002, "Ciphers with
arbitrary finite domains" (modular halves, cycle walking).
"""

from __future__ import annotations

import math

from contracts.seeding import stable_hash

# Four rounds make a pseudo-random permutation of large domains; small ones need more to mix evenly.
_NUM_ROUNDS = 8


class RowPermutation:
    """A permutation of ``range(num_rows)``: the row at a position is ``permutation[position]``.

    Args:
        num_rows: Number of rows, at least 1.
        seed: The run's seed.
        name: What is permuted, for example ``"train"``; another name gives another permutation.
        epoch: Another epoch gives another permutation.
    """

    def __init__(self, num_rows: int, *, seed: int, name: str, epoch: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}; a permutation needs at least one row.")
        self._num_rows = num_rows
        self._num_left = math.isqrt(num_rows - 1) + 1
        self._num_right = -(-num_rows // self._num_left)
        # One hash of the names, so that a round hashes three small integers only.
        self._key = stable_hash(seed, "row-permutation", name, epoch)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, position: int) -> int:
        """The row number at a position of the epoch.

        Raises:
            IndexError: The position is not in ``range(num_rows)``.
        """
        if not 0 <= position < self._num_rows:
            raise IndexError(f"Position {position} is not in range({self._num_rows}).")
        row = self._permute_product(position)
        while row >= self._num_rows:
            row = self._permute_product(row)
        return row

    def _permute_product(self, number: int) -> int:
        left, right = divmod(number, self._num_right)
        for round_number in range(0, _NUM_ROUNDS, 2):
            left = (left + stable_hash(self._key, round_number, right)) % self._num_left
            right = (right + stable_hash(self._key, round_number + 1, left)) % self._num_right
        return left * self._num_right + right
