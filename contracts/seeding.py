"""Randomness and hashing that depend on names alone.

Every random choice of the project draws from `rng(seed, *names)` and every order comes from `stable_hash`, so that a
result depends on the data, the config and the seed, and never on the clock, the worker or the order of arrival.
Both are functions of the exact names: ``("a", "bc")`` and ``("ab", "c")`` differ, and so do ``1`` and ``"1"``.

Source: the digest is BLAKE2b (RFC 7693), the generator NumPy's Philox (Salmon et al. 2011, counter-based).
"""

from __future__ import annotations

import hashlib

import numpy as np

Name = str | int | bytes


def _digest(seed: int, names: tuple[Name, ...], num_bytes: int) -> bytes:
    parts: list[bytes] = []
    for name in (seed, *names):
        # Kind and length in front of each part, so that no two lists of names share an encoding.
        if isinstance(name, str):
            data = name.encode("utf-8", "surrogatepass")
            parts.append(b"s%d:" % len(data))
        elif isinstance(name, int) and not isinstance(name, bool):
            data = b"%d" % name
            parts.append(b"i%d:" % len(data))
        elif isinstance(name, bytes):
            data = name
            parts.append(b"b%d:" % len(data))
        else:
            raise TypeError(f"A name is a str, an int or bytes, not {name!r} ({type(name).__name__}).")
        parts.append(data)
    return hashlib.blake2b(b"".join(parts), digest_size=num_bytes).digest()


def stable_hash(seed: int, *names: Name) -> int:
    """A uniform unsigned 64-bit hash of the seed and the names, the same on every machine and in every run."""
    return int.from_bytes(_digest(seed, names, 8), "big")


def stable_hash_hex(seed: int, *names: Name) -> str:
    """As `stable_hash`, 128 bits as 32 hexadecimal characters: wide enough for identifiers."""
    return _digest(seed, names, 16).hex()


def hash_fraction(seed: int, *names: Name) -> float:
    """A uniform number in [0, 1) from the seed and the names."""
    # 53 bits: every value is exact in a float64, so 1.0 cannot be reached by rounding.
    return (stable_hash(seed, *names) >> 11) / float(1 << 53)


def rng(seed: int, *names: Name) -> np.random.Generator:
    """An independent random stream for the seed and the names.

    Two calls with the same arguments give the same stream; different names give streams that do not move together.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, names, 16), "big")))
