import os
import pathlib

import pytest
from hypothesis import settings

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# A machine with other work on it may take long over one example; how long says nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def shared_folder():
    """The folder of published reference cases and tools; tests that need it are skipped where it is absent."""
    folder = pathlib.Path(os.environ.get("IPT_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set IPT_SHARED to the folder with reference_cases/ and tools/")
    return folder
