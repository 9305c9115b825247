"""What a record of a file (`contracts.record_files`) means to the pipelines: a document, or an instruction with its
response. A record that cannot be used becomes a `Reject` that names its place, and reading goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from beam_pipelines.instruction_shapes import find_pair
from contracts.record_files import Record, lone_surrogate, reject_record
from contracts.records import Document, InstructionPair, Reject
from contracts.seeding import stable_hash_hex


@dataclass(frozen=True, kw_only=True)
class FieldNames:
    """Which fields of a record hold what.

    Args:
        text: The text of a document; required in every record.
        id: Identifier; a record without one gets a hash of its source and text.
        title: Title, optional.
        source: What groups documents that may share a chain; a record without one belongs to ``default_source``.
        default_source: Source of records without one.
    """

    text: str = "text"
    id: str = "id"
    title: str = "title"
    source: str = "source"
    default_source: str = "corpus"


def document_from_record(record: Record, *, fields: FieldNames) -> Document | Reject:
    """The document of a record, or why there is none: a missing, wrong or empty text."""
    text = record.values.get(fields.text)
    if not isinstance(text, str):
        found = "is absent" if text is None else f"is a {type(text).__name__}"
        detail = f"field {fields.text!r} {found}; the record has {sorted(record.values)[:20]}"
        return reject_record(record.place, "no_text", detail, _as_json(record))
    if not text.strip():
        return reject_record(record.place, "empty_text", f"field {fields.text!r} holds no text", _as_json(record))
    if (lone := lone_surrogate(text)) is not None:
        return reject_record(record.place, "invalid_unicode", f"lone surrogate at character {lone}", _as_json(record))
    source = _label(record, fields.source) or fields.default_source
    title = record.values.get(fields.title)
    return Document(
        doc_id=_label(record, fields.id) or stable_hash_hex(0, "document", source, text),
        source=source,
        text=text,
        title=_encodable(title) if isinstance(title, str) and title.strip() else None,
    )


def pair_from_record(record: Record, *, id_field: str = "id") -> tuple[str, InstructionPair] | Reject:
    """An instruction's identifier and the pair of a record in one of the usual shapes, or why there is none.

    The shapes are those of `beam_pipelines.instruction_shapes`.
    """
    pair = find_pair(record.values)
    if isinstance(pair, str):
        return reject_record(record.place, "no_pair", pair, _as_json(record))
    return _label(record, id_field) or stable_hash_hex(0, "pair", pair.instruction, pair.response), pair


def _label(record: Record, field: str) -> str | None:
    """A string or number that names something; None where the field is absent, empty or holds anything else."""
    value = record.values.get(field)
    return _encodable(str(value)) or None if isinstance(value, (str, int, float)) else None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_json(record: Record) -> bytes:
    try:
        return json.dumps(dict(record.values), default=str).encode()
    except RecursionError:
        return b"(nested too deeply to be shown)"
