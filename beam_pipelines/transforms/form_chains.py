"""`FormChains`: see `synth_model.chain_assignment`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import AsDict, TaggedOutput

from contracts.records import Document
from synth_model.chain_assignment import bucket_of, form_chains, num_buckets
from synth_model.chain_state import ChainState

STATES, REJECTS = "states", "rejects"


@dataclass(kw_only=True)
class FormChains(beam.PTransform):
    """`Document` -> ``states`` of `ChainState` with up to ``chain_length`` documents, ``rejects`` of `Reject`."""

    chain_length: int
    seed: int

    def expand(self, documents: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Documents are counted by source, since the number of buckets follows from it, and grouped once."""
        num_documents = (
            documents
            | "Source" >> beam.Map(lambda document: document.source)
            | "CountBySource" >> beam.combiners.Count.PerElement()
        )
        return (
            documents
            | "Bucket" >> beam.Map(_with_bucket, self.seed, AsDict(num_documents))
            | "GroupByBucket" >> beam.GroupByKey()
            | "Form" >> beam.FlatMap(_form, self.chain_length, self.seed).with_outputs(REJECTS, main=STATES)
        )


def _with_bucket(document: Document, seed: int, num_documents: Mapping[str, int]) -> tuple[tuple[str, int], Document]:
    buckets = num_buckets(num_documents[document.source])
    return (document.source, bucket_of(document.doc_id, num_buckets=buckets, seed=seed)), document


def _form(
    bucket: tuple[tuple[str, int], Iterable[Document]], chain_length: int, seed: int
) -> Iterable[ChainState | TaggedOutput]:
    chains, rejects = form_chains(bucket[1], chain_length=chain_length, seed=seed)
    yield from chains
    for reject in rejects:
        yield TaggedOutput(REJECTS, reject)
