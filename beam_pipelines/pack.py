"""``python -m beam_pipelines pack``: augmented corpora, raw text and instructions in, packed shards out.

First every component is read, rendered and tokenized into parts that are kept (`component_tokenization`). Then each
shard takes what belongs to it from the parts, in the proportions of the mixture, and is packed and written on its own
(`shard_selection`, `shard_writing`). What the runner moves between the two are names and counts. Written are the shards
(Parquet), rejects with their reasons, a manifest that carries every count the trainer and its reader need, and
``COMPLETED``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsDict, AsList
from rich.console import Console

from beam_pipelines.command_line import beam_options, config_as_json
from beam_pipelines.component_reading import Rendering
from beam_pipelines.component_tokenization import Keeping, Unit, component_identity, holds_texts, plan_units
from beam_pipelines.mixing import (
    KINDS_OF_CHAINS,
    ComponentConfig,
    check_caps,
    check_components,
    has_loss_spans,
    requested_tokens,
)
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.running import run_pipeline
from beam_pipelines.shard_selection import Holdings, ShardKey
from beam_pipelines.shard_writing import PackingConfig, ShardLayout, ShardReport, total_counts
from beam_pipelines.text_origins import describe_file
from beam_pipelines.text_tokenization import Tokenization, TokenizerDescription
from beam_pipelines.tokenizer_loading import LoadedTokenizer, load_tokenizer
from beam_pipelines.transforms.tokenize_components import TokenizeComponents
from beam_pipelines.transforms.write_shards import WriteShards
from contracts import storage
from contracts.accounting import RejectsReport, sum_counts
from contracts.artifact import RUN_FILE, claim_output, describe_run
from contracts.manifest import (
    AugmentedCorpusManifest,
    InstructionCorpusManifest,
    ShardManifest,
    TokenizerEntry,
    complete_artifact,
    read_augmented_corpus_manifest,
    read_instruction_corpus_manifest,
    read_shard_manifest,
)
from contracts.record_files import SUFFIXES
from contracts.storage import InputFile
from synth_model.wire_format import SequenceMarks
from templates import TemplateConfig, bank_sha256

_OWN_CACHE = "tokenized"


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Settings of a packing.

    Args:
        components: The mixture.
        output: Folder for the shards; belongs to this run alone.
        tokenizer: Hub name or folder.
        cache: Folder in which tokenized components are kept and found again, by this and by other packings, as long
            as their inputs, tokenizer and rendering are the same. By default they are kept in the output folder until
            the shards are complete, so that only an interrupted packing finds them.
        sequence_length: Tokens a row.
        packing: How texts become rows.
        num_shards: Files of training rows; by default as many as ``shard_tokens`` asks for.
        num_validation_shards: Files of validation rows; likewise.
        shard_tokens: About how many tokens a shard holds where the number of shards is not given, and after how many
            tokens a file of tokenized text is written. A worker needs about 10 bytes of memory for each, for up to four
            shards at a time. With a cache on an object store and many shards, larger is faster.
        validation_fraction: Share of the groups (chains, documents, instructions) held out, drawn by hash.
        add_bos: Whether each text begins with the tokenizer's BOS.
        add_eos: Whether each text ends with the tokenizer's EOS.
        fields: Which fields of a record hold what.
        templates: Weights of the template families.
        marks: For ``synthesizer_tuning``: the BOS and EOS that open and close an example, which must be those of the
            tokenizer; the released weights' by default.
        seed: Decides templates, held-out groups, shards and orders.
    """

    components: list[ComponentConfig]
    output: str
    tokenizer: str
    cache: str | None = None
    sequence_length: int = 2048
    packing: PackingConfig = field(default_factory=PackingConfig)
    num_shards: int | None = None
    num_validation_shards: int | None = None
    shard_tokens: int = 1 << 23
    validation_fraction: float = 0.0
    add_bos: bool = False
    add_eos: bool = True
    fields: FieldNames = field(default_factory=FieldNames)
    templates: TemplateConfig = field(default_factory=TemplateConfig)
    marks: SequenceMarks = field(default_factory=SequenceMarks)
    seed: int = 0

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        check_components(self.components)
        check_caps(self.components, sequence_length=self.sequence_length)
        for name, least in (
            ("sequence_length", 2),
            ("num_shards", 1),
            ("num_validation_shards", 1),
            ("shard_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it must be from 0 to below 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingRun:
    """What the submitting process found out about a run before it starts.

    Args:
        files: The files of each component, by its name.
        tokenizer: The tokenizer.
        inputs: For the manifest: each input with its version.
    """

    files: Mapping[str, tuple[InputFile, ...]]
    tokenizer: LoadedTokenizer
    inputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedComponents:
    """The units of all components and all that decides what they become."""

    units: tuple[Unit, ...]
    rendering: Rendering
    tokenization: Tokenization
    keeping: Keeping


def plan_run(config: PackConfig) -> PackingRun:
    """Looks at everything that could stop the run later: settings, inputs, tokenizer, template bank.

    Raises:
        ValueError: Something is missing or impossible; the message says what to do.
    """
    config.check()
    tokenizer = load_tokenizer(config.tokenizer, add_bos=config.add_bos, add_eos=config.add_eos)
    inputs: dict[str, str] = {"tokenizer": tokenizer.description.sha256, "templates": bank_sha256()}
    files: dict[str, tuple[InputFile, ...]] = {}
    for component in config.components:
        found: list[InputFile] = []
        for source in component.input:
            manifest = _corpus_manifest(source, kind=component.kind)
            if manifest is None:
                records = storage.find_input_files([source], suffixes=SUFFIXES)
                inputs.update({file.url: describe_file(file) for file in records})
                found += records
                continue
            # Of a corpus only its parts are read: rejects and journal lie in the same folder.
            inputs[source] = manifest.fingerprint
            found += [
                InputFile(url=storage.join(source, entry.path), size_bytes=entry.num_bytes, version=entry.sha256)
                for entry in manifest.parts
            ]
        # Two patterns may name the same file. In order, so that the same files make the same units.
        by_path = {_normal_path(file.url): file for file in reversed(found)}
        files[component.name] = tuple(by_path[path] for path in sorted(by_path))
    return PackingRun(files=files, tokenizer=tokenizer, inputs=inputs)


def _normal_path(url: str) -> str:
    """What two ways of writing the same path have in common."""
    return url if "://" in url else os.path.normpath(url)


def _corpus_manifest(source: str, *, kind: str) -> AugmentedCorpusManifest | InstructionCorpusManifest | None:
    """The manifest of a corpus that this tool wrote; None for files of records."""
    if kind in KINDS_OF_CHAINS:
        return read_augmented_corpus_manifest(source)
    if kind == "instructions" and storage.exists(storage.join(source, RUN_FILE)):
        return read_instruction_corpus_manifest(source)
    return None


def prepare_cache(config: PackConfig, run: PackingRun) -> TokenizedComponents:
    """Finds where each tokenized component is kept, and writes down there what it is and, once, the tokenizer.

    Args:
        config: The config.
        run: What `plan_run` found out.
    """
    folder = config.cache or storage.join(config.output, _OWN_CACHE)
    rendering = Rendering(
        fields=config.fields,
        templates=config.templates,
        sequence_length=config.sequence_length,
        marks=config.marks,
        seed=config.seed,
    )
    tokenization = Tokenization(
        definition_url=_keep_definition(run.tokenizer.definition, folder=folder),
        plain_definition_url=_keep_definition(run.tokenizer.plain_definition, folder=folder),
        tokenizer=run.tokenizer.description,
        add_bos=config.add_bos,
        add_eos=config.add_eos,
    )
    keeping = Keeping(part_tokens=config.shard_tokens, validation_fraction=config.validation_fraction, seed=config.seed)
    # Components with the same texts, such as a fraction of some documents and the rest of them, are tokenized once.
    by_folder: dict[str, list[ComponentConfig]] = {}
    for component in config.components:
        identity = component_identity(
            component.kind,
            files=run.files[component.name],
            rendering=rendering,
            tokenization=tokenization,
            keeping=keeping,
        )
        component_folder = storage.join(folder, storage.json_sha256(identity))
        by_folder.setdefault(component_folder, []).append(component)
        identity_url = storage.join(component_folder, "component.json")
        if not storage.exists(identity_url):
            storage.write_json(identity_url, identity)
    units = tuple(
        unit
        for component_folder, members in by_folder.items()
        for unit in plan_units(
            [component.name for component in members],
            kind=members[0].kind,
            files=run.files[members[0].name],
            folder=component_folder,
        )
    )
    return TokenizedComponents(units=units, rendering=rendering, tokenization=tokenization, keeping=keeping)


def _keep_definition(definition: str, *, folder: str) -> str:
    url = storage.join(folder, "tokenizers", f"{storage.json_sha256(definition)}.json")
    if not storage.exists(url):
        storage.write_bytes_atomically(url, definition.encode())
    return url


def build_pipeline(
    pipeline: beam.Pipeline, config: PackConfig, run: PackingRun, tokenized: TokenizedComponents
) -> None:
    """Wires the whole packing onto a pipeline; does nothing else."""
    units, reject_reports = pipeline | "TokenizeComponents" >> TokenizeComponents(
        units=tokenized.units,
        output=config.output,
        rendering=tokenized.rendering,
        tokenization=tokenized.tokenization,
        keeping=tokenized.keeping,
    )
    shard_reports, holdings = units | "WriteShards" >> WriteShards(
        layout=ShardLayout(
            output=config.output,
            components=config.components,
            sequence_length=config.sequence_length,
            packing=config.packing,
            tokenizer=run.tokenizer.description,
            seed=config.seed,
        ),
        num_shards={"train": config.num_shards, "validation": config.num_validation_shards},
        shard_tokens=config.shard_tokens,
    )
    _ = (
        pipeline
        | "End" >> beam.Impulse()
        | "Complete"
        >> beam.Map(
            _complete,
            output=config.output,
            shards=AsList(shard_reports),
            holdings=AsDict(holdings),
            rejects=AsList(reject_reports),
            tokenizer=run.tokenizer.description,
            inputs=dict(run.inputs),
            config=config,
        )
    )


def _complete(
    _: bytes,
    *,
    output: str,
    shards: Sequence[ShardReport],
    holdings: Mapping[ShardKey, Mapping[str, Holdings]],
    rejects: Sequence[RejectsReport],
    tokenizer: TokenizerDescription,
    inputs: Mapping[str, str],
    config: PackConfig,
) -> str:
    available = sum_counts(
        {name: held.num_usable_tokens for name, held in by_component.items()}
        for (split, _), by_component in holdings.items()
        if split == "train"
    )
    manifest = ShardManifest(
        sequence_length=config.sequence_length,
        tokenizer=TokenizerEntry(name=tokenizer.name, sha256=tokenizer.sha256),
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        has_loss_spans=has_loss_spans(config.components),
        shards=tuple(sorted((report.entry for report in shards), key=lambda entry: (entry.split, entry.path))),
        rejects=tuple(sorted((report.entry for report in rejects), key=lambda entry: entry.path)),
        rejected_by_reason=sum_counts(report.by_reason for report in rejects),
        components=total_counts(shards, requested=requested_tokens(config.components, available=available)),
        inputs=inputs,
        config=config_as_json(config),
    )
    return complete_artifact(output, manifest).fingerprint


def pack(config: PackConfig, *, options: PipelineOptions, console: Console) -> ShardManifest:
    """Runs a packing, or finds that it is complete. An interrupted one goes on with what it had tokenized.

    Raises:
        ValueError: The settings, the inputs, the tokenizer or the output folder do not allow it.
    """
    run = plan_run(config)
    kept = storage.join(config.output, _OWN_CACHE)
    state = claim_output(
        config.output,
        run=describe_run(
            command="pack", config=config_as_json(config), inputs=run.inputs, location_keys=("output", "cache")
        ),
    )
    if state == "completed":
        console.print(f"{config.output} is complete already; nothing to do.")
    else:
        with console.status("packing"):
            tokenized = prepare_cache(config, run)
            try:
                run_pipeline(options, lambda pipeline: build_pipeline(pipeline, config, run, tokenized))
            except ValueError as error:
                if config.cache is not None or not holds_texts(kept):
                    raise
                # Another mixture is another run, in another folder, and what this one has tokenized lies in its own.
                raise ValueError(
                    f"{error} What is tokenized is kept: with another output, and {kept} as cache, it is found again."
                ) from error
    if config.cache is None:
        storage.remove_folder(kept)
    return read_shard_manifest(config.output)


def describe(manifest: ShardManifest, *, output: str) -> str:
    """What a packing made, in a few lines."""
    lines = [
        f"{'component':14} {'split':10} {'texts':>7} {'epochs':>7} {'rows':>7} {'asked':>9} {'tokens':>9} "
        f"{'padding':>8} {'cut':>6}"
    ]
    lines += [
        f"{name:14} {split:10} {counts.num_texts:>7} {counts.epochs:>7.2f} {counts.num_rows:>7} "
        f"{counts.num_requested_tokens:>9} {counts.num_tokens:>9} {counts.num_padding_tokens:>8} "
        f"{counts.num_truncations:>6}"
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
