"""A sample of texts that depends on the texts alone: not on the order of files, nor on how often it is drawn.

Every text has a number, the hash of seed and text. The sample is the texts with the lowest numbers, as many in a row as
stay within a limit of bytes together: one pass, and whatever the corpus holds, never more in memory than the limit and
a text. Long texts are drawn in slices, so that no book fills a sample. A share of the texts, drawn by another hash, is
kept out of training and measured on; of those, each file keeps a sample of its own.

Cost: a hash of each text and O(log n) comparisons; a corpus is read once.

Source: bottom-k sampling (Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches").
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.record_files import Record, lone_surrogate, read_records
from contracts.seeding import hash_fraction, stable_hash

SLICE_CHARACTERS = 50_000


class BottomSample:
    """The texts with the lowest numbers, as many in a row as fit into so many bytes.

    Args:
        max_bytes: Most bytes of the sample in UTF-8.
        seed: Another seed draws another sample.
        name: Samples of different names are independent.
    """

    def __init__(self, *, max_bytes: int, seed: int, name: str) -> None:
        self._max_bytes = max_bytes
        self._seed = seed
        self._name = name
        self._num_bytes = 0
        # A heap that gives the highest number first, since that one goes when the limit is reached. Numbers are
        # negative there.
        self._texts: list[tuple[int, str]] = []
        # The lowest of those that had to go: nothing behind it belongs to the sample, even where it would still fit.
        self._first_left_out: tuple[int, str] | None = None

    def add(self, text: str) -> None:
        """Offers a text."""
        entry = (-stable_hash(self._seed, self._name, text), text)
        if self._first_left_out is not None and entry <= self._first_left_out:
            return
        heapq.heappush(self._texts, entry)
        self._num_bytes += _num_bytes(text)
        while self._num_bytes > self._max_bytes:
            self._first_left_out = heapq.heappop(self._texts)
            self._num_bytes -= _num_bytes(self._first_left_out[1])

    def texts(self) -> list[str]:
        """The texts in the order of their numbers."""
        return [text for _, text in sorted(self._texts, reverse=True)]


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledTexts:
    """What a sample holds.

    Args:
        to_train: Texts to train on, long ones in slices.
        to_measure: For each file those of texts that are not trained on.
        num_texts: Texts in the files.
        num_unusable: Records without a text.
    """

    to_train: list[str]
    to_measure: dict[str, list[str]]
    num_texts: int
    num_unusable: int


def sample_texts(
    urls: Sequence[str],
    *,
    text_field: str,
    max_bytes: int,
    max_measured_bytes: int,
    measured_share: float,
    seed: int,
) -> SampledTexts:
    """Draws the texts to train on and those to measure on.

    Args:
        urls: Files of records.
        text_field: The field that holds the text.
        max_bytes: Most bytes to train on.
        max_measured_bytes: Most bytes of each file to measure on.
        measured_share: Share of the texts that are not trained on.
        seed: Decides both.
    """
    to_train = BottomSample(max_bytes=max_bytes, seed=seed, name="train")
    to_measure: dict[str, list[str]] = {}
    num_texts = num_unusable = 0
    for url in urls:
        of_file = BottomSample(max_bytes=max_measured_bytes, seed=seed, name="measure")
        for record in read_records(url, text_field=text_field):
            text = record.values.get(text_field) if isinstance(record, Record) else None
            if not isinstance(text, str) or not text.strip() or lone_surrogate(text) is not None:
                num_unusable += 1
                continue
            num_texts += 1
            is_measured = hash_fraction(seed, "measured", text) < measured_share
            sample = of_file if is_measured else to_train
            for start in range(0, len(text), SLICE_CHARACTERS):
                sample.add(text[start : start + SLICE_CHARACTERS])
        to_measure[url] = of_file.texts()
    return SampledTexts(
        to_train=to_train.texts(), to_measure=to_measure, num_texts=num_texts, num_unusable=num_unusable
    )
