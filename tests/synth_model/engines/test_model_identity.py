import pathlib
import shutil

import pytest

from synth_model.engines import EngineConfig
from synth_model.engines.model_identity import identify_model


@pytest.fixture
def folders(tmp_path):
    """A folder with a model and one with an adapter, as far as their identity goes."""
    for name, files in {
        "model": {"config.json": b"{}", "model.safetensors": bytes(3_000_000), "notes.md": b"one"},
        "adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(1000)},
    }.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
    return tmp_path


def identify(folders, **changes):
    return identify_model(
        EngineConfig(**{"model": str(folders / "model"), "adapter": str(folders / "adapter")} | changes)
    )


def test_folders_are_known_by_their_files_wherever_they_lie(folders, tmp_path_factory):
    identity = identify(folders)
    model, adapter = identity.split("+")
    assert model.startswith("model@")
    assert adapter.startswith("adapter@")
    assert identify(folders, adapter="") == model
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folders, elsewhere, dirs_exist_ok=True)
    assert identify(elsewhere) == identity


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("model/config.json", True),
        ("model/model.safetensors", True),
        ("model/notes.md", False),
        ("adapter/adapter_config.json", True),
        ("adapter/adapter_model.safetensors", True),
    ],
)
def test_a_changed_file_is_another_model(folders, file, counts):
    before = identify(folders)
    with pathlib.Path(folders, file).open("r+b") as opened:
        opened.seek(0, 2)
        opened.seek(-1, 1)
        opened.write(b"!")
    assert (identify(folders) != before) is counts


def test_names_of_the_hub_stand_as_they_are(folders):
    assert identify(folders, model="hub/model", adapter="hub/adapter") == "hub/model+hub/adapter"
    assert identify(folders, model="hub/model").startswith("hub/model+adapter@")
    assert identify(folders, model="hub/model", adapter="") == "hub/model"
    fake = EngineConfig(kind="fake", model="hub/model")
    assert identify_model(fake) == fake.model_id


def test_an_endpoint_is_known_by_the_name_that_it_serves(folders):
    # What lies in a folder of that name here need not be what the server has loaded.
    assert identify(folders, kind="endpoint", adapter="") == str(folders / "model")
