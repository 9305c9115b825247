"""`LimitRepeatedInstructions`: how often equal or similar instructions may stand in the whole corpus.

An instruction such as "What is the main idea of the text?" suits many texts, so a few repeats are welcome; a corpus in
which a model asks every text the same is not. Of instructions that resemble one another so many stay as the bound
says, those with the lowest hash of document and place, hence spread over the corpus; the pairs of the others are
rejected. See `beam_pipelines.near_duplicates` for what resembles.

It runs when all chains are done, since only then all instructions are known. A text that loses its last pair is kept
as raw text. What a chain's later texts say stays as it is, ``inherits_previous`` included: their pairs were written
with the removed pair in view, and taking it away changes nothing about that.

Cost: the instructions are shuffled twice, where similar ones count too a third time for each MinHash band, and the
chains once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipelines.transforms.remove_near_duplicates import Duplicate, RemoveNearDuplicates
from contracts.records import Chain, Example
from contracts.seeding import stable_hash_hex
from synth_model.gates.config import PairGateConfig
from synth_model.gates.judging import SIMILARITY_IN_CORPUS, JudgedPair, Measurement, Refusal, score_counts, settle

CHAINS, REJECTS, SCORES = "chains", "rejects", "scores"

# Orders instructions, and leads back to the pair: hash, chain, index of the example, index of the pair, document.
_Place = tuple[str, str, int, int, str]


@dataclass(kw_only=True)
class LimitRepeatedInstructions(beam.PTransform):
    """`Chain` -> ``chains`` of `Chain`, ``rejects`` of `Reject`, ``scores`` for `CountScores`.

    Args:
        gates: How many repeats may stay, what counts as one, and whether anything is rejected.
    """

    gates: PairGateConfig

    def expand(self, chains: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Instructions are compared apart from their chains, and what is found joined to these again."""
        _, repeated = (
            chains
            | "Instructions" >> beam.FlatMap(_instructions)
            | "RemoveNearDuplicates"
            >> RemoveNearDuplicates(
                max_similarity=self.gates.max_similarity_in_corpus, max_repeats=self.gates.max_repeats_in_corpus
            )
        )
        keyed = {
            "chain": chains | "KeyChain" >> beam.Map(lambda chain: (chain.chain_id, chain)),
            "repeated": repeated | "KeyRepeated" >> beam.Map(lambda duplicate: (duplicate.text_id[1], duplicate)),
        }
        return (
            keyed
            | "JoinChain" >> beam.CoGroupByKey()
            | "Remove" >> beam.FlatMap(_remove, self.gates).with_outputs(REJECTS, SCORES, main=CHAINS)
        )


def _instructions(chain: Chain) -> Iterable[tuple[_Place, str]]:
    for example_index, example in enumerate(chain.examples):
        doc_id = example.document.doc_id
        for pair_index, pair in enumerate(example.pairs):
            order = stable_hash_hex(0, "repeated instruction", chain.source, doc_id, pair_index)
            yield (order, chain.chain_id, example_index, pair_index, doc_id), pair.instruction


def _remove(joined: tuple[str, dict[str, Iterable[Any]]], gates: PairGateConfig) -> Iterable[Chain | TaggedOutput]:
    (chain,) = joined[1]["chain"]
    repeated: dict[tuple[int, int], Duplicate] = {item.text_id[2:4]: item for item in joined[1]["repeated"]}
    examples: list[Example] = []
    for example_index, example in enumerate(chain.examples):
        judged = [
            JudgedPair(pair=pair, measurements=(_measure(repeated.get((example_index, pair_index)), gates),))
            for pair_index, pair in enumerate(example.pairs)
        ]
        kept, rejects = settle(judged, document=example.document, gates=gates)
        for reject in rejects:
            yield TaggedOutput(REJECTS, reject)
        for count in score_counts(judged):
            yield TaggedOutput(SCORES, count)
        # Without pairs it is raw text, which inherits nothing.
        examples.append(replace(example, pairs=tuple(kept), inherits_previous=example.inherits_previous and bool(kept)))
    yield replace(chain, examples=tuple(examples))


def _measure(duplicate: Duplicate | None, gates: PairGateConfig) -> Measurement:
    """The likeness to an instruction that stays and is resembled once too often; 0 for a pair that stays."""
    if duplicate is None:
        return Measurement(gate=SIMILARITY_IN_CORPUS, score=0.0)
    detail = (
        f"similarity {duplicate.similarity:.3f} to an instruction of document {duplicate.other_id[4]}; "
        f"{gates.max_repeats_in_corpus} such instructions may stay"
    )
    return Measurement(
        gate=SIMILARITY_IN_CORPUS,
        score=duplicate.similarity,
        refusal=Refusal(reason="repeated_in_corpus", detail=detail),
    )
