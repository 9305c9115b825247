"""Keeps freed memory with the process on a CPU, where every step would otherwise ask the system for it anew.

The logits and activations of a step are blocks of many megabytes. glibc's allocator maps each of them from the system
and gives it back when it is freed, so every step pays for its pages again, zeroed by the kernel one by one. With these
settings blocks up to 64 MB stay with the process, which makes training of small models on a CPU faster, by a quarter
for one of 17 million parameters (``benchmarks/results/training.md``).

Cost: the process never gives memory back, so it stays at its peak; and up to `_TOP_PAD_BYTES` more than that.

Does nothing with another allocator or system. Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import platform

# Their numbers in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_TOP_PAD_BYTES = 1 << 28


def keep_freed_memory() -> bool:
    """Sets the allocator for the rest of the process; returns whether that was possible."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: _TOP_PAD_BYTES}
    num_set: int = sum(mallopt(name, value) for name, value in settings.items())
    return num_set == len(settings)
