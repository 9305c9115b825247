import pytest

from contracts import storage
from tests.templates.make_golden import GOLDEN_FOLDER, golden_texts


@pytest.mark.parametrize(("name", "content"), list(golden_texts()))
def test_golden_text(name: str, content: str) -> None:
    assert storage.read_text(storage.join(GOLDEN_FOLDER, name)) == content


def test_no_golden_text_is_left_over() -> None:
    names = {url.rsplit("/", 1)[1] for url in storage.list_files(GOLDEN_FOLDER)}
    assert names == {name for name, _ in golden_texts()}
