"""Finished completions on storage, so that an evaluation that was killed goes on and pays for nothing twice.

Each batch becomes one JSON Lines file named by a hash of its keys, written whole or not at all and never changed:
object stores cannot append. A key is `synth_model.generation.completion_key`, a hash of model, sampling and prompt.
Failures are not kept: the next start asks again.

Cost: one small file a batch, and all of them read at a start. An evaluation has some thousands of prompts; a synthesis
of millions keeps a journal that merges its files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from contracts import storage
from contracts.seeding import stable_hash_hex
from synth_model.generation import Completion


class CompletionLog:
    """The completions in a folder, by key."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def read(self) -> dict[str, Completion]:
        """Every completion kept so far."""
        completions = {}
        for url in storage.list_files(self._folder, suffixes=(".jsonl",)):
            for line in storage.read_text(url).splitlines():
                values = json.loads(line)
                key = values.pop("key")
                completions[key] = Completion(**values)
        return completions

    def append(self, completions: Mapping[str, Completion]) -> None:
        """Makes a batch durable; an empty one writes nothing."""
        if not completions:
            return
        # JSON escapes what is not ASCII: no character of a completion can break a line or an encoding.
        lines = [json.dumps({"key": key, **asdict(completion)}) for key, completion in sorted(completions.items())]
        name = f"{stable_hash_hex(0, 'completions', *sorted(completions))}.jsonl"
        storage.write_bytes_atomically(storage.join(self._folder, name), ("\n".join(lines) + "\n").encode("ascii"))
