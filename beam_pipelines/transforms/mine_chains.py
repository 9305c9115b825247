"""`MineChains`: see `beam_pipelines.mining.tasks`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, TaggedOutput

from beam_pipelines.mining.bank import MiningBank
from beam_pipelines.mining.tasks import TaskMiner
from contracts.records import Chain, Example
from synth_model.chain_state import ChainState

CHAINS, KINDS = "chains", "kinds"


@dataclass(kw_only=True)
class MineChains(beam.PTransform):
    """`ChainState` -> ``chains`` of `Chain`, ``kinds``: the kind of each task, a str.

    Args:
        bank: Connectives and wordings.
        seed: Decides which tasks are taken and how they are worded.
        synthesizer_id: Written into each chain.
        keywords: A collection of one frozenset of str.
    """

    bank: MiningBank
    seed: int
    synthesizer_id: str
    keywords: beam.PCollection

    def expand(self, states: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """A chain at a time; the bank is compiled once a worker."""
        mine = _MineChain(self.bank, self.seed, self.synthesizer_id)
        return states | "Mine" >> beam.ParDo(mine, AsSingleton(self.keywords)).with_outputs(KINDS, main=CHAINS)


class _MineChain(beam.DoFn):
    def __init__(self, bank: MiningBank, seed: int, synthesizer_id: str) -> None:
        self._bank = bank
        self._seed = seed
        self._synthesizer_id = synthesizer_id

    def setup(self) -> None:
        self._miner = TaskMiner(self._bank, seed=self._seed)

    def process(self, state: ChainState, keywords: frozenset[str]) -> Iterable[Chain | TaggedOutput]:
        examples = []
        for document in state.pending:
            tasks = self._miner.mine(document, keywords=keywords)
            examples.append(Example(document=document, pairs=tuple(task.pair for task in tasks), finish_reason="given"))
            for task in tasks:
                yield TaggedOutput(KINDS, task.kind)
        yield Chain(
            chain_id=state.chain_id,
            source=state.source,
            examples=tuple(examples),
            synthesizer_id=self._synthesizer_id,
        )
