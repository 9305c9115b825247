"""Runs the two pipelines as a caller does, with the fake engine, and reads what they wrote."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.pvalue import DoOutputsTuple
from rich.console import Console

from beam_pipelines.command_line import beam_options
from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.pack import PackConfig, pack
from beam_pipelines.synthesize import SynthesizeConfig, synthesize
from contracts.manifest import AugmentedCorpusManifest, ShardManifest
from contracts.records import Chain, Example, PackedRow, Reject
from contracts.schemas import chain_from_row, packed_rows_from_batch
from contracts.seeding import rng
from synth_model.engines import EngineConfig
from synth_model.engines.fake_engine import FakeOptions
from synth_model.generation import Sampling

IN_MEMORY = ("--runner=FnApiRunner",)
_WORDS = ("river", "stone", "engine", "paper", "winter", "garden", "signal", "copper", "market", "letter", "shadow")


def make_text(name: str, *, num_sentences: int = 3) -> str:
    """Sentences of eight words, the same ones for the same name."""
    draw = rng(0, "text", name)
    sentences = [" ".join(_WORDS[int(draw.integers(len(_WORDS)))] for _ in range(7)) for _ in range(num_sentences)]
    return " ".join(f"{name.capitalize()} {sentence}." for sentence in sentences)


def make_documents(num_documents: int, *, source: str = "web") -> list[dict[str, str]]:
    """Records of a corpus: all ids and texts differ."""
    return [
        {
            "id": f"{source}-{number}",
            "source": source,
            "title": f"Title {number}",
            "text": make_text(f"{source}{number}"),
        }
        for number in range(num_documents)
    ]


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Writes records as JSON Lines and returns the path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return str(path)


def fake_engine(*, context_length: int = 2048, max_batch_size: int = 4, **options: Any) -> EngineConfig:
    """An engine config whose fake options are given."""
    return EngineConfig(
        kind="fake", context_length=context_length, max_batch_size=max_batch_size, fake=FakeOptions(**options)
    )


def synthesize_config(inputs: Sequence[Any], output: Any, **settings: Any) -> SynthesizeConfig:
    """A config for the fake engine."""
    return SynthesizeConfig(
        **{
            "input": [str(path) for path in inputs],
            "output": str(output),
            "engine": fake_engine(),
            "sampling": Sampling(max_new_tokens=64),
            **settings,
        }
    )


def run_synthesize(
    inputs: Sequence[Any], output: Any, *, beam: Sequence[str] = IN_MEMORY, **settings: Any
) -> AugmentedCorpusManifest:
    """A whole synthesis."""
    config = synthesize_config(inputs, output, **settings)
    return synthesize(config, options=beam_options(beam), console=Console(quiet=True))


def run_pack(
    components: Sequence[ComponentConfig], output: Any, *, beam: Sequence[str] = IN_MEMORY, **settings: Any
) -> ShardManifest:
    """A whole packing."""
    config = PackConfig(components=list(components), output=str(output), **settings)
    return pack(config, options=beam_options(beam), console=Console(quiet=True))


def read_chains(folder: Any) -> list[Chain]:
    """All chains of an augmented corpus."""
    return [
        chain_from_row(row) for path in sorted(glob.glob(f"{folder}/part-*")) for row in pq.read_table(path).to_pylist()
    ]


def read_examples(folder: Any) -> dict[str, Example]:
    """All examples of an augmented corpus by document id."""
    return {example.document.doc_id: example for chain in read_chains(folder) for example in chain.examples}


def read_rejects(folder: Any) -> list[Reject]:
    """All rejects of an artifact."""
    return [
        Reject(**row) for path in sorted(glob.glob(f"{folder}/rejects/*")) for row in pq.read_table(path).to_pylist()
    ]


def read_rows(folder: Any, manifest: ShardManifest) -> list[tuple[str, PackedRow]]:
    """All rows of a folder of shards with their split."""
    return [
        (entry.split, row)
        for entry in manifest.shards
        for batch in pq.ParquetFile(os.path.join(folder, entry.path)).iter_batches()
        for row in packed_rows_from_batch(batch)
    ]


def parquet_digests(folder: Any, pattern: str = "*.parquet") -> dict[str, str]:
    """SHA-256 of the data files of an artifact by name."""
    digests = {}
    for path in glob.glob(os.path.join(folder, pattern)):
        with open(path, "rb") as file:
            digests[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
    assert digests, folder
    return digests


def outputs_of(transform: Any, elements: Iterable[Any]) -> list[list[Any]]:
    """What each of a transform's output collections holds, in no particular order, run in memory."""
    with tempfile.TemporaryDirectory() as folder:
        with beam.Pipeline(options=beam_options(IN_MEMORY)) as pipeline:
            outputs = pipeline | beam.Create(list(elements)) | beam.Reshuffle() | transform
            outputs = outputs if isinstance(outputs, (tuple, DoOutputsTuple)) else (outputs,)
            names = [str(number) for number, _ in enumerate(outputs)]
            for name, output in zip(names, outputs, strict=True):
                _ = (
                    output
                    | f"List{name}" >> beam.combiners.ToList()
                    | f"Write{name}" >> beam.Map(_write_pickle, os.path.join(folder, name))
                )
        return [_read_pickle(os.path.join(folder, name)) for name in names]


def _write_pickle(value: Any, path: str) -> None:
    with open(path, "wb") as file:
        pickle.dump(value, file)


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)
