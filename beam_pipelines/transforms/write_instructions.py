"""`WriteInstructions`: the Parquet files of an instruction corpus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import apache_beam as beam

from contracts.manifest import FileEntry
from contracts.parquet_files import part_name, write_parquet
from contracts.records import GeneralInstruction
from contracts.schemas import instructions_to_table
from contracts.seeding import stable_hash


@dataclass(kw_only=True)
class WriteInstructions(beam.PTransform):
    """`GeneralInstruction` -> `FileEntry`, one a file; a file without an instruction is not written.

    Args:
        output: The corpus' folder.
        num_files: Instructions are spread over this many files by the hash of their id; a file is held in memory while
            it is written.
    """

    output: str
    num_files: int

    def expand(self, instructions: beam.PCollection) -> beam.PCollection:
        """Instructions are grouped by file and sorted; a retried bundle writes the same bytes under the same name."""
        return (
            instructions
            | "File" >> beam.Map(_with_file, self.num_files)
            | "GroupByFile" >> beam.GroupByKey()
            | "Write" >> beam.Map(_write, self.output, self.num_files)
        )


def _with_file(instruction: GeneralInstruction, num_files: int) -> tuple[int, GeneralInstruction]:
    return stable_hash(0, "instruction file", instruction.id) % num_files, instruction


def _write(file: tuple[int, Iterable[GeneralInstruction]], output: str, num_files: int) -> FileEntry:
    path = part_name("part", index=file[0], count=num_files)
    return write_parquet(output, path=path, table=instructions_to_table(sorted(file[1], key=astuple)))
