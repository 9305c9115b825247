import threading
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from contracts.records import Document, Example, InstructionPair
from synth_model.engines import EngineConfig, padded_generation
from synth_model.engines.transformers_engine import TransformersEngine, length_sorted_batches
from synth_model.generation import ChatMessage, Completion, Prompt, Sampling
from synth_model.wire_format import build_prompt
from tests.synth_model import tiny_model

SAMPLING = Sampling(max_new_tokens=12)
EOS_IDS = (1, *range(20, 30))
PREFIX = "What all of them begin with is long enough to share. "
PROMPTS = [
    Prompt(text=text)
    for text in [
        "a",
        "The tide turns twice a day.",
        "The tide turns twice a week, and that is a longer text than the one before.",
        "<s> <CON> Ebb. </CON>\n\n",
        *(PREFIX + ending for ending in ("Ebb", "Flood and ebb", "", "Neap tide, spring tide", "x", "yz")),
        "naïve 漢字 \U0001f642",
        "zzzzzzzzzzzzzzzzzzzz",
    ]
]


@pytest.fixture(scope="module")
def config(model_folder):
    return EngineConfig(
        model=model_folder, device="cpu", dtype="float32", context_length=256, max_batch_size=8, max_batch_tokens=4096
    )


@pytest.fixture(scope="module")
def loaded(config):
    return TransformersEngine(config)


@pytest.fixture
def engine(loaded, monkeypatch):
    """The loaded engine with settings that a test may change."""
    monkeypatch.setattr(loaded, "_config", loaded._config)
    return loaded


@pytest.fixture(scope="module")
def one_by_one(model_folder, loaded):
    """What plain generation of transformers gives for each prompt alone: text, finish reason and length."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = loaded._tokenizer
    results = []
    for ids in tokenizer.encode(PROMPTS):
        output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=SAMPLING.max_new_tokens)
        new_ids = output[0, len(ids) :].tolist()
        is_stopped = new_ids[-1] in EOS_IDS
        kept = new_ids[:-1] if is_stopped else new_ids
        results.append((tokenizer.tokenizer.decode(kept), "stop" if is_stopped else "length", len(ids), len(kept)))
    return results


def columns(outcomes):
    return [
        (outcome.text, outcome.finish_reason, outcome.num_prompt_tokens, outcome.num_new_tokens) for outcome in outcomes
    ]


def test_the_tiny_model_says_different_things_and_ends_some_of_them(one_by_one):
    assert len({text for text, *_ in one_by_one}) >= 10
    assert {reason for _, reason, *_ in one_by_one} == {"stop", "length"}


@pytest.mark.parametrize("shares_prefixes", [True, False])
@pytest.mark.parametrize("max_batch_size", [1, 2, 8])
def test_batches_and_shared_prefixes_change_nothing(engine, one_by_one, monkeypatch, max_batch_size, shares_prefixes):
    engine._config = replace(engine._config, max_batch_size=max_batch_size)
    if not shares_prefixes:
        monkeypatch.setattr(padded_generation, "_MIN_KNOWN_TOKENS", 10_000)
    assert columns(engine.generate(PROMPTS, sampling=SAMPLING)) == one_by_one
    backwards = engine.generate(PROMPTS[::-1], sampling=SAMPLING)
    assert columns(backwards[::-1]) == one_by_one


def test_conversations_are_completed_behind_their_prefix(engine):
    prompt = Prompt(messages=(ChatMessage(role="user", content="Ask."),), response_prefix="Q:")
    rendered = "<|im_start|>user\nAsk.<|im_end|>\n<|im_start|>assistant\nQ:"
    chat, plain = engine.generate([prompt, Prompt(text=rendered)], sampling=SAMPLING)
    assert chat == plain
    assert isinstance(chat, Completion)


def test_bos_stands_once_in_what_the_model_reads(engine, monkeypatch):
    earlier = Example(
        document=Document(doc_id="d", source="s", text="Ebb."),
        pairs=(InstructionPair(instruction="a?", response="b"),),
    )
    read = []
    generate = engine._generate
    monkeypatch.setattr(engine, "_generate", lambda batch, sampling: read.append(batch) or generate(batch, sampling))
    text = build_prompt([earlier], text="Flood.")
    (outcome,) = engine.generate([Prompt(text=text)], sampling=SAMPLING)
    ((prompt,),) = read
    assert prompt.ids.count(0) == 2
    assert outcome.num_prompt_tokens == len(prompt.ids)


def test_no_prompts_have_no_outcomes(engine):
    assert engine.generate([], sampling=SAMPLING) == []


def test_prompts_that_cannot_be_completed_are_failures_of_their_own(engine, one_by_one):
    engine._config = replace(engine._config, context_length=60)
    fits, too_long = Prompt(text="x" * 48), Prompt(text="x" * 49)
    outcomes = engine.generate([PROMPTS[0], too_long, Prompt(text="half \ud800"), fits, PROMPTS[1]], sampling=SAMPLING)
    assert columns([outcomes[0], outcomes[4]]) == one_by_one[:2]
    assert (outcomes[1].reason, outcomes[2].reason) == ("prompt_too_long", "prompt_not_encodable")
    assert "49 tokens and 12 new exceed the context of 60" in outcomes[1].detail
    assert isinstance(outcomes[3], Completion)


@pytest.mark.parametrize("chat_template", [None, "{{ raise_exception('Not today') }}"])
def test_a_conversation_that_cannot_be_rendered_is_a_failure_of_its_own(engine, monkeypatch, one_by_one, chat_template):
    monkeypatch.setattr(engine._tokenizer.tokenizer, "chat_template", chat_template)
    conversation = Prompt(messages=(ChatMessage(role="user", content="Ask."),))
    first, second = engine.generate([conversation, PROMPTS[0]], sampling=SAMPLING)
    assert first.reason == "prompt_not_encodable"
    assert columns([second]) == one_by_one[:1]


def test_an_error_in_a_batch_costs_one_prompt(engine, one_by_one, monkeypatch):
    generate = engine._generate
    (poison_id,) = engine._tokenizer.tokenizer.encode("\x07", add_special_tokens=False)
    calls = []

    def generate_or_raise(batch, sampling):
        calls.append(len(batch))
        if any(poison_id in prompt.ids for prompt in batch):
            raise IndexError("index out of range in self")
        return generate(batch, sampling)

    monkeypatch.setattr(engine, "_generate", generate_or_raise)
    prompts = [*PROMPTS[:3], Prompt(text="The tide \x07 turns"), *PROMPTS[3:7]]
    outcomes = engine.generate(prompts, sampling=SAMPLING)
    assert outcomes[3].reason == "generation_failed"
    assert outcomes[3].detail == "IndexError: index out of range in self"
    assert columns(outcomes[:3] + outcomes[4:]) == one_by_one[:7]
    assert calls == [8] + [1] * 8
    # The engine goes on working.
    assert columns(engine.generate(PROMPTS, sampling=SAMPLING)) == one_by_one


def test_an_error_that_no_prompt_causes_is_not_swallowed(engine, monkeypatch):
    def generate(batch, sampling):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_generate", generate)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, sampling=SAMPLING)


def test_running_out_of_memory_halves_the_batch(engine, one_by_one, monkeypatch):
    generate = engine._generate
    sizes = []

    def generate_little(batch, sampling):
        sizes.append(len(batch))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return generate(batch, sampling)

    monkeypatch.setattr(engine, "_generate", generate_little)
    assert columns(engine.generate(PROMPTS[:8], sampling=SAMPLING)) == one_by_one[:8]
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_a_prompt_alone_that_needs_too_much_memory_is_a_failure(engine, monkeypatch):
    def generate(batch, sampling):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(engine, "_generate", generate)
    outcomes = engine.generate(PROMPTS[:3], sampling=SAMPLING)
    assert [outcome.reason for outcome in outcomes] == ["out_of_memory"] * 3
    assert "27 tokens" in outcomes[1].detail


def test_threads_share_an_engine(engine, one_by_one):
    results = {}

    def work(number):
        results[number] = columns(engine.generate(PROMPTS[number : number + 4], sampling=SAMPLING))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: one_by_one[number : number + 4] for number in range(4)}


def greedy_with_penalty(model, ids, penalty):
    """The oracle: one forward pass a token over the whole sequence, the penalty counted by hand."""
    new_ids = []
    for _ in range(SAMPLING.max_new_tokens):
        with torch.inference_mode():
            logits = model(torch.tensor([ids + new_ids])).logits[0, -1].clone()
            for token in new_ids:
                logits[token] -= penalty
        token = int(logits.argmax())
        if token in EOS_IDS:
            break
        new_ids.append(token)
    return new_ids


def num_repeats(outcomes):
    return sum(len(outcome.text) - len(set(outcome.text)) for outcome in outcomes)


def test_the_frequency_penalty_lowers_what_was_written_and_not_what_was_asked(engine):
    penalized = engine.generate(PROMPTS, sampling=replace(SAMPLING, frequency_penalty=2.0))
    tokenizer = engine._tokenizer
    expected = [greedy_with_penalty(engine._model, ids, 2.0) for ids in tokenizer.encode(PROMPTS)]
    assert [outcome.text for outcome in penalized] == [tokenizer.tokenizer.decode(ids) for ids in expected]
    plain = engine.generate(PROMPTS, sampling=SAMPLING)
    assert [outcome.text for outcome in penalized] != [outcome.text for outcome in plain]
    assert num_repeats(penalized) < num_repeats(plain)


HOT = Sampling(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def drawn_one_by_one(loaded):
    """Sampled completions of each prompt alone."""
    return [columns(loaded.generate([prompt], sampling=HOT))[0] for prompt in PROMPTS]


@pytest.mark.parametrize("max_batch_size", [3, 8])
def test_what_is_drawn_for_a_prompt_does_not_depend_on_its_batch(engine, drawn_one_by_one, max_batch_size):
    engine._config = replace(engine._config, max_batch_size=max_batch_size)
    assert columns(engine.generate(PROMPTS, sampling=HOT)) == drawn_one_by_one
    backwards = engine.generate(PROMPTS[::-1], sampling=HOT)
    assert columns(backwards[::-1]) == drawn_one_by_one


def test_every_seed_draw_and_temperature_draws_anew(engine, drawn_one_by_one):
    texts = [text for text, *_ in drawn_one_by_one]
    for prompts, sampling in (
        (PROMPTS, replace(HOT, seed=4)),
        ([replace(prompt, draw=1) for prompt in PROMPTS], HOT),
        (PROMPTS, replace(HOT, temperature=0.0)),
    ):
        others = [outcome.text for outcome in engine.generate(prompts, sampling=sampling)]
        assert sum(text != other for text, other in zip(texts, others, strict=True)) > len(PROMPTS) // 2
    draws = engine.generate([replace(PROMPTS[1], draw=draw) for draw in range(16)], sampling=HOT)
    assert len({outcome.text for outcome in draws}) == 16


@pytest.mark.parametrize("temperature", [0.8, 2.0])
def test_first_tokens_are_drawn_as_often_as_the_model_says(engine, temperature):
    engine._config = replace(engine._config, max_batch_size=256, max_batch_tokens=1 << 16)
    num_draws = 2000
    prompts = [replace(PROMPTS[1], draw=draw) for draw in range(num_draws)]
    sampling = Sampling(max_new_tokens=1, temperature=temperature)
    outcomes = engine.generate(prompts, sampling=sampling)
    (ids,) = engine._tokenizer.encode(PROMPTS[1:2])
    with torch.inference_mode():
        logits = engine._model(torch.tensor([ids])).logits[0, -1]
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    # By what a token is decoded to: tokens that end the completion are one, broken bytes another.
    expected = Counter()
    for token, probability in enumerate(probabilities.tolist()):
        text = "" if token in EOS_IDS else engine._tokenizer.tokenizer.decode([token])
        expected[text] += num_draws * probability
    observed = Counter(outcome.text for outcome in outcomes)
    # Rare ones are counted together, as chi-square wants.
    rare = {text for text, count in expected.items() if count < 10}
    cells = [(observed[text], count) for text, count in expected.items() if text not in rare]
    cells.append((sum(observed[text] for text in rare), sum(expected[text] for text in rare)))
    degrees = len(cells) - 1
    statistic = sum((seen - count) ** 2 / count for seen, count in cells)
    assert degrees >= 3
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5 + 4


def test_a_cuda_device_that_is_not_there_is_an_error(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"engine\.device is 'cuda', but no CUDA device is available"):
        TransformersEngine(replace(config, device="cuda"))


def test_a_missing_model_is_an_error(config, tmp_path):
    with pytest.raises(ValueError, match=r"There is no model folder '.*absent'"):
        TransformersEngine(replace(config, model=str(tmp_path / "absent")))
    tiny_model.write_tokenizer(str(tmp_path / "tokenizer_alone"))
    with pytest.raises(ValueError, match=r"No model could be loaded from '.*tokenizer_alone'"):
        TransformersEngine(replace(config, model=str(tmp_path / "tokenizer_alone")))


def test_a_context_longer_than_the_models_is_an_error(config):
    longest = tiny_model.CONTEXT_LENGTH
    with pytest.raises(ValueError, match=f"engine.context_length is {longest + 1}, but .* was made for {longest}"):
        TransformersEngine(replace(config, context_length=longest + 1))
    TransformersEngine(replace(config, context_length=longest))


def test_batches_hold_prompts_of_similar_length():
    batches = length_sorted_batches([5, 1, 9, 2, 8, 1], num_new_tokens=1, max_batch_size=3, max_batch_tokens=100)
    assert list(batches) == [[2, 4, 0], [3, 1, 5]]
    # Two of length 9 with a new token each are 20 tokens, three would be 30.
    batches = length_sorted_batches([9, 9, 9, 4, 4, 4, 4], num_new_tokens=1, max_batch_size=9, max_batch_tokens=20)
    assert list(batches) == [[0, 1], [2, 3], [4, 5, 6]]


@given(st.lists(st.integers(1, 50), max_size=25), st.integers(1, 10), st.integers(1, 6), st.integers(1, 200))
def test_every_prompt_is_in_one_batch_and_the_bounds_are_kept(lengths, num_new, max_size, max_tokens):
    batches = list(
        length_sorted_batches(lengths, num_new_tokens=num_new, max_batch_size=max_size, max_batch_tokens=max_tokens)
    )
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))

    def is_allowed(batch):
        padded = (max(lengths[index] for index in batch) + num_new) * len(batch)
        return len(batch) <= max_size and padded <= max_tokens

    # One prompt that is over the bound has a batch of its own.
    assert all(batch and (is_allowed(batch) or len(batch) == 1) for batch in batches)
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch, following in pairwise(batches):
        assert not is_allowed([*batch, following[0]])


def fewest_batches(lengths, *, num_new, max_size, max_tokens):
    """By trying every way to cut the sorted lengths."""
    if not lengths:
        return 0
    counts = [
        1 + fewest_batches(lengths[size:], num_new=num_new, max_size=max_size, max_tokens=max_tokens)
        for size in range(1, min(max_size, len(lengths)) + 1)
        if size == 1 or (lengths[0] + num_new) * size <= max_tokens
    ]
    return min(counts)


@given(st.lists(st.integers(1, 30), max_size=9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 100))
def test_no_other_cut_of_the_sorted_prompts_has_fewer_batches(lengths, num_new, max_size, max_tokens):
    batches = list(
        length_sorted_batches(lengths, num_new_tokens=num_new, max_batch_size=max_size, max_batch_tokens=max_tokens)
    )
    ordered = sorted(lengths, reverse=True)
    assert len(batches) == fewest_batches(ordered, num_new=num_new, max_size=max_size, max_tokens=max_tokens)
