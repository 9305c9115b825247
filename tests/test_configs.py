"""Every shipped config loads with the command that its folder is named after."""

import pytest
import yaml

from beam_pipelines.command_line import parse_command
from beam_pipelines.commands import run_command
from beam_pipelines.mine import MineConfig
from beam_pipelines.pack import PackConfig
from beam_pipelines.self_instruct import SelfInstructConfig
from beam_pipelines.synthesize import SynthesizeConfig
from synth_model.__main__ import main as run_synth_model
from synth_model.command_line import parse_config as parse_synth_model_config
from synth_model.evaluation.config import EvaluateConfig as EvaluateSynthesizerConfig
from synth_model.synthesizer import make_synthesizer
from synth_model.tasks import TasksConfig
from synth_model.tuning.config import FinetuneConfig
from tests.conftest import REPOSITORY
from trainer import pretrain
from trainer.__main__ import main as run_trainer
from trainer.config import PretrainConfig, parse_config
from trainer.evaluate import EvaluateConfig
from trainer.train_tokenizer import TokenizerConfig

# Accelerate reads configs/accelerate, the configs beside it configs/evaluate/tasks; both have tests of their own.
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*/*.yaml") if path.parent.name != "accelerate")
IDS = [str(path.relative_to(REPOSITORY / "configs")) for path in CONFIGS]


# The commands of synth_model by the folder of their configs.
SYNTH_MODEL = {
    "tasks": ("tasks", TasksConfig),
    "finetune": ("finetune", FinetuneConfig),
    "evaluate_synthesizer": ("evaluate", EvaluateSynthesizerConfig),
}


def command_of(path):
    return path.parent.name.replace("_", "-")


def load(path, *overrides):
    arguments = ["--config", str(path), *overrides]
    if path.parent.name == "pretrain":
        return parse_config(PretrainConfig, arguments=arguments, program="pretrain")
    if path.parent.name == "tokenizer":
        return parse_config(TokenizerConfig, arguments=arguments, program="tokenizer")
    if path.parent.name == "evaluate":
        return parse_config(EvaluateConfig, arguments=arguments, program="evaluate")
    if path.parent.name in SYNTH_MODEL:
        command, config_class = SYNTH_MODEL[path.parent.name]
        return parse_synth_model_config(config_class, arguments=arguments, command=command)
    config_class = {
        "synthesize": SynthesizeConfig,
        "mine": MineConfig,
        "self_instruct": SelfInstructConfig,
        "pack": PackConfig,
    }[path.parent.name]
    return parse_command(config_class, command=command_of(path), description="", arguments=arguments)[0]


def run(path, *overrides):
    """The exit status of the command itself."""
    arguments = ["--config", str(path), *overrides]
    if path.parent.name in ("evaluate", "tokenizer"):
        return run_trainer([path.parent.name, *arguments])
    if path.parent.name in SYNTH_MODEL:
        return run_synth_model([SYNTH_MODEL[path.parent.name][0], *arguments])
    return pretrain.main(arguments) if path.parent.name == "pretrain" else run_command([command_of(path), *arguments])


def as_written(config, key):
    for name in key:
        config = config[name] if isinstance(config, (dict, list)) else getattr(config, name)
    return config


def leaves(value, key=()):
    """Each value of a YAML file that is not a mapping, with its keys."""
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in leaves(item, (*key, name))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*key, index))]
    return [(key, value)]


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_a_config_loads_and_passes_its_check(path):
    config = load(path)
    if hasattr(config, "check"):
        config.check()
    if isinstance(config, SynthesizeConfig):
        make_synthesizer(config.synthesizer)
    # What the file says is what the command gets.
    written = leaves(yaml.safe_load(path.read_text("utf-8")))
    assert len(written) > 3
    assert [(key, as_written(config, key)) for key, _ in written] == written


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_an_unknown_key_is_refused(path, tmp_path, capsys):
    content = yaml.safe_load(path.read_text("utf-8"))
    copy = tmp_path / path.parent.name / path.name
    copy.parent.mkdir()
    copy.write_text(yaml.safe_dump({**content, "sequence_lenght": 3}), "utf-8")
    with pytest.raises(SystemExit) as exit_of_command:
        run(copy)
    assert exit_of_command.value.code == 2
    assert "sequence_lenght" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_of_command:
        run(path, "--outptu", "elsewhere")
    assert exit_of_command.value.code == 2


NESTED = {
    "synthesize": "engine",
    "mine": "keywords",
    "self_instruct": "filters",
    "pack": "templates",
    "pretrain": "optimizer",
}


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parent.name in NESTED])
def test_an_unknown_key_further_down_is_refused(path, tmp_path, capsys):
    content = yaml.safe_load(path.read_text("utf-8"))
    section = NESTED[path.parent.name]
    content[section] = {**content.get(section, {}), "colour": "red"}
    copy = tmp_path / path.parent.name / path.name
    copy.parent.mkdir()
    copy.write_text(yaml.safe_dump(content), "utf-8")
    with pytest.raises(SystemExit) as exit_of_command:
        run(copy)
    assert exit_of_command.value.code == 2
    assert "colour" in capsys.readouterr().err


def test_an_override_wins_over_the_file():
    path = REPOSITORY / "configs" / "synthesize" / "quickstart.yaml"
    assert load(path).chain_length == 2
    config = load(path, "--chain_length", "3", "--engine.max_batch_size=4")
    assert (config.chain_length, config.engine.max_batch_size, config.engine.kind) == (3, 4, "transformers")


def test_every_command_has_a_config():
    assert {path.parent.name for path in CONFIGS} == {*NESTED, *SYNTH_MODEL, "evaluate", "tokenizer"}
