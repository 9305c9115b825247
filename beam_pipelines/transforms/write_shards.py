"""`WriteShards`: see `beam_pipelines.shard_selection` and `beam_pipelines.shard_writing`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsList
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.component_tokenization import TokenizedUnit
from beam_pipelines.shard_selection import Holdings, ShardKey, count_holdings, shard_counts
from beam_pipelines.shard_writing import ShardLayout, ShardReport, plan_tokens, write_shard
from contracts.manifest import Split

ShardHoldings = Mapping[str, Holdings]

_MAX_SHARDS_AT_A_TIME = 4


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
        reports = shards | "Write" >> beam.ParDo(_WriteShard(settings), all_units, AsDict(holdings))
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
    ) -> ShardReport | None:
        """A shard without a text is not written."""
        shard, _ = dealt
        if shard not in holdings:
            return None
        counts = self._counts(units)
        plan = plan_tokens(
            self.layout.components,
            holdings=holdings,
            num_shards=counts,
            sequence_length=self.layout.sequence_length,
        )
        return write_shard(
            shard,
            count=counts[shard[0]],
            num_tokens=plan[shard],
            holdings=holdings[shard],
            units=units,
            layout=self.layout,
        )

    def _counts(self, units: Sequence[TokenizedUnit]) -> dict[Split, int]:
        return shard_counts(units, num_shards=self.num_shards, shard_tokens=self.shard_tokens)


class _WriteShard(beam.DoFn):
    """Writes the shards of a bundle some at a time: gathering and compressing run outside of Python's lock.

    As many as there are cores, but at most `_MAX_SHARDS_AT_A_TIME`, since each takes memory for its tokens.
    """

    def __init__(self, settings: _Shards) -> None:
        self._settings = settings
        self._num_threads = 1
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[ShardReport | None]] = deque()

    def setup(self) -> None:
        self._num_threads = min(os.cpu_count() or 1, _MAX_SHARDS_AT_A_TIME)
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="write-shard")

    def start_bundle(self) -> None:
        self._pending = deque()

    def process(
        self,
        dealt: tuple[ShardKey, Iterable[None]],
        units: Sequence[TokenizedUnit],
        holdings: Mapping[ShardKey, ShardHoldings],
    ) -> Iterable[ShardReport]:
        assert self._pool is not None
        while len(self._pending) >= self._num_threads:
            yield from _written(self._pending.popleft())
        self._pending.append(self._pool.submit(self._settings.write, dealt, units, holdings))

    def finish_bundle(self) -> Iterable[WindowedValue]:
        while self._pending:
            for report in _written(self._pending.popleft()):
                yield GlobalWindows.windowed_value(report)

    def teardown(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _written(shard: Future[ShardReport | None]) -> Iterable[ShardReport]:
    report = shard.result()
    return () if report is None else (report,)
