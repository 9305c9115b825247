"""``synthesize --dry-run``: what a synthesis would take and cost, before anything is spent.

Documents are read, split, rejected and chained by the very steps of a run (`beam_pipelines.synthesize.prepare_chains`),
as a Beam pipeline on the runner that is given, with the model's tokenizer and without the model. Documents, rejects,
chains and the prompts of the first round are therefore exact. Prompts of later rounds show what the model will have
written: `beam_pipelines.transforms.estimate_rounds` says what stands in for it.

The output folder is left alone. The report lies beside it, as ``OUT.dry-run.json``, since that is a place which workers
on other machines can write to as well.

Cost: that of reading the corpus and tokenizing it about twice; memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList

from beam_pipelines import journal
from beam_pipelines.command_line import beam_options
from beam_pipelines.cost_estimate import Cost, cost_of
from beam_pipelines.progress import describe_seconds
from beam_pipelines.running import run_pipeline, runner_name
from beam_pipelines.synthesize import SynthesisRun, SynthesizeConfig, plan_run, prepare_chains, run_identity
from beam_pipelines.transforms.estimate_rounds import ChainEstimate, EstimateRounds, length_bucket
from contracts import storage
from contracts.artifact import inspect_output


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthBucket:
    """Texts of more than half of ``max_tokens`` tokens and at most so many; of any below, in the smallest bucket."""

    max_tokens: int
    num_texts: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundEstimate:
    """The prompts of one round; exact for the first one, see the module.

    Args:
        num_prompts: How many there are.
        num_prompt_tokens: Their tokens.
        num_shortened: How many leave out earlier examples of their chain, which do not fit.
    """

    num_prompts: int
    num_prompt_tokens: int
    num_shortened: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunReport:
    """What a synthesis would take.

    Args:
        num_records: Records in the input.
        num_documents_split: Documents that are cut into parts, since they outgrow the context.
        num_parts: Parts that these are cut into.
        rejected_by_reason: Records and texts rejected before any prompt, by ``stage/reason``.
        num_chains: Chains of what is left.
        lengths: The texts of the chains by length, shortest first.
        rounds: The prompts by round.
        num_new_tokens_expected: New tokens when a completion takes its share of ``sampling.max_new_tokens``.
        num_new_tokens_at_most: New tokens when each completion takes all of it.
        num_done: Prompts that the journal holds already.
        num_prompt_tokens_left: Tokens of the prompts that are left.
        num_new_tokens_left: New tokens expected for them.
        cost: What these cost; None when no speed is given.
    """

    num_records: int
    num_documents_split: int
    num_parts: int
    rejected_by_reason: Mapping[str, int]
    num_chains: int
    lengths: Sequence[LengthBucket]
    rounds: Sequence[RoundEstimate]
    num_new_tokens_expected: int
    num_new_tokens_at_most: int
    num_done: int
    num_prompt_tokens_left: int
    num_new_tokens_left: int
    cost: Cost | None

    @property
    def num_prompts(self) -> int:
        """Texts that get as far as a prompt."""
        return sum(estimate.num_prompts for estimate in self.rounds)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(estimate.num_prompt_tokens for estimate in self.rounds)


def report_url(output: str) -> str:
    """Where the report on a synthesis into ``output`` lies."""
    return f"{output.rstrip('/')}.dry-run.json"


def build_pipeline(pipeline: beam.Pipeline, config: SynthesizeConfig, run: SynthesisRun) -> None:
    """Wires the counting onto a pipeline; does nothing else."""
    prepared = prepare_chains(pipeline, config, run)
    chains = prepared.states | "EstimateRounds" >> EstimateRounds(
        engine=config.engine,
        synthesizer=config.synthesizer,
        sampling=config.sampling,
        num_completion_tokens=_completion_tokens(config),
    )
    counts = (
        (
            prepared.record_counts | "CountRecords" >> beam.Map(lambda num: (("records", ""), num)),
            prepared.split_counts | "CountParts" >> beam.FlatMap(_count_parts),
            prepared.rejects | "CountRejects" >> beam.Map(_count_reject),
            chains | "CountChains" >> beam.FlatMap(_count_chain),
        )
        | "Counts" >> beam.Flatten()
        | "AddUp" >> beam.CombinePerKey(sum)
    )
    _ = (
        pipeline
        | "End" >> beam.Create([report_url(config.output)])
        | "WriteCounts" >> beam.Map(_write_counts, AsList(counts))
    )


def _completion_tokens(config: SynthesizeConfig) -> int:
    return max(1, round(config.estimate.completion_share * config.sampling.max_new_tokens))


_Count = tuple[tuple[str, Any], int]


def _count_parts(num_parts: int) -> Iterable[_Count]:
    yield ("split", ""), 1
    yield ("parts", ""), num_parts


def _count_reject(reject: Any) -> _Count:
    return ("rejected", f"{reject.stage}/{reject.reason}"), 1


def _count_chain(chain: ChainEstimate) -> Iterable[_Count]:
    yield ("chains", ""), 1
    for num_tokens in chain.text_tokens:
        yield ("texts", length_bucket(num_tokens)), 1
        yield ("tokens", length_bucket(num_tokens)), num_tokens
    for number, (num_tokens, num_left_out) in enumerate(
        zip(chain.prompt_tokens, chain.num_left_out, strict=True), start=1
    ):
        yield ("prompts", number), 1
        yield ("prompt_tokens", number), num_tokens
        yield ("shortened", number), int(num_left_out > 0)


def _write_counts(url: str, counts: Sequence[_Count]) -> None:
    storage.write_json(url, [[*key, count] for key, count in sorted(counts, key=str)])


def dry_run(config: SynthesizeConfig, *, options: PipelineOptions) -> DryRunReport:
    """Counts what a synthesis would take, and leaves the report beside its output folder.

    Raises:
        ValueError: The settings, the input, the tokenizer or the output folder do not allow the synthesis.
    """
    run = plan_run(config, runner=runner_name(options))
    inspect_output(config.output, run=run_identity(config, run))
    run_pipeline(options, lambda pipeline: build_pipeline(pipeline, config, run))
    url = report_url(config.output)
    counts: dict[str, dict[Any, int]] = {}
    for name, key, count in storage.read_json(url):
        counts.setdefault(name, {})[key] = count
    report = _report(config, counts, done=journal.read_progress(config.output))
    storage.write_json(url, asdict(report))
    return report


def _report(
    config: SynthesizeConfig, counts: Mapping[str, Mapping[Any, int]], *, done: journal.Progress
) -> DryRunReport:
    prompts, prompt_tokens, shortened = (counts.get(name, {}) for name in ("prompts", "prompt_tokens", "shortened"))
    texts, tokens = counts.get("texts", {}), counts.get("tokens", {})
    rounds = [
        RoundEstimate(
            num_prompts=prompts[number], num_prompt_tokens=prompt_tokens[number], num_shortened=shortened[number]
        )
        for number in sorted(prompts)
    ]
    num_prompts = sum(prompts.values())
    num_left = max(0, num_prompts - done.num_done)
    num_prompt_tokens_left = max(0, sum(prompt_tokens.values()) - done.num_prompt_tokens) if num_left else 0
    num_new_tokens_left = num_left * _completion_tokens(config)
    return DryRunReport(
        num_records=counts.get("records", {}).get("", 0),
        num_documents_split=counts.get("split", {}).get("", 0),
        num_parts=counts.get("parts", {}).get("", 0),
        rejected_by_reason=dict(sorted(counts.get("rejected", {}).items())),
        num_chains=counts.get("chains", {}).get("", 0),
        lengths=[LengthBucket(max_tokens=key, num_texts=texts[key], num_tokens=tokens[key]) for key in sorted(texts)],
        rounds=rounds,
        num_new_tokens_expected=num_prompts * _completion_tokens(config),
        num_new_tokens_at_most=num_prompts * config.sampling.max_new_tokens,
        num_done=done.num_done,
        num_prompt_tokens_left=num_prompt_tokens_left,
        num_new_tokens_left=num_new_tokens_left,
        cost=cost_of(config.estimate, num_prompt_tokens=num_prompt_tokens_left, num_new_tokens=num_new_tokens_left),
    )


def describe(report: DryRunReport, config: SynthesizeConfig) -> str:
    """The report for people."""
    num_rejected = sum(report.rejected_by_reason.values())
    lines = [f"records     {report.num_records}: {report.num_prompts} texts to prompt for, {num_rejected} rejected"]
    if report.num_documents_split:
        lines.append(f"split       {report.num_documents_split} long documents into {report.num_parts} parts")
    lines += [f"rejected    {count} {reason}" for reason, count in report.rejected_by_reason.items()]
    lines += [
        f"texts       {bucket.num_texts} of up to {bucket.max_tokens} tokens, {bucket.num_tokens} tokens together"
        for bucket in report.lengths
    ]
    lines.append(f"chains      {report.num_chains} of up to {config.chain_length} texts, {len(report.rounds)} rounds")
    for number, estimate in enumerate(report.rounds, start=1):
        about = "" if number == 1 else "about "
        shortened = (
            f", {estimate.num_shortened} with fewer examples than the chain has" if estimate.num_shortened else ""
        )
        lines.append(
            f"round {number}     {estimate.num_prompts} prompts, {about}{estimate.num_prompt_tokens} tokens{shortened}"
        )
    lines.append(
        f"new tokens  about {report.num_new_tokens_expected} if completions take "
        f"{config.estimate.completion_share:.0%} of {config.sampling.max_new_tokens}, at most "
        f"{report.num_new_tokens_at_most}"
    )
    if report.num_done:
        lines.append(f"done        {report.num_done} of {report.num_prompts} prompts are in the journal already")
    if report.cost is None:
        lines.append(
            "cost        unknown: give estimate.new_tokens_per_second (status shows that of a run), and "
            "estimate.price_per_hour"
        )
    else:
        workers = f" on {config.estimate.num_workers} workers" if config.estimate.num_workers > 1 else ""
        price = f", {report.cost.price:.2f} to pay" if config.estimate.price_per_hour else ""
        lines.append(
            f"cost        {report.cost.worker_hours:.2f} worker hours, {describe_seconds(report.cost.hours * 3600)} "
            f"by the clock{workers}{price}"
        )
    lines.append(f"report      {report_url(config.output)}")
    return "\n".join(lines)


def main(config: SynthesizeConfig, beam_arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    print(describe(dry_run(config, options=beam_options(beam_arguments)), config))
    return 0
