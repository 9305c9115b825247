"""`TokenizeTexts`: see `beam_pipelines.text_tokenization`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam

from beam_pipelines.text_tokenization import TextTokenizer, TokenizedText
from contracts.manifest import Split
from contracts.records import RenderedText
from contracts.seeding import hash_fraction

_MIN_BATCH_TEXTS, _MAX_BATCH_TEXTS = 64, 1024


@dataclass(kw_only=True)
class TokenizeTexts(beam.PTransform):
    """`RenderedText` -> `TokenizedText`, in batches.

    Args:
        tokenizer: Hub name or folder.
        add_bos: Whether each text begins with BOS.
        add_eos: Whether each text ends with EOS.
        validation_fraction: Share of the groups that go to validation, drawn by the hash of ``group_id``.
        seed: Decides which ones.
    """

    tokenizer: str
    add_bos: bool
    add_eos: bool
    validation_fraction: float
    seed: int

    def expand(self, texts: beam.PCollection) -> beam.PCollection:
        """The tokenizer is loaded once a worker."""
        return (
            texts
            | "Batch" >> beam.BatchElements(min_batch_size=_MIN_BATCH_TEXTS, max_batch_size=_MAX_BATCH_TEXTS)
            | "Tokenize" >> beam.ParDo(_Tokenize(self))
        )


class _Tokenize(beam.DoFn):
    def __init__(self, settings: TokenizeTexts) -> None:
        self._tokenizer_name = settings.tokenizer
        self._add_bos, self._add_eos = settings.add_bos, settings.add_eos
        self._validation_fraction = settings.validation_fraction
        self._seed = settings.seed

    def setup(self) -> None:
        self._tokenizer = TextTokenizer(self._tokenizer_name, add_bos=self._add_bos, add_eos=self._add_eos)

    def process(self, batch: Sequence[RenderedText]) -> Iterable[TokenizedText]:
        yield from self._tokenizer.encode(batch, split_of={text.group_id: self._split(text) for text in batch})

    def _split(self, text: RenderedText) -> Split:
        is_held_out = hash_fraction(self._seed, "validation", text.group_id) < self._validation_fraction
        return "validation" if is_held_out else "train"
