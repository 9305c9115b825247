"""Reads the command line of a command of this package: a config as YAML and dotted overrides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

_Config = TypeVar("_Config")


def parse_config(config_class: type[_Config], *, arguments: Sequence[str], command: str) -> _Config:
    """A config dataclass from command-line arguments, ``--config FILE`` among them.

    A value of a wrong type or an unknown key ends the process with code 2 and a message, as is usual for a command.

    Raises:
        ValueError: A value is of the right type and out of range.
    """
    description = (config_class.__doc__ or "").split("\n", 1)[0]
    parser = ArgumentParser(prog=f"python -m synth_model {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(config_class, as_group=False)
    values: dict[str, Any] = vars(parser.instantiate(parser.parse_args(list(arguments))))
    return config_class(**{name: value for name, value in values.items() if name != "config"})
