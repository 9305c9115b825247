import logging
import os

import pytest

# It speaks once more when the process ends, to a stream that the test run has closed by then.
logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def prism_path(shared_folder):
    """Beam's portable runner as a file, since it may not be downloaded here."""
    path = shared_folder / "tools" / "prism"
    if not os.access(path, os.X_OK):
        pytest.skip(f"{path} is absent or cannot be run")
    return str(path)
