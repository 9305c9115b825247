import apache_beam as beam
import pytest

from beam_pipelines.command_line import beam_options
from beam_pipelines.transforms.write_chains import WriteChains
from beam_pipelines.transforms.write_rejects import WriteRejects
from contracts.records import Chain, Document, Example, InstructionPair, Reject
from tests.beam_pipelines.pipeline_runs import IN_MEMORY, parquet_digests, read_chains, read_rejects

CHAINS = [
    Chain(
        chain_id=f"chain-{number}",
        source="web",
        examples=(
            Example(
                document=Document(doc_id=f"doc-{number}", source="web", text="Text."),
                pairs=(InstructionPair(instruction="Why?", response="So."),) * (number % 3),
            ),
        ),
        synthesizer_id="fake",
    )
    for number in range(12)
]
REJECTS = [
    Reject(doc_id=f"doc-{number // 2}", source="", stage="read", reason="no_text", detail=f"line {number}", text="")
    for number in range(12)
]


@pytest.mark.parametrize(
    ("transform", "records", "pattern", "read"),
    [
        (WriteChains, CHAINS, "part-*.parquet", read_chains),
        (WriteRejects, REJECTS, "rejects/part-*.parquet", read_rejects),
    ],
)
def test_files_hold_every_record_in_an_order_of_their_own(transform, records, pattern, read, tmp_path):
    for name, ordered in (("forward", records), ("backward", records[::-1])):
        with beam.Pipeline(options=beam_options(IN_MEMORY)) as pipeline:
            _ = pipeline | beam.Create(ordered, reshuffle=False) | transform(output=str(tmp_path / name), num_files=3)
    assert parquet_digests(tmp_path / "forward", pattern) == parquet_digests(tmp_path / "backward", pattern)
    written = read(tmp_path / "forward")
    assert sorted(written, key=records.index) == records
    assert len(parquet_digests(tmp_path / "forward", pattern)) == 3
