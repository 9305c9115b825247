"""``python -m beam_pipelines pack``: augmented corpora, raw text and instructions in, packed shards out.

Every component of the mixture is read and rendered, all texts are tokenized in batches, assigned to shards by hash and
grouped once; each shard is packed and mixed on its own. Written are the shards (Parquet), rejects with their reasons,
a manifest that carries every count the trainer and its reader need, and ``COMPLETED``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList
from rich.console import Console

from beam_pipelines.command_line import beam_options, config_as_json
from beam_pipelines.mixing import ComponentConfig, check_components
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.running import run_pipeline
from beam_pipelines.shard_writing import ShardReport, total_counts
from beam_pipelines.text_tokenization import TextTokenizer, TokenizerDescription
from beam_pipelines.transforms.read_component import ReadComponent
from beam_pipelines.transforms.tokenize_texts import TokenizeTexts
from beam_pipelines.transforms.write_rejects import WriteRejects
from beam_pipelines.transforms.write_shards import WriteShards
from contracts import storage
from contracts.accounting import RejectsReport, sum_counts
from contracts.artifact import RUN_FILE, claim_output, describe_run
from contracts.manifest import (
    AugmentedCorpusManifest,
    InstructionCorpusManifest,
    ShardManifest,
    Split,
    TokenizerEntry,
    complete_artifact,
    read_augmented_corpus_manifest,
    read_instruction_corpus_manifest,
    read_shard_manifest,
)
from contracts.record_files import SUFFIXES
from contracts.storage import InputFile
from templates import TemplateConfig, bank_sha256


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Settings of a packing.

    Args:
        components: The mixture.
        output: Folder for the shards; belongs to this run alone.
        tokenizer: Hub name or folder.
        sequence_length: Tokens a row.
        num_shards: Files of training rows. One shard is packed in memory.
        num_validation_shards: Files of validation rows.
        validation_fraction: Share of the groups (chains, documents, instructions) held out, drawn by hash.
        add_bos: Whether each text begins with the tokenizer's BOS.
        add_eos: Whether each text ends with the tokenizer's EOS.
        fields: Which fields of a record hold what.
        templates: Weights of the template families.
        seed: Decides templates, held-out groups, shards and orders.
    """

    components: list[ComponentConfig]
    output: str
    tokenizer: str
    sequence_length: int = 2048
    num_shards: int = 1
    num_validation_shards: int = 1
    validation_fraction: float = 0.0
    add_bos: bool = False
    add_eos: bool = True
    fields: FieldNames = field(default_factory=FieldNames)
    templates: TemplateConfig = field(default_factory=TemplateConfig)
    seed: int = 0

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        check_components(self.components)
        for name, least in (("sequence_length", 2), ("num_shards", 1), ("num_validation_shards", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it must be from 0 to below 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingRun:
    """What the submitting process found out about a run before it starts.

    Args:
        files: The files of each component, by its name.
        tokenizer: The tokenizer's name, hash, size and special ids.
        inputs: For the manifest: each input with its version.
    """

    files: Mapping[str, tuple[InputFile, ...]]
    tokenizer: TokenizerDescription
    inputs: Mapping[str, str]


def plan_run(config: PackConfig) -> PackingRun:
    """Looks at everything that could stop the run later: settings, inputs, tokenizer, template bank.

    Raises:
        ValueError: Something is missing or impossible; the message says what to do.
    """
    config.check()
    tokenizer = TextTokenizer(config.tokenizer, add_bos=config.add_bos, add_eos=config.add_eos).description
    inputs: dict[str, str] = {"tokenizer": tokenizer.sha256, "templates": bank_sha256()}
    files: dict[str, tuple[InputFile, ...]] = {}
    for component in config.components:
        found: list[InputFile] = []
        for source in component.input:
            manifest = _corpus_manifest(source, kind=component.kind)
            if manifest is None:
                records = storage.find_input_files([source], suffixes=SUFFIXES)
                inputs.update({file.url: f"{file.size_bytes} bytes, {file.version}" for file in records})
                found += records
                continue
            # Of a corpus only its parts are read: rejects and journal lie in the same folder.
            inputs[source] = manifest.fingerprint
            found += [
                InputFile(url=storage.join(source, entry.path), size_bytes=entry.num_bytes, version=entry.sha256)
                for entry in manifest.parts
            ]
        # Two patterns may name the same file.
        files[component.name] = tuple({file.url: file for file in found}.values())
    return PackingRun(files=files, tokenizer=tokenizer, inputs=inputs)


def _corpus_manifest(source: str, *, kind: str) -> AugmentedCorpusManifest | InstructionCorpusManifest | None:
    """The manifest of a corpus that this tool wrote; None for files of records."""
    if kind in ("chains", "chain_documents"):
        return read_augmented_corpus_manifest(source)
    if kind == "instructions" and storage.exists(storage.join(source, RUN_FILE)):
        return read_instruction_corpus_manifest(source)
    return None


def build_pipeline(pipeline: beam.Pipeline, config: PackConfig, run: PackingRun) -> None:
    """Wires the whole packing onto a pipeline; does nothing else."""
    texts, rejects = [], []
    for component in config.components:
        component_texts, component_rejects = pipeline | f"Read[{component.name}]" >> ReadComponent(
            component=component,
            files=run.files[component.name],
            fields=config.fields,
            templates=config.templates,
            seed=config.seed,
        )
        texts.append(component_texts)
        rejects.append(component_rejects)
    shard_reports = (
        texts
        | "Texts" >> beam.Flatten()
        | "Tokenize"
        >> TokenizeTexts(
            tokenizer=config.tokenizer,
            add_bos=config.add_bos,
            add_eos=config.add_eos,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
        )
        | "WriteShards"
        >> WriteShards(
            output=config.output,
            components=config.components,
            num_shards=_num_shards(config),
            sequence_length=config.sequence_length,
            tokenizer=run.tokenizer,
            seed=config.seed,
        )
    )
    reject_reports = (
        rejects | "Rejects" >> beam.Flatten() | "WriteRejects" >> WriteRejects(output=config.output, num_files=1)
    )
    _ = (
        pipeline
        | "End" >> beam.Create([config.output])
        | "Complete"
        >> beam.Map(
            _complete,
            shards=AsList(shard_reports),
            rejects=AsList(reject_reports),
            tokenizer=run.tokenizer,
            sequence_length=config.sequence_length,
            inputs=dict(run.inputs),
            config=config_as_json(config),
        )
    )


def _num_shards(config: PackConfig) -> dict[Split, int]:
    return {"train": config.num_shards, "validation": config.num_validation_shards}


def _complete(
    output: str,
    *,
    shards: Sequence[ShardReport],
    rejects: Sequence[RejectsReport],
    tokenizer: TokenizerDescription,
    sequence_length: int,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
) -> str:
    manifest = ShardManifest(
        sequence_length=sequence_length,
        tokenizer=TokenizerEntry(name=tokenizer.name, sha256=tokenizer.sha256),
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        has_loss_spans=False,
        shards=tuple(sorted((report.entry for report in shards), key=lambda entry: (entry.split, entry.path))),
        rejects=tuple(sorted((report.entry for report in rejects), key=lambda entry: entry.path)),
        rejected_by_reason=sum_counts(report.by_reason for report in rejects),
        components=total_counts(shards),
        inputs=inputs,
        config=config,
    )
    return complete_artifact(output, manifest).fingerprint


def pack(config: PackConfig, *, options: PipelineOptions, console: Console) -> ShardManifest:
    """Runs a packing, or finds that it is complete. An interrupted one starts over: it costs minutes, not GPU days.

    Raises:
        ValueError: The settings, the inputs, the tokenizer or the output folder do not allow it.
    """
    run = plan_run(config)
    state = claim_output(
        config.output, run=describe_run(command="pack", config=config_as_json(config), inputs=run.inputs)
    )
    if state == "completed":
        console.print(f"{config.output} is complete already; nothing to do.")
    else:
        with console.status("packing"):
            run_pipeline(options, lambda pipeline: build_pipeline(pipeline, config, run))
    return read_shard_manifest(config.output)


def describe(manifest: ShardManifest, *, output: str) -> str:
    """What a packing made, in a few lines."""
    lines = [
        f"{'component':14} {'split':10} {'texts':>7} {'epochs':>7} {'rows':>7} {'tokens':>9} {'padding':>8} {'cut':>6}"
    ]
    lines += [
        f"{name:14} {split:10} {counts.num_texts:>7} {counts.epochs:>7.2f} {counts.num_rows:>7} "
        f"{counts.num_tokens:>9} {counts.num_padding_tokens:>8} {counts.num_truncations:>6}"
        for name, by_split in manifest.components.items()
        for split, counts in by_split.items()
    ]
    lines += [f"rejected    {count} {reason}" for reason, count in manifest.rejected_by_reason.items()]
    return "\n".join([*lines, f"shards      {output} ({manifest.sequence_length} tokens a row)"])


def main(config: PackConfig, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    manifest = pack(config, options=beam_options(beam_arguments), console=Console(stderr=True))
    print(describe(manifest, output=config.output))
    return 0
