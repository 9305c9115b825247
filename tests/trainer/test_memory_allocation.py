import platform
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from trainer import memory_allocation

# Pages that the system handed out while a large block was made and freed again and again, once the heap has grown.
_COUNT_PAGES = """
import resource, sys, torch
from trainer.memory_allocation import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def make_and_free():
    torch.ones(12_000_000)
for _ in range(40):
    make_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    make_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(*arguments):
    command = [sys.executable, "-c", _COUNT_PAGES, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_a_block_that_was_freed_is_used_again():
    assert pages("kept") < pages("given back") / 10


def test_nothing_is_set_where_the_allocator_is_another(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not memory_allocation.keep_freed_memory()
