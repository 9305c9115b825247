"""Reads a command line: a config (YAML and dotted overrides) and, behind ``--``, options for Beam.

An unknown key and an unknown Beam option are errors: a misspelt option must not start a job that costs days.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions
from jsonargparse import ArgumentParser

Config = TypeVar("Config")

LOCAL_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "PrismRunner", "SwitchingDirectRunner")


def parse_command(
    config_class: Callable[..., Config],
    *,
    command: str,
    description: str,
    arguments: Sequence[str],
    takes_beam_options: bool = True,
) -> tuple[Config, list[str]]:
    """The config and Beam's own arguments; exits with status 2 and a message when a key or a value is wrong.

    Args:
        config_class: Dataclass whose fields are the config's keys.
        command: The subcommand, for the usage line.
        description: What the command does, for ``--help``.
        arguments: The command line behind the subcommand.
        takes_beam_options: Whether options for Beam may stand behind ``--``.
    """
    own, beam_arguments = list(arguments), []
    if "--" in own:
        position = own.index("--")
        own, beam_arguments = own[:position], own[position + 1 :]
    parser = ArgumentParser(
        prog=f"python -m beam_pipelines {command}",
        description=description,
        usage="%(prog)s [--config FILE] [--key.subkey value ...]"
        + (" [-- --runner=... Beam's options]" if takes_beam_options else ""),
    )
    parser.add_argument("--config", action="config", help="YAML file with the keys below.")
    parser.add_class_arguments(config_class, as_group=False)
    parsed = parser.instantiate(parser.parse_args(own))
    if beam_arguments and not takes_beam_options:
        parser.error(f"this command takes no Beam options, but got {' '.join(beam_arguments)}")
    return config_class(**{key: value for key, value in vars(parsed).items() if key != "config"}), beam_arguments


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Pipeline options from Beam's arguments.

    Raises:
        ValueError: Beam knows no such option.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options_class in PipelineOptions.__subclasses__():
        add_arguments: Any = getattr(options_class, "_add_argparse_args", None)
        # Two of Beam's classes may define the same option; the first one stands.
        with contextlib.suppress(argparse.ArgumentError):
            add_arguments(parser)
    _, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        raise ValueError(
            f"Beam knows no option {' '.join(unknown)!r}. Behind '--' stand Beam's own options, such as "
            "--runner=DirectRunner; the config's keys stand before it."
        )
    return PipelineOptions(list(arguments))


def config_as_json(config: Any) -> dict[str, Any]:
    """A resolved config as JSON values, for manifests."""
    values: dict[str, Any] = asdict(config)
    return values
