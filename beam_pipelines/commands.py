"""The commands of ``python -m beam_pipelines``.

Each command imports what it needs when it is called: Beam takes seconds to import, and says things on the way that
only matter to those who use its cloud connectors.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

INTERRUPTED = 130
"""Exit status of a command that was interrupted, as shells give it: 128 and the number of SIGINT."""


@dataclass(frozen=True, kw_only=True)
class _Command:
    """A command: the module with its ``main`` and its config, imported when it is called.

    Args:
        description: What it does.
        module: Its module in this package.
        config: Name of its config class there.
        takes_beam_options: Whether ``main`` also takes what stands behind ``--``.
        first_option: The option whose name may be left out in front of a first argument.
        flags: Options that may stand without a value.
    """

    description: str
    module: str
    config: str
    takes_beam_options: bool = True
    first_option: str | None = None
    flags: tuple[str, ...] = ()


_COMMANDS = {
    "synthesize": _Command(
        description="Turns raw text into an instruction-augmented corpus.",
        module="synthesize",
        config="SynthesizeConfig",
        flags=("--dry-run", "--dry_run"),
    ),
    "self-instruct": _Command(
        description="Lets an instruct model write general instructions and answer them.",
        module="self_instruct",
        config="SelfInstructConfig",
    ),
    "mine": _Command(
        description="Mines reading-comprehension tasks from raw text, without a model.",
        module="mine",
        config="MineConfig",
    ),
    "pack": _Command(
        description="Renders, tokenizes, mixes and packs texts into shards for the trainer.",
        module="pack",
        config="PackConfig",
    ),
    "status": _Command(
        description="Tells how far a run is, from its output folder.",
        module="status",
        config="StatusConfig",
        takes_beam_options=False,
        first_option="--output",
        flags=("--watch", "--json"),
    ),
    "inspect": _Command(
        description="Shows what a folder of shards holds, and one of its rows as text.",
        module="inspect_shards",
        config="InspectConfig",
        takes_beam_options=False,
        first_option="--shards",
    ),
    "trace": _Command(
        description="Follows a packed row back to its texts, chains and documents.",
        module="trace",
        config="TraceConfig",
        takes_beam_options=False,
        first_option="--shards",
    ),
    "verify": _Command(
        description="Holds the files of shards or of a corpus against their manifest.",
        module="verify",
        config="VerifyConfig",
        takes_beam_options=False,
        first_option="--folder",
    ),
    "example-corpus": _Command(
        description="Writes a small corpus from the language reference that Python carries.",
        module="example_corpus",
        config="ExampleCorpusConfig",
        takes_beam_options=False,
    ),
}


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status.

    Returns:
        0, 1 for a failed run, 2 for a wrong command line, or `INTERRUPTED`.
    """
    listing = "\n".join(f"  {name:16} {command.description}" for name, command in _COMMANDS.items())
    usage = f"usage: python -m beam_pipelines COMMAND [--help]\n\n{listing}"
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    if not arguments or arguments[0] not in _COMMANDS:
        given = repr(arguments[0]) if arguments else "nothing"
        print(f"{usage}\n\nerror: {given} is not a command; give one of the above.", file=sys.stderr)
        return 2
    _quiet_libraries()
    try:
        return _call(arguments[0], arguments[1:])
    except (KeyboardInterrupt, RuntimeError) as error:
        # A runner passes the interrupt on as an error of the step that it met.
        if isinstance(error, RuntimeError) and "KeyboardInterrupt" not in str(error):
            raise
        print("Interrupted. What is done is kept; run the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _call(name: str, arguments: Sequence[str]) -> int:
    """Reads a command's config and runs it."""
    from beam_pipelines.command_line import parse_command

    command = _COMMANDS[name]
    module = importlib.import_module(f"beam_pipelines.{command.module}")
    if command.first_option and arguments and not arguments[0].startswith("-"):
        arguments = [command.first_option, *arguments]
    config, beam_arguments = parse_command(
        getattr(module, command.config),
        command=name,
        description=command.description,
        arguments=_with_flags(arguments, flags=command.flags),
        takes_beam_options=command.takes_beam_options,
    )
    status: int = module.main(config, beam_arguments) if command.takes_beam_options else module.main(config)
    return status


def _with_flags(arguments: Sequence[str], *, flags: Sequence[str]) -> list[str]:
    """Lets flags stand without a value, and with hyphens, as people write them; what is behind ``--`` is Beam's."""
    own, separator, beam_arguments = list(arguments), [], []
    if "--" in own:
        position = own.index("--")
        own, separator, beam_arguments = own[:position], ["--"], own[position + 1 :]
    given = []
    for argument, following in zip(own, [*own[1:], ""], strict=True):
        if argument in flags:
            given.append(f"--{argument[2:].replace('-', '_')}")
            if following.lower() not in ("true", "false"):
                given.append("true")
        else:
            given.append(argument)
    return [*given, *separator, *beam_arguments]


def _quiet_libraries() -> None:
    """Leaves the terminal to our own messages."""
    threading.excepthook = _report_thread_error
    logging.basicConfig(level=logging.ERROR)
    # It logs what a step raised, which then reaches the user as the command's own error.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _report_thread_error(error: threading.ExceptHookArgs) -> None:
    """As by default, but for Beam's servers of shared models: from Python 3.12 on they fail while the process ends."""
    if not (isinstance(error.exc_value, RuntimeError) and "at interpreter shutdown" in str(error.exc_value)):
        threading.__excepthook__(error)
