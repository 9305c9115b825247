"""`SplitDocuments`: see `synth_model.text_splitting`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from contracts.records import Document, Reject
from synth_model.engines import EngineConfig, load_tokenizer
from synth_model.generation import Sampling
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer
from synth_model.text_splitting import part_id, split_text

DOCUMENTS, REJECTS, SPLIT = "documents", "rejects", "split"


@dataclass(kw_only=True)
class SplitDocuments(beam.PTransform):
    """`Document` -> ``documents`` whose prompt fits the context, ``rejects``, ``split``: parts of each split document.

    A part has its document's id with ``#part-0001`` behind it.
    """

    engine: EngineConfig
    synthesizer: SynthesizerConfig
    sampling: Sampling

    def expand(self, documents: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """One document at a time; the tokenizer is loaded once a worker."""
        split = _SplitDocument(self.engine, self.synthesizer, self.sampling)
        return documents | beam.ParDo(split).with_outputs(REJECTS, SPLIT, main=DOCUMENTS)


class _SplitDocument(beam.DoFn):
    def __init__(self, engine: EngineConfig, synthesizer: SynthesizerConfig, sampling: Sampling) -> None:
        self._engine = engine
        self._synthesizer_config = synthesizer
        self._sampling = sampling

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(self._engine)
        self._synthesizer = make_synthesizer(self._synthesizer_config)

    def process(self, document: Document) -> Iterable[Document | TaggedOutput]:
        limit = self._engine.context_length - self._sampling.max_new_tokens
        num_own_tokens, num_frame_tokens = self._count_prompts(document, [document.text, ""])
        if num_own_tokens <= limit:
            yield document
            return
        if num_frame_tokens >= limit:
            raise ValueError(
                f"The prompt takes {num_frame_tokens} tokens before any text, but only {limit} are left for it: "
                f"engine.context_length ({self._engine.context_length}) less sampling.max_new_tokens "
                f"({self._sampling.max_new_tokens}). Use a longer context or a shorter prompt."
            )
        # What stands around a text is counted once, not with every paragraph.
        parts = split_text(
            document.text,
            max_tokens=limit - num_frame_tokens,
            count_tokens=lambda texts: [count - num_frame_tokens for count in self._count_prompts(document, texts)],
        )
        if parts is None:
            yield TaggedOutput(
                REJECTS,
                Reject(
                    doc_id=document.doc_id,
                    source=document.source,
                    stage="split",
                    reason="sentence_too_long",
                    detail=f"a sentence does not fit a prompt of {limit} tokens (context "
                    f"{self._engine.context_length}, {self._sampling.max_new_tokens} of it for the completion)",
                    text=document.text,
                ),
            )
            return
        yield TaggedOutput(SPLIT, len(parts))
        for number, text in enumerate(parts, start=1):
            yield Document(
                doc_id=part_id(document.doc_id, number=number), source=document.source, text=text, title=document.title
            )

    def _count_prompts(self, document: Document, texts: Sequence[str]) -> list[int]:
        special_tokens = self._tokenizer.special_tokens
        return self._tokenizer.count(
            [
                self._synthesizer.build_prompt(
                    (),
                    document=Document(doc_id=document.doc_id, source=document.source, text=text, title=document.title),
                    special_tokens=special_tokens,
                )
                for text in texts
            ]
        )
