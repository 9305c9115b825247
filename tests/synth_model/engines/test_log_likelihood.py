from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synth_model.engines import EngineConfig, load_engine, log_likelihood
from synth_model.engines.continuous_batching_session import ContinuousBatchingOptions
from synth_model.engines.log_likelihood import EncodedRequest, encode_request, log_likelihoods
from synth_model.generation import ChatMessage, Completion, Failure, Prompt, Sampling
from synth_model.scoring import Score, ScoringRequest
from tests.conftest import REPOSITORY

REAL_MODEL = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"
LEADS = ["<QUE> When? <ANS>", "<QUE> How often does the tide turn, and why? <ANS>", "x"]
PROMPTS = [
    Prompt(text="<s> <CON> The tide turns twice a day. </CON>\n\n"),
    Prompt(text="<s> <CON>  </CON>\n\n"),
    Prompt(text="<s> <CON> Ebb and flood follow the moon, and the moon the earth; naïve 漢字. </CON>\n\n"),
    Prompt(messages=(ChatMessage(role="user", content="Ask about this: the tide."),), response_prefix="Question:"),
]
CONTINUATIONS = [
    " Twice a day.",
    " 2",
    " Because the moon pulls at the water, and the water follows it around the earth.",
]
REQUESTS = [
    ScoringRequest(prompt=prompt, lead=lead, continuation=continuation)
    for lead in LEADS
    for continuation in CONTINUATIONS
    for prompt in PROMPTS
]


@pytest.fixture(scope="module")
def engine(model_folder):
    return load_engine(
        EngineConfig(
            model=model_folder,
            device="cpu",
            dtype="float32",
            context_length=256,
            max_batch_size=8,
            max_batch_tokens=4096,
        )
    )


def token_by_token(request, engine):
    """The definition: each token of the continuation given everything before it, one forward pass each."""
    tokenizer, model = engine._tokenizer, engine._model
    text = tokenizer.render(request.prompt) + request.lead
    before, ids = tokenizer.encode([Prompt(text=text), Prompt(text=text + request.continuation)])
    assert ids[: len(before)] == before
    total = 0.0
    with torch.inference_mode():
        for end in range(len(before), len(ids)):
            logits = model(torch.tensor([ids[:end]])).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[ids[end]])
    return Score(log_likelihood=total, num_tokens=len(ids) - len(before))


def assert_same(outcomes, expected):
    for outcome, score in zip(outcomes, expected, strict=True):
        assert outcome.num_tokens == score.num_tokens
        assert outcome.log_likelihood == pytest.approx(score.log_likelihood, abs=2e-3)


def test_scores_are_those_of_reading_token_by_token(engine):
    expected = [token_by_token(request, engine) for request in REQUESTS]
    assert_same(engine.score(REQUESTS), expected)
    assert len({round(score.mean, 1) for score in expected}) > 15
    assert len({score.num_tokens for score in expected}) == len(CONTINUATIONS)


def test_what_a_request_scores_depends_on_no_other(engine, monkeypatch):
    expected = [engine.score([request])[0] for request in REQUESTS]
    monkeypatch.setattr(engine, "_config", replace(engine._config, max_batch_size=3, max_batch_tokens=300))
    assert_same(engine.score(REQUESTS[::-1]), expected[::-1])
    assert engine.score([]) == []


def test_each_distinct_prompt_is_read_once(engine, monkeypatch):
    read = []
    forward = engine._model.forward

    def counting(**arguments):
        if arguments.get("past_key_values") is None:
            read.append(len(arguments["input_ids"]))
        return forward(**arguments)

    monkeypatch.setattr(engine._model, "forward", counting)
    monkeypatch.setattr(
        engine, "_config", replace(engine._config, max_batch_size=len(REQUESTS), max_batch_tokens=1 << 20)
    )
    engine.score(REQUESTS)
    assert read == [len(PROMPTS)]


def test_continuous_batching_scores_as_padded_batches_do_between_its_completions(engine):
    continuous = load_engine(
        replace(
            engine._config,
            batching="continuous",
            continuous=ContinuousBatchingOptions(page_size=16, cache_tokens=2048, max_requests=4),
        )
    )
    try:
        sampling, prompts = Sampling(max_new_tokens=8), PROMPTS[:2]
        completions = continuous.generate(prompts, sampling=sampling)
        assert all(isinstance(outcome, Completion) for outcome in completions)
        assert_same(continuous.score(REQUESTS), engine.score(REQUESTS))
        assert continuous.generate(prompts, sampling=sampling) == completions
    finally:
        continuous.close()


def test_batches_are_bounded_by_count_tokens_and_logits(engine, monkeypatch):
    sizes = []

    def watched(batch, *, model):
        longest = max(len(request.prompt_ids) for request in batch) + max(len(request.ids) for request in batch)
        sizes.append((len(batch), longest * len(batch), len(batch) * max(request.num_scored + 1 for request in batch)))
        return log_likelihoods(batch, model=model)

    monkeypatch.setattr(log_likelihood, "log_likelihoods", watched)
    expected = engine.score(REQUESTS)
    assert max(count for count, *_ in sizes) == 8
    for bounds in ({"max_batch_size": 5}, {"max_batch_tokens": 600}):
        sizes.clear()
        monkeypatch.setattr(engine, "_config", replace(engine._config, **bounds))
        assert_same(engine.score(REQUESTS), expected)
        assert sum(count for count, *_ in sizes) == len(REQUESTS)
        assert all(count <= bounds.get("max_batch_size", 8) for count, *_ in sizes)
        assert all(tokens <= bounds.get("max_batch_tokens", 4096) for _, tokens, _ in sizes)
        assert max(count for count, *_ in sizes) > 1
    sizes.clear()
    num_words = engine._model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(log_likelihood, "_MAX_LOGITS", 100 * num_words)
    assert_same(engine.score(REQUESTS), expected)
    assert max(columns for *_, columns in sizes) <= 100
    assert max(count for count, *_ in sizes) > 1


def test_a_request_that_cannot_be_scored_costs_itself_alone(engine):
    bad = [
        replace(REQUESTS[0], continuation=" long" * 300),
        replace(REQUESTS[0], lead="half \ud83d a pair"),
    ]
    expected = engine.score(REQUESTS[:2])
    outcomes = engine.score([bad[0], REQUESTS[0], bad[1], REQUESTS[1]])
    assert [type(outcome) for outcome in outcomes] == [Failure, Score, Failure, Score]
    assert [outcomes[0].reason, outcomes[2].reason] == ["prompt_too_long", "prompt_not_encodable"]
    assert_same([outcomes[1], outcomes[3]], expected)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(torch.OutOfMemoryError("full"), "out_of_memory"), (RuntimeError("odd"), "scoring_failed")],
)
def test_a_failing_batch_is_divided_until_only_the_request_that_fails_is_left(engine, monkeypatch, error, reason):
    marked = encode_request(REQUESTS[5], tokenizer=engine._tokenizer, context_length=256)
    tried = []

    def failing(batch, *, model):
        tried.append(len(batch))
        if marked in batch:
            raise error
        return log_likelihoods(batch, model=model)

    expected = engine.score(REQUESTS)
    monkeypatch.setattr(log_likelihood, "log_likelihoods", failing)
    outcomes = engine.score(REQUESTS)
    assert outcomes[5].reason == reason
    del outcomes[5], expected[5]
    assert_same(outcomes, expected)
    assert tried.count(1) >= 1


def test_a_token_that_joins_lead_and_continuation_belongs_to_the_continuation():
    class Pairs:
        """Reads two characters as one token."""

        def render(self, prompt):
            return prompt.text

        def encode(self, prompts):
            return [[hash(p.text[i : i + 2]) for i in range(0, len(p.text), 2)] for p in prompts]

    request = ScoringRequest(prompt=Prompt(text="abcd"), lead="efg", continuation="hij")
    encoded = encode_request(request, tokenizer=Pairs(), context_length=100)
    # ab cd ef gh ij: "g" is no token of its own, so "gh" is scored.
    assert encoded == EncodedRequest(
        prompt_ids=(hash("ab"), hash("cd")), ids=(hash("ef"), hash("gh"), hash("ij")), num_scored=2
    )
    # ab cd ef g: the lead has no token of its own, so the prompt leaves its last one to tell the first that is scored.
    request = ScoringRequest(prompt=Prompt(text="abcd"), lead="e", continuation="fg")
    encoded = encode_request(request, tokenizer=Pairs(), context_length=100)
    assert encoded == EncodedRequest(prompt_ids=(hash("ab"),), ids=(hash("cd"), hash("ef"), hash("g")), num_scored=2)


TOKENS = st.lists(st.integers(0, 200), min_size=1, max_size=12).map(tuple)


@settings(max_examples=25)
@given(
    prompts=st.lists(TOKENS, min_size=1, max_size=3, unique=True),
    rests=st.lists(st.tuples(st.integers(0, 2), TOKENS, TOKENS), min_size=1, max_size=6),
)
def test_any_batch_scores_as_its_requests_alone(engine, prompts, rests):
    batch = sorted(
        (
            EncodedRequest(prompt_ids=prompts[number % len(prompts)], ids=lead + scored, num_scored=len(scored))
            for number, lead, scored in rests
        ),
        key=lambda request: request.prompt_ids,
    )
    together = log_likelihoods(batch, model=engine._model)
    for request, score in zip(batch, together, strict=True):
        ids = request.prompt_ids + request.ids
        with torch.inference_mode():
            logits = engine._model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(logits[at - 1, ids[at]]) for at in range(len(ids) - request.num_scored, len(ids)))
        assert score.log_likelihood == pytest.approx(expected, abs=5e-3)
        assert score.num_tokens == request.num_scored


@pytest.mark.real_model
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason=f"{REAL_MODEL} is absent; make model puts it there")
def test_a_real_model_finds_a_response_likelier_behind_its_text():
    engine = load_engine(EngineConfig(model=str(REAL_MODEL), device="cpu", max_batch_size=8))
    texts = [
        "The old lighthouse of Varnby was built in 1871 by the engineer Tove Lindqvist.",
        "The bakery in Oswick sells eleven kinds of rye bread.",
    ]
    lead, response = " Who built the lighthouse?\nAnswer:", " Tove Lindqvist built it in 1871."
    requests = [
        ScoringRequest(prompt=Prompt(text=f"{text}\n\nQuestion:"), lead=lead, continuation=response)
        for text in (*texts, "")
    ]
    own, other, none = (outcome.mean for outcome in engine.score(requests))
    assert own > max(other, none) + 1
    assert [engine.score([request])[0].mean for request in requests] == pytest.approx([own, other, none], abs=1e-3)
    assert engine.score(requests)[0].log_likelihood == pytest.approx(
        token_by_token(requests[0], engine).log_likelihood, abs=1e-2
    )
