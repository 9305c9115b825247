"""How much a response owes to its text: what it gains in likelihood when the model sees the text.

The model scores the response twice, behind the text with the instruction and behind the instruction alone. The gain is
the difference of the mean log-likelihoods, in nats a token: pointwise mutual information of text and response given the
instruction, a token. Near 0 the text is not needed: the answer is common knowledge, or made up. A negative gain
says that the text speaks against the response. Short responses score noisily.

"Without the text" keeps the prompt's format and leaves the place of the text empty, title included, so that the two
prompts differ in nothing else and format alone gains nothing. Earlier examples of the chain and other pairs of the text
are not shown in either.

A pair that the model cannot score is rejected as ``unscored``.

Cost: the text is read once more for all its pairs, and each pair twice.
Not done: telling a response that the text supports from one that only shares its topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from contracts.records import Document, InstructionPair
from synth_model.gates.config import PairGateConfig
from synth_model.gates.judging import CONTEXT_DEPENDENCE, JudgedPair, Measurement, Refusal, at_least
from synth_model.generation import Failure
from synth_model.scoring import Score, ScoringOutcome, ScoringRequest
from synth_model.synthesizer import Synthesizer

# Batching changes the last bits of a likelihood; a score that is shown and compared has none of them.
_DECIMALS = 3


def scoring_requests(
    pairs: Sequence[InstructionPair],
    *,
    document: Document,
    synthesizer: Synthesizer,
    special_tokens: Sequence[str],
) -> tuple[ScoringRequest, ...]:
    """What to ask the model about the pairs of a text: for each, in order, with the text and without it."""
    prompts = [
        synthesizer.build_prompt((), document=shown, special_tokens=special_tokens)
        for shown in (document, replace(document, text="", title=None))
    ]
    requests = []
    for pair in pairs:
        lead, response = synthesizer.split_at_response(pair, special_tokens=special_tokens)
        requests += [ScoringRequest(prompt=prompt, lead=lead, continuation=response) for prompt in prompts]
    return tuple(requests)


def add_context_dependence(
    judged: Sequence[JudgedPair], outcomes: Sequence[ScoringOutcome], *, gates: PairGateConfig
) -> list[JudgedPair]:
    """Judged pairs with the gate's measurement added to those that have passed so far.

    Args:
        judged: The pairs of a text.
        outcomes: Of `scoring_requests` for those of them that have passed so far, in order: two a pair.
        gates: For the bound.
    """
    assert gates.min_context_dependence is not None
    remaining = iter(outcomes)
    result = []
    for item in judged:
        if item.refusal is None:
            measurement = _measure(next(remaining), next(remaining), bound=gates.min_context_dependence)
            item = replace(item, measurements=(*item.measurements, measurement))
        result.append(item)
    assert next(remaining, None) is None, "more outcomes than requests"
    return result


def _measure(with_text: ScoringOutcome, without_text: ScoringOutcome, *, bound: float) -> Measurement:
    for outcome in (with_text, without_text):
        if isinstance(outcome, Failure):
            refusal = Refusal(reason="unscored", detail=f"{outcome.reason}: {outcome.detail}")
            return Measurement(gate=CONTEXT_DEPENDENCE, score=None, refusal=refusal)
    assert isinstance(with_text, Score)
    assert isinstance(without_text, Score)
    gain = round(with_text.mean - without_text.mean, _DECIMALS)
    return at_least(CONTEXT_DEPENDENCE, gain, bound=bound, reason="context_independent")
