"""Runs a pipeline to its end and turns a failure into a message that a person can read."""

from __future__ import annotations

import re
from collections.abc import Callable

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.direct.direct_runner import SwitchingDirectRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner

_WHERE = re.compile(r"\s*\[while running '.*", re.DOTALL)


def runner_name(options: PipelineOptions) -> str:
    """The runner that options name, ``DirectRunner`` when they name none."""
    return str(options.view_as(StandardOptions).runner or "DirectRunner").rsplit(".", 1)[-1]


def run_pipeline(options: PipelineOptions, build: Callable[[beam.Pipeline], None]) -> PipelineResult:
    """Builds a pipeline, runs it, waits, and returns its result, for its metrics.

    The DirectRunner runs in this process: left alone it would first look for Prism, and fetch it from GitHub where that
    can be reached. Who wants Prism names it (``PrismRunner``).

    Args:
        options: Beam's options.
        build: Wires the pipeline.

    Raises:
        ValueError: A step refused its input or its settings; the message is the step's own.
        RuntimeError: The pipeline failed otherwise.
    """
    pipeline = beam.Pipeline(runner=_runner_in_process(options), options=options)
    build(pipeline)
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        # Runners wrap what a step raised, some as another type and with the worker's traceback as text.
        message = _value_error_message(error)
        if message is None:
            raise
        raise ValueError(message) from error
    return result


def _runner_in_process(options: PipelineOptions) -> PipelineRunner | None:
    """The DirectRunner without its search for Prism; None where the options name another runner."""
    if runner_name(options) not in ("DirectRunner", "SwitchingDirectRunner"):
        return None
    runner = SwitchingDirectRunner()
    # What Beam's notebooks call to keep a pipeline in their own process; that is all it does.
    runner.is_interactive()
    return runner


def _value_error_message(error: Exception) -> str | None:
    if isinstance(error, ValueError):
        return _WHERE.sub("", str(error))
    raised = [line for line in str(error).splitlines() if line.startswith("ValueError: ")]
    return _WHERE.sub("", raised[-1].removeprefix("ValueError: ")) if raised else None
