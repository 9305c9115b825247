"""`ReadComponent`: the training texts of one mixture component, rendered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.mixing import ComponentConfig
from beam_pipelines.record_reading import FieldNames, document_from_record, pair_from_record
from beam_pipelines.transforms.read_records import ReadRecords
from contracts.record_files import Record
from contracts.records import Chain, Reject, RenderedText
from contracts.schemas import chain_from_row
from contracts.storage import InputFile, open_input
from templates import TemplateConfig, render_chain, render_document, render_instruction

TEXTS, REJECTS = "texts", "rejects"
_BATCH_ROWS = 256


@dataclass(kw_only=True)
class ReadComponent(beam.PTransform):
    """Begin -> (`RenderedText`, `Reject`), two collections.

    Args:
        component: What is read and how it is rendered.
        files: The component's files: parts of augmented corpora, or files of records.
        fields: Which fields of a record hold what.
        templates: Weights of the template families.
        seed: Decides every template choice.
    """

    component: ComponentConfig
    files: Sequence[InputFile]
    fields: FieldNames
    templates: TemplateConfig
    seed: int

    def expand(self, pbegin: beam.pvalue.PBegin) -> tuple[beam.PCollection, beam.PCollection]:
        """Augmented corpora are read chain by chain, everything else record by record."""
        name, kind = self.component.name, self.component.kind
        if kind in ("chains", "chain_documents"):
            chains = (
                pbegin
                | "Parts" >> beam.Create([file.url for file in self.files])
                | "DealParts" >> beam.Reshuffle()
                | "ReadChains" >> beam.FlatMap(_read_chains)
            )
            texts = (
                chains | "Render" >> beam.Map(_render_chain, name, self.templates, self.seed)
                if kind == "chains"
                else chains | "Documents" >> beam.FlatMap(_render_chain_documents, name)
            )
            return texts, pbegin | "NoRejects" >> beam.Create([])
        records, unreadable, _ = pbegin | "ReadRecords" >> ReadRecords(files=self.files, text_field=self.fields.text)
        render = _render_document if kind == "documents" else _render_instruction
        texts, unusable = records | "Render" >> beam.FlatMap(render, name, self.fields).with_outputs(
            REJECTS, main=TEXTS
        )
        return texts, (unreadable, unusable) | "Rejects" >> beam.Flatten()


def _read_chains(url: str) -> Iterable[Chain]:
    with open_input(url) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
            yield from map(chain_from_row, batch.to_pylist())


def _render_chain(chain: Chain, component: str, templates: TemplateConfig, seed: int) -> RenderedText:
    return render_chain(chain, seed=seed, component=component, config=templates)


def _render_chain_documents(chain: Chain, component: str) -> Iterable[RenderedText]:
    # The chain is the group: a document must not be trained on raw and validated on augmented, or the other way round.
    for example in chain.examples:
        yield render_document(example.document, component=component, group_id=chain.chain_id)


def _render_document(record: Record, component: str, fields: FieldNames) -> Iterable[RenderedText | TaggedOutput]:
    document = document_from_record(record, fields=fields)
    if isinstance(document, Reject):
        yield TaggedOutput(REJECTS, document)
    else:
        yield render_document(document, component=component, group_id=document.doc_id)


def _render_instruction(record: Record, component: str, fields: FieldNames) -> Iterable[RenderedText | TaggedOutput]:
    found = pair_from_record(record, id_field=fields.id)
    if isinstance(found, Reject):
        yield TaggedOutput(REJECTS, found)
        return
    pair_id, pair = found
    yield render_instruction(pair, text_id=pair_id, group_id=pair_id, component=component, doc_ids=(pair_id,))
