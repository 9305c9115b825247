"""Dispatches the commands; a class defined here could not be decoded on a worker."""

import sys

from beam_pipelines.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
