"""Runs in processes of their own: several of them, killed, failing alone, signalled, launched."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from contracts.seeding import rng
from tests.conftest import REPOSITORY
from tests.trainer.conftest import loss_columns, read_jsonl
from tests.trainer.run_processes import RunProcesses, tiny_arguments
from trainer.checkpoints import open_checkpoint

pytestmark = pytest.mark.slow


def weights_of(output):
    return safetensors.torch.load_file(output / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    """A run of 12 steps in two epochs on one process, from beginning to end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    arguments = tiny_arguments(shards, folder / "out", "--validation.every_steps", "5")
    run = RunProcesses(arguments, log=folder / "log")
    assert run.wait() == [0], run.output()
    return folder / "out"


def assert_same_but_for_rounding(output, expected):
    """Sums in another order, which AdamW amplifies where a gradient is next to nothing."""
    assert [record["tokens"] for record in loss_columns(output)] == [
        record["tokens"] for record in loss_columns(expected)
    ]
    for key in ("loss", "grad_norm"):
        ours, theirs = ([record[key] for record in loss_columns(folder)] for folder in (output, expected))
        assert ours == pytest.approx(theirs, rel=1e-4)
    for ours, theirs in zip(
        read_jsonl(output / "validation.jsonl"), read_jsonl(expected / "validation.jsonl"), strict=True
    ):
        assert ours["num_targets"] == theirs["num_targets"]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
    weights = weights_of(expected)
    for name, weight in weights_of(output).items():
        assert ((weight - weights[name]).abs() > 1e-4).float().mean() < 0.02, name


def test_kill_9_at_random_steps_is_never_seen(shards, tmp_path, uninterrupted):
    """Each start is killed some steps behind the last one, wherever it is then: in a step, a validation or a save."""
    output = tmp_path / "out"
    arguments = tiny_arguments(shards, output, "--validation.every_steps", "5")
    # In the first epoch, in the second; every step has two micro-batches.
    for step in (int(rng(0, "kill").integers(1, 6)), int(rng(1, "kill").integers(7, 12))):
        RunProcesses(arguments, log=tmp_path / "log").kill_at_step(output, step)
    run = RunProcesses(arguments, log=tmp_path / "log")
    assert run.wait() == [0], run.output()
    assert run.output().count("Going on after step") >= 1
    assert loss_columns(output) == loss_columns(uninterrupted)
    assert read_jsonl(output / "validation.jsonl") == read_jsonl(uninterrupted / "validation.jsonl")
    weights = weights_of(uninterrupted)
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(output).items())


def test_a_run_moves_from_one_process_to_two_and_back(shards, tmp_path, uninterrupted):
    """Steps of one row are among them, in which one of two processes has nothing to do."""
    output = tmp_path / "out"
    arguments = tiny_arguments(shards, output, "--validation.every_steps", "5")
    RunProcesses(arguments, log=tmp_path / "log").kill_at_step(output, 3)
    RunProcesses(arguments, log=tmp_path / "log", num_processes=2).kill_at_step(output, 7)
    run = RunProcesses(arguments, log=tmp_path / "log")
    assert run.wait() == [0], run.output()
    assert "on 2 x cpu" in run.output()
    assert_same_but_for_rounding(output, uninterrupted)


def test_fsdp_does_what_one_process_does_also_after_kill_9(shards, tmp_path, uninterrupted):
    """Weights, gradients and running means are spread over two processes; each saves and reads its own part."""
    output, killed = tmp_path / "out", tmp_path / "killed"
    whole = RunProcesses(
        tiny_arguments(shards, output, "--validation.every_steps", "5"),
        log=tmp_path / "log",
        num_processes=2,
        uses_fsdp=True,
    )
    assert whole.wait() == [0, 0], whole.output()
    assert_same_but_for_rounding(output, uninterrupted)
    checkpoint = open_checkpoint(str(output / "checkpoints" / "step-00000010"))
    assert checkpoint.is_sharded
    for part in ("model", "optimizer"):
        files = sorted((output / "checkpoints" / "step-00000010" / part).glob("shard-*.safetensors"))
        sizes = [sum(tensor.numel() for tensor in safetensors.torch.load_file(path).values()) for path in files]
        assert len(sizes) == 2
        assert min(sizes) > 0.9 * max(sizes)

    arguments = tiny_arguments(shards, killed, "--validation.every_steps", "5")
    run = RunProcesses(arguments, log=tmp_path / "log", num_processes=2, uses_fsdp=True)
    run.kill_at_step(killed, 9)
    run = RunProcesses(arguments, log=tmp_path / "log", num_processes=2, uses_fsdp=True)
    assert run.wait() == [0, 0], run.output()
    assert loss_columns(killed) == loss_columns(output)
    weights = weights_of(output)
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(killed).items())

    # On another number of processes, which need not even share the weights.
    alone = tmp_path / "alone"
    options = ("--checkpoint.resume", str(killed / "checkpoints" / "step-00000008"))
    run = RunProcesses(tiny_arguments(shards, alone, *options), log=tmp_path / "log")
    assert run.wait() == [0], run.output()
    losses = [record["loss"] for record in loss_columns(alone)]
    assert losses == pytest.approx([record["loss"] for record in loss_columns(uninterrupted)][8:], rel=1e-4)


def fail_to_read_on_process_1(index):
    from trainer.row_permutation import RowPermutation
    from trainer.shard_dataset import ShardDataset

    original = ShardDataset.batch
    calls = itertools.count()

    def batch(self, row_numbers):
        if index == 1 and next(calls) == 12:
            # Any error of the project's own, meant for the user.
            RowPermutation(0, seed=0, name="train", epoch=0)
        return original(self, row_numbers)

    ShardDataset.batch = batch


def fail_to_save_on_process_0(index):
    import safetensors.torch

    original = safetensors.torch.save_file

    def save_file(tensors, path, **options):
        if index == 0 and "step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        return original(tensors, path, **options)

    safetensors.torch.save_file = save_file


def fail_to_save_on_process_1(index):
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    original = HuggingFaceStorageWriter.write_data

    def write_data(self, plan, planner):
        if index == 1 and "step-00000004" in str(self.path):
            raise OSError(28, "No space left on device")
        return original(self, plan, planner)

    HuggingFaceStorageWriter.write_data = write_data


def die_on_process_1(index):
    from trainer.loop import TrainingLoop

    original = TrainingLoop._step

    def step(self, *arguments):
        if index == 1 and self.state.position.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    TrainingLoop._step = step


def hang_on_process_1(index):
    from trainer.loop import TrainingLoop

    original = TrainingLoop._step

    def step(self, *arguments):
        if index == 1 and self.state.position.step == 3:
            time.sleep(600)
        return original(self, *arguments)

    TrainingLoop._step = step


def test_an_unreadable_row_on_one_process_ends_both(shards, tmp_path):
    run = RunProcesses(
        tiny_arguments(shards, tmp_path / "out"),
        log=tmp_path / "log",
        num_processes=2,
        prepare=fail_to_read_on_process_1,
    )
    assert run.wait(60) == [2, 2], run.output()
    assert run.output().count("error: ") == 1
    assert "Traceback" not in run.output()


@pytest.mark.parametrize(
    ("uses_fsdp", "prepare"), [(False, fail_to_save_on_process_0), (True, fail_to_save_on_process_1)]
)
def test_a_save_that_fails_on_one_process_is_tried_again_at_the_next(shards, tmp_path, uses_fsdp, prepare):
    run = RunProcesses(
        tiny_arguments(shards, tmp_path / "out", "--checkpoint.keep", "9"),
        log=tmp_path / "log",
        num_processes=2,
        uses_fsdp=uses_fsdp,
        prepare=prepare,
    )
    assert run.wait(90) == [0, 0], run.output()
    assert run.output().count("could not be saved") == 1
    assert "No space left on device" in run.output()
    saved = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert saved == [f"step-{step:08d}" for step in (2, 6, 8, 10)]


@pytest.mark.parametrize("prepare", [die_on_process_1, hang_on_process_1])
def test_a_process_that_dies_or_hangs_does_not_leave_the_other_waiting(shards, tmp_path, prepare):
    run = RunProcesses(
        tiny_arguments(shards, tmp_path / "out", "--process_timeout_seconds", "15"),
        log=tmp_path / "log",
        num_processes=2,
        prepare=prepare,
    )
    run.processes[0].join(75)
    assert run.processes[0].exitcode not in (None, 0), run.output()
    if prepare is die_on_process_1:
        run.wait()
    for process in run.processes:
        process.kill()


def get_stuck_in_a_library(index):
    from trainer.loop import TrainingLoop

    def step(self, *arguments):
        print("stuck", flush=True)
        # Python's own signal handlers do not run here.
        while True:
            ctypes.CDLL(None).sleep(60)

    TrainingLoop._step = step


def test_a_second_signal_ends_a_process_that_is_stuck(shards, tmp_path):
    """The same signal at once is the same request: launchers repeat it."""
    run = RunProcesses(tiny_arguments(shards, tmp_path / "out"), log=tmp_path / "log", prepare=get_stuck_in_a_library)
    while "stuck" not in (run.output() if (tmp_path / "log").exists() else ""):
        assert run.processes[0].is_alive(), run.output()
        time.sleep(0.05)
    for _ in range(2):
        os.kill(run.processes[0].pid, signal.SIGINT)
        time.sleep(0.3)
    run.processes[0].join(1.0)
    assert run.processes[0].is_alive()
    time.sleep(2.5)
    os.kill(run.processes[0].pid, signal.SIGINT)
    assert run.wait(20) == [128 + signal.SIGINT]


def launch(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "launcher",
    [
        ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"],
        ["--config_file", "configs/accelerate/ddp_2cpu.yaml"],
    ],
    ids=["one", "two"],
)
def test_sigterm_to_the_launcher_saves_and_gives_its_code(shards, tmp_path, launcher):
    arguments = tiny_arguments(shards, tmp_path / "out", "--num_epochs", "100000", "--checkpoint.every_steps", "null")
    process = launch("trainer", "launch", *launcher, "-m", "trainer.pretrain", *arguments)
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "Run the same command again to go on" in printed
    num_steps = len(read_jsonl(metrics))
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == [f"step-{num_steps:08d}"]
    assert not (tmp_path / "out" / "COMPLETED").exists()


_SIGNALLED_LAUNCH = """
import os, sys
from accelerate.commands import launch as accelerate_launch
from trainer import launch

accelerate_launch.launch_command = lambda options: os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(launch.main(["-m", "trainer.pretrain"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_start_ends_the_launcher(number):
    done = subprocess.run([sys.executable, "-c", _SIGNALLED_LAUNCH, str(int(number))], cwd=REPOSITORY, timeout=120)
    assert done.returncode == 128 + number


@pytest.mark.parametrize(("own_code", "expected"), [("2", 2), ("1", 1), ("-9", 128 + 9)])
def test_the_launcher_gives_the_code_of_the_process_that_fails(tmp_path, own_code, expected):
    (tmp_path / "worker.py").write_text(
        "import os, sys, time\n"
        "code = int(sys.argv[1])\n"
        "if os.environ['RANK'] == '0':\n"
        "    time.sleep(60)\n"
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)\n"
    )
    config_file = ("--config_file", "configs/accelerate/ddp_2cpu.yaml")
    process = launch("trainer", "launch", *config_file, str(tmp_path / "worker.py"), own_code)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == expected, printed


def test_accelerate_launch_says_nothing_of_its_own(shards, tmp_path):
    options = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments = tiny_arguments(shards, tmp_path / "out", "--max_steps", "2")
    process = launch("accelerate.commands.launch", *options, "-m", "trainer.pretrain", *arguments)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed
    known = ("Training", "Only", "validation:", "Validation", "pretrain:", "Saved", "Wrote", "decoding", "Waited")
    assert [line for line in printed.splitlines() if not line.startswith(known)] == []
