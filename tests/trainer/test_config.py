import glob
import os

import pytest

from trainer.__main__ import main as dispatch
from trainer.config import ModelConfig, PretrainConfig, identity_of, parse_config
from trainer.models import PRESETS

CONFIGS = sorted(glob.glob(os.path.join(os.path.dirname(__file__), "..", "..", "configs", "pretrain", "*.yaml")))
REQUIRED = ["--shards", "s", "--output", "o", "--model.name_or_path", "m"]


def parse(*arguments):
    return parse_config(PretrainConfig, arguments=arguments, program="test")


@pytest.mark.parametrize("path", CONFIGS, ids=os.path.basename)
def test_every_recipe_loads(path):
    config = parse("--config", path)
    assert config.model.preset is None or config.model.preset in PRESETS


def test_there_are_recipes():
    assert {"quickstart.yaml", "general_500m.yaml", "general_1.3b.yaml", "domain_8b.yaml"} <= {
        os.path.basename(path) for path in CONFIGS
    }


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "shards: s\noutput: o\nseed: 5\nmodel: {name_or_path: m}\nbatch: {rows_per_step: 2}"
    )
    config = parse("--config", str(tmp_path / "config.yaml"), "--seed", "6", "--optimizer.max_grad_norm", ".inf")
    assert config == PretrainConfig(
        shards="s",
        output="o",
        seed=6,
        model=ModelConfig(name_or_path="m"),
        batch=type(config.batch)(rows_per_step=2),
        optimizer=type(config.optimizer)(max_grad_norm=float("inf")),
    )


def test_an_unknown_key_in_the_file_is_an_error(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("shards: s\noutput: o\nmodel: {name_or_path: m}\noptimizer: {momentum: 0.9}")
    with pytest.raises(SystemExit):
        parse("--config", str(tmp_path / "config.yaml"))
    assert "momentum" in capsys.readouterr().err


def test_help_describes_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for description in ("Passes over the training rows", "Rows of one optimizer step over all processes together"):
        assert description in text


@pytest.mark.parametrize(
    "option",
    [
        "--optimizer.learning_rate=0",
        "--optimizer.beta2=1",
        "--optimizer.epsilon=0",
        "--optimizer.weight_decay=-1",
        "--optimizer.max_grad_norm=0",
        "--schedule.warmup_fraction=1.5",
        "--schedule.warmup_steps=-1",
        "--batch.micro_batch_rows=0",
        "--loss.chunk_tokens=0",
        "--loss.z_loss=-1",
        "--spikes.threshold=0",
        "--spikes.window=1",
        "--spikes.max_consecutive=0",
        "--validation.every_steps=0",
        "--validation.max_rows=0",
        "--checkpoint.every_steps=0",
        "--checkpoint.keep=0",
        "--checkpoint.resume=",
        "--data.prefetch_steps=-1",
        "--data.cache=gs://bucket/rows",
        "--logging.every_steps=0",
        "--num_epochs=0",
        "--max_steps=0",
        "--model.preset=tiny",
    ],
)
def test_a_value_out_of_range_is_named(option):
    name = option[2:].partition("=")[0]
    with pytest.raises(ValueError, match=rf"{name} is .*; it must be "):
        parse(*REQUIRED, option)


@pytest.mark.parametrize("weight", ["-1", ".inf", ".nan"])
def test_a_component_weight_out_of_range_is_named(weight):
    with pytest.raises(ValueError, match=r"data.component_weights\['raw'\] is .*; it must be 0 or more, and finite"):
        parse(*REQUIRED, "--data.component_weights", f"{{raw: {weight}}}")


def test_component_weights_come_from_the_file_and_by_name(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "shards: s\noutput: o\nmodel: {name_or_path: m}\ndata: {component_weights: {a: 2}}"
    )
    assert parse("--config", str(tmp_path / "config.yaml")).data.component_weights == {"a": 2.0}
    assert parse(*REQUIRED, "--data.component_weights.a=0.5").data.component_weights == {"a": 0.5}


def test_identity_leaves_out_what_does_not_change_the_result():
    base = parse(*REQUIRED)
    same = parse(
        *("--shards", "t", "--output", "p", "--model.name_or_path", "n", "--device", "cpu"),
        *("--batch.gradient_checkpointing", "true", "--loss.kernel", "torch", "--loss.chunk_tokens", "9"),
        *("--model.compile", "default", "--model.attention", "sdpa", "--spikes.max_consecutive", "1"),
        *("--batch.micro_batch_rows", "1", "--checkpoint.keep", "9", "--logging.every_steps", "9"),
        *("--data.prefetch_steps", "0", "--data.cache", "rows"),
    )
    assert identity_of(base) == identity_of(same)
    for option in (
        *(
            "--loss.z_loss=1",
            "--spikes.threshold=9",
            "--spikes.window=9",
            "--model.document_masks=true",
            "--seed=1",
            "--batch.rows_per_step=3",
            "--optimizer.beta1=0.5",
            "--num_epochs=2",
            "--max_steps=3",
        ),
        '--data.component_weights={"raw": 2}',
    ):
        assert identity_of(base) != identity_of(parse(*REQUIRED, option))


def test_dispatch_names_the_commands(capsys):
    assert dispatch(["--help"]) == 0
    assert "import-model" in capsys.readouterr().out
    assert dispatch(["fly"]) == 2
    assert "no command 'fly'" in capsys.readouterr().err
    assert dispatch([]) == 2
