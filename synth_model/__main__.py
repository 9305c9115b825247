"""``python -m synth_model COMMAND``: dispatches to a command's module and does nothing else."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "tasks": ("synth_model.tasks", "read context-based task datasets into an augmented corpus"),
    "finetune": ("synth_model.finetune", "tune a synthesizer: data, packing, training, evaluation, card"),
    "evaluate": ("synth_model.evaluate", "judge instruction synthesizers by gold pairs"),
}


def main(arguments: list[str]) -> int:
    """Runs the command named first with the arguments behind it; returns the exit code: 0, 1 failed, 2 refused."""
    if arguments and arguments[0] in COMMANDS:
        try:
            exit_code: int = importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return exit_code
    asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
    lines = ["usage: python -m synth_model COMMAND [--help] ...", ""]
    if arguments and not asked_for_help:
        lines += [f"error: there is no command {arguments[0]!r}", ""]
    lines += ["commands:", *(f"  {name:14} {summary}" for name, (_, summary) in COMMANDS.items())]
    print("\n".join(lines), file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
