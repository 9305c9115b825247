"""``python -m trainer COMMAND``: dispatches to a command's module and does nothing else."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "pretrain": (
        "trainer.pretrain",
        "pre-train a model on packed shards (also: accelerate launch -m trainer.pretrain)",
    ),
    "launch": ("trainer.launch", "start a command on many processes, as accelerate launch does, with its exit code"),
    "summarize": ("trainer.summary", "what a run read, made and learnt, from its config"),
    "page": ("trainer.run_page", "the curves of a run as an HTML page, or of several runs compared"),
    "export": ("trainer.export", "write any checkpoint as a model folder, with its tokenizer and model card"),
    "evaluate": ("trainer.evaluate", "evaluate a model on tasks, and compare evaluations (evaluate --compare A B)"),
    "tokenizer": ("trainer.train_tokenizer", "train a tokenizer on a sample of the corpora"),
    "import-model": ("trainer.import_model", "convert a GGUF model into a Hugging Face folder"),
}


def main(arguments: list[str]) -> int:
    """Runs the command named first with the arguments behind it; returns the exit code."""
    if arguments and arguments[0] in COMMANDS:
        exit_code: int = importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
        return exit_code
    asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
    lines = ["usage: python -m trainer COMMAND [--help] ...", ""]
    if arguments and not asked_for_help:
        lines += [f"error: there is no command {arguments[0]!r}", ""]
    lines += ["commands:", *(f"  {name:14} {summary}" for name, (_, summary) in COMMANDS.items())]
    print("\n".join(lines), file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
