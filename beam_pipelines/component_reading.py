"""Reads the files of one mixture component and renders its training texts.

Each kind of component is one function from a file, or a range of its bytes, to texts and rejects in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from beam_pipelines.mixing import ComponentKind
from beam_pipelines.record_reading import FieldNames, document_from_record, pair_from_record
from beam_pipelines.text_tokenization import TextTokenizer
from contracts.record_files import WHOLE_FILE, ByteRange, Record, read_records
from contracts.records import Chain, Reject, RenderedText
from contracts.schemas import chain_from_row
from contracts.storage import open_input
from synth_model.tuning_sequences import tuning_sequences
from synth_model.wire_format import RELEASED_MARKS, SequenceMarks
from templates import TemplateConfig, bank_sha256, render_chain, render_document, render_instruction

_BATCH_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """What decides the texts of a component, besides its files and kind.

    Args:
        fields: Which fields of a record hold what.
        templates: Weights of the template families.
        sequence_length: Longest text of a synthesizer's tuning data, in tokens.
        marks: What opens and closes an example of that data.
        seed: Decides every template choice.
    """

    fields: FieldNames
    templates: TemplateConfig
    sequence_length: int
    seed: int
    marks: SequenceMarks = RELEASED_MARKS


def read_texts(
    url: str,
    *,
    byte_range: ByteRange = WHOLE_FILE,
    kind: ComponentKind,
    component: str,
    rendering: Rendering,
    tokenizer: TextTokenizer,
) -> Iterator[RenderedText | Reject]:
    """The training texts of a file of a component, and what could not be used.

    Args:
        url: A part of an augmented corpus, or a file of records.
        byte_range: What to read of a file of records (`contracts.record_files.byte_ranges`).
        kind: What is read and how it is rendered.
        component: Name of the component.
        rendering: What decides the texts.
        tokenizer: Measures texts that must fit a row.
    """
    match kind:
        case "chains":
            return _augmented_texts(url, component, rendering)
        case "chain_documents":
            return _chain_documents(url, component)
        case "documents":
            return _documents(_read_records(url, byte_range, rendering.fields), component, rendering.fields)
        case "instructions":
            return _instructions(_read_records(url, byte_range, rendering.fields), component, rendering.fields)
        case "synthesizer_tuning":
            return _tuning_sequences(url, component, rendering, tokenizer)


def rendering_inputs(kind: ComponentKind, *, rendering: Rendering) -> dict[str, Any]:
    """As JSON what decides the texts of one kind, so that nothing else makes them be tokenized again."""
    match kind:
        case "chains":
            return {"templates": asdict(rendering.templates), "bank": bank_sha256(), "seed": rendering.seed}
        case "chain_documents":
            return {}
        case "documents" | "instructions":
            return {"fields": asdict(rendering.fields)}
        case "synthesizer_tuning":
            return {"sequence_length": rendering.sequence_length, "marks": asdict(rendering.marks)}


def _read_chains(url: str) -> Iterator[Chain]:
    with open_input(url) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
            yield from map(chain_from_row, batch.to_pylist())


def _augmented_texts(url: str, component: str, rendering: Rendering) -> Iterator[RenderedText | Reject]:
    for chain in _read_chains(url):
        yield render_chain(chain, seed=rendering.seed, component=component, config=rendering.templates)


def _chain_documents(url: str, component: str) -> Iterator[RenderedText | Reject]:
    # The chain is the group: a document must not be trained on raw and validated on augmented, or the other way round.
    for chain in _read_chains(url):
        for example in chain.examples:
            yield render_document(example.document, component=component, group_id=chain.chain_id)


def _read_records(url: str, byte_range: ByteRange, fields: FieldNames) -> Iterator[Record | Reject]:
    return read_records(url, text_field=fields.text, byte_range=byte_range)


def _documents(
    records: Iterable[Record | Reject], component: str, fields: FieldNames
) -> Iterator[RenderedText | Reject]:
    for record in records:
        document = record if isinstance(record, Reject) else document_from_record(record, fields=fields)
        if isinstance(document, Reject):
            yield document
        else:
            yield render_document(document, component=component, group_id=document.doc_id)


def _instructions(
    records: Iterable[Record | Reject], component: str, fields: FieldNames
) -> Iterator[RenderedText | Reject]:
    for record in records:
        found = record if isinstance(record, Reject) else pair_from_record(record, id_field=fields.id)
        if isinstance(found, Reject):
            yield found
            continue
        pair_id, pair = found
        yield render_instruction(pair, text_id=pair_id, group_id=pair_id, component=component, doc_ids=(pair_id,))


def _tuning_sequences(
    url: str, component: str, rendering: Rendering, tokenizer: TextTokenizer
) -> Iterator[RenderedText | Reject]:
    for chain in _read_chains(url):
        yield from tuning_sequences(
            chain,
            component=component,
            max_tokens=rendering.sequence_length,
            special_tokens=tokenizer.description.special_tokens,
            count_tokens=lambda texts, spans: tokenizer.spans.count(texts, spans=spans),
            marks=rendering.marks,
        )
