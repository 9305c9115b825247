"""The shipped config files of Accelerate, read by Accelerate itself."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_starts_as_many_processes_as_its_name_says(path, monkeypatch):
    config = load_config_from_file(str(path))
    kind, machine = path.stem.split("_")
    num_processes = int(machine[0])
    assert config.num_processes == num_processes
    assert config.mixed_precision == ("bf16" if machine.endswith("gpu") else "no")

    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "trainer.pretrain"])
    arguments, _, _ = _validate_launch_command(arguments)
    environment = prepare_multi_gpu_env(arguments)
    assert arguments.multi_gpu or arguments.use_fsdp, "other kinds start no processes of their own"
    assert arguments.nproc_per_node == str(num_processes)
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") == (kind == "fsdp")
    if kind == "fsdp":
        assert environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"


def test_there_is_one_for_each_kind():
    assert [path.stem for path in CONFIGS] == ["ddp_2cpu", "ddp_8gpu", "fsdp_2cpu", "fsdp_8gpu"]
