import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines import journal
from beam_pipelines.command_line import beam_options, config_as_json
from beam_pipelines.commands import run_command
from beam_pipelines.cost_estimate import Cost, EstimateConfig, cost_of
from beam_pipelines.dry_run import describe, dry_run
from beam_pipelines.transforms.estimate_rounds import length_bucket
from contracts import storage
from synth_model.engines import load_tokenizer
from synth_model.generation import Sampling
from synth_model.synthesizer import SynthesizerConfig
from tests.beam_pipelines.pipeline_runs import (
    IN_MEMORY,
    fake_engine,
    make_documents,
    make_text,
    read_chains,
    run_synthesize,
    synthesize_config,
    write_jsonl,
)

LONG_TEXT = "\n\n".join(make_text(f"paragraph{number}", num_sentences=6) for number in range(12))
RECORDS = [
    *make_documents(41),
    *make_documents(3, source="books"),
    {"id": "long", "source": "books", "text": LONG_TEXT},
    {"id": "endless", "text": "word " * 1000},
    {"id": "web-1", "source": "web", "text": "Again."},
    {"body": "no text"},
]
# Room for one earlier example, seldom for two.
SETTINGS = {"chain_length": 3, "engine": fake_engine(context_length=300, no_pair_rate=0.0)}


def run_dry(corpus, output, **settings):
    config = synthesize_config([corpus], output, **{**SETTINGS, "dry_run": True, **settings})
    return dry_run(config, options=beam_options(IN_MEMORY)), config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "in.jsonl", RECORDS)


@pytest.mark.parametrize("kind", ["wire_format", "chat"])
def test_all_that_comes_before_the_model_is_exact(kind, corpus, tmp_path):
    settings = {"synthesizer": SynthesizerConfig(kind=kind)}
    if kind == "chat":
        settings["engine"] = fake_engine(context_length=700, no_pair_rate=0.0)
    report, _ = run_dry(corpus, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    manifest = run_synthesize([corpus], tmp_path / "out", **{**SETTINGS, **settings})
    accounts = manifest.accounts
    assert (report.num_records, report.num_documents_split, report.num_parts) == (
        len(RECORDS),
        accounts.num_documents_split,
        accounts.num_parts,
    )
    assert accounts.num_documents_split > 0
    assert report.rejected_by_reason == accounts.rejected_by_reason
    assert report.rejected_by_reason.keys() == {"read/no_text", "chain/duplicate_id", "split/sentence_too_long"}
    assert report.num_chains == manifest.num_chains
    chains = read_chains(tmp_path / "out")
    for number, estimate in enumerate(report.rounds):
        examples = [chain.examples[number] for chain in chains if len(chain.examples) > number]
        assert estimate.num_prompts == len(examples)
        tokens = sum(example.num_prompt_tokens for example in examples)
        if number == 0:
            assert (estimate.num_prompt_tokens, estimate.num_shortened) == (tokens, 0)
    assert report.num_prompts == accounts.num_augmented + accounts.num_kept_raw

    tokenizer = load_tokenizer(SETTINGS["engine"])
    lengths = tokenizer.count_text([example.document.text for chain in chains for example in chain.examples])
    assert [(bucket.max_tokens, bucket.num_texts) for bucket in report.lengths] == sorted(
        Counter(map(length_bucket, lengths)).items()
    )
    assert sum(bucket.num_tokens for bucket in report.lengths) == sum(lengths)
    assert len(report.lengths) > 1


def test_later_rounds_are_near_when_completions_are_as_long_as_assumed(corpus, tmp_path):
    # Wide enough for all examples, and pairs that are as long as the run's own on average.
    settings = {"engine": fake_engine(context_length=2048, no_pair_rate=0.0), "sampling": Sampling(max_new_tokens=100)}
    manifest = run_synthesize([corpus], tmp_path / "out", **{**SETTINGS, **settings})
    share = manifest.num_new_tokens / (100 * manifest.accounts.num_augmented)
    report, _ = run_dry(corpus, tmp_path / "dry", **settings, estimate=EstimateConfig(completion_share=share))
    examples = [chain.examples for chain in read_chains(tmp_path / "out")]
    for number, estimate in enumerate(report.rounds):
        tokens = sum(chain[number].num_prompt_tokens for chain in examples if len(chain) > number)
        assert estimate.num_prompt_tokens == pytest.approx(tokens, rel=0.1)
        assert estimate.num_shortened == 0
    assert len(report.rounds) == 3
    assert report.num_new_tokens_expected == pytest.approx(manifest.num_new_tokens, rel=0.02)
    assert report.num_new_tokens_at_most == 100 * manifest.accounts.num_augmented


def test_prompts_that_outgrow_the_context_leave_examples_out(corpus, tmp_path):
    report, config = run_dry(corpus, tmp_path / "out")
    assert [estimate.num_shortened > 0 for estimate in report.rounds] == [False, True, True]
    limit = config.engine.context_length - config.sampling.max_new_tokens
    assert all(estimate.num_prompt_tokens <= limit * estimate.num_prompts for estimate in report.rounds)
    assert "with fewer examples than the chain has" in describe(report, config)


def test_what_is_in_the_journal_need_not_be_paid_again(corpus, tmp_path):
    estimate = EstimateConfig(prompt_tokens_per_second=3600.0, new_tokens_per_second=36.0, price_per_hour=2.0)
    before, _ = run_dry(corpus, tmp_path / "out", estimate=estimate)
    assert (before.num_done, before.num_prompt_tokens_left) == (0, before.num_prompt_tokens)
    assert before.cost is not None
    assert before.cost.price == 2 * before.cost.worker_hours
    hours = before.num_prompt_tokens / 3600 / 3600 + before.num_new_tokens_expected / 36 / 3600
    assert before.cost.worker_hours == pytest.approx(hours)
    # The run goes on although the estimate differs: it is no part of what makes a run.
    run_synthesize([corpus], tmp_path / "out", **SETTINGS)
    after, config = run_dry(corpus, tmp_path / "out", estimate=estimate)
    assert after.num_done == after.num_prompts == before.num_prompts
    assert after.cost == Cost(worker_hours=0.0, hours=0.0, price=0.0)
    assert f"done        {after.num_done} of {after.num_prompts} prompts are in the journal already" in describe(
        after, config
    )
    lost = journal.list_segments(str(tmp_path / "out"))[0]
    storage.remove_file(lost.url)
    partly, _ = run_dry(corpus, tmp_path / "out", estimate=estimate)
    progress = journal.read_progress(str(tmp_path / "out"))
    assert partly.num_done == before.num_prompts - lost.num_entries
    assert partly.num_prompt_tokens_left == before.num_prompt_tokens - progress.num_prompt_tokens > 0
    assert partly.num_new_tokens_left * before.num_prompts == before.num_new_tokens_expected * lost.num_entries
    with pytest.raises(ValueError, match=r"already holds another run\. It differs in: config\.seed"):
        run_dry(corpus, tmp_path / "out", seed=1)


def test_the_command_says_it_all_and_leaves_the_folder_alone(corpus, tmp_path, capsys):
    config = config_as_json(synthesize_config([corpus], tmp_path / "out", **SETTINGS))
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["synthesize", "--config", str(tmp_path / "config.json")]
    rates = ["--estimate.prompt_tokens_per_second", "1000", "--estimate.new_tokens_per_second", "10"]
    for flag, more in ((["--dry-run"], []), (["--dry_run", "true"], rates)):
        assert run_command([*arguments, *flag, *more, "--", "--runner=FnApiRunner"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("records     48: 47 texts to prompt for, 3 rejected\n")
        assert f"report      {tmp_path}/out.dry-run.json" in printed
        assert ("worker hours" in printed, "unknown" in printed) == (bool(more), not more)
    assert not (tmp_path / "out").exists()
    report = json.loads((tmp_path / "out.dry-run.json").read_text())
    assert sum(estimate["num_prompts"] for estimate in report["rounds"]) == 47
    assert report["cost"]["worker_hours"] > 0


def test_an_empty_corpus_has_no_prompts(tmp_path):
    corpus = write_jsonl(tmp_path / "in.jsonl", [{"body": "x"}] * 2)
    report, config = run_dry(corpus, tmp_path / "out")
    assert (report.num_records, report.num_prompts, report.rounds, report.lengths) == (2, 0, [], [])
    assert "0 texts to prompt for, 2 rejected" in describe(report, config)


@given(st.integers(0, 1 << 40))
def test_a_bucket_holds_its_lengths(num_tokens):
    bucket = length_bucket(num_tokens)
    assert num_tokens <= bucket
    assert bucket == 64 or num_tokens > bucket // 2
    assert bin(bucket).count("1") == 1


def test_costs_worked_by_hand():
    config = EstimateConfig(prompt_tokens_per_second=1000, new_tokens_per_second=100, price_per_hour=3.0, num_workers=4)
    # An hour of reading and three of writing.
    assert cost_of(config, num_prompt_tokens=3_600_000, num_new_tokens=1_080_000) == Cost(
        worker_hours=4.0, hours=1.0, price=12.0
    )
    # Three hours of both together.
    config = EstimateConfig(new_tokens_per_second=100)
    assert cost_of(config, num_prompt_tokens=3_600_000, num_new_tokens=1_080_000) == Cost(
        worker_hours=3.0, hours=3.0, price=0.0
    )
    assert cost_of(EstimateConfig(), num_prompt_tokens=1, num_new_tokens=1) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"completion_share": 0.0}, "above 0 and at most 1"),
        ({"completion_share": 1.1}, "above 0 and at most 1"),
        ({"num_workers": 0}, "at least 1"),
        ({"prompt_tokens_per_second": 5.0}, "prompt_tokens_per_second says nothing without"),
        ({"prompt_tokens_per_second": -1.0}, "must not be below 0"),
        ({"price_per_hour": 1.0}, "price_per_hour says nothing without estimate.new_tokens_per_second"),
    ],
)
def test_impossible_estimates_are_refused(settings, message, corpus, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_dry(corpus, tmp_path / "out", estimate=EstimateConfig(**settings))
