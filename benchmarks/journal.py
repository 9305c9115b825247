"""What the journal costs: writing a batch with and without merging, a look at the progress, reading all of it back.

``python -m benchmarks.journal [--quick] [--output URL]`` writes the same batches of 32 completions of about 500
characters twice, in alternation and one writer each: as the journal does, and with merging off, which leaves a file a
batch. Then it looks at the progress of both, reads both back, and rolls the unmerged one up as a second start does.
Times are by the clock and of one run, so the ratios count. Memory is how much more this process holds at most while it
reads everything back.

Cost: about two minutes for 2 x 8,192 batches on a local disk; ``--quick`` takes 2 x 512. Not measured here: the join of
a journal with the prompts, which is the runner's work.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

from beam_pipelines import journal
from beam_pipelines.journal import JournalWriter
from contracts import storage
from contracts.seeding import rng, stable_hash_hex
from synth_model.generation import Completion

_BATCH_SIZE = 32
_WORDS = ("river", "stone", "engine", "paper", "winter", "garden", "signal", "copper", "market", "letter", "shadow")


def batch(number: int) -> list[tuple[str, Completion]]:
    """Completions that compress about as prose does."""
    draw = rng(0, "batch", number)
    return [
        (
            stable_hash_hex(0, "key", number, index) * 2,
            Completion(
                text=" ".join(f"{_WORDS[int(word)]}{int(word) % 97}" for word in draw.integers(len(_WORDS), size=70)),
                finish_reason="stop",
                num_prompt_tokens=700,
                num_new_tokens=120,
            ),
        )
        for index in range(_BATCH_SIZE)
    ]


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long some work takes, and what it gives."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def write_both(merged: str, unmerged: str, *, num_batches: int) -> tuple[float, float]:
    """Writes the batches to both journals in turn; returns the seconds that each took."""
    fan_in = journal._FAN_IN
    writers = {output: JournalWriter(output, start_id=journal.begin(output)) for output in (merged, unmerged)}
    seconds = dict.fromkeys(writers, 0.0)
    for number in range(num_batches):
        entries = batch(number)
        for output, writer in writers.items():
            journal._FAN_IN = fan_in if output == merged else num_batches + 1
            seconds[output] += seconds_of(lambda writer=writer, entries=entries: writer.write(entries))[0]
    journal._FAN_IN = fan_in
    return seconds[merged], seconds[unmerged]


def read_all(output: str) -> int:
    """Reads every entry; returns how many there are."""
    return sum(1 for segment in journal.list_segments(output) for _ in journal.read_segment(segment))


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="512 batches instead of 8,192")
    parser.add_argument("--output", default=None, help="folder, local or remote; a temporary one unless given")
    arguments = parser.parse_args()
    num_batches = 512 if arguments.quick else 8192
    root = arguments.output or tempfile.mkdtemp()
    outputs = storage.join(root, "merged"), storage.join(root, "unmerged")
    rows: list[tuple[str, float, float]] = []

    writing = write_both(*outputs, num_batches=num_batches)
    rows.append(("write a batch, ms", *(1000 * seconds / num_batches for seconds in writing)))
    rows.append(("files", *(float(len(journal.list_files(output))) for output in outputs)))
    looks = [seconds_of(lambda output=output: journal.read_progress(output)) for output in outputs]
    assert all(progress.num_done == num_batches * _BATCH_SIZE for _, progress in looks)
    rows.append(("look at the progress, ms", *(1000 * seconds for seconds, _ in looks)))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reads = [seconds_of(lambda output=output: read_all(output)) for output in outputs]
    assert all(count == num_batches * _BATCH_SIZE for _, count in reads)
    rows.append(("read it back, entries/ms", *(count / 1000 / seconds for seconds, count in reads)))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    seconds, _ = seconds_of(lambda: journal.roll_up(journal.list_files(outputs[1])))

    print("| | as it is | without merging | ratio |\n|---|---|---|---|")
    for name, merged, unmerged in rows:
        print(f"| {name} | {merged:.2f} | {unmerged:.2f} | {merged / unmerged:.3f} |")
    print(
        f"\n{num_batches * _BATCH_SIZE} completions. Reading them back took {more:.0f} MiB more than the process held."
    )
    print(f"Rolling up {num_batches} files took {seconds:.1f} s.")
    if arguments.output is None:
        storage.remove_folder(root)


if __name__ == "__main__":
    main()
