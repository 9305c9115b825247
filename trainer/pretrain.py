"""``accelerate launch -m trainer.pretrain --config FILE``: pre-trains a model on packed shards.

With ``--dry-run`` it says what the run would take, with ``--dry-run --json`` as JSON, and trains nothing.

Exit codes: 0 completed (now or earlier), 2 refused or failed with a message, 143 or 130 stopped by SIGTERM or SIGINT
with a checkpoint to go on from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.command_line import run_command
from trainer.config import PretrainConfig, parse_config


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""

    def work() -> int:
        config = parse_config(PretrainConfig, arguments=_with_flags(arguments), program="python -m trainer.pretrain")
        # PyTorch and transformers take seconds to import, which --help and a mistyped option need not wait for.
        if config.dry_run:
            from trainer import dry_run

            return dry_run.main(config)
        from trainer.run import run

        return run(config)

    return run_command(work)


def _with_flags(arguments: Sequence[str]) -> list[str]:
    """Lets ``--dry-run`` and ``--json`` stand without a value, as people write them."""
    names = {"--dry-run": "--dry_run", "--dry_run": "--dry_run", "--json": "--estimate.json"}
    given: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        given.append(names.get(argument, argument))
        if argument in names and following.lower() not in ("true", "false"):
            given.append("true")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
