"""``accelerate launch -m trainer.pretrain --config FILE``: pre-trains a model on packed shards.

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
        config = parse_config(PretrainConfig, arguments=arguments, program="python -m trainer.pretrain")
        # PyTorch and transformers take seconds to import, which --help and a mistyped option need not wait for.
        from trainer.run import run

        return run(config)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
