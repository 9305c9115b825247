"""Writes the golden texts: ``python -m tests.templates.make_golden``. One file for each family and layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace

from contracts import storage
from contracts.records import RenderedText
from templates import FamilyWeights, TemplateConfig, render_chain
from tests.templates.example_chains import EVERY_KIND, NO_PAIRS

GOLDEN_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
SEED = 20240620
FAMILIES = tuple(item.name for item in fields(FamilyWeights))
LAYOUTS = ("text_first", "pairs_first")


def only(family: str, layout: str) -> TemplateConfig:
    """A config that leaves one family and one layout."""
    weights = FamilyWeights(**{name: float(name == family) for name in FAMILIES})
    return TemplateConfig(
        family_weights=weights, few_pairs_family_weights=weights, pairs_first_share=float(layout == "pairs_first")
    )


def golden_texts() -> Iterator[tuple[str, str]]:
    """The name and content of each golden file."""
    for family in FAMILIES:
        for layout in LAYOUTS:
            chain = replace(EVERY_KIND, chain_id=f"golden-{family}-{layout}")
            rendered = render_chain(chain, seed=SEED, config=only(family, layout))
            yield f"{family}-{layout}.txt", _content(rendered)
    yield "raw.txt", _content(render_chain(NO_PAIRS, seed=SEED))


def _content(rendered: RenderedText) -> str:
    return f"{rendered.template_id}\n{'=' * 40}\n{rendered.text}\n"


def main() -> None:
    """Writes every golden file and removes those that are no longer made."""
    storage.remove_folder(GOLDEN_FOLDER)
    for name, content in golden_texts():
        storage.write_bytes_atomically(storage.join(GOLDEN_FOLDER, name), content.encode())


if __name__ == "__main__":
    main()
