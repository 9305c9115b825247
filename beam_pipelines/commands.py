"""The commands of ``python -m beam_pipelines``.

Each command imports what it needs when it is called: Beam takes seconds to import, and says things on the way that
only matter to those who use its cloud connectors.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence

INTERRUPTED = 130
"""Exit status of a command that was interrupted, as shells give it: 128 and the number of SIGINT."""

_DESCRIPTIONS = {
    "synthesize": "Turns raw text into an instruction-augmented corpus.",
    "self-instruct": "Lets an instruct model write general instructions and answer them.",
    "mine": "Mines reading-comprehension tasks from raw text, without a model.",
    "pack": "Renders, tokenizes, mixes and packs texts into shards for the trainer.",
    "status": "Tells how far a run is, from its output folder.",
    "inspect": "Shows what a folder of shards holds, and one of its rows as text.",
    "trace": "Follows a packed row back to its texts, chains and documents.",
    "verify": "Holds the files of shards or of a corpus against their manifest.",
    "example-corpus": "Writes a small corpus from the language reference that Python carries.",
}


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status.

    Returns:
        0, 1 for a failed run, 2 for a wrong command line, or `INTERRUPTED`.
    """
    listing = "\n".join(f"  {name:16} {what}" for name, what in _DESCRIPTIONS.items())
    usage = f"usage: python -m beam_pipelines COMMAND [--help]\n\n{listing}"
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    if not arguments or arguments[0] not in _DESCRIPTIONS:
        given = repr(arguments[0]) if arguments else "nothing"
        print(f"{usage}\n\nerror: {given} is not a command; give one of the above.", file=sys.stderr)
        return 2
    _quiet_libraries()
    commands: dict[str, Callable[[str, Sequence[str]], int]] = {
        "synthesize": _synthesize,
        "self-instruct": _self_instruct,
        "mine": _mine,
        "pack": _pack,
        "inspect": _inspect,
        "trace": _trace,
        "verify": _verify,
        "status": _status,
        "example-corpus": _example_corpus,
    }
    try:
        return commands[arguments[0]](arguments[0], arguments[1:])
    except (KeyboardInterrupt, RuntimeError) as error:
        # A runner passes the interrupt on as an error of the step that it met.
        if isinstance(error, RuntimeError) and "KeyboardInterrupt" not in str(error):
            raise
        print("Interrupted. What is done is kept; run the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


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


def _synthesize(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import dry_run, synthesize
    from beam_pipelines.command_line import parse_command

    config, beam_arguments = parse_command(
        synthesize.SynthesizeConfig,
        command=command,
        description=_DESCRIPTIONS[command],
        arguments=_with_flags(arguments, flags=("--dry-run", "--dry_run")),
    )
    if config.dry_run:
        return dry_run.main(config, beam_arguments)
    return synthesize.main(config, beam_arguments)


def _self_instruct(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import self_instruct
    from beam_pipelines.command_line import parse_command

    config, beam_arguments = parse_command(
        self_instruct.SelfInstructConfig, command=command, description=_DESCRIPTIONS[command], arguments=arguments
    )
    return self_instruct.main(config, beam_arguments)


def _mine(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import mine
    from beam_pipelines.command_line import parse_command

    config, beam_arguments = parse_command(
        mine.MineConfig, command=command, description=_DESCRIPTIONS[command], arguments=arguments
    )
    return mine.main(config, beam_arguments)


def _pack(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import pack
    from beam_pipelines.command_line import parse_command

    config, beam_arguments = parse_command(
        pack.PackConfig, command=command, description=_DESCRIPTIONS[command], arguments=arguments
    )
    return pack.main(config, beam_arguments)


def _inspect(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import inspect_shards
    from beam_pipelines.command_line import parse_command

    config, _ = parse_command(
        inspect_shards.InspectConfig,
        command=command,
        description=_DESCRIPTIONS[command],
        arguments=_named("--shards", arguments),
        takes_beam_options=False,
    )
    return inspect_shards.main(config)


def _trace(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import trace
    from beam_pipelines.command_line import parse_command

    config, _ = parse_command(
        trace.TraceConfig,
        command=command,
        description=_DESCRIPTIONS[command],
        arguments=_named("--shards", arguments),
        takes_beam_options=False,
    )
    return trace.main(config)


def _verify(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import verify
    from beam_pipelines.command_line import parse_command

    config, _ = parse_command(
        verify.VerifyConfig,
        command=command,
        description=_DESCRIPTIONS[command],
        arguments=_named("--folder", arguments),
        takes_beam_options=False,
    )
    return verify.main(config)


def _named(option: str, arguments: Sequence[str]) -> Sequence[str]:
    """The arguments with the option's name before a first one that stands alone, as people write a folder."""
    return [option, *arguments] if arguments and not arguments[0].startswith("-") else arguments


def _status(command: str, arguments: Sequence[str]) -> int:
    arguments = _with_flags(_named("--output", arguments), flags=("--watch", "--json"))
    from beam_pipelines import status
    from beam_pipelines.command_line import parse_command

    config, _ = parse_command(
        status.StatusConfig,
        command=command,
        description=_DESCRIPTIONS[command],
        arguments=arguments,
        takes_beam_options=False,
    )
    return status.main(config)


def _example_corpus(command: str, arguments: Sequence[str]) -> int:
    from beam_pipelines import example_corpus
    from beam_pipelines.command_line import parse_command

    config, _ = parse_command(
        example_corpus.ExampleCorpusConfig,
        command=command,
        description=_DESCRIPTIONS[command],
        arguments=arguments,
        takes_beam_options=False,
    )
    return example_corpus.main(config)


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
