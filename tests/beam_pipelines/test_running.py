"""Pipelines that run locally stay in this process."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability import prism_runner

from beam_pipelines.running import run_pipeline


@pytest.fixture
def prism_calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every pipeline that somebody gives to Prism, which is not there."""
    calls: list[object] = []

    def run(self: object, pipeline: object, options: object) -> None:
        calls.append(pipeline)
        raise RuntimeError("no Prism")

    monkeypatch.setattr(prism_runner.PrismRunner, "run_pipeline", run)
    return calls


def build(pipeline: beam.Pipeline) -> None:
    """The least there is to run."""
    _ = pipeline | beam.Create([1, 2]) | beam.Map(lambda number: number)


@pytest.mark.parametrize("arguments", [[], ["--runner=DirectRunner"], ["--runner=SwitchingDirectRunner"]])
def test_a_local_run_neither_looks_for_prism_nor_fetches_it(prism_calls: list[object], arguments: list[str]) -> None:
    result = run_pipeline(PipelineOptions(arguments), build)
    assert result.state == "DONE"
    assert not prism_calls


def test_beams_own_direct_runner_would_look_for_it(prism_calls: list[object]) -> None:
    with beam.Pipeline(options=PipelineOptions(["--runner=DirectRunner"])) as pipeline:
        build(pipeline)
    assert len(prism_calls) == 1


def test_who_names_prism_gets_it(prism_calls: list[object]) -> None:
    with pytest.raises(RuntimeError, match="no Prism"):
        run_pipeline(PipelineOptions(["--runner=PrismRunner"]), build)
    assert len(prism_calls) == 1
