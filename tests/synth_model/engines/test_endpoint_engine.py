import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contracts.records import Document
from synth_model.chat_prompt import load_wording
from synth_model.engines import EngineConfig, endpoint_engine, load_engine, load_tokenizer
from synth_model.engines.endpoint_engine import (
    BadResponseError,
    EndpointEngine,
    EndpointOptions,
    EndpointUnavailableError,
)
from synth_model.generation import ChatMessage, Completion, Prompt, Sampling, prompt_seed
from synth_model.prompt_tokenizer import ModelTokenizer
from synth_model.synthesizer import ChatSynthesizer
from synth_model.wire_format import build_prompt
from tests.conftest import REPOSITORY
from tests.synth_model import tiny_model
from tests.synth_model.engines.endpoint_server import Received, Reply, serving

SAMPLING = Sampling(max_new_tokens=12)
PROMPTS = [Prompt(text=f"<s> <CON> Tide {number} </CON>\n\n") for number in range(24)]
CHAT = Prompt(
    messages=(ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Ask.")),
    response_prefix="Q:",
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("endpoint_tokenizer"))
    tiny_model.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return ModelTokenizer(tokenizer_folder)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr(endpoint_engine, "_FIRST_PAUSE_SECONDS", 0.005)


@pytest.fixture
def connect(tokenizer_folder):
    """Makes an engine for a URL, with options; all of them are closed in the end."""
    engines = []

    def make(url, *, model="served", context_length=512, **options):
        defaults = {"base_url": url, "tokenizer": tokenizer_folder, "max_retries": 3, "timeout_seconds": 5.0}
        config = EngineConfig(
            kind="endpoint",
            model=model,
            context_length=context_length,
            endpoint=EndpointOptions(**{**defaults, **options}),
        )
        config.check()
        engines.append(load_engine(config))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def reply(request: Received, text: str, *, finish_reason: str = "stop", **fields) -> Reply:
    """A completion as servers send it."""
    choice = {"index": 0, "finish_reason": finish_reason}
    if "messages" in request.fields:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Reply(body={"id": "x", "object": "text_completion", "choices": [choice], "usage": usage, **fields})


@pytest.fixture(scope="module")
def echo(tokenizer):
    """What a request asks for, upside down: the answer that belongs to it and to no other."""

    def words(request: Received) -> str:
        prompt = request.fields.get("prompt")
        if prompt is None:
            return request.fields["messages"][-1]["content"]
        return prompt if isinstance(prompt, str) else tokenizer.tokenizer.decode(prompt)

    return words


def is_harmless(request: Received, echo) -> bool:
    return echo(request) == "Hello"


def texts(outcomes):
    return [outcome.text for outcome in outcomes]


# What is sent.


def test_a_string_is_sent_as_token_ids_and_nothing_else_is_asked(connect, tokenizer):
    with serving(lambda request: reply(request, " words")) as server:
        outcomes = connect(server.url).generate(PROMPTS[:1], sampling=SAMPLING)
    assert outcomes == [Completion(text=" words", finish_reason="stop", num_prompt_tokens=7, num_new_tokens=3)]
    (received,) = server.received
    (ids,) = tokenizer.encode(PROMPTS[:1])
    assert ids.count(0) == 1
    assert received.path == "/v1/completions"
    assert received.fields == {"model": "served", "prompt": ids, "max_tokens": 12, "temperature": 0.0}


def test_a_conversation_is_left_to_the_server_or_rendered_here(connect, tokenizer):
    with serving(lambda request: reply(request, "words")) as server:
        connect(server.url).generate([CHAT], sampling=SAMPLING)
        connect(server.url, api="completions").generate([CHAT], sampling=SAMPLING)
    chat, rendered = server.received
    assert (chat.path, rendered.path) == ("/v1/chat/completions", "/v1/completions")
    assert chat.fields["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Ask."},
    ]
    assert "prompt" not in chat.fields
    assert rendered.fields["prompt"] == tokenizer.encode([CHAT])[0]


@pytest.mark.parametrize("answer", ["Q: why?", "\n Q: why?", " why?"])
def test_what_a_conversation_was_to_begin_with_is_not_repeated(connect, answer):
    with serving(lambda request: reply(request, answer)) as server:
        (outcome,) = connect(server.url).generate([CHAT], sampling=SAMPLING)
    assert outcome.text == " why?"


def test_pairs_are_read_from_an_endpoint_that_was_not_told_how_to_begin(connect):
    synthesizer = ChatSynthesizer(wording=load_wording("english"))
    document = Document(doc_id="d", source="s", text="The tide turns at noon.")
    prompt = synthesizer.build_prompt((), document=document, special_tokens=())
    written = "Here you are:\n\nQuestion: When does it turn?\nAnswer: At noon."
    with serving(lambda request: reply(request, written)) as server:
        (outcome,) = connect(server.url, context_length=8192).generate([prompt], sampling=SAMPLING)
    (pair,) = synthesizer.parse(outcome, special_tokens=())
    assert (pair.instruction, pair.response) == ("When does it turn?", "At noon.")


def test_a_server_that_takes_strings_reads_the_prompts_own_tokens(connect, tokenizer):
    text = build_prompt([], text="Flood.")
    prompts = [Prompt(text=text), Prompt(text=text + "</s>" + text), Prompt(text="no BOS"), CHAT]
    with serving(lambda request: reply(request, "words")) as server:
        outcomes = connect(server.url, prompt_form="text", api="completions").generate(prompts, sampling=SAMPLING)
    sent = sorted((request.fields["prompt"] for request in server.received), key=len)
    assert [tokenizer.tokenizer(one)["input_ids"] for one in sent] == tokenizer.encode(prompts[:2])
    assert [one.count("<s>") for one in sent] == [0, 1]
    # The server would put BOS in front of these, whatever they were.
    assert [outcome.reason for outcome in outcomes[2:]] == ["prompt_not_encodable"] * 2
    assert "Set engine.endpoint.prompt_form to 'token_ids'" in outcomes[2].detail


def test_sampling_is_sent_as_the_endpoint_calls_it(connect):
    hot = Sampling(max_new_tokens=5, temperature=0.8, top_p=0.9, seed=3, frequency_penalty=0.5, presence_penalty=-1.0)
    with serving(lambda request: reply(request, "words")) as server:
        engine = connect(server.url)
        engine.generate(PROMPTS[:3], sampling=hot)
        engine.generate(PROMPTS[2:3], sampling=hot)
    fields = [request.fields for request in server.received]
    expected = {
        "max_tokens": 5,
        "temperature": 0.8,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": -1.0,
    }
    assert {name: fields[0][name] for name in expected} == expected
    # A prompt's own seed, whatever its batch.
    seeds = [prompt_seed(prompt, sampling=hot) >> 32 for prompt in PROMPTS[:3]]
    assert sorted(one["seed"] for one in fields) == sorted([*seeds, seeds[2]])
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_further_fields_are_sent_and_a_null_leaves_one_out(connect):
    extra_body = {"max_tokens": None, "max_completion_tokens": 9, "chat_template_kwargs": {"enable_thinking": False}}
    with serving(lambda request: reply(request, "words")) as server:
        connect(server.url, extra_body=extra_body).generate([CHAT], sampling=SAMPLING)
    fields = server.received[0].fields
    assert "max_tokens" not in fields
    assert (fields["max_completion_tokens"], fields["chat_template_kwargs"]) == (9, {"enable_thinking": False})


def test_the_key_comes_from_the_environment_and_stays_out_of_the_config(connect, monkeypatch):
    monkeypatch.setenv("TIDE_KEY", "secret-of-the-sea")
    with serving(lambda request: reply(request, "words")) as server:
        engine = connect(server.url, api_key_env="TIDE_KEY")
        engine.generate(PROMPTS[:1], sampling=SAMPLING)
    assert server.received[0].headers["authorization"] == "Bearer secret-of-the-sea"
    assert "secret-of-the-sea" not in json.dumps(asdict(EndpointOptions(api_key_env="TIDE_KEY")))
    monkeypatch.delenv("TIDE_KEY")
    with pytest.raises(ValueError, match="api_key_env is 'TIDE_KEY', but no such environment variable"):
        connect(server.url, api_key_env="TIDE_KEY")


def test_prompts_that_cannot_be_completed_are_not_sent(connect, monkeypatch):
    with serving(lambda request: reply(request, "words")) as server:
        outcomes = connect(server.url, context_length=60).generate(
            [Prompt(text="x" * 49), Prompt(text="half \ud800"), Prompt(text="x" * 48)], sampling=SAMPLING
        )
    assert [getattr(outcome, "reason", "") for outcome in outcomes] == ["prompt_too_long", "prompt_not_encodable", ""]
    assert len(server.received) == 1


# What comes back.


def test_what_the_server_does_not_count_is_counted_here(connect, tokenizer):
    (ids,) = tokenizer.encode(PROMPTS[:1])
    for usage in (None, {}, {"prompt_tokens": "7", "completion_tokens": True}, {"completion_tokens": -1}, [1]):
        with serving(lambda request, usage=usage: reply(request, "four", usage=usage)) as server:
            (outcome,) = connect(server.url).generate(PROMPTS[:1], sampling=SAMPLING)
        assert (outcome.num_prompt_tokens, outcome.num_new_tokens) == (len(ids), 4)


def test_an_empty_completion_is_one_and_a_filtered_one_is_a_failure(connect):
    def answer(request):
        return reply(request, "", finish_reason="content_filter" if 5 in request.fields["prompt"] else "stop")

    prompts = [PROMPTS[0], Prompt(text="".join(map(chr, range(33, 50))))]
    with serving(answer) as server:
        outcomes = connect(server.url).generate(prompts, sampling=SAMPLING)
    assert outcomes[0] == Completion(text="", finish_reason="stop", num_prompt_tokens=7, num_new_tokens=3)
    assert outcomes[1].reason == "content_filtered"
    assert len(server.received) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "text", "message", "content", "finish_reason", "usage", "completion_tokens"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "text": JSON | st.just("words"),
        "message": JSON | st.fixed_dictionaries({}, optional={"content": JSON | st.just("words")}),
        "finish_reason": JSON | st.sampled_from(["stop", "length", "content_filter", "tool_calls"]),
    },
)
ANSWERS = (
    st.text(max_size=30)
    | JSON.map(json.dumps)
    | st.fixed_dictionaries({"choices": st.lists(CHOICES | JSON, max_size=2)}, optional={"usage": JSON}).map(json.dumps)
)


@pytest.fixture(scope="module")
def reader(tokenizer_folder):
    engine = EndpointEngine(
        EngineConfig(
            kind="endpoint",
            model="served",
            endpoint=EndpointOptions(base_url="http://127.0.0.1:9/v1", tokenizer=tokenizer_folder),
        )
    )
    yield engine
    engine.close()


@pytest.mark.parametrize("prompt", [PROMPTS[0], CHAT])
@settings(max_examples=150)
@given(answer=ANSWERS)
@example(answer=json.dumps({"choices": [{"text": "words", "finish_reason": "stop"}]}))
@example(answer=json.dumps({"choices": [{"message": {"content": " Q: words"}, "finish_reason": "stop"}]}))
def test_any_answer_is_a_completion_a_failure_or_no_answer(reader, prompt, answer):
    request = reader._request(prompt, SAMPLING)
    try:
        outcome = reader._read(answer, request)
    except BadResponseError:
        return
    choice = json.loads(answer)["choices"][0]
    if choice["finish_reason"] == "content_filter":
        assert outcome.reason == "content_filtered"
    else:
        text = choice["message"]["content"] if prompt is CHAT else choice["text"]
        if prompt is CHAT and text.lstrip().startswith("Q:"):
            text = text.lstrip().removeprefix("Q:")
        assert outcome.text == text
        assert outcome.num_new_tokens >= 0
        assert outcome.finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    "answer",
    ['{"choices":' + "[" * 200_000, '{"choices": [{"text": "half \\ud800", "finish_reason": "stop"}], "usage": null}'],
    ids=["nesting that no parser follows", "half a surrogate pair"],
)
def test_what_is_no_text_is_no_answer(reader, answer):
    with pytest.raises(BadResponseError):
        reader._read(answer, reader._request(PROMPTS[0], SAMPLING))


# What goes wrong and right again.

TROUBLES = {
    "broken": Reply(status=500, body={"error": {"message": "internal"}}),
    "gone for a while": Reply(status=503, body="<html>upstream</html>", headers={"Content-Type": "text/html"}),
    "too much": Reply(status=429, headers={"Retry-After": "0.01"}, body={"error": {"message": "slow down"}}),
    "a page": Reply(body="<html>Welcome</html>", headers={"Content-Type": "text/html"}),
    "half": Reply(body='{"choices": [{"text": "wo'),
    "an error": Reply(body={"error": {"message": "told as a success"}}),
    "nothing": Reply(body=""),
    "no choice": Reply(body={"choices": []}),
    "no text": Reply(body={"choices": [{"text": None, "message": {"content": None}, "finish_reason": "stop"}]}),
    "no end": Reply(body={"choices": [{"text": "wo", "finish_reason": None}]}),
    "dropped": Reply(body={"choices": [{"text": "words", "finish_reason": "stop"}]}, is_dropped=True),
    "stalled": Reply(seconds=2.0),
}


@contextmanager
def troubled_server(echo, troubles_by_words):
    """Each prompt meets its troubles, one a request, and then gets its answer."""
    lock = threading.Lock()
    waiting = {words: list(troubles) for words, troubles in troubles_by_words.items()}

    def answer(request):
        words = echo(request)
        with lock:
            trouble = waiting[words].pop(0) if waiting.get(words) else None
        return reply(request, words[::-1]) if trouble is None else TROUBLES[trouble]

    with serving(answer) as server:
        yield server


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    # Without stalls, which the server would count as open when the client has long given up.
    troubles=st.lists(
        st.lists(st.sampled_from(sorted(TROUBLES.keys() - {"stalled"})), max_size=3), min_size=1, max_size=len(PROMPTS)
    ),
    max_concurrency=st.integers(1, 6),
)
def test_every_prompt_gets_its_own_outcome_whatever_happens_in_between(connect, echo, troubles, max_concurrency):
    prompts = PROMPTS[: len(troubles)]
    troubles_by_words = {prompt.text: list(own) for prompt, own in zip(prompts, troubles, strict=True)}
    with troubled_server(echo, troubles_by_words) as server:
        engine = connect(server.url, max_concurrency=max_concurrency)
        outcomes = engine.generate(prompts, sampling=SAMPLING)
    assert texts(outcomes) == [prompt.text[::-1] for prompt in prompts]
    assert server.most_at_once <= max_concurrency
    requests = Counter(echo(request) for request in server.received)
    assert requests == {prompt.text: len(own) + 1 for prompt, own in zip(prompts, troubles, strict=True)}


@pytest.mark.parametrize("trouble", sorted(TROUBLES))
def test_each_trouble_is_got_over(connect, echo, trouble):
    with troubled_server(echo, {PROMPTS[0].text: [trouble]}) as server:
        (outcome,) = connect(server.url, timeout_seconds=1.0).generate(PROMPTS[:1], sampling=SAMPLING)
    assert outcome.text == PROMPTS[0].text[::-1]
    assert len(server.received) == 2


def test_threads_share_one_limit_and_keep_their_order(connect, echo):
    with serving(lambda request: replace(reply(request, echo(request)[::-1]), seconds=0.02)) as server:
        engine = connect(server.url, max_concurrency=5)
        results = {}

        def work(number):
            own = PROMPTS[number * 4 : number * 4 + 8]
            results[number] = texts(engine.generate(own, sampling=SAMPLING)) == [one.text[::-1] for one in own]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == dict.fromkeys(range(4), True)
    # The limit is kept, and it is what held requests back.
    assert server.most_at_once == 5


def test_as_long_as_the_server_asks_is_waited(connect, echo, monkeypatch):
    replies = [Reply(status=429, headers={"Retry-After": "1"}), Reply(status=503, headers={"Retry-After": "0.5"})]
    with serving(lambda request: replies.pop(0) if replies else reply(request, "words")) as server:
        connect(server.url).generate(PROMPTS[:1], sampling=SAMPLING)
    first, second, third = [request.at_seconds for request in server.received]
    assert 0.95 <= second - first < 3
    assert 0.45 <= third - second < 3


# Whose fault it is.


def answer_unless(echo, words, trouble):
    """Answers everything but prompts that hold certain words."""

    def answer(request):
        return trouble if words in echo(request) else reply(request, echo(request)[::-1])

    return answer


@pytest.mark.parametrize(
    ("trouble", "reason", "detail", "num_requests"),
    [
        (Reply(status=400, body={"error": {"message": "too long"}}), "prompt_refused", "too long", 1),
        (Reply(status=422, body={"detail": "no"}), "prompt_refused", "no", 1),
        (Reply(status=500, body={"error": {"message": "assert"}}), "endpoint_failed", "assert", 3),
        (TROUBLES["stalled"], "endpoint_failed", "timed out", 3),
        (TROUBLES["dropped"], "endpoint_failed", "Connection error", 3),
        (TROUBLES["no text"], "bad_response", "holds no completion", 3),
    ],
)
def test_a_prompt_that_alone_fails_is_a_failure_of_its_own(connect, echo, trouble, reason, detail, num_requests):
    with serving(answer_unless(echo, "Tide 3 ", trouble)) as server:
        engine = connect(server.url, timeout_seconds=0.7, max_retries=1)
        outcomes = engine.generate(PROMPTS[:6], sampling=SAMPLING)
    failed = outcomes.pop(3)
    assert (failed.reason, detail in failed.detail) == (reason, True), failed
    assert texts(outcomes) == [prompt.text[::-1] for prompt in PROMPTS[:6] if prompt is not PROMPTS[3]]
    requests = Counter(echo(request) for request in server.received)
    assert (requests["Hello"], requests[PROMPTS[3].text]) == (1, num_requests)


def test_an_endpoint_that_refuses_everything_is_an_error_and_not_a_failure_of_each(connect):
    refusal = Reply(status=400, body={"error": {"message": "prompt must be a string."}})
    with serving(lambda request: refusal) as server:
        engine = connect(server.url)
        with pytest.raises(ValueError, match=r"refuses every request at /completions .*'served'.*must be a string"):
            engine.generate(PROMPTS, sampling=SAMPLING)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run_and_names_both(connect, echo, status):
    refusal = Reply(status=status, body={"error": {"message": "no such thing"}})
    with serving(answer_unless(echo, "Tide 3 ", refusal)) as server:
        engine = connect(server.url)
        with pytest.raises(ValueError, match=rf"endpoint {server.url} does not serve the model 'served'.*no such"):
            engine.generate(PROMPTS, sampling=SAMPLING)
    assert "Hello" not in [echo(request) for request in server.received]


@pytest.mark.parametrize("trouble", ["broken", "gone for a while", "stalled", "dropped", "a page", "no choice"])
def test_an_endpoint_that_answers_nothing_stops_the_run_and_works_again_later(connect, echo, trouble):
    with serving(lambda request: TROUBLES[trouble]) as server:
        engine = connect(server.url, timeout_seconds=0.5, max_retries=0)
        with pytest.raises(EndpointUnavailableError, match=rf"{server.url} does not complete prompts"):
            engine.generate(PROMPTS, sampling=SAMPLING)
        server.answer = lambda request: reply(request, echo(request)[::-1])
        assert texts(engine.generate(PROMPTS, sampling=SAMPLING)) == [prompt.text[::-1] for prompt in PROMPTS]


def test_no_server_at_all_stops_the_run(connect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointUnavailableError, match=r"Connection error.*What is done is kept"):
        connect(url).generate(PROMPTS, sampling=SAMPLING)


def test_what_is_always_too_much_stops_the_run(connect, echo):
    with serving(answer_unless(echo, "Tide 3 ", TROUBLES["too much"])) as server:
        engine = connect(server.url)
        with pytest.raises(EndpointUnavailableError, match=r"Lower engine\.endpoint\.max_concurrency"):
            engine.generate(PROMPTS, sampling=SAMPLING)


def test_an_outage_that_ends_just_after_the_last_attempt_costs_no_prompt(connect, echo):
    is_up = threading.Event()

    def answer(request):
        if is_harmless(request, echo):
            is_up.set()
        return reply(request, echo(request)[::-1]) if is_up.is_set() else TROUBLES["broken"]

    with serving(answer) as server:
        outcomes = connect(server.url, max_retries=1).generate(PROMPTS, sampling=SAMPLING)
    assert texts(outcomes) == [prompt.text[::-1] for prompt in PROMPTS]
    assert "Hello" in [echo(request) for request in server.received]


def test_an_error_ends_what_else_is_under_way(connect, echo):
    refusal = Reply(status=401, body={"error": {"message": "no"}})
    with serving(answer_unless(echo, "Tide 0 ", refusal)) as server:
        ordinary = server.answer
        server.answer = lambda request: replace(ordinary(request), seconds=0 if "Tide 0 " in echo(request) else 0.3)
        engine = connect(server.url, max_concurrency=2)
        with pytest.raises(ValueError, match="does not serve"):
            engine.generate(PROMPTS, sampling=SAMPLING)
        time.sleep(0.5)
        assert len(server.received) <= 4


# Before a run, and around it.


def test_a_look_before_the_run_finds_what_is_wrong(connect, echo):
    def answer(request):
        if request.fields["model"] != "served":
            return Reply(status=404, body={"error": {"message": "The model does not exist."}})
        # A model that thinks has said nothing after one token.
        return Reply(body={"choices": [{"message": {"content": None}, "finish_reason": "length"}]})

    with serving(answer) as server:
        connect(server.url).check(CHAT)
        assert (server.received[0].path, server.received[0].fields["max_tokens"]) == ("/v1/chat/completions", 1)
        with pytest.raises(ValueError, match=r"does not serve the model 'other'.*does not exist"):
            connect(server.url, model="other").check(CHAT)
        with pytest.raises(ValueError, match=r"cannot be sent to an endpoint: .* exceed the context of 8"):
            connect(server.url, context_length=8).check(CHAT)
    with pytest.raises(ValueError, match="Connection error"):
        connect(server.url).check(CHAT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": ""}, "engine.endpoint.base_url is ''; give the URL"),
        ({"base_url": "localhost:8000"}, "engine.endpoint.base_url is 'localhost:8000'"),
        ({"max_concurrency": 0}, "engine.endpoint.max_concurrency is 0"),
        ({"max_retries": -1}, "engine.endpoint.max_retries is -1"),
        ({"timeout_seconds": 0.0}, "engine.endpoint.timeout_seconds is 0.0"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    options = EndpointOptions(base_url="http://localhost:8000/v1")
    config = EngineConfig(kind="endpoint", model="served", endpoint=options)
    config.check()
    with pytest.raises(ValueError, match=message):
        replace(config, endpoint=replace(options, **changes)).check()
    with pytest.raises(ValueError, match=r"engine\.adapter is 'lora', but an endpoint loads its adapters itself"):
        replace(config, adapter="lora").check()
    with pytest.raises(ValueError, match=r"engine\.model is empty"):
        replace(config, model="").check()


def test_lengths_are_measured_with_the_models_own_or_a_named_tokenizer(tokenizer_folder):
    config = EngineConfig(kind="endpoint", model=tokenizer_folder)
    named = EngineConfig(
        kind="endpoint", model="served", endpoint=EndpointOptions(tokenizer=tokenizer_folder, extra_body={"top_k": [1]})
    )
    assert load_tokenizer(config).count_text(["abc"]) == load_tokenizer(named).count_text(["abc"]) == [3]
    assert (named.model_id, config.model_id) == ("served", tokenizer_folder)


def test_without_the_package_what_to_install_is_told(monkeypatch, tokenizer_folder):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[endpoint\]'"):
        load_engine(EngineConfig(kind="endpoint", model=tokenizer_folder))


def test_closing_gives_up_what_is_under_way_and_ends_the_thread(connect):
    with serving(lambda request: Reply(seconds=1.0)) as server:
        engine = connect(server.url)
        ended = []

        def work():
            with pytest.raises(CancelledError):
                engine.generate(PROMPTS[:1], sampling=SAMPLING)
            ended.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        while not server.received:
            time.sleep(0.01)
        engine.close()
        engine.close()
        thread.join(timeout=5)
    assert ended == [True]
    assert not engine._thread.is_alive()


# A real server.

REAL_MODEL = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def transformers_server():
    """`transformers serve` with the quickstart's model; its URL."""
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install 'transformers[serving]')")
    if not REAL_MODEL.is_dir():
        pytest.skip(f"{REAL_MODEL} is absent (make model)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    command += [str(REAL_MODEL), "--device=cpu", "--dtype=float32", "--host=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(600):
            assert process.poll() is None, "transformers serve has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.real_model
def test_a_real_server_completes_as_the_model_does_in_this_process(transformers_server):
    config = EngineConfig(
        kind="endpoint",
        model=str(REAL_MODEL),
        context_length=1024,
        endpoint=EndpointOptions(
            base_url=transformers_server, prompt_form="text", max_concurrency=2, max_retries=1, timeout_seconds=120.0
        ),
    )
    question = (ChatMessage(role="user", content="Name three colours."),)
    prompts = [
        Prompt(text="The capital of France is"),
        Prompt(messages=question),
        Prompt(text="Tides rise and fall because"),
        Prompt(text="too long " * 600),
    ]
    sampling = Sampling(max_new_tokens=12)
    with pytest.raises(ValueError, match="There is no model folder"):
        load_engine(replace(config, model="/absent"))
    engine = load_engine(config)
    rendering = load_engine(replace(config, endpoint=replace(config.endpoint, api="completions")))
    stubborn = load_engine(replace(config, endpoint=replace(config.endpoint, prompt_form="token_ids")))
    try:
        engine.check(prompts[1])
        outcomes = engine.generate(prompts, sampling=sampling)
        assert outcomes[3].reason == "prompt_too_long"
        here = load_engine(replace(config, kind="transformers", device="cpu"))
        expected = here.generate(prompts[:3], sampling=sampling)
        assert texts(outcomes[:3]) == texts(expected)
        assert [outcome.finish_reason for outcome in outcomes[:3]] == ["length"] * 3
        assert [one.num_prompt_tokens for one in outcomes[:3]] == [one.num_prompt_tokens for one in expected]
        assert texts(rendering.generate(prompts[1:2], sampling=sampling)) == texts(expected[1:2])
        # This server takes strings only, and says so before a run.
        with pytest.raises(ValueError, match="prompt must be a string"):
            stubborn.check(prompts[0])
    finally:
        for one in (engine, rendering, stubborn):
            one.close()
