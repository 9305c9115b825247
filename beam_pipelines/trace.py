"""``python -m beam_pipelines trace SHARDS --row N``: from a packed row back to its texts, chains and documents.

The row names its texts, the manifest's config says which inputs its component was read from, and the corpora say in
their turn which files they were made from. Each of these may have been moved, changed or removed since; what cannot be
found is said, and the command then ends with status 1.

Cost: see `beam_pipelines.text_origins`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from beam_pipelines.mixing import KINDS_OF_CHAINS
from beam_pipelines.record_reading import FieldNames
from beam_pipelines.shard_rows import printable, read_row
from beam_pipelines.text_origins import TextOrigin, changed_inputs, find_documents, find_origins, read_corpora
from contracts.manifest import AugmentedCorpusManifest, ShardManifest, Split, read_shard_manifest
from contracts.records import Chain, Document, InstructionPair, PackedRow


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """Settings of ``trace``.

    Args:
        shards: The folder of shards.
        row: Number of the row; rows count through the shards of the split in the manifest's order.
        split: ``train`` or ``validation``.
        corpus: Where the inputs of the row's component lie now, if not where the shards' config says.
        documents: Where the raw documents lie now, if not where the corpus' config says.
    """

    shards: str
    row: int
    split: Split = "train"
    corpus: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowTrace:
    """What a row was made from.

    Args:
        row: The row.
        component: The component's entry in the shards' config.
        origins: By text id, those that were found; several where the id stands in several places.
        places: File and line of documents of chains, by document id, those that were found.
        problems: What could not be found, and what is not as it was when the shards were packed.
    """

    row: PackedRow
    component: Mapping[str, Any]
    origins: Mapping[str, Sequence[TextOrigin]]
    places: Mapping[str, str]
    problems: tuple[str, ...]


def trace_row(config: TraceConfig) -> RowTrace:
    """Follows a row back as far as its inputs are to be found.

    Raises:
        ValueError: The shards are not complete, there is no such row, or their config does not name its component.
    """
    manifest = read_shard_manifest(config.shards)
    row = read_row(config.shards, manifest=manifest, split=config.split, row_number=config.row)
    component = next((entry for entry in manifest.config.get("components", ()) if entry["name"] == row.component), None)
    if component is None:
        raise ValueError(f"The config in the manifest of {config.shards} names no component {row.component!r}.")
    inputs = config.corpus or component["input"]
    problems: list[str] = []
    origins: dict[str, list[TextOrigin]] = {}
    places: dict[str, str] = {}
    try:
        origins = find_origins(
            set(row.text_ids), kind=component["kind"], inputs=inputs, fields=FieldNames(**manifest.config["fields"])
        )
        corpora = read_corpora(inputs) if component["kind"] in KINDS_OF_CHAINS else {}
        if not corpora:
            problems += [
                f"{url} is not as it was when the shards were packed; what stands in it now is shown."
                for url in changed_inputs(inputs, kind=component["kind"], versions=manifest.inputs)
            ]
    except ValueError as error:
        problems.append(f"{error} If the input has moved, name it by --corpus.")
        corpora = {}
    problems += _changed_corpora(corpora, manifest)
    problems += [
        f"The id {text_id} stands in several places, {' and '.join(origin.place for origin in found)}: all are shown, "
        "and the shards do not say which one the text was made from."
        for text_id, found in origins.items()
        if len(found) > 1
    ]
    doc_ids = {doc_id for found in origins.values() for origin in found for doc_id in _documents_of(origin)}
    for folder, corpus in corpora.items():
        found, problem = _find_sources(doc_ids - set(places), corpus=corpus, folder=folder, moved_to=config.documents)
        places.update(found)
        problems += problem
    missing = [text_id for text_id in dict.fromkeys(row.text_ids) if text_id not in origins]
    if missing and not problems:
        problems.append(f"Not in {', '.join(inputs)}: {', '.join(missing)}.")
    return RowTrace(row=row, component=component, origins=origins, places=places, problems=tuple(problems))


def _documents_of(origin: TextOrigin) -> list[str]:
    return [example.document.doc_id for example in origin.chain.examples] if origin.chain else []


def _changed_corpora(corpora: Mapping[str, AugmentedCorpusManifest], manifest: ShardManifest) -> Iterator[str]:
    for folder, corpus in corpora.items():
        if corpus.fingerprint not in manifest.inputs.values():
            yield (
                f"{folder} is not, or no longer, the corpus that the shards were packed from (its fingerprint is "
                f"{corpus.fingerprint[:12]}…)."
            )


def _find_sources(
    doc_ids: set[str], *, corpus: AugmentedCorpusManifest, folder: str, moved_to: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """The places of a corpus' documents in the files that it was made from, and why that is not known."""
    inputs = moved_to or corpus.config.get("input")
    if not doc_ids:
        return {}, []
    if not inputs or "fields" not in corpus.config:
        # Made from task datasets, whose records become documents with ids of their own.
        names = ", ".join(name for name in corpus.inputs)
        return {}, [f"The corpus {folder} does not say which record a document came from; it was made from {names}."]
    try:
        found = find_documents(doc_ids, inputs=inputs, fields=FieldNames(**corpus.config["fields"]))
    except ValueError as error:
        return {}, [f"{error} If the documents have moved, name them by --documents."]
    missing = sorted(doc_ids - set(found))
    return found, [f"Not in {', '.join(inputs)}: {', '.join(missing)}."] if missing else []


def print_trace(trace: RowTrace, *, console: Console) -> None:
    """Prints the texts of a row with what they were made from."""
    position = 0
    for text_id, length in zip(trace.row.text_ids, trace.row.segment_lengths.tolist(), strict=True):
        _say(console, f"── text {text_id}, tokens {position} to {position + length - 1}", style="bold")
        position += length
        if text_id not in trace.origins:
            _say(console, "   not found", style="red")
        for origin in trace.origins.get(text_id, ()):
            _say(console, f"   from {origin.place}")
            if origin.chain:
                _print_chain(origin.chain, only=origin.document, places=trace.places, console=console)
            elif origin.document:
                _print_document(origin.document, place="", console=console)
            elif origin.pair:
                _print_pairs([origin.pair], console=console)


def _print_chain(chain: Chain, *, only: Document | None, places: Mapping[str, str], console: Console) -> None:
    _say(console, f"   chain {chain.chain_id} of {chain.source}, written by {chain.synthesizer_id}")
    for example in chain.examples:
        if only is None or example.document == only:
            _print_document(example.document, place=places.get(example.document.doc_id, ""), console=console)
            if only is None:
                _print_pairs(example.pairs, console=console)


def _print_document(document: Document, *, place: str, console: Console) -> None:
    title = f" ({document.title})" if document.title else ""
    _say(console, f"   document {document.doc_id}{title} of {document.source}{f', from {place}' if place else ''}")
    _say(console, document.text, style="dim")


def _print_pairs(pairs: Sequence[InstructionPair], *, console: Console) -> None:
    for pair in pairs:
        _say(console, f"   Q: {pair.instruction}")
        _say(console, f"   A: {pair.response}")


def _say(console: Console, line: str, *, style: str = "") -> None:
    console.print(Text(printable(line), style=style), soft_wrap=True, highlight=False)


def main(config: TraceConfig) -> int:
    """Runs the command; returns its exit status: 1 when something could not be found."""
    console = Console()
    trace = trace_row(config)
    _say(console, f"Row {config.row} of {config.split}: component {trace.row.component} ({trace.component['kind']})")
    print_trace(trace, console=console)
    for problem in trace.problems:
        _say(console, problem, style="red")
    return 1 if trace.problems else 0
