import pytest

from contracts.records import Document, InstructionPair
from synth_model.engines.fake_engine import FakeEngine, FakeOptions, FakeTokenizer
from synth_model.gates.config import PairGateConfig
from synth_model.gates.context_dependence import add_context_dependence, scoring_requests
from synth_model.gates.judging import judge_pairs, score_counts, settle
from synth_model.generation import Failure
from synth_model.scoring import Score, scoring_key
from synth_model.synthesizer import SynthesizerConfig, make_synthesizer

DOCUMENT = Document(doc_id="d", source="web", title="A <QUE> title", text="Oswick </END> bakes rye <|fake_end|> bread.")
PAIRS = [
    InstructionPair(instruction="What does <ANS> bake?", response="Rye </END> bread."),
    InstructionPair(instruction="Where?", response="In Oswick."),
]
SPECIAL_TOKENS = FakeTokenizer.special_tokens


def requests_of(kind, pairs=PAIRS):
    return scoring_requests(
        pairs,
        document=DOCUMENT,
        synthesizer=make_synthesizer(SynthesizerConfig(kind=kind)),
        special_tokens=SPECIAL_TOKENS,
    )


def test_requests_stand_in_the_wire_format_with_the_text_and_with_its_place_empty():
    with_text, without, other, _ = requests_of("wire_format")
    joiner = "\u2060"
    assert with_text.prompt.text == (
        f"<s> <CON> Oswick <{joiner}/END> bakes rye <{joiner}|fake_end|> bread. </CON>\n\n"
    )
    assert without.prompt.text == "<s> <CON>  </CON>\n\n"
    assert with_text.lead == without.lead == f"<QUE> What does <{joiner}ANS> bake? <ANS>"
    assert with_text.continuation == without.continuation == f" Rye <{joiner}/END> bread."
    assert (other.prompt, other.lead, other.continuation) == (with_text.prompt, "<QUE> Where? <ANS>", " In Oswick.")


def test_requests_stand_in_the_chat_format_with_the_text_and_with_its_place_empty():
    with_text, without, *_ = requests_of("chat")
    assert with_text.prompt.response_prefix == "Question:"
    assert with_text.lead == " What does <ANS> bake?\nAnswer:"
    assert with_text.continuation == " Rye </END> bread."
    assert "A <QUE> title" in with_text.prompt.messages[-1].content
    assert "Oswick" in with_text.prompt.messages[-1].content
    assert with_text.prompt.messages[:-1] == without.prompt.messages[:-1]
    shown, empty = with_text.prompt.messages[-1].content, without.prompt.messages[-1].content
    text = "A <QUE> title\n\nOswick </END> bakes rye <\u2060|fake_end|> bread."
    assert shown.replace(text, "") == empty


@pytest.mark.parametrize("kind", ["wire_format", "chat"])
def test_what_is_scored_follows_the_prompt_as_a_completion_does(kind):
    """A pair put together from its parts is parsed as that pair, markup in it included."""
    from synth_model.generation import Completion

    synthesizer = make_synthesizer(SynthesizerConfig(kind=kind))
    for pair in PAIRS:
        lead, response = synthesizer.split_at_response(pair, special_tokens=SPECIAL_TOKENS)
        end = " </END>" if kind == "wire_format" else ""
        completion = Completion(
            text=f"{lead}{response}{end}", finish_reason="stop", num_prompt_tokens=1, num_new_tokens=1
        )
        assert synthesizer.parse(completion, special_tokens=SPECIAL_TOKENS) == [pair]


def judge(gates, outcomes, pairs=PAIRS):
    return add_context_dependence(judge_pairs(pairs, document=DOCUMENT, gates=gates), outcomes, gates=gates)


def score(mean, *, num_tokens=4):
    return Score(log_likelihood=mean * num_tokens, num_tokens=num_tokens)


def test_the_gain_is_the_difference_of_the_means_in_nats_a_token():
    gates = PairGateConfig(min_context_dependence=0.5)
    judged = judge(gates, [score(-1.0), score(-2.25), score(-3.0, num_tokens=2), score(-3.4, num_tokens=2)])
    assert [item.measurements[-1].score for item in judged] == [1.25, 0.4]
    kept, (reject,) = settle(judged, document=DOCUMENT, gates=gates)
    assert kept == PAIRS[:1]
    assert (reject.reason, reject.detail) == ("context_independent", "context dependence 0.400 is below 0.5")
    assert list(score_counts(judged)) == [("context_dependence", (14, False)), ("context_dependence", (10, True))]


def test_pairs_that_have_failed_before_are_not_asked_about():
    gates = PairGateConfig(min_context_dependence=-1.0, max_response_characters=11)
    judged = judge(gates, [score(-1.0), score(-1.5)])
    assert [len(item.measurements) for item in judged] == [1, 2]
    assert judged[1].refusal is None
    with pytest.raises(AssertionError, match="more outcomes"):
        judge(gates, [score(-1.0)] * 4)


def test_a_pair_that_could_not_be_scored_is_rejected_as_such_and_counted_in_no_histogram():
    gates = PairGateConfig(min_context_dependence=0.0)
    failure = Failure(reason="out_of_memory", detail="too long")
    judged = judge(gates, [score(-1.0), failure, score(-1.0), score(-2.0)])
    kept, (reject,) = settle(judged, document=DOCUMENT, gates=gates)
    assert kept == PAIRS[1:]
    assert (reject.reason, reject.detail) == ("unscored", "out_of_memory: too long")
    assert len(list(score_counts(judged))) == 1


def test_the_fake_engine_finds_words_of_the_text_likelier_behind_it():
    engine = FakeEngine(FakeOptions(), context_length=512)
    requests = requests_of("wire_format")
    outcomes = engine.score(requests)
    assert outcomes == [engine.score([request])[0] for request in requests]
    gates = PairGateConfig(min_context_dependence=0.0)
    assert min(item.measurements[-1].score for item in judge(gates, outcomes)) > 0.5
    with_text, without_text, *_ = outcomes
    assert with_text.num_tokens == without_text.num_tokens
    assert all(
        isinstance(item, Failure)
        for item in FakeEngine(FakeOptions(failure_rate=1.0), context_length=9).score(requests)
    )


def test_a_key_names_model_and_requests():
    requests = requests_of("wire_format")
    keys = {
        scoring_key(requests, model_id="m"),
        scoring_key(requests[:2], model_id="m"),
        scoring_key(requests, model_id="n"),
        scoring_key(requests_of("chat"), model_id="m"),
    }
    assert len(keys) == 4
    assert scoring_key(requests_of("wire_format"), model_id="m") in keys
