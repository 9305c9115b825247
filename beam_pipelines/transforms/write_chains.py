"""`WriteChains`: the Parquet files of an augmented corpus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam

from contracts.accounting import ChainsReport, report_chains
from contracts.parquet_files import part_name, write_parquet
from contracts.records import Chain
from contracts.schemas import chains_to_table
from contracts.seeding import stable_hash


@dataclass(kw_only=True)
class WriteChains(beam.PTransform):
    """`Chain` -> `ChainsReport`, one a file; which file a chain is in, and where, follows from its id alone.

    Args:
        output: The augmented corpus' folder.
        num_files: Chains are spread over this many files; a file without a chain is not written. A file is held in
            memory while it is written.
    """

    output: str
    num_files: int

    def expand(self, chains: beam.PCollection) -> beam.PCollection:
        """Chains are grouped by file; a retried bundle writes the same bytes under the same name."""
        return (
            chains
            | "File" >> beam.Map(_with_file, self.num_files)
            | "GroupByFile" >> beam.GroupByKey()
            | "Write" >> beam.Map(_write, self.output, self.num_files)
        )


def _with_file(chain: Chain, num_files: int) -> tuple[int, Chain]:
    return stable_hash(0, "chain file", chain.chain_id) % num_files, chain


def _write(file: tuple[int, Iterable[Chain]], output: str, num_files: int) -> ChainsReport:
    chains = sorted(file[1], key=lambda chain: chain.chain_id)
    path = part_name("part", index=file[0], count=num_files)
    return report_chains(write_parquet(output, path=path, table=chains_to_table(chains)), chains)
