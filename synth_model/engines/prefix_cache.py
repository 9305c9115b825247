"""Remembers what was computed for token sequences, for later ones that begin alike, within a bound of memory.

An entry is a token sequence and whatever was computed for it, token by token. A lookup finds the entry with the longest
beginning in common; how much of it is of use is the caller's to decide. When the bound is reached, what was not used
for longest goes first, and an entry that a new one contains goes at once. So the prompt of a chain's next round finds
that of the round before, and the beginning that all prompts share stays as long as any of them is there.

Cost: a lookup compares with each entry, a few microseconds apiece; entries are hundreds at most, since each of them
takes megabytes. Not done here: sharing between entries, locks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def num_common_tokens(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences begin with in common; both int64, one-dimensional."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


class PrefixCache(Generic[T]):
    """See the module's description.

    Args:
        max_bytes: Most bytes of all entries together, as counted by who puts them in; 0 keeps nothing.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        # By the tokens' bytes, what was used last at the end.
        self._entries: OrderedDict[bytes, tuple[np.ndarray, T, int]] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries together."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, tokens: np.ndarray) -> tuple[int, T | None]:
        """How many tokens the best entry has in common with a sequence (int64), and what it holds; or 0 and None."""
        best_length, best_key = 0, b""
        for key, (entry_tokens, _, _) in self._entries.items():
            length = num_common_tokens(tokens, entry_tokens)
            # Of equally long ones the one used last, which stays longest.
            if length and length >= best_length:
                best_length, best_key = length, key
        if not best_length:
            return 0, None
        self._entries.move_to_end(best_key)
        return best_length, self._entries[best_key][1]

    def put(self, tokens: np.ndarray, value: T, *, num_bytes: int) -> None:
        """Keeps an entry; one that is larger than the bound is not kept.

        Args:
            tokens: The sequence, int64.
            value: What was computed for it.
            num_bytes: The memory that the value takes.
        """
        if num_bytes > self._max_bytes:
            return
        contained = [
            key for key, (other, _, _) in self._entries.items() if num_common_tokens(tokens, other) == len(other)
        ]
        for key in contained:
            self._remove(key)
        while self._num_bytes + num_bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))
        self._entries[tokens.tobytes()] = (tokens, value, num_bytes)
        self._num_bytes += num_bytes

    def _remove(self, key: bytes) -> None:
        _, _, num_bytes = self._entries.pop(key)
        self._num_bytes -= num_bytes
