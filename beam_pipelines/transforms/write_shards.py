"""`WriteShards`: see `beam_pipelines.shard_writing`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import AsDict

from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.shard_writing import ShardKey, ShardReport, plan_tokens, shard_of, write_shard
from beam_pipelines.text_tokenization import TokenizedText, TokenizerDescription
from contracts.manifest import Split


@dataclass(kw_only=True)
class WriteShards(beam.PTransform):
    """`TokenizedText` -> `ShardReport`, one a file.

    Args:
        output: The shards' folder.
        components: The mixture.
        num_shards: Shards by split.
        sequence_length: Tokens a row.
        tokenizer: For the padding and the vocabulary's size.
        seed: Decides shards and orders.
    """

    output: str
    components: Sequence[ComponentConfig]
    num_shards: Mapping[Split, int]
    sequence_length: int
    tokenizer: TokenizerDescription
    seed: int

    def expand(self, texts: beam.PCollection) -> beam.PCollection:
        """One shuffle of texts, by shard; the token counts that the mixture needs travel as a small side input."""
        by_shard = texts | "Shard" >> beam.Map(_with_shard, dict(self.num_shards), self.seed)
        num_tokens = (
            by_shard
            | "CountTokens" >> beam.Map(lambda item: ((item[0], item[1].component), item[1].num_tokens))
            | "SumTokens" >> beam.CombinePerKey(sum)
        )
        write = _WriteShard(self)
        return by_shard | "GroupByShard" >> beam.GroupByKey() | "Write" >> beam.ParDo(write, AsDict(num_tokens))


def _with_shard(text: TokenizedText, num_shards: Mapping[Split, int], seed: int) -> tuple[ShardKey, TokenizedText]:
    return shard_of(text, num_shards=num_shards, seed=seed), text


class _WriteShard(beam.DoFn):
    def __init__(self, settings: WriteShards) -> None:
        self._output = settings.output
        self._components = list(settings.components)
        self._num_shards = dict(settings.num_shards)
        self._sequence_length = settings.sequence_length
        self._tokenizer = settings.tokenizer
        self._seed = settings.seed

    def process(
        self, shard: tuple[ShardKey, Iterable[TokenizedText]], tokens: Mapping[tuple[ShardKey, str], int]
    ) -> Iterable[ShardReport]:
        key, texts = shard
        plan = plan_tokens(
            self._components, tokens=tokens, num_shards=self._num_shards, sequence_length=self._sequence_length
        )
        yield write_shard(
            key,
            texts,
            num_tokens=plan[key],
            output=self._output,
            num_shards=self._num_shards[key[0]],
            sequence_length=self._sequence_length,
            tokenizer=self._tokenizer,
            seed=self._seed,
        )
