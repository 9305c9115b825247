"""Who may import whom: every ``import`` of every package, wherever it stands in a file."""

import ast
import sys
from collections.abc import Iterator, Mapping

import pytest

from tests.conftest import REPOSITORY

# Packages of the project that each package may import.
ALLOWED: Mapping[str, frozenset[str]] = {
    "contracts": frozenset(),
    "templates": frozenset({"contracts"}),
    "synth_model": frozenset({"contracts"}),
    "trainer": frozenset({"contracts"}),
    "beam_pipelines": frozenset({"contracts", "templates", "synth_model"}),
}
# Modules that may import another package too: tuning drives the trainer.
ALSO_ALLOWED: Mapping[str, frozenset[str]] = {"synth_model/finetune.py": frozenset({"trainer"})}
CONTRACTS_NEED_ONLY = {"numpy", "pyarrow", "fsspec"}
# Libraries that one package alone may import.
ONLY_IN = {"apache_beam": "beam_pipelines", "accelerate": "trainer"}
# What takes a GPU or seconds to import: in these packages inside functions only.
HEAVY = {"openai", "peft", "torch", "transformers", "vllm"}
HEAVY_INSIDE_FUNCTIONS = {"synth_model", "beam_pipelines"}


def imports(source: str, *, package: str) -> Iterator[tuple[str, int, bool]]:
    """Each imported module's first name, its line, and whether the import runs when the module is loaded."""

    def walk(node: ast.AST, at_load: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno, at_load
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").split(".")[0], node.lineno, at_load
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            at_load = False
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from walk(child, False)
            for child in node.orelse:
                yield from walk(child, at_load)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_load)

    return walk(ast.parse(source), True)


def violations(source: str, *, package: str, module: str = "") -> list[str]:
    """What a module of a package imports against the rules, as ``line: name``."""
    found = []
    allowed = ALLOWED[package] | ALSO_ALLOWED.get(module, frozenset())
    for name, line, at_load in imports(source, package=package):
        is_foreign = name in ALLOWED and name != package and name not in allowed
        is_too_much = (
            package == "contracts"
            and name not in {"contracts", *CONTRACTS_NEED_ONLY}
            and name not in sys.stdlib_module_names
        )
        is_elsewhere = ONLY_IN.get(name, package) != package
        is_too_early = package in HEAVY_INSIDE_FUNCTIONS and name in HEAVY and at_load
        is_backwards = name in ("tests", "benchmarks")
        if is_foreign or is_too_much or is_elsewhere or is_too_early or is_backwards:
            found.append(f"{line}: {name}")
    return found


def modules(package: str) -> list[str]:
    return sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / package).rglob("*.py"))


@pytest.mark.parametrize("path", [path for package in ALLOWED for path in modules(package)])
def test_a_module_imports_only_what_its_package_may(path):
    source = (REPOSITORY / path).read_text("utf-8")
    assert violations(source, package=path.split("/")[0], module=path) == []


def test_every_package_has_its_rule():
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == set(ALLOWED)
    assert all(len(modules(package)) > 1 for package in ALLOWED)


def test_no_package_imports_itself_through_others():
    for package, allowed in ALLOWED.items():
        reached, waiting = set(), set(allowed)
        while waiting:
            reached |= waiting
            waiting = {further for name in waiting for further in ALLOWED[name]} - reached
        assert package not in reached


@pytest.mark.parametrize(
    ("package", "lines", "found"),
    [
        ("contracts", ["import json, numpy as np", "import pyarrow.parquet", "from fsspec.core import url_to_fs"], []),
        ("contracts", ["import yaml"], ["1: yaml"]),
        ("contracts", ["def f():", "    import torch"], ["2: torch"]),
        ("contracts", ["from trainer.run import run"], ["1: trainer"]),
        ("contracts", ["from . import storage", "from .seeding import rng"], []),
        ("templates", ["from contracts import seeding", "from synth_model import markup"], ["2: synth_model"]),
        ("templates", ["import accelerate.utils", "import tests.conftest"], ["1: accelerate", "2: tests"]),
        ("synth_model", ["from beam_pipelines import journal"], ["1: beam_pipelines"]),
        ("synth_model", ["if x:", "    try:", "        import trainer", "    finally:", "        y()"], ["3: trainer"]),
        ("synth_model", ["class A:", "    import torch.nn"], ["2: torch"]),
        ("synth_model", ["def f():", "    import torch", "    from transformers import AutoModel"], []),
        ("synth_model", ["if TYPE_CHECKING:", "    import torch", "else:", "    import vllm"], ["4: vllm"]),
        ("beam_pipelines", ["import apache_beam as beam", "import contracts, templates, synth_model"], []),
        ("beam_pipelines", ["import apache_beam.io, transformers, trainer"], ["1: transformers", "1: trainer"]),
        ("trainer", ["import accelerate, torch, transformers", "from contracts import manifest"], []),
        ("trainer", ["async def f():", "    import apache_beam, templates"], ["2: apache_beam", "2: templates"]),
    ],
)
def test_the_rules_can_be_broken(package, lines, found):
    assert violations("\n".join(lines), package=package) == found


def test_an_exception_is_of_one_module_alone_and_used():
    for module, allowed in ALSO_ALLOWED.items():
        source, package = (REPOSITORY / module).read_text("utf-8"), module.split("/")[0]
        assert {line.split(": ")[1] for line in violations(source, package=package)} == allowed
