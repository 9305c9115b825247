import pytest
import torch

from tests.synth_model import tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A folder with the tiny model; see `tests.synth_model.tiny_model`."""
    folder = str(tmp_path_factory.mktemp("tiny_model"))
    torch.set_num_threads(1)
    tiny_model.write_model(folder)
    return folder
