"""`DecontaminateDocuments`: see `beam_pipelines.decontamination`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.decontamination import DecontaminationConfig, load_index
from contracts.records import Document, Reject

DOCUMENTS, REJECTS = "documents", "rejects"


@dataclass(kw_only=True)
class DecontaminateDocuments(beam.PTransform):
    """`Document` -> ``documents`` that share no passage with an evaluation set, ``rejects`` of `Reject`.

    The reason of a reject names the evaluation file, so that the counts of reasons are counts by file.

    Args:
        settings: What counts as contaminated.
        files: The evaluation files.
    """

    settings: DecontaminationConfig
    files: Sequence[str]

    def expand(self, documents: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """One document at a time; the index is loaded once a process."""
        return documents | beam.ParDo(_Decontaminate(self.settings, self.files)).with_outputs(REJECTS, main=DOCUMENTS)


class _Decontaminate(beam.DoFn):
    def __init__(self, settings: DecontaminationConfig, files: Sequence[str]) -> None:
        self._settings = settings
        self._files = list(files)

    def setup(self) -> None:
        self._index = load_index(self._settings, files=self._files)

    def process(self, document: Document) -> Iterable[Document | TaggedOutput]:
        found = self._index.find(document.text)
        if found is None:
            yield document
            return
        yield TaggedOutput(
            REJECTS,
            Reject(
                doc_id=document.doc_id,
                source=document.source,
                stage="decontaminate",
                reason=f"shared_with_{found.file}",
                detail=f"{found.words!r} stands in {found.place}",
                text=document.text,
            ),
        )
