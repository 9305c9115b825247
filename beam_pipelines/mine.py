"""``python -m beam_pipelines mine``: raw text in, reading-comprehension tasks about it out, without a model.

Documents are read, split where they are long, and each becomes a chain of one example whose pairs are mined from its
text (`beam_pipelines.mining`). What is written is an augmented corpus as ``synthesize`` writes one, so that ``pack``
takes it as it is, and ``mining.json`` beside it: the keywords of the domain and the number of tasks of each kind. Every
task follows from the text, the seed, the bank and the keywords; there is no journal, a run that was cut short is done
again from the start.

Source: Cheng et al. 2023 (arXiv 2309.09530).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsDict, AsList, AsSingleton
from rich.console import Console

from beam_pipelines.command_line import beam_options, config_as_json
from beam_pipelines.mining.bank import KINDS, MiningBank, load_mining_bank
from beam_pipelines.mining.keywords import KeywordConfig
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.running import run_pipeline
from beam_pipelines.tokenizer_loading import load_tokenizer
from beam_pipelines.transforms.find_keywords import FindKeywords
from beam_pipelines.transforms.form_chains import FormChains
from beam_pipelines.transforms.make_documents import MakeDocuments
from beam_pipelines.transforms.mine_chains import MineChains
from beam_pipelines.transforms.read_records import ReadRecords
from beam_pipelines.transforms.split_by_words import SplitByWords
from beam_pipelines.transforms.write_chains import WriteChains
from beam_pipelines.transforms.write_rejects import WriteRejects
from contracts import storage
from contracts.accounting import ChainsReport, RejectsReport, augmented_corpus_manifest
from contracts.artifact import claim_output, describe_run
from contracts.manifest import AugmentedCorpusManifest, complete_artifact, read_augmented_corpus_manifest
from contracts.record_files import SUFFIXES
from contracts.storage import InputFile

REPORT_FILE = "mining.json"


@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Settings of a mining.

    Args:
        input: Files, folders and globs of ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``, ``.txt`` and ``.parquet``.
        output: Folder for the augmented corpus; belongs to this run alone.
        fields: Which fields of a record hold what.
        bank: Connectives and wordings: the name of a shipped bank (such as ``english``) or the path of a YAML file.
        max_words: Longer documents are split into parts of at most so many words, so that a training row holds a text
            together with its tasks; 0 never splits.
        keywords: How the keywords of the domain are selected.
        seed: Decides which tasks are taken and how they are worded.
        num_files: Files that the corpus is spread over; one is held in memory while it is written.
    """

    input: list[str]
    output: str
    fields: FieldNames = field(default_factory=FieldNames)
    bank: str = "english"
    max_words: int = 1000
    keywords: KeywordConfig = field(default_factory=KeywordConfig)
    seed: int = 0
    num_files: int = 1

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if not self.input:
            raise ValueError("input is empty; give files, folders or globs to read documents from.")
        for name, least in (("num_files", 1), ("max_words", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        self.keywords.check()


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningRun:
    """What the submitting process found out about a run before it starts.

    Args:
        files: The input's files.
        bank: The bank as the file holds it now.
        inputs: For the manifest: each input with its version.
    """

    files: tuple[InputFile, ...]
    bank: MiningBank
    inputs: Mapping[str, str]


def plan_run(config: MineConfig) -> MiningRun:
    """Looks at everything that could stop the run later: settings, input, bank, tokenizer.

    Raises:
        ValueError: Something is missing or impossible; the message says what to do.
    """
    config.check()
    bank = load_mining_bank(config.bank)
    files = storage.find_input_files(config.input, suffixes=SUFFIXES)
    inputs = {file.url: f"{file.size_bytes} bytes, {file.version}" for file in files}
    inputs["bank"] = bank.sha256
    if config.keywords.general_tokenizer:
        tokenizer = load_tokenizer(config.keywords.general_tokenizer, add_bos=False, add_eos=False)
        inputs["general_tokenizer"] = tokenizer.description.sha256
    return MiningRun(files=tuple(files), bank=bank, inputs=inputs)


def build_pipeline(pipeline: beam.Pipeline, config: MineConfig, run: MiningRun) -> None:
    """Wires the whole mining onto a pipeline; does nothing else."""
    synthesizer_id = f"mined@{run.bank.sha256[:16]}"
    records, unreadable, record_counts = pipeline | "ReadRecords" >> ReadRecords(
        files=run.files, text_field=config.fields.text
    )
    documents, unusable = records | "MakeDocuments" >> MakeDocuments(fields=config.fields)
    texts, split_counts = documents | "SplitByWords" >> SplitByWords(max_words=config.max_words)
    keywords = texts | "FindKeywords" >> FindKeywords(config=config.keywords)
    states, duplicates = texts | "FormChains" >> FormChains(chain_length=1, seed=config.seed)
    chains, kinds = (
        states
        # A bucket of chains is one element of work to the grouping before; here chains are dealt out to the workers.
        | "DealChains" >> beam.Reshuffle()
        | "MineChains" >> MineChains(bank=run.bank, seed=config.seed, synthesizer_id=synthesizer_id, keywords=keywords)
    )
    chain_reports = chains | "WriteChains" >> WriteChains(output=config.output, num_files=config.num_files)
    reject_reports = (
        (unreadable, unusable, duplicates)
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
            documents_by_num_parts=AsDict(split_counts | "DocumentsByNumParts" >> beam.combiners.Count.PerElement()),
            chains=AsList(chain_reports),
            rejects=AsList(reject_reports),
            num_tasks=AsDict(kinds | "NumTasks" >> beam.combiners.Count.PerElement()),
            keywords=AsSingleton(keywords),
            synthesizer_id=synthesizer_id,
            inputs=dict(run.inputs),
            config=config_as_json(config),
        )
    )


def _complete(
    output: str,
    *,
    num_records: int,
    documents_by_num_parts: Mapping[int, int],
    chains: Sequence[ChainsReport],
    rejects: Sequence[RejectsReport],
    num_tasks: Mapping[str, int],
    keywords: frozenset[str],
    synthesizer_id: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
) -> str:
    manifest = augmented_corpus_manifest(
        num_records=num_records,
        documents_by_num_parts=documents_by_num_parts,
        chains=chains,
        rejects=rejects,
        synthesizer_id=synthesizer_id,
        inputs=inputs,
        config=config,
    )
    report = {"num_tasks": {kind: num_tasks.get(kind, 0) for kind in KINDS}, "keywords": sorted(keywords)}
    storage.write_json(storage.join(output, REPORT_FILE), report)
    return complete_artifact(output, manifest).fingerprint


def mine(config: MineConfig, *, options: PipelineOptions, console: Console) -> AugmentedCorpusManifest:
    """Runs a mining, or finds that it is complete.

    Raises:
        ValueError: The settings, the input, the bank, the tokenizer or the output folder do not allow it.
    """
    run = plan_run(config)
    state = claim_output(
        config.output, run=describe_run(command="mine", config=config_as_json(config), inputs=run.inputs)
    )
    if state == "completed":
        console.print(f"{config.output} is complete already; nothing to do.")
    else:
        run_pipeline(options, lambda pipeline: build_pipeline(pipeline, config, run))
    return read_augmented_corpus_manifest(config.output)


def describe(manifest: AugmentedCorpusManifest, *, output: str) -> str:
    """What a run did, in a few lines."""
    accounts, report = manifest.accounts, storage.read_json(storage.join(output, REPORT_FILE))
    num_texts = max(1, accounts.num_augmented + accounts.num_kept_raw)
    lines = [
        f"documents   {accounts.num_texts} = {accounts.num_augmented} with tasks + {accounts.num_kept_raw} kept raw "
        f"+ {accounts.num_rejected} rejected",
        f"tasks       {manifest.num_pairs} ({manifest.num_pairs / num_texts:.2f} a text)",
    ]
    if accounts.num_documents_split:
        lines.insert(1, f"split       {accounts.num_documents_split} long documents into {accounts.num_parts} parts")
    lines += [f"            {count} {kind}" for kind, count in report["num_tasks"].items()]
    lines += [f"keywords    {len(report['keywords'])}", f"corpus      {output}"]
    lines += [f"rejected    {count} {reason}" for reason, count in accounts.rejected_by_reason.items()]
    return "\n".join(lines)


def main(config: MineConfig, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    manifest = mine(config, options=beam_options(beam_arguments), console=Console(stderr=True))
    print(describe(manifest, output=config.output))
    if not manifest.num_chains:
        print("error: every document was rejected; see the reasons above and the files in rejects/.")
        return 1
    return 0
