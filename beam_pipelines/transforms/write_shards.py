"""`WriteShards`: see `beam_pipelines.shard_selection` and `beam_pipelines.shard_writing`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsList

from beam_pipelines.component_tokenization import TokenizedUnit
from beam_pipelines.shard_selection import Holdings, ShardKey, count_holdings, shard_counts
from beam_pipelines.shard_writing import ShardLayout, ShardReport, plan_tokens, write_shard
from contracts.manifest import Split

ShardHoldings = Mapping[str, Holdings]


@dataclass(kw_only=True)
class WriteShards(beam.PTransform):
    """`TokenizedUnit` -> (`ShardReport`, one a file; (shard, its holdings by component)), two collections.

    Args:
        layout: What all shards have in common.
        num_shards: Shards by split; None for as many as ``shard_tokens`` asks for.
        shard_tokens: About how many tokens a shard holds.
    """

    layout: ShardLayout
    num_shards: Mapping[Split, int | None]
    shard_tokens: int

    def expand(self, units: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """Tokens stay where they are: what goes through the one shuffle are the names of shards."""
        all_units = AsList(units)
        settings = _Shards(layout=self.layout, num_shards=dict(self.num_shards), shard_tokens=self.shard_tokens)
        shards = (
            units.pipeline
            | "Begin" >> beam.Impulse()
            | "ListShards" >> beam.FlatMap(settings.list, all_units)
            # Grouping deals the shards out to workers; a reshuffle would do the same in five more steps.
            | "DealShards" >> beam.GroupByKey()
        )
        holdings = shards | "Count" >> beam.FlatMap(settings.count, all_units)
        reports = shards | "Write" >> beam.FlatMap(settings.write, all_units, AsDict(holdings))
        return reports, holdings


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shards:
    """The work on a shard, as functions of what was tokenized."""

    layout: ShardLayout
    num_shards: Mapping[Split, int | None]
    shard_tokens: int

    def list(self, _: bytes, units: Sequence[TokenizedUnit]) -> Iterable[tuple[ShardKey, None]]:
        for split, count in self._counts(units).items():
            for number in range(count):
                yield (split, number), None

    def count(
        self, dealt: tuple[ShardKey, Iterable[None]], units: Sequence[TokenizedUnit]
    ) -> Iterable[tuple[ShardKey, ShardHoldings]]:
        shard, _ = dealt
        held = count_holdings(
            shard,
            count=self._counts(units)[shard[0]],
            components=self.layout.components,
            units=units,
            max_usable=self.layout.max_usable,
        )
        if held:
            yield shard, held

    def write(
        self,
        dealt: tuple[ShardKey, Iterable[None]],
        units: Sequence[TokenizedUnit],
        holdings: Mapping[ShardKey, ShardHoldings],
    ) -> Iterable[ShardReport]:
        """A shard without a text is not written."""
        shard, _ = dealt
        if shard not in holdings:
            return
        counts = self._counts(units)
        plan = plan_tokens(
            self.layout.components,
            holdings=holdings,
            num_shards=counts,
            sequence_length=self.layout.sequence_length,
        )
        yield write_shard(
            shard,
            count=counts[shard[0]],
            num_tokens=plan[shard],
            holdings=holdings[shard],
            units=units,
            layout=self.layout,
        )

    def _counts(self, units: Sequence[TokenizedUnit]) -> dict[Split, int]:
        return shard_counts(units, num_shards=self.num_shards, shard_tokens=self.shard_tokens)
