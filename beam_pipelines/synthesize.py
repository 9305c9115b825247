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
from apache_beam.pvalue import AsDict, AsList, AsSingleton
from rich.console import Console

from beam_pipelines import journal, near_duplicates
from beam_pipelines.command_line import beam_options, config_as_json
from beam_pipelines.cost_estimate import EstimateConfig
from beam_pipelines.decontamination import DecontaminationConfig, find_evaluation_files
from beam_pipelines.document_deduplication import DeduplicationConfig
from beam_pipelines.engine_identity import check_engine
from beam_pipelines.inference_config import InferenceConfig
from beam_pipelines.inference_metrics import describe_figures, read_figures
from beam_pipelines.journal import JournalWriter
from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.pair_counting import CountPairs
from beam_pipelines.progress import show_progress
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.running import run_pipeline, runner_name
from beam_pipelines.scoring_handler import JOURNAL_KIND, ScoringModelHandler
from beam_pipelines.transforms.count_scores import CountScores
from beam_pipelines.transforms.decontaminate_documents import DecontaminateDocuments
from beam_pipelines.transforms.form_chains import FormChains
from beam_pipelines.transforms.limit_repeated_instructions import LimitRepeatedInstructions
from beam_pipelines.transforms.make_documents import MakeDocuments
from beam_pipelines.transforms.read_journal import ReadJournal
from beam_pipelines.transforms.read_records import ReadRecords
from beam_pipelines.transforms.remove_duplicate_documents import RemoveDuplicateDocuments
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
from contracts.score_histograms import ScoreHistogram, describe_histograms
from contracts.storage import InputFile
from synth_model.chain_state import ChainState, finished_chain
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.engines.model_identity import identify_model
from synth_model.gates.config import PairGateConfig
from synth_model.generation import Sampling
from synth_model.scoring import text_scores_from_fields
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
        deduplication: Which documents go because another one says the same.
        decontamination: Which evaluation sets no document may share a passage with.
        gates: What a pair must pass.
        inference: How the inference step runs.
        dry_run: Say what the run would take, without a model, and generate nothing; see `beam_pipelines.dry_run`.
        estimate: What a dry run takes for granted about speed and price.
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
    deduplication: DeduplicationConfig = field(default_factory=DeduplicationConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    gates: PairGateConfig = field(default_factory=PairGateConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    dry_run: bool = False
    estimate: EstimateConfig = field(default_factory=EstimateConfig)

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
        self.deduplication.check()
        self.decontamination.check()
        self.inference.check()
        self.gates.check(engine_kind=self.engine.kind)
        if self.gates.max_repeats_in_corpus and self.gates.max_similarity_in_corpus < 1:
            near_duplicates.check_available()
        self.estimate.check()
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
        evaluation_files: Those that no document may share a passage with.
        model_id: The model's name and a hash of what identifies its content.
        inputs: For the manifest: each input with its version.
        start_id: What tells this start of the run from others.
        has_journal: Whether an earlier start of the same run left completions.
    """

    files: tuple[InputFile, ...]
    model_id: str
    inputs: Mapping[str, str]
    start_id: str = ""
    has_journal: bool = False
    evaluation_files: tuple[str, ...] = ()


def plan_run(config: SynthesizeConfig, *, runner: str) -> SynthesisRun:
    """Looks at everything that could stop the run later: settings, input, model, prompt, device.

    A dry run needs the model's tokenizer, not its device or its server.

    Raises:
        ValueError: Something is missing or impossible; the message says what to do.
    """
    config.check()
    files = storage.find_input_files(config.input, suffixes=SUFFIXES)
    if not any(file.size_bytes for file in files):
        raise ValueError(
            f"The input holds no text: all of its files are empty ({', '.join(f.url for f in files[:5])})."
        )
    evaluation_files = find_evaluation_files(config.decontamination)
    synthesizer = make_synthesizer(config.synthesizer)
    example = Document(doc_id="", source="", text="A text.")
    prompt = synthesizer.build_prompt((), document=example, special_tokens=())
    if config.dry_run:
        load_tokenizer(config.engine).count([prompt])
    else:
        check_engine(config.engine, runner=runner, prompt=prompt)
    model_id = identify_model(config.engine)
    inputs = {file.url: f"{file.size_bytes} bytes, {file.version}" for file in (*files, *evaluation_files)}
    return SynthesisRun(
        files=tuple(files),
        evaluation_files=tuple(file.url for file in evaluation_files),
        model_id=model_id,
        inputs={**inputs, "model": model_id},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedChains:
    """The input of the first round, as collections of a pipeline.

    Args:
        states: `ChainState`, each with all of its documents pending.
        rejects: `Reject`: what does not get as far as a prompt.
        record_counts: int: records of each file.
        split_counts: int: parts of each split document.
    """

    states: beam.PCollection
    rejects: beam.PCollection
    record_counts: beam.PCollection
    split_counts: beam.PCollection


def prepare_chains(pipeline: beam.Pipeline, config: SynthesizeConfig, run: SynthesisRun) -> PreparedChains:
    """Wires everything that comes before the model."""
    records, unreadable, record_counts = pipeline | "ReadRecords" >> ReadRecords(
        files=run.files, text_field=config.fields.text
    )
    documents, unusable = records | "MakeDocuments" >> MakeDocuments(fields=config.fields)
    removed = []
    if config.deduplication.is_on:
        documents, duplicates = documents | "RemoveDuplicateDocuments" >> RemoveDuplicateDocuments(
            settings=config.deduplication
        )
        removed.append(duplicates)
    if run.evaluation_files:
        documents, contaminated = documents | "DecontaminateDocuments" >> DecontaminateDocuments(
            settings=config.decontamination, files=run.evaluation_files
        )
        removed.append(contaminated)
    texts, unsplittable, split_counts = documents | "SplitDocuments" >> SplitDocuments(
        engine=config.engine, synthesizer=config.synthesizer, sampling=config.sampling
    )
    states, repeated_ids = texts | "FormChains" >> FormChains(chain_length=config.chain_length, seed=config.seed)
    return PreparedChains(
        states=states,
        rejects=(unreadable, unusable, *removed, unsplittable, repeated_ids) | "EarlyRejects" >> beam.Flatten(),
        record_counts=record_counts,
        split_counts=split_counts,
    )


def build_pipeline(pipeline: beam.Pipeline, config: SynthesizeConfig, run: SynthesisRun) -> None:
    """Wires the whole synthesis onto a pipeline; does nothing else."""
    synthesizer_id = f"{run.model_id}+{make_synthesizer(config.synthesizer).format_id}"
    prepared = prepare_chains(pipeline, config, run)
    num_prompts = (
        prepared.states
        | "NumPending" >> beam.Map(lambda state: len(state.pending))
        | "NumPrompts" >> beam.CombineGlobally(sum)
    )
    rejected = (
        prepared.rejects
        | "Reason" >> beam.Map(lambda reject: f"{reject.stage}/{reject.reason}")
        | "CountByReason" >> beam.combiners.Count.PerElement()
    )
    plan = num_prompts | "WritePlan" >> beam.Map(_write_plan, config.output, AsDict(rejected))

    model_identifier = f"{run.model_id}-{uuid.uuid4().hex}"
    model_handler = EngineModelHandler(
        engine=config.engine,
        sampling=config.sampling,
        model_id=run.model_id,
        model_identifier=model_identifier,
        journal_writer=JournalWriter(
            config.output,
            start_id=run.start_id,
            count_pairs=CountPairs(engine=config.engine, synthesizer=config.synthesizer),
        ),
        inference=config.inference,
    )
    earlier = pipeline | "ReadJournal" >> ReadJournal(output=config.output) if run.has_journal else None
    scoring_handler, earlier_scores = None, None
    if config.gates.min_context_dependence is not None:
        scoring_handler = ScoringModelHandler(
            engine=config.engine,
            model_id=run.model_id,
            model_identifier=model_identifier,
            journal_writer=JournalWriter(config.output, start_id=run.start_id, kind=JOURNAL_KIND),
            inference=config.inference,
        )
        if run.has_journal:
            earlier_scores = pipeline | "ReadScores" >> ReadJournal(
                output=config.output, kind=JOURNAL_KIND, record=text_scores_from_fields
            )
    # A bucket of chains is one element of work to the grouping before; here chains are dealt out to the workers.
    # The plan as a side input makes them wait for it, so that progress has a total from the first completion on.
    states = (
        prepared.states
        | "AfterPlan" >> beam.Map(lambda state, _: state, AsList(plan))
        | "DealChains" >> beam.Reshuffle()
    )
    scores = []
    for number in range(1, config.chain_length + 1):
        states, scores_of_round = states | f"Round{number}" >> SynthesizeRound(
            engine=config.engine,
            synthesizer=config.synthesizer,
            sampling=config.sampling,
            gates=config.gates,
            model_handler=model_handler,
            journal=earlier,
            scoring_handler=scoring_handler,
            scores_journal=earlier_scores,
        )
        scores.append(scores_of_round)
    failed = states | "Failed" >> beam.FlatMap(lambda state: state.rejects)
    chains = states | "Finish" >> beam.FlatMap(_finish, synthesizer_id)
    rejects = [prepared.rejects, failed]
    if config.gates.max_repeats_in_corpus:
        chains, repeated, scores_in_corpus = chains | "LimitRepeatedInstructions" >> LimitRepeatedInstructions(
            gates=config.gates
        )
        rejects.append(repeated)
        scores.append(scores_in_corpus)
    histograms = scores | "Scores" >> beam.Flatten() | "CountScores" >> CountScores()
    chain_reports = chains | "WriteChains" >> WriteChains(output=config.output, num_files=config.num_files)
    reject_reports = (
        rejects
        | "Rejects" >> beam.Flatten()
        | "WriteRejects" >> WriteRejects(output=config.output, num_files=config.num_files)
    )
    _ = (
        pipeline
        | "End" >> beam.Create([config.output])
        | "Complete"
        >> beam.Map(
            _complete,
            num_records=AsSingleton(prepared.record_counts | "NumRecords" >> beam.CombineGlobally(sum)),
            documents_by_num_parts=AsDict(
                prepared.split_counts | "DocumentsByNumParts" >> beam.combiners.Count.PerElement()
            ),
            chains=AsList(chain_reports),
            rejects=AsList(reject_reports),
            pair_scores=AsDict(histograms),
            synthesizer_id=synthesizer_id,
            inputs=dict(run.inputs),
            start_id=run.start_id,
            config=_settings_of_the_result(config),
        )
    )


def _write_plan(num_prompts: int, output: str, rejected: Mapping[str, int]) -> None:
    journal.write_plan(output, num_prompts=num_prompts, rejected=rejected)


def _finish(state: ChainState, synthesizer_id: str) -> Sequence[Chain]:
    chain = finished_chain(state, synthesizer_id=synthesizer_id)
    return [] if chain is None else [chain]


def _complete(
    output: str,
    *,
    num_records: int,
    documents_by_num_parts: Mapping[int, int],
    chains: Sequence[ChainsReport],
    rejects: Sequence[RejectsReport],
    pair_scores: Mapping[str, ScoreHistogram],
    synthesizer_id: str,
    inputs: Mapping[str, str],
    start_id: str,
    config: Mapping[str, Any],
) -> str:
    journal.check_start(output, start_id=start_id)
    manifest = augmented_corpus_manifest(
        num_records=num_records,
        documents_by_num_parts=documents_by_num_parts,
        chains=chains,
        rejects=rejects,
        pair_scores=pair_scores,
        synthesizer_id=synthesizer_id,
        inputs=inputs,
        config=config,
    )
    return complete_artifact(output, manifest).fingerprint


def _settings_of_the_result(config: SynthesizeConfig) -> dict[str, Any]:
    settings = {**config_as_json(config), "engine": config.engine.settings_of_the_result()}
    return {name: value for name, value in settings.items() if name not in ("inference", "dry_run", "estimate")}


def run_identity(config: SynthesizeConfig, run: SynthesisRun) -> dict[str, Any]:
    """What makes two starts the same run; see `contracts.artifact.describe_run`."""
    # What wordings and examples hold counts, not only where they lie.
    inputs = {**run.inputs, "format": make_synthesizer(config.synthesizer).format_id}
    return describe_run(command="synthesize", config=_settings_of_the_result(config), inputs=inputs)


def synthesize(config: SynthesizeConfig, *, options: PipelineOptions, console: Console) -> AugmentedCorpusManifest:
    """Runs a synthesis, goes on with one that was interrupted, or finds that it is complete.

    Raises:
        ValueError: The settings, the input, the model or the output folder do not allow it.
    """
    run = plan_run(config, runner=runner_name(options))
    state = claim_output(config.output, run=run_identity(config, run))
    if state == "completed":
        console.print(f"{config.output} is complete already; nothing to do.")
        return read_augmented_corpus_manifest(config.output)
    start_id = journal.begin(config.output)
    num_done = journal.read_progress(config.output).num_done
    if num_done:
        console.print(f"Going on with an earlier start: {num_done} completions are in the journal already.")
    run = replace(run, start_id=start_id, has_journal=num_done > 0)
    with show_progress(config.output, console=console):
        result = run_pipeline(options, lambda pipeline: build_pipeline(pipeline, config, run))
    console.print(describe_figures(read_figures(result.metrics())))
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
    lines += [f"scores      {line}" for line in describe_histograms(manifest.pair_scores)]
    return "\n".join(lines)


def main(config: SynthesizeConfig, beam_arguments: Sequence[str]) -> int:
    """Runs the command, or says what it would take; returns its exit status."""
    if config.dry_run:
        # It plans with what is in this module.
        from beam_pipelines import dry_run

        return dry_run.main(config, beam_arguments)
    console = Console(stderr=True)
    manifest = synthesize(config, options=beam_options(beam_arguments), console=console)
    print(describe(manifest, output=config.output))
    if not manifest.num_chains:
        print("error: every document was rejected; see the reasons above and the files in rejects/.")
        return 1
    return 0
