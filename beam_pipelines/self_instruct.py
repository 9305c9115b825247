"""``python -m beam_pipelines self-instruct``: general instructions with responses, from an instruct model alone.

A model that was tuned on conversations and is given only what its chat template puts before a user's first words goes
on with what a user might say: an instruction. Many draws with a temperature give many instructions; those that pass
the filters and resemble no earlier one are then answered by the same model. Written are the pairs (Parquet, columns
``id``, ``instruction``, ``response``, ``model_id``), everything rejected with its reason, the journal, a manifest whose
accounts add up (draws = kept + rejected), and ``COMPLETED``. The folder is an input of pack's ``instructions``.

Near-duplicates are removed before instructions are answered, so that no answer is paid for in vain. The system turn is
the model's own default, where its template has one.

Cost: one completion a draw and one an instruction that is left; see `beam_pipelines.near_duplicates` for the rest. Not
done here: several turns, and judging how hard an instruction or how good a response is.

Source: Xu et al. 2024 (arXiv 2406.08464), sections 2.1 and 2.2.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList
from rich.console import Console

from beam_pipelines import journal, near_duplicates
from beam_pipelines.command_line import beam_options, config_as_json
from beam_pipelines.engine_identity import check_engine
from beam_pipelines.inference_config import InferenceConfig
from beam_pipelines.inference_metrics import describe_figures, read_figures
from beam_pipelines.instruction_filters import InstructionFilterConfig, Refusal, check_languages
from beam_pipelines.journal import JournalWriter
from beam_pipelines.model_handler import EngineModelHandler
from beam_pipelines.progress import show_progress
from beam_pipelines.running import run_pipeline, runner_name
from beam_pipelines.transforms.answer_instructions import AnswerInstructions
from beam_pipelines.transforms.draw_instructions import DrawInstructions, reject_draw
from beam_pipelines.transforms.read_journal import ReadJournal
from beam_pipelines.transforms.remove_near_duplicates import Duplicate, RemoveNearDuplicates
from beam_pipelines.transforms.write_instructions import WriteInstructions
from beam_pipelines.transforms.write_rejects import WriteRejects
from contracts.accounting import RejectsReport, sum_counts
from contracts.artifact import claim_output, describe_run
from contracts.manifest import (
    FileEntry,
    InstructionCorpusManifest,
    complete_artifact,
    read_instruction_corpus_manifest,
)
from contracts.records import Reject
from synth_model.engines import EngineConfig
from synth_model.engines.model_identity import identify_model
from synth_model.generation import Sampling


@dataclass(frozen=True, kw_only=True)
class SelfInstructConfig:
    """Settings of ``self-instruct``.

    Args:
        output: Folder for the instruction corpus; belongs to this run alone.
        num_draws: How many instructions are asked for; the filters leave fewer.
        num_files: Files that the corpus is spread over; one is held in memory while it is written.
        engine: Which model runs where; a model with a chat template.
        instruction_sampling: How tokens of instructions are drawn; its seed decides which instructions come.
        response_sampling: How tokens of responses are chosen.
        filters: What instructions and responses must pass.
        inference: How the inference steps run.
    """

    output: str
    num_draws: int
    num_files: int = 1
    engine: EngineConfig = field(default_factory=EngineConfig)
    instruction_sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=256, temperature=1.0))
    response_sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=1024))
    filters: InstructionFilterConfig = field(default_factory=InstructionFilterConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        for name in ("num_draws", "num_files"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        self.engine.check()
        self.inference.check()
        for name in ("instruction_sampling", "response_sampling"):
            if getattr(self, name).max_new_tokens >= self.engine.context_length:
                raise ValueError(
                    f"{name}.max_new_tokens ({getattr(self, name).max_new_tokens}) leaves no room for a prompt in "
                    f"engine.context_length ({self.engine.context_length})."
                )
        if not self.instruction_sampling.temperature:
            raise ValueError(
                "instruction_sampling.temperature is 0: every draw would give the same instruction. Give one above 0, "
                "such as 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfInstructRun:
    """What the submitting process found out about a run before it starts.

    Args:
        model_id: The model's name and a hash of what identifies its content.
        start_id: What tells this start of the run from others.
        has_journal: Whether an earlier start of the same run left completions.
    """

    model_id: str
    start_id: str
    has_journal: bool = False


def plan_model(config: SelfInstructConfig, *, runner: str) -> str:
    """Looks at everything that could stop the run later (settings, packages, device, model); returns the model's id.

    Raises:
        ValueError: Something is missing or impossible; the message says what to do.
    """
    config.check()
    check_languages(config.filters.languages)
    if config.filters.max_similarity < 1:
        near_duplicates.check_available()
    check_engine(config.engine, runner=runner)
    return identify_model(config.engine)


def build_pipeline(pipeline: beam.Pipeline, config: SelfInstructConfig, run: SelfInstructRun) -> None:
    """Wires the whole command onto a pipeline; does nothing else."""
    # Both steps share one loaded model, which this names.
    model_identifier = f"{run.model_id}-{uuid.uuid4().hex}"
    instruction_handler, response_handler = (
        EngineModelHandler(
            engine=config.engine,
            sampling=sampling,
            model_id=run.model_id,
            model_identifier=model_identifier,
            journal_writer=JournalWriter(config.output, start_id=run.start_id),
            inference=config.inference,
        )
        for sampling in (config.instruction_sampling, config.response_sampling)
    )
    earlier = pipeline | "ReadJournal" >> ReadJournal(output=config.output) if run.has_journal else None
    drawn, refused = pipeline | "DrawInstructions" >> DrawInstructions(
        num_draws=config.num_draws,
        engine=config.engine,
        model_handler=instruction_handler,
        filters=config.filters,
        model_id=run.model_id,
        journal=earlier,
    )
    distinct, duplicates = drawn | "RemoveNearDuplicates" >> RemoveNearDuplicates(
        max_similarity=config.filters.max_similarity
    )
    num_distinct = distinct | "NumDistinct" >> beam.combiners.Count.Globally()
    _ = num_distinct | "WritePlan" >> beam.Map(
        lambda num, output, num_draws: journal.write_plan(output, num_prompts=num_draws + num),
        config.output,
        config.num_draws,
    )
    pairs, unanswered = distinct | "AnswerInstructions" >> AnswerInstructions(
        engine=config.engine,
        model_handler=response_handler,
        filters=config.filters,
        model_id=run.model_id,
        journal=earlier,
    )
    parts = pairs | "WriteInstructions" >> WriteInstructions(output=config.output, num_files=config.num_files)
    rejects = (
        (refused, duplicates | "RejectDuplicates" >> beam.Map(_reject_duplicate, run.model_id), unanswered)
        | "Rejects" >> beam.Flatten()
        | "WriteRejects" >> WriteRejects(output=config.output, num_files=config.num_files)
    )
    _ = (
        pipeline
        | "End" >> beam.Create([config.output])
        | "Complete"
        >> beam.Map(
            _complete,
            parts=AsList(parts),
            rejects=AsList(rejects),
            num_draws=config.num_draws,
            model_id=run.model_id,
            start_id=run.start_id,
            config=_settings_of_the_result(config),
        )
    )


def _settings_of_the_result(config: SelfInstructConfig) -> dict[str, Any]:
    settings = {**config_as_json(config), "engine": config.engine.settings_of_the_result()}
    return {name: value for name, value in settings.items() if name != "inference"}


def _reject_duplicate(duplicate: Duplicate, model_id: str) -> Reject:
    return reject_draw(
        duplicate.text_id,
        stage="duplicates",
        refusal=Refusal(
            reason="near_duplicate" if duplicate.similarity < 1 else "duplicate",
            detail=f"similarity {duplicate.similarity:.3f} to draw {duplicate.other_id}",
        ),
        model_id=model_id,
        text=duplicate.text,
    )


def _complete(
    output: str,
    *,
    parts: Sequence[FileEntry],
    rejects: Sequence[RejectsReport],
    num_draws: int,
    model_id: str,
    start_id: str,
    config: Mapping[str, Any],
) -> str:
    journal.check_start(output, start_id=start_id)
    manifest = InstructionCorpusManifest(
        model_id=model_id,
        num_draws=num_draws,
        num_instructions=sum(entry.num_rows for entry in parts),
        rejected_by_reason=sum_counts(report.by_reason for report in rejects),
        parts=tuple(sorted(parts, key=lambda entry: entry.path)),
        rejects=tuple(sorted((report.entry for report in rejects), key=lambda entry: entry.path)),
        inputs={"model": model_id},
        config=config,
    )
    return complete_artifact(output, manifest).fingerprint


def self_instruct(
    config: SelfInstructConfig, *, options: PipelineOptions, console: Console
) -> InstructionCorpusManifest:
    """Runs the command, goes on with a run that was interrupted, or finds that it is complete.

    Raises:
        ValueError: The settings, the model or the output folder do not allow it.
    """
    model_id = plan_model(config, runner=runner_name(options))
    state = claim_output(
        config.output,
        run=describe_run(
            command="self-instruct",
            config=_settings_of_the_result(config),
            inputs={"model": model_id},
        ),
    )
    if state == "completed":
        console.print(f"{config.output} is complete already; nothing to do.")
        return read_instruction_corpus_manifest(config.output)
    # At most so many; how many instructions are answered is known once all of them are drawn.
    journal.write_plan(config.output, num_prompts=2 * config.num_draws)
    start_id = journal.begin(config.output)
    num_done = journal.read_progress(config.output).num_done
    if num_done:
        console.print(f"Going on with an earlier start: {num_done} completions are in the journal already.")
    run = SelfInstructRun(model_id=model_id, start_id=start_id, has_journal=num_done > 0)
    with show_progress(config.output, console=console, label="instructions and responses"):
        result = run_pipeline(options, lambda pipeline: build_pipeline(pipeline, config, run))
    console.print(describe_figures(read_figures(result.metrics())))
    return read_instruction_corpus_manifest(config.output)


def describe(manifest: InstructionCorpusManifest, *, output: str) -> str:
    """What a run did, in a few lines."""
    lines = [
        f"instructions  {manifest.num_instructions} with responses, of {manifest.num_draws} drawn",
        *(f"rejected      {count} {reason}" for reason, count in manifest.rejected_by_reason.items()),
        f"tokens        {journal.read_progress(output).num_new_tokens} new",
        f"corpus        {output}",
    ]
    return "\n".join(lines)


def main(config: SelfInstructConfig, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    manifest = self_instruct(config, options=beam_options(beam_arguments), console=Console(stderr=True))
    print(describe(manifest, output=config.output))
    if not manifest.num_instructions:
        print("error: every instruction was rejected; see the reasons above and the files in rejects/.")
        return 1
    return 0
