import signal
import subprocess
import sys
import time

import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from beam_pipelines.command_line import beam_options, config_as_json, parse_command
from beam_pipelines.commands import run_command
from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.pack import PackConfig
from beam_pipelines.synthesize import SynthesizeConfig
from tests.beam_pipelines.pipeline_runs import make_documents, write_jsonl
from tests.conftest import REPOSITORY


def parse(config_class, *arguments, **settings):
    return parse_command(config_class, command="test", description="A test.", arguments=arguments, **settings)


def test_a_config_comes_from_yaml_and_dotted_overrides(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "input: [a.jsonl]\noutput: out\nchain_length: 3\nengine: {kind: fake, fake: {seed: 4}}\n"
    )
    config, beam_arguments = parse(
        SynthesizeConfig, "--config", str(tmp_path / "config.yaml"), "--engine.fake.max_pairs", "5", "--seed=9"
    )
    assert isinstance(config, SynthesizeConfig)
    assert (config.input, config.chain_length, config.seed) == (["a.jsonl"], 3, 9)
    assert (config.engine.kind, config.engine.fake.seed, config.engine.fake.max_pairs) == ("fake", 4, 5)
    assert beam_arguments == []
    assert config_as_json(config)["engine"]["fake"]["max_pairs"] == 5


def test_components_of_a_mixture_come_as_records(tmp_path):
    (tmp_path / "pack.yaml").write_text(
        "output: out\ntokenizer: t\ncomponents:\n  - {name: a, kind: chains, input: [x]}\n"
        "  - {name: b, kind: documents, input: [y], token_ratio: 1.0, relative_to: [a]}\n"
    )
    config, _ = parse(PackConfig, "--config", str(tmp_path / "pack.yaml"))
    assert config.components == [
        ComponentConfig(name="a", kind="chains", input=["x"]),
        ComponentConfig(name="b", kind="documents", input=["y"], token_ratio=1.0, relative_to=["a"]),
    ]


def test_everything_behind_the_dashes_goes_to_beam():
    behind = ["--runner=FnApiRunner", "--seed", "7", "--", "--config"]
    config, beam_arguments = parse(SynthesizeConfig, "--input", '["a"]', "--output", "o", "--", *behind)
    assert beam_arguments == behind
    assert config.seed == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--chain_lenght", "3"],
        ["--engine.fake.sed", "3"],
        ["--engine.kind", "vacuum"],
        ["--chain_length", "two"],
        ["stray"],
        ["--config", "nowhere.yaml"],
    ],
)
def test_an_unknown_key_or_a_wrong_value_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(SynthesizeConfig, "--input", '["a"]', "--output", "o", *arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert "Traceback" not in message


def test_a_command_without_beam_takes_no_options_for_it(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(
            ComponentConfig,
            *("--name", "a", "--kind", "chains", "--input", "[]", "--", "--runner=x"),
            takes_beam_options=False,
        )
    assert exit_.value.code == 2
    assert "takes no Beam options, but got --runner=x" in capsys.readouterr().err


def test_known_beam_options_reach_beam():
    options = beam_options(["--runner=FnApiRunner", "--direct_num_workers", "2", "--direct_running_mode=in_memory"])
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert options.view_as(DirectOptions).direct_num_workers == 2
    # Of every class that Beam ships, also of those that share an option with another one.
    beam_options(["--prism_location=x", "--job_endpoint=h:1", "--environment_type=EXTERNAL", "--flink_master=local"])
    assert isinstance(beam_options([]), PipelineOptions)


@pytest.mark.parametrize("arguments", [["--runer=FnApiRunner"], ["--direct_num_worker=2"], ["stray"], ["--seed", "1"]])
def test_an_option_that_beam_does_not_know_is_an_error(arguments):
    with pytest.raises(ValueError, match=f"Beam knows no option '{arguments[0]}"):
        beam_options(arguments)


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "in.jsonl", make_documents(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", '["nowhere/*.jsonl"]'], "No file matches 'nowhere/*.jsonl'"),
        (["--input", "[]"], "input is empty"),
        (["--input", '["EMPTY"]'], "The input holds no text"),
        (["--input", '["CORPUS"]', "--engine.kind=transformers"], "engine.model is empty"),
        (["--input", '["CORPUS"]', "--engine.kind=transformers", "--engine.model=./nowhere"], "'./nowhere'"),
        (
            ["--input", '["CORPUS"]', "--engine.kind=transformers", "--engine.model=./x", "--engine.device=cuda"],
            "no CUDA device is available",
        ),
        (["--input", '["CORPUS"]', "--chain_length=0"], "chain_length is 0; it must be at least 1"),
        (["--input", '["CORPUS"]', "--sampling.max_new_tokens=0"], "max_new_tokens is 0; it must be at least 1"),
        (["--input", '["CORPUS"]', "--sampling.max_new_tokens=4000"], "leaves no room for a prompt"),
        (
            ["--input", '["CORPUS"]', "--synthesizer.kind=chat", "--synthesizer.prompt=klingon"],
            "no chat prompt 'klingon'",
        ),
        (["--input", '["CORPUS"]', "--", "--runer=FnApiRunner"], "Beam knows no option"),
    ],
)
def test_synthesize_refuses_before_any_work(arguments, message, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty.jsonl").touch()
    arguments = [
        argument.replace("CORPUS", corpus).replace("EMPTY", str(tmp_path / "empty.jsonl")) for argument in arguments
    ]
    output = tmp_path / "out"
    assert run_command(["synthesize", f"--output={output}", "--engine.kind=fake", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""
    assert not output.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("tokenizer: ./nowhere", "There is no model folder './nowhere'"),
        ("sequence_length: 1", "sequence_length is 1; it must be at least 2"),
        ("validation_fraction: 1.0", "validation_fraction is 1.0"),
        ("components: []", "components is empty"),
        ("components: [{name: a, kind: chains, input: [nowhere]}]", "nowhere is not a completed artifact"),
        ("components: [{name: a, kind: documents, input: [nowhere.jsonl]}]", "No file matches 'nowhere.jsonl'"),
        ("components: [{name: a, kind: documents, input: [x], epochs: 0}]", "epochs is 0"),
    ],
)
def test_pack_refuses_before_any_work(settings, message, corpus, tokenizer_folder, tmp_path, capsys):
    values = {
        "tokenizer": tokenizer_folder,
        "components": f"[{{name: a, kind: documents, input: [{corpus}]}}]",
        "output": str(tmp_path / "out"),
        **dict([settings.split(": ", 1)]),
    }
    (tmp_path / "pack.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    assert run_command(["pack", "--config", str(tmp_path / "pack.yaml")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_help_and_unknown_commands(capsys):
    assert run_command(["--help"]) == 0
    assert "synthesize" in capsys.readouterr().out
    assert run_command([]) == 2
    assert run_command(["synthesise"]) == 2
    assert "'synthesise' is not a command" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_end_with_a_message_and_a_status(corpus, tokenizer_folder, tmp_path):
    """As a user meets it: what the shell sees of a good run, of refusals and of wrong command lines."""
    output = tmp_path / "out"
    fake = ("--engine.kind=fake", f"--output={output}")
    mixture = f'[{{"name": "a", "kind": "documents", "input": ["{tmp_path}/none.jsonl"]}}]'
    expected = {
        ("synthesise",): (2, "'synthesise' is not a command"),
        ("synthesize", *fake, "--input=['x.jsonl']", "--chain_lenght=2"): (2, "chain_lenght"),
        ("synthesize", *fake, f"--input=['{tmp_path}/none.jsonl']"): (1, "No file matches"),
        ("pack", f"--output={output}", "--tokenizer", tokenizer_folder, f"--components={mixture}"): (
            1,
            "No file matches",
        ),
    }
    processes = {
        arguments: subprocess.Popen(
            [sys.executable, "-m", "beam_pipelines", *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in expected
    }
    for arguments, process in processes.items():
        out, err = process.communicate(timeout=120)
        status, message = expected[arguments]
        assert (process.returncode, message in err, "Traceback" in err + out) == (status, True, False), err
        assert not output.exists()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "beam_pipelines",
            "synthesize",
            *fake,
            f"--input=['{corpus}']",
            "--",
            "--runner=FnApiRunner",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("documents   2 = ")
    assert (output / "COMPLETED").exists()


def test_status_takes_the_folder_alone_and_watch_without_a_value(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("beam_pipelines.status.main", lambda config: seen.append(config) or 0)
    assert run_command(["status", str(tmp_path), "--watch"]) == 0
    assert run_command(["status", "--output", str(tmp_path)]) == 0
    assert [(config.output, config.watch) for config in seen] == [(str(tmp_path), True), (str(tmp_path), False)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("KeyboardInterrupt [while running 'Generate']")])
def test_an_interrupt_says_how_to_go_on(error, tmp_path, monkeypatch, capsys):
    def interrupted(config):
        raise error

    monkeypatch.setattr("beam_pipelines.status.main", interrupted)
    assert run_command(["status", str(tmp_path)]) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.real_model
@pytest.mark.slow
def test_an_interrupt_amid_a_batch_of_a_real_model_ends_with_its_status(tmp_path):
    model = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
    if not model.is_dir():
        pytest.skip(f"{model} is absent (make model)")
    corpus = write_jsonl(tmp_path / "in.jsonl", make_documents(40))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "beam_pipelines", "synthesize", "--config", "configs/synthesize/quickstart.yaml"),
            *(f"--engine.model={model}", f"--input=[{corpus}]", f"--output={tmp_path / 'out'}"),
        ],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        # Who starts the tests in the background has the signal ignored, which a child would take over.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The plan is written when everything but the model's work is done; then the model is loaded.
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "journal" / "plan.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 130, message
    assert message.endswith("run the same command again to go on.\n")
