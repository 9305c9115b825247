import threading
import time
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.common_urns import resource_hints
from rich.console import Console

from beam_pipelines import journal, synthesize
from beam_pipelines.command_line import beam_options
from beam_pipelines.inference_config import InferenceConfig
from beam_pipelines.inference_metrics import describe_figures, read_figures
from beam_pipelines.journal import JournalWriter
from beam_pipelines.model_handler import EngineModelHandler, checked_outcomes
from beam_pipelines.running import run_pipeline
from beam_pipelines.self_instruct import SelfInstructConfig, self_instruct
from beam_pipelines.synthesize import build_pipeline, plan_run
from beam_pipelines.time_limit import call_within
from synth_model.engines import EngineConfig
from synth_model.generation import Completion, Failure, Prompt, Sampling
from tests.beam_pipelines.pipeline_runs import (
    IN_MEMORY,
    fake_engine,
    make_documents,
    parquet_digests,
    run_synthesize,
    synthesize_config,
    write_jsonl,
)

ENGINE = EngineConfig(kind="fake", context_length=400, max_batch_size=4, max_batch_tokens=400)
PROMPTS = [
    Prompt(text=f"<s> <CON> Text {number} </CON>\n\n", num_tokens=length)
    for number, length in enumerate([9, 90, 8, 91, 7, 92])
]


class AnsweringEngine:
    """Answers prompt by prompt what a function says; keeps what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.batches = []

    def generate(self, prompts, *, sampling):
        self.batches.append([prompt.num_tokens for prompt in prompts])
        return [self.answer(prompt) for prompt in prompts]


def complete(prompt):
    return Completion(
        text=prompt.text.upper(), finish_reason="stop", num_prompt_tokens=prompt.num_tokens, num_new_tokens=3
    )


@pytest.fixture
def handler(tmp_path):
    def make(**inference):
        output = str(tmp_path)
        return EngineModelHandler(
            engine=ENGINE,
            sampling=Sampling(max_new_tokens=10),
            model_id="m",
            model_identifier="m",
            journal_writer=JournalWriter(output, start_id=journal.begin(output)),
            inference=InferenceConfig(**inference),
        )

    return make


def journaled(folder):
    return [
        completion for segment in journal.list_segments(str(folder)) for _, completion in journal.read_segment(segment)
    ]


def test_prompts_are_cut_into_batches_by_length_and_answered_in_order(handler, tmp_path):
    engine = AnsweringEngine(complete)
    assert handler().run_inference(PROMPTS, engine) == [complete(prompt) for prompt in PROMPTS]
    assert engine.batches == [[92, 91, 90], [9, 8, 7]]
    assert len(journal.list_segments(str(tmp_path))) == 2


def test_batches_before_one_that_raises_are_durable(handler, tmp_path):
    def answer(prompt):
        if prompt.num_tokens == 8:
            raise OSError("the driver is gone")
        return complete(prompt)

    with pytest.raises(OSError, match="the driver is gone"):
        handler().run_inference(PROMPTS, AnsweringEngine(answer))
    assert sorted(completion.num_prompt_tokens for completion in journaled(tmp_path)) == [90, 91, 92]


def test_the_next_batch_is_begun_after_the_last_is_durable(handler, tmp_path):
    seen = []
    engine = AnsweringEngine(lambda prompt: seen.append(len(journaled(tmp_path))) or complete(prompt))
    handler().run_inference(PROMPTS, engine)
    assert seen == [0, 0, 0, 3, 3, 3]


GOOD = complete(PROMPTS[0])
IMPOSSIBLE = {
    "nothing": None,
    "text": "an answer",
    "too few": [GOOD],
    "too many": [GOOD] * 3,
    "an iterator": iter([GOOD, GOOD]),
    "none for one": [GOOD, None],
    "no outcome": [GOOD, "an answer"],
    "no text": [GOOD, Completion(text=b"x", finish_reason="stop", num_prompt_tokens=1, num_new_tokens=1)],
    "no count": [GOOD, Completion(text="x", finish_reason="stop", num_prompt_tokens=None, num_new_tokens=1)],
    "no reason": [GOOD, Completion(text="x", finish_reason="bored", num_prompt_tokens=1, num_new_tokens=1)],
    "no detail": [GOOD, Failure(reason="x", detail=None)],
}


@pytest.mark.parametrize("answer", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_is_no_answer_ends_the_step_and_leaves_nothing_in_the_journal(answer, handler, tmp_path):
    class Engine:
        def generate(self, prompts, *, sampling):
            return answer

    with pytest.raises(RuntimeError, match=r"^The engine gave "):
        handler().run_inference(PROMPTS[:2], Engine())
    assert journaled(tmp_path) == []


def test_what_can_be_an_answer_is_one():
    odd = [
        Completion(text="", finish_reason="stop", num_prompt_tokens=0, num_new_tokens=0),
        Completion(text="x\x00\u2028" * 100_000, finish_reason="length", num_prompt_tokens=1, num_new_tokens=1),
        Failure(reason="prompt_too_long", detail=""),
    ]
    assert checked_outcomes(odd, num_prompts=3) == odd


def test_a_completion_that_no_file_can_hold_is_a_failure_of_its_prompt(handler, tmp_path):
    def answer(prompt):
        completion = complete(prompt)
        return Completion(**{**vars_of(completion), "text": "half \ud83d"}) if prompt is PROMPTS[1] else completion

    def vars_of(completion):
        return {name: getattr(completion, name) for name in Completion.__dataclass_fields__}

    outcomes = handler().run_inference(PROMPTS, AnsweringEngine(answer))
    assert outcomes[1] == Failure(reason="invalid_unicode", detail="lone surrogate at character 5 of the completion")
    assert len(journaled(tmp_path)) == 5


def test_an_engine_that_hangs_ends_the_step(handler, tmp_path):
    released = threading.Event()

    class Engine:
        def generate(self, prompts, *, sampling):
            assert threading.current_thread().daemon, "it must not keep the process alive"
            if prompts[0].num_tokens == 9:
                released.wait(60)
            return [complete(prompt) for prompt in prompts]

    started = time.monotonic()
    try:
        with pytest.raises(TimeoutError, match=r"not completed a batch of 3 prompts in 1 s.*max_batch_seconds"):
            handler(max_batch_seconds=1).run_inference(PROMPTS, Engine())
    finally:
        released.set()
    assert time.monotonic() - started < 30
    assert sorted(completion.num_prompt_tokens for completion in journaled(tmp_path)) == [90, 91, 92]


def test_a_call_within_its_time_gives_what_it_gives():
    assert call_within(60, lambda: 7, message="") == 7
    assert call_within(0, threading.current_thread, message="") is threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        call_within(60, lambda: 1 // 0, message="")
    with pytest.raises(TimeoutError, match="too slow"):
        call_within(0.05, lambda: time.sleep(1), message="too slow")


# What a pipeline makes of it.

SETTINGS = {"chain_length": 3, "engine": fake_engine(max_batch_size=4, failure_rate=0.2, no_pair_rate=0.1)}
HINTS = InferenceConfig(accelerator="type:nvidia-l4;count:1;install-nvidia-driver", min_ram="16GB")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "in.jsonl", make_documents(36))


@pytest.fixture
def results(monkeypatch):
    """The results of the pipelines that ran."""
    kept = []

    def run_and_keep(*args):
        kept.append(run_pipeline(*args))
        return kept[-1]

    monkeypatch.setattr(synthesize, "run_pipeline", run_and_keep)
    return kept


def test_hints_reach_the_step_that_holds_the_model_and_no_other(corpus, tmp_path):
    config = synthesize_config([corpus], tmp_path / "out", inference=HINTS, **SETTINGS)
    pipeline = beam.Pipeline(options=PipelineOptions())
    build_pipeline(pipeline, config, plan_run(config, runner="DirectRunner"))
    components = pipeline.to_runner_api().components
    hinted = {
        transform.unique_name: dict(components.environments[transform.environment_id].resource_hints)
        for transform in components.transforms.values()
        if transform.environment_id and components.environments[transform.environment_id].resource_hints
    }
    assert len(hinted) == SETTINGS["chain_length"]
    assert all("BeamML_RunInference" in name for name in hinted), hinted
    assert all(
        hints
        == {
            resource_hints.ACCELERATOR.urn: HINTS.accelerator.encode(),
            resource_hints.MIN_RAM_BYTES.urn: b"16000000000",
        }
        for hints in hinted.values()
    )


def test_how_inference_runs_changes_no_result_and_may_change_between_two_starts(corpus, tmp_path):
    plain = run_synthesize([corpus], tmp_path / "plain", **SETTINGS)
    other = run_synthesize(
        [corpus], tmp_path / "other", inference=InferenceConfig(accelerator="type:x", sorted_batches=1), **SETTINGS
    )
    assert parquet_digests(tmp_path / "plain") == parquet_digests(tmp_path / "other")
    assert plain.fingerprint == other.fingerprint
    assert run_synthesize([corpus], tmp_path / "other", **SETTINGS) == other


def test_how_inference_runs_may_change_between_two_starts_of_self_instruct(tmp_path):
    first = SelfInstructConfig(output=str(tmp_path / "out"), num_draws=8, engine=fake_engine())
    manifest = self_instruct(first, options=beam_options(IN_MEMORY), console=Console(quiet=True))
    other = replace(first, inference=InferenceConfig(min_ram="16GB", sorted_batches=1))
    assert self_instruct(other, options=beam_options(IN_MEMORY), console=Console(quiet=True)) == manifest
    assert "inference" not in manifest.config


@pytest.mark.parametrize(
    "settings",
    [
        {"accelerator": "nvidia-l4"},
        {"min_ram": "much"},
        {"min_ram": "16 bytes"},
        {"sorted_batches": 0},
        {"max_batch_seconds": -1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, corpus, tmp_path):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"inference\.{name}"):
        run_synthesize([corpus], tmp_path / "out", inference=InferenceConfig(**settings))
    assert not (tmp_path / "out").exists()


def test_what_was_done_is_counted(corpus, results, tmp_path):
    manifest = run_synthesize([corpus], tmp_path / "out", **SETTINGS)
    figures = read_figures(results[0].metrics())
    num_failures = manifest.accounts.num_rejected
    assert figures.failures_by_reason == {"generation_failed": num_failures}
    assert num_failures > 2
    assert figures.num_completions == 36 - num_failures
    assert figures.num_from_journal == 0
    assert figures.num_new_tokens == manifest.num_new_tokens
    assert 36 / 4 <= figures.num_batches <= 36 / 4 + 2
    assert 80 <= figures.mean_fill_percent <= 100
    assert 0 <= figures.mean_padding_percent < 20
    found = {
        distribution.key.metric.name: distribution.result
        for distribution in results[0].metrics().query(MetricsFilter().with_namespace("inference"))["distributions"]
    }
    assert {"prompt_tokens", "batch_prompts", "batch_milliseconds", "new_token_microseconds"} <= set(found)
    assert found["batch_prompts"].max == 4
    assert "generation_failed" in describe_figures(figures)


def test_what_comes_from_the_journal_is_counted_apart(corpus, results, tmp_path):
    run_synthesize([corpus], tmp_path / "out", **SETTINGS)
    (tmp_path / "out" / "COMPLETED").unlink()
    manifest = run_synthesize([corpus], tmp_path / "out", **SETTINGS)
    figures = read_figures(results[1].metrics())
    # Those that failed are tried again.
    assert figures.num_from_journal == 36 - manifest.accounts.num_rejected
    assert figures.num_completions == 0
    assert figures.failures_by_reason == {"generation_failed": manifest.accounts.num_rejected}


@pytest.mark.slow
def test_processes_and_rounds_share_one_loaded_model(corpus, results, tmp_path):
    beam_arguments = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    run_synthesize([corpus], tmp_path / "out", beam=beam_arguments, **SETTINGS)
    loads = results[0].metrics().query(MetricsFilter().with_name("load_model_latency_milli_secs"))["distributions"]
    assert sum(load.result.count for load in loads) == 1
    assert read_figures(results[0].metrics()).num_batches > 36 / 4
