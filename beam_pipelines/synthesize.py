"""``python -m beam_pipelines synthesize``: raw text in, instruction-augmented corpus out.

Documents are read, split where they outgrow the context, grouped into chains of M by hash, and taken through M rounds
of inference in which earlier texts and pairs of a chain stand before the next text. Written are the chains (Parquet),
everything rejected with its reason, the journal, a manifest whose accounts add up, and ``COMPLETED``.

Source: Cheng et al. 2024 (arXiv 2406.14491), sections 2.1 and 2.2.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList, AsSingleton
from rich.console import Console

from beam_pipelines import journal
from beam_pipelines.command_line import beam_options, config_as_json
from beam_pipelines.engine_identity import check_engine, identify_model
from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.progress import show_progress
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.running import run_pipeline, runner_name
from beam_pipelines.transforms.form_chains import FormChains
from beam_pipelines.transforms.make_documents import MakeDocuments
from beam_pipelines.transforms.read_records import ReadRecords
from beam_pipelines.transforms.split_documents import SplitDocuments
from beam_pipelines.transforms.synthesize_round import SynthesizeRound
from beam_pipelines.transforms.write_chains import WriteChains
from beam_pipelines.transforms.write_rejects import WriteRejects
from contracts import storage
from contracts.accounting import ChainsReport, RejectsReport, augmented_corpus_manifest
from contracts.artifact import claim_output, describe_run
from contracts.manifest import AugmentedCorpusManifest, complete_artifact, read_augmented_corpus_manifest
from contracts.record_files import SUFFIXES
from contracts.records import Chain, Document
from contracts.storage import InputFile
from synth_model.chain_state import ChainState, finished_chain
from synth_model.engines import EngineConfig
from synth_model.generation import Sampling
from synth_model.pair_gates import PairGateConfig
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Settings of a synthesis.

    Args:
        input: Files, folders and globs of ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``, ``.txt`` and ``.parquet``.
        output: Folder for the augmented corpus; belongs to this run alone.
        fields: Which fields of a record hold what.
        chain_length: M, the number of documents in a chain and of rounds (paper: 2 from scratch, 3 domain-adaptive).
        seed: Decides which documents share a chain.
        num_files: Files that the corpus is spread over; one is held in memory while it is written.
        engine: Which model runs where.
        synthesizer: How pairs are asked for.
        sampling: How tokens are chosen.
        gates: What a pair must pass.
    """

    input: list[str]
    output: str
    fields: FieldNames = field(default_factory=FieldNames)
    chain_length: int = 2
    seed: int = 0
    num_files: int = 1
    engine: EngineConfig = field(default_factory=EngineConfig)
    synthesizer: SynthesizerConfig = field(default_factory=SynthesizerConfig)
    sampling: Sampling = field(default_factory=Sampling)
    gates: PairGateConfig = field(default_factory=PairGateConfig)

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if not self.input:
            raise ValueError("input is empty; give files, folders or globs to read documents from.")
        for name in ("chain_length", "num_files"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        self.engine.check()
        if self.sampling.max_new_tokens >= self.engine.context_length:
            raise ValueError(
                f"sampling.max_new_tokens ({self.sampling.max_new_tokens}) leaves no room for a prompt in "
                f"engine.context_length ({self.engine.context_length})."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisRun:
    """What the submitting process found out about a run before it starts.

    Args:
        files: The input's files.
        model_id: The model's name and a hash of what identifies its content.
        inputs: For the manifest: each input with its version.
        journal_segments: Files of the journal that an earlier start of the same run left.
    """

    files: tuple[InputFile, ...]
    model_id: str
    inputs: Mapping[str, str]
    journal_segments: tuple[str, ...] = ()


def plan_run(config: SynthesizeConfig, *, runner: str) -> SynthesisRun:
    """Looks at everything that could stop the run later: settings, input, model, prompt, device.

    Raises:
        ValueError: Something is missing or impossible; the message says what to do.
    """
    config.check()
    make_synthesizer(config.synthesizer)
    files = storage.find_input_files(config.input, suffixes=SUFFIXES)
    if not any(file.size_bytes for file in files):
        raise ValueError(
            f"The input holds no text: all of its files are empty ({', '.join(f.url for f in files[:5])})."
        )
    example = Document(doc_id="", source="", text="A text.")
    prompt = make_synthesizer(config.synthesizer).build_prompt((), document=example, special_tokens=())
    check_engine(config.engine, runner=runner, prompt=prompt)
    model_id = identify_model(config.engine)
    inputs = {file.url: f"{file.size_bytes} bytes, {file.version}" for file in files}
    return SynthesisRun(files=tuple(files), model_id=model_id, inputs={**inputs, "model": model_id})


def build_pipeline(pipeline: beam.Pipeline, config: SynthesizeConfig, run: SynthesisRun) -> None:
    """Wires the whole synthesis onto a pipeline; does nothing else."""
    synthesizer_id = f"{run.model_id}+{make_synthesizer(config.synthesizer).format_id}"
    records, unreadable, record_counts = pipeline | "ReadRecords" >> ReadRecords(
        files=run.files, text_field=config.fields.text
    )
    documents, unusable = records | "MakeDocuments" >> MakeDocuments(fields=config.fields)
    texts, unsplittable, split_counts = documents | "SplitDocuments" >> SplitDocuments(
        engine=config.engine, synthesizer=config.synthesizer, sampling=config.sampling
    )
    states, duplicates = texts | "FormChains" >> FormChains(chain_length=config.chain_length, seed=config.seed)
    num_prompts = (
        states | "NumPending" >> beam.Map(lambda state: len(state.pending)) | "NumPrompts" >> beam.CombineGlobally(sum)
    )
    plan = num_prompts | "WritePlan" >> beam.Map(
        lambda num, output: journal.write_plan(output, num_prompts=num), config.output
    )

    model_handler = EngineModelHandler(
        engine=config.engine,
        sampling=config.sampling,
        model_id=run.model_id,
        model_identifier=f"{run.model_id}-{uuid.uuid4().hex}",
        output=config.output,
    )
    earlier = (
        pipeline
        | "JournalFiles" >> beam.Create(list(run.journal_segments))
        | "DealJournal" >> beam.Reshuffle()
        | "ReadJournal" >> beam.FlatMap(journal.read_segment)
        if run.journal_segments
        else None
    )
    # A bucket of chains is one element of work to the grouping before; here chains are dealt out to the workers.
    # The plan as a side input makes them wait for it, so that progress has a total from the first completion on.
    states = states | "AfterPlan" >> beam.Map(lambda state, _: state, AsList(plan)) | "DealChains" >> beam.Reshuffle()
    for number in range(1, config.chain_length + 1):
        states = states | f"Round{number}" >> SynthesizeRound(
            engine=config.engine,
            synthesizer=config.synthesizer,
            sampling=config.sampling,
            gates=config.gates,
            model_handler=model_handler,
            journal=earlier,
        )
    failed = states | "Failed" >> beam.FlatMap(lambda state: state.rejects)
    chains = states | "Finish" >> beam.FlatMap(_finish, synthesizer_id)
    chain_reports = chains | "WriteChains" >> WriteChains(output=config.output, num_files=config.num_files)
    reject_reports = (
        (unreadable, unusable, unsplittable, duplicates, failed)
        | "Rejects" >> beam.Flatten()
        | "WriteRejects" >> WriteRejects(output=config.output, num_files=config.num_files)
    )
    _ = (
        pipeline
        | "End" >> beam.Create([config.output])
        | "Complete"
        >> beam.Map(
            _complete,
            num_records=AsSingleton(record_counts | "NumRecords" >> beam.CombineGlobally(sum)),
            parts_of_split_documents=AsList(split_counts),
            chains=AsList(chain_reports),
            rejects=AsList(reject_reports),
            synthesizer_id=synthesizer_id,
            inputs=dict(run.inputs),
            config=config_as_json(config),
        )
    )


def _finish(state: ChainState, synthesizer_id: str) -> Sequence[Chain]:
    chain = finished_chain(state, synthesizer_id=synthesizer_id)
    return [] if chain is None else [chain]


def _complete(
    output: str,
    *,
    num_records: int,
    parts_of_split_documents: Sequence[int],
    chains: Sequence[ChainsReport],
    rejects: Sequence[RejectsReport],
    synthesizer_id: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
) -> str:
    manifest = augmented_corpus_manifest(
        num_records=num_records,
        parts_of_split_documents=parts_of_split_documents,
        chains=chains,
        rejects=rejects,
        synthesizer_id=synthesizer_id,
        inputs=inputs,
        config=config,
    )
    return complete_artifact(output, manifest).fingerprint


def synthesize(config: SynthesizeConfig, *, options: PipelineOptions, console: Console) -> AugmentedCorpusManifest:
    """Runs a synthesis, goes on with one that was interrupted, or finds that it is complete.

    Raises:
        ValueError: The settings, the input, the model or the output folder do not allow it.
    """
    run = plan_run(config, runner=runner_name(options))
    state = claim_output(
        config.output, run=describe_run(command="synthesize", config=config_as_json(config), inputs=run.inputs)
    )
    if state == "completed":
        console.print(f"{config.output} is complete already; nothing to do.")
        return read_augmented_corpus_manifest(config.output)
    segments = tuple(journal.list_segments(config.output))
    if segments:
        num_done = journal.read_progress(config.output).num_done
        console.print(f"Going on with an earlier start: {num_done} completions are in the journal already.")
    run = replace(run, journal_segments=segments)
    with show_progress(config.output, console=console):
        run_pipeline(options, lambda pipeline: build_pipeline(pipeline, config, run))
    return read_augmented_corpus_manifest(config.output)


def describe(manifest: AugmentedCorpusManifest, *, output: str) -> str:
    """What a run did, in a few lines."""
    accounts = manifest.accounts
    lines = [
        f"documents   {accounts.num_texts} = {accounts.num_augmented} augmented + {accounts.num_kept_raw} kept raw "
        f"+ {accounts.num_rejected} rejected",
        f"pairs       {manifest.num_pairs} ({manifest.num_pairs / max(1, accounts.num_augmented):.2f} a text with any)",
        f"tokens      {manifest.num_prompt_tokens} in prompts, {manifest.num_new_tokens} new",
        f"corpus      {output}",
    ]
    if accounts.num_documents_split:
        lines.insert(1, f"split       {accounts.num_documents_split} long documents into {accounts.num_parts} parts")
    lines += [f"rejected    {count} {reason}" for reason, count in accounts.rejected_by_reason.items()]
    lines += [f"rejected    {count} pairs, {reason}" for reason, count in manifest.rejected_pairs_by_reason.items()]
    return "\n".join(lines)


def main(config: SynthesizeConfig, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    console = Console(stderr=True)
    manifest = synthesize(config, options=beam_options(beam_arguments), console=console)
    print(describe(manifest, output=config.output))
    if not manifest.num_chains:
        print("error: every document was rejected; see the reasons above and the files in rejects/.")
        return 1
    return 0
