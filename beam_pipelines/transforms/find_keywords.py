"""`FindKeywords`: see `beam_pipelines.mining.keywords`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam

from beam_pipelines.mining.keywords import MAX_TRAINING_WORDS, KeywordConfig, count_words, select_keywords
from synth_model.prompt_tokenizer import ModelTokenizer

_MIN_BATCH_TEXTS, _MAX_BATCH_TEXTS = 64, 1024


@dataclass(kw_only=True)
class FindKeywords(beam.PTransform):
    """`Document` -> one frozenset of str: the keywords of all documents together."""

    config: KeywordConfig

    def expand(self, documents: beam.PCollection) -> beam.PCollection:
        """Words are counted everywhere and summed; the vocabulary is trained once, on the sums."""
        if not self.config.general_tokenizer:
            return documents.pipeline | "NoKeywords" >> beam.Create([frozenset()])
        return (
            documents
            | "Text" >> beam.Map(lambda document: document.text)
            | "Batch" >> beam.BatchElements(min_batch_size=_MIN_BATCH_TEXTS, max_batch_size=_MAX_BATCH_TEXTS)
            | "CountWords" >> beam.FlatMap(_count)
            | "SumCounts" >> beam.CombinePerKey(sum)
            | "Frequent" >> beam.Filter(lambda item, min_count: item[1] >= min_count, self.config.min_count)
            | "Top" >> beam.combiners.Top.Of(MAX_TRAINING_WORDS, key=lambda item: (item[1], item[0]))
            | "Select" >> beam.ParDo(_SelectKeywords(self.config))
        )


def _count(texts: Sequence[str]) -> Iterable[tuple[str, int]]:
    return count_words(texts).items()


class _SelectKeywords(beam.DoFn):
    def __init__(self, config: KeywordConfig) -> None:
        self._config = config

    def setup(self) -> None:
        self._tokenizer = ModelTokenizer(self._config.general_tokenizer)

    def process(self, counts: Sequence[tuple[str, int]]) -> Iterable[frozenset[str]]:
        yield select_keywords(counts, vocab_size=self._config.vocab_size, count_tokens=self._tokenizer.count_text)
