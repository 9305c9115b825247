"""``python -m synth_model finetune``: from task datasets to a tuned, judged and described instruction synthesizer.

The command runs the project's other commands one behind the other, each with a config of its own, and adds what only it
can know: where each finds what the one before it made. In the output folder they leave

- ``tasks/``, ``held_out/`` and ``unseen/``: the texts and pairs to tune on, the texts held out of these datasets, and
  those of datasets that are left out of tuning altogether (``python -m synth_model tasks``);
- ``shards/``: the first of them in the wire format, tokenized and packed (``python -m beam_pipelines pack``);
- ``training/``: the run of the trainer, with its checkpoints (``python -m trainer.pretrain``);
- ``synthesizer/``: the tuned weights with their tokenizer, a card, and in ``synthesizer.yaml`` what a config of
  ``synthesize`` needs to use them (`synth_model.tuning.synthesizer_folder`);
- ``evaluation/``: figures, table and page (``python -m synth_model evaluate``);
- ``configs/``: the config of each of these commands, which may as well be run by hand.

Every step owns its folder: a command that was interrupted goes on with the step, and within it, where it stopped, and a
step that is complete is not done again. All configs are checked before the first step begins.

Source: Cheng et al. 2024 (arXiv 2406.14491), section 2.1 and appendix A.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from types import FrameType

import yaml

from contracts import storage
from synth_model.command_line import parse_config
from synth_model.tasks import DATASETS_FILE
from synth_model.tuning.config import FinetuneConfig, Options, step_configs
from synth_model.tuning.synthesizer_folder import complete_weights, write_card

CONFIGS_FOLDER = "configs"
_TASKS_STEPS = ("tasks", "held_out", "unseen")
# Commands end with 1 or 2 when they refuse something; what is killed or interrupted ends with more.
_LAST_EXIT_CODE_OF_A_REFUSAL = 2
_PACK = [sys.executable, "-m", "beam_pipelines", "pack"]


class StepFailedError(Exception):
    """A step ended with another exit code than 0 or was interrupted; ``args`` is (step, exit code)."""


def finetune(config: FinetuneConfig) -> int:
    """Runs all steps, or those that are left; returns the exit code, that of the step which failed.

    Raises:
        ValueError: The settings do not allow it.
    """
    config.check()
    steps = step_configs(config)
    contents = {
        name: yaml.safe_dump(step, sort_keys=False, allow_unicode=True).encode() for name, step in steps.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {name: os.path.join(folder, f"{name}.yaml") for name in contents}
        for name, content in contents.items():
            with open(files[name], "wb") as file:
                file.write(content)
        try:
            _check(files, config=config)

            def run(step: str, command: Sequence[str]) -> None:
                url = storage.join(config.output, CONFIGS_FOLDER, f"{step}.yaml")
                earlier = storage.read_bytes(url) if storage.exists(url) else None
                if step in contents:
                    storage.write_bytes_atomically(url, contents[step])
                try:
                    run_step(step, command)
                except StepFailedError as error:
                    # It refused to go on with other settings than it began with: those are what was run.
                    if error.args[1] <= _LAST_EXIT_CODE_OF_A_REFUSAL and earlier is not None:
                        storage.write_bytes_atomically(url, earlier)
                    raise

            for name in _TASKS_STEPS:
                if name in files:
                    run(name, [sys.executable, "-m", "synth_model", "tasks", "--config", files[name]])
            _check_datasets(steps)
            run("pack", [*_PACK, "--config", files["pack"], "--", *config.beam_arguments])
            run("pretrain", [*config.launcher, "-m", "trainer.pretrain", "--config", files["pretrain"]])
            training, exported = steps["pretrain"]["output"], config.synthesizer_folder
            export = ["-m", "trainer", "export", training, "--output", exported, "--dtype", config.dtype]
            run("export", [sys.executable, *export])
            complete_weights(config, steps=steps)
            if "evaluate" in files:
                run("evaluate", [sys.executable, "-m", "synth_model", "evaluate", "--config", files["evaluate"]])
        except StepFailedError as error:
            name, exit_code = error.args
            advice = "Run the same command again to go on with it."
            if exit_code <= _LAST_EXIT_CODE_OF_A_REFUSAL:
                advice = "Its message stands above: correct what it names and run the command again to go on from here."
            print(f"The step {name} ended with status {exit_code}. {advice}", file=sys.stderr)
            return int(exit_code)
    write_card(config, steps=steps)
    print(f"The synthesizer, its card and the settings to use it with: {config.synthesizer_folder}")
    return 0


def _check(files: Mapping[str, str], *, config: FinetuneConfig) -> None:
    """Lets every command read its config, so that a mistake in the last is found before the first has run.

    Raises:
        ValueError: A config or an option is impossible, or a package that a later step needs is not installed.
    """
    # Imported here, because --help needs none of them.
    from synth_model.evaluation import similarity
    from synth_model.evaluation.config import EvaluateConfig
    from synth_model.tasks import TasksConfig
    from trainer.adapters import require_peft
    from trainer.config import PretrainConfig
    from trainer.config import parse_config as parse_trainer_config

    if config.tunes_adapter:
        require_peft()
    if "evaluate" in files:
        similarity.check_available()
    for name, file in files.items():
        arguments = ["--config", file]
        if name in ("tasks", "held_out", "unseen"):
            parse_config(TasksConfig, arguments=arguments, command=f"finetune, {name}").check()
        elif name == "evaluate":
            parse_config(EvaluateConfig, arguments=arguments, command=f"finetune, {name}").check()
        elif name == "pretrain":
            parse_trainer_config(PretrainConfig, arguments=arguments, program=f"finetune, {name}")
    # This package may not import the pipelines, so their command is asked; it prints the config and ends.
    checked = subprocess.run([*_PACK, "--config", files["pack"], "--print_config"], capture_output=True, text=True)
    if checked.returncode:
        raise ValueError(f"pack refuses its settings: {checked.stderr.strip().splitlines()[-1]}")


def _check_datasets(steps: Mapping[str, Options]) -> None:
    """Holds the datasets that were read against each other, before anything is trained: `evaluate` would refuse them.

    Raises:
        ValueError: A dataset was tuned on and is to be evaluated on as unseen.
    """
    names = {
        step: set(storage.read_json(storage.join(steps[step]["output"], DATASETS_FILE)))
        for step in ("tasks", "unseen")
        if step in steps
    }
    if both := sorted(names["tasks"] & names.get("unseen", set())):
        made = " and ".join(steps[step]["output"] for step in _TASKS_STEPS if step in steps)
        raise ValueError(
            f"The datasets {', '.join(both)} are under tasks and under unseen. Take them out of one of the two (under "
            f"tasks, max_texts_by_set with 0 for its name leaves a set of a file out), remove {made}, and run the "
            "command again."
        )


def run_step(step: str, command: Sequence[str]) -> None:
    """Runs the command of a step and waits for it, also when interrupted: a step saves what it has before it ends.

    Ctrl-C reaches the step by itself, from the terminal; SIGTERM is passed on, and so is what came before its start.

    Raises:
        ValueError: There is no such command.
        StepFailedError: It ended with another exit code than 0, or by a signal, which counts as 128 and its number; or
            it was interrupted and yet ended with 0, so that the steps behind it are not to begin.
    """
    print(f"== {step}", flush=True)
    process: subprocess.Popen[bytes] | None = None
    interrupted_by: int | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted_by
        interrupted_by = number
        if process is not None and number == signal.SIGTERM:
            process.terminate()

    # Before the step is started: a signal that came in between would end this process and leave the step running.
    earlier = {signal.SIGTERM: signal.signal(signal.SIGTERM, note)}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        earlier[signal.SIGINT] = signal.signal(signal.SIGINT, note)
    try:
        process = subprocess.Popen(command)
        if interrupted_by is not None:
            process.send_signal(interrupted_by)
        process.wait()
    except FileNotFoundError as error:
        raise ValueError(
            f"The step {step} cannot start: there is no command {command[0]!r}. Check launcher."
        ) from error
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if process.returncode:
        raise StepFailedError(step, process.returncode if process.returncode > 0 else 128 - process.returncode)
    if interrupted_by is not None:
        raise StepFailedError(step, 128 + interrupted_by)


def main(arguments: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit status."""
    config = parse_config(FinetuneConfig, arguments=arguments, command="finetune")
    return finetune(config)
