"""Finds what training texts were made from: a text's id leads to its chain, document or instruction, and to the file.

A text carries no copy of its origin; its id says what to look for, and the component's kind says where. Augmented
corpora are searched by their id columns, files of records from the beginning to the end: an id may stand in several
places, since two corpora can be made from the same documents, and ids in files are given by whoever wrote them.

Cost: the ids of the corpora, and of files of records every record. Memory: a row group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from beam_pipelines.mixing import KINDS_OF_CHAINS
from beam_pipelines.record_reading import FieldNames, document_from_record, pair_from_record
from contracts import storage
from contracts.artifact import COMPLETED_FILE
from contracts.manifest import AugmentedCorpusManifest, read_augmented_corpus_manifest, read_instruction_corpus_manifest
from contracts.record_files import SUFFIXES, Record, read_records
from contracts.records import Chain, Document, InstructionPair
from contracts.schemas import chain_from_row
from contracts.storage import InputFile
from synth_model.text_splitting import whole_id
from synth_model.tuning_sequences import chain_id_of_sequence

_DOC_ID_COLUMN = "examples.list.element.document.doc_id"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOrigin:
    """What a training text was made from.

    Args:
        place: File and row or line.
        chain: The chain, for texts that were made from one.
        document: The document, for raw texts; also of a chain.
        pair: The instruction and its response, for general instructions.
    """

    place: str
    chain: Chain | None = None
    document: Document | None = None
    pair: InstructionPair | None = None


def find_origins(
    text_ids: Collection[str], *, kind: str, inputs: Sequence[str], fields: FieldNames
) -> dict[str, list[TextOrigin]]:
    """The origins of texts of one component, as far as they are in its inputs; several where an id is not unique.

    Args:
        text_ids: Ids of texts.
        kind: The component's kind.
        inputs: Folders of corpora, or files, folders and globs of records.
        fields: Which fields of a record hold what.

    Raises:
        ValueError: An input is not there.
    """
    if kind in KINDS_OF_CHAINS:
        return _origins_in_chains(text_ids, kind=kind, corpora=inputs)
    find = _pair_origin if kind == "instructions" else _document_origin
    found: dict[str, list[TextOrigin]] = {}
    for record in _records(_record_files(inputs, kind=kind), text_field=fields.text):
        item = find(record, fields)
        if item and item[0] in text_ids:
            found.setdefault(item[0], []).append(item[1])
    return found


def find_documents(doc_ids: Collection[str], *, inputs: Sequence[str], fields: FieldNames) -> dict[str, str]:
    """The places (file and row or line) of documents in files of records, as far as they are there.

    A part of a document that was split is found where the whole document stands.

    Raises:
        ValueError: An input is not there.
    """
    wholes = {doc_id: whole_id(doc_id) for doc_id in doc_ids}
    origins = find_origins({*doc_ids, *wholes.values()}, kind="documents", inputs=inputs, fields=fields)
    found = {doc_id: origins.get(doc_id) or origins.get(whole) for doc_id, whole in wholes.items()}
    return {doc_id: " or ".join(origin.place for origin in origins) for doc_id, origins in found.items() if origins}


def read_corpora(folders: Sequence[str]) -> dict[str, AugmentedCorpusManifest]:
    """The manifests of augmented corpora by folder.

    Raises:
        ValueError: A folder holds none.
    """
    return {folder: read_augmented_corpus_manifest(folder) for folder in folders}


def _origins_in_chains(text_ids: Collection[str], *, kind: str, corpora: Sequence[str]) -> dict[str, list[TextOrigin]]:
    # What is looked for in the corpora: the chain or, for raw texts of chains, the document.
    id_of = chain_id_of_sequence if kind == "synthesizer_tuning" else str
    wanted = {text_id: id_of(text_id) for text_id in text_ids}
    column = _DOC_ID_COLUMN if kind == "chain_documents" else "chain_id"
    found: dict[str, list[TextOrigin]] = {}
    for folder, manifest in read_corpora(corpora).items():
        for entry in manifest.parts:
            url = storage.join(folder, entry.path)
            for place, chain in _chains_with(url, column=column, wanted=frozenset(wanted.values())):
                if kind == "chain_documents":
                    for document in (example.document for example in chain.examples):
                        origin = TextOrigin(place=place, chain=chain, document=document)
                        found.setdefault(document.doc_id, []).append(origin)
                else:
                    found.setdefault(chain.chain_id, []).append(TextOrigin(place=place, chain=chain))
    return {text_id: found[id_] for text_id, id_ in wanted.items() if id_ in found}


def _chains_with(url: str, *, column: str, wanted: Collection[str]) -> Iterator[tuple[str, Chain]]:
    """The chains of a part that have one of the wanted ids in a column, each with its place."""
    with storage.open_input(url) as content:
        file = pq.ParquetFile(content)
        first_row = 0
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=[column])
            rows = [number for number, row in enumerate(ids.to_pylist()) if _holds_any(row, wanted)]
            if rows:
                chains = file.read_row_group(group).take(rows).to_pylist()
                for number, chain in zip(rows, chains, strict=True):
                    yield f"{url}:row {first_row + number}", chain_from_row(chain)
            first_row += ids.num_rows


def _holds_any(row: dict[str, object], wanted: Collection[str]) -> bool:
    if "chain_id" in row:
        return row["chain_id"] in wanted
    examples = row["examples"]
    assert isinstance(examples, list)
    return any(example["document"]["doc_id"] in wanted for example in examples)


def changed_inputs(inputs: Sequence[str], *, kind: str, versions: Mapping[str, str]) -> list[str]:
    """Files of records, and instruction corpora, that are not as they were.

    Args:
        inputs: Files, folders and globs.
        kind: The component's kind.
        versions: By URL what `describe_file` gave of a file, and the fingerprints of corpora; files that are not named
            are not judged.

    Raises:
        ValueError: An input is not there.
    """
    changed: list[str] = []
    for source in inputs:
        if _is_instruction_corpus(source, kind=kind):
            if read_instruction_corpus_manifest(source).fingerprint not in versions.values():
                changed.append(source)
        else:
            files = storage.find_input_files([source], suffixes=SUFFIXES)
            changed += [f.url for f in files if versions.get(f.url, describe_file(f)) != describe_file(f)]
    return changed


def _is_instruction_corpus(source: str, *, kind: str) -> bool:
    return kind == "instructions" and storage.exists(storage.join(source, COMPLETED_FILE))


def describe_file(file: InputFile) -> str:
    """What a manifest says of a file of records that it was made from."""
    return f"{file.size_bytes} bytes, {file.version}"


def _record_files(inputs: Sequence[str], *, kind: str) -> list[str]:
    files: list[str] = []
    for source in inputs:
        if _is_instruction_corpus(source, kind=kind):
            files += [storage.join(source, entry.path) for entry in read_instruction_corpus_manifest(source).parts]
        else:
            files += [file.url for file in storage.find_input_files([source], suffixes=SUFFIXES)]
    return files


def _records(urls: Sequence[str], *, text_field: str) -> Iterator[Record]:
    for url in urls:
        for record in read_records(url, text_field=text_field):
            if isinstance(record, Record):
                yield record


def _document_origin(record: Record, fields: FieldNames) -> tuple[str, TextOrigin] | None:
    document = document_from_record(record, fields=fields)
    if not isinstance(document, Document):
        return None
    return document.doc_id, TextOrigin(place=record.place, document=document)


def _pair_origin(record: Record, fields: FieldNames) -> tuple[str, TextOrigin] | None:
    found = pair_from_record(record, id_field=fields.id)
    return (found[0], TextOrigin(place=record.place, pair=found[1])) if isinstance(found, tuple) else None
