from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import Document
from synth_model.chat_prompt import load_wording
from synth_model.engines.fake_engine import FakeEngine, FakeOptions, FakeTokenizer
from synth_model.generation import Completion, Failure, Prompt, Sampling
from synth_model.synthesizer import ChatSynthesizer, WireFormatSynthesizer
from tests.synth_model.data_strategies import hostile_texts

SAMPLING = Sampling(max_new_tokens=200)
WIRE, CHAT = WireFormatSynthesizer(), ChatSynthesizer(wording=load_wording("english"))


def prompt_for(text, synthesizer=WIRE):
    document = Document(doc_id="d", source="s", text=text)
    return synthesizer.build_prompt((), document=document, special_tokens=FakeTokenizer.special_tokens)


def generate(prompts, *, sampling=SAMPLING, context_length=2048, **options):
    return FakeEngine(FakeOptions(**options), context_length=context_length).generate(prompts, sampling=sampling)


PROMPTS = [prompt_for(f"Tide {number} turns at noon.", (WIRE, CHAT)[number % 2]) for number in range(300)]


def test_an_answer_depends_on_the_prompt_alone():
    outcomes = generate(PROMPTS, failure_rate=0.2)
    assert outcomes == generate(PROMPTS, failure_rate=0.2)
    assert outcomes == [outcome for prompt in PROMPTS for outcome in generate([prompt], failure_rate=0.2)]
    assert outcomes == generate(PROMPTS[::-1], failure_rate=0.2)[::-1]
    assert len({repr(outcome) for outcome in outcomes if isinstance(outcome, Completion)}) > 200


def test_another_seed_gives_other_answers():
    assert generate(PROMPTS, seed=1) != generate(PROMPTS)


@pytest.mark.parametrize("synthesizer", [WIRE, CHAT])
def test_what_it_writes_is_read_as_pairs_about_the_text(synthesizer):
    prompts = [prompt_for(f"Tide{number} ebbs.", synthesizer) for number in range(100)]
    numbers = set()
    for number, outcome in enumerate(generate(prompts, no_pair_rate=0.0, max_pairs=3)):
        assert outcome.finish_reason == "stop"
        pairs = synthesizer.parse(outcome, special_tokens=FakeTokenizer.special_tokens)
        numbers.add(len(pairs))
        if synthesizer is WIRE:
            # The words of its pairs are the text's own.
            words = {f"Tide{number}", "ebbs", "."}
            answers = [pair.response.removeprefix("It says: ").removesuffix(".").split() for pair in pairs]
            assert all(set(answer) <= words for answer in answers)
    assert numbers == {1, 2, 3}


@given(hostile_texts())
def test_markup_in_the_text_makes_no_pair_of_its_own(text):
    prompt = prompt_for(text or "x")
    (outcome,) = generate([prompt], no_pair_rate=0.0, max_pairs=1)
    assert len(WIRE.parse(outcome, special_tokens=FakeTokenizer.special_tokens)) == 1


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_rates_are_kept(rate):
    failures = [outcome for outcome in generate(PROMPTS, failure_rate=rate) if isinstance(outcome, Failure)]
    without_pair = [
        outcome
        for outcome in generate(PROMPTS, no_pair_rate=rate)
        if not WIRE.parse(outcome, special_tokens=()) and not CHAT.parse(outcome, special_tokens=())
    ]
    # 300 draws at 0.3 deviate by 0.026.
    assert len(failures) / 300 == pytest.approx(rate, abs=0.11 if 0 < rate < 1 else 0)
    assert len(without_pair) / 300 == pytest.approx(rate, abs=0.11 if 0 < rate < 1 else 0)
    assert {failure.reason for failure in failures} <= {"generation_failed"}


def test_a_prompt_that_leaves_no_room_is_a_failure_of_its_own():
    short, long = prompt_for("Tide."), prompt_for("tide " * 50)
    sampling = Sampling(max_new_tokens=20)
    (num_tokens,) = FakeTokenizer().count([long])
    just_fits = generate([long], sampling=sampling, context_length=num_tokens + 20)
    assert isinstance(just_fits[0], Completion)
    first, second, third = generate([short, long, short], sampling=sampling, context_length=num_tokens + 19)
    assert (second.reason, first == third) == ("prompt_too_long", True)
    assert isinstance(first, Completion)
    assert f"{num_tokens} tokens and 20 new exceed {num_tokens + 19}" in second.detail


def test_a_completion_is_cut_at_its_length():
    prompt = prompt_for("Tides turn.")
    (whole,) = generate([prompt], no_pair_rate=0.0)
    (cut,) = generate([prompt], no_pair_rate=0.0, sampling=Sampling(max_new_tokens=5))
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert cut.num_new_tokens == 5
    assert FakeTokenizer().count_text([cut.text]) == [5]
    assert whole.num_prompt_tokens == cut.num_prompt_tokens == FakeTokenizer().count([prompt])[0]


def test_a_conversation_goes_on_behind_the_prefix():
    (outcome,) = generate([prompt_for("Tides turn.", CHAT)], no_pair_rate=0.0)
    assert not outcome.text.startswith("Question:")
    bare = replace(prompt_for("Tides turn.", CHAT), response_prefix="")
    assert generate([bare], no_pair_rate=0.0)[0].text.startswith("Question:")


@given(st.lists(st.sampled_from(["tide", "naïve", ".", "<", "42"])))
def test_the_tokenizer_counts_words_and_marks(words):
    assert FakeTokenizer().count_text([" ".join(words), "a-b c"]) == [len(words), 4]
    assert FakeTokenizer().count([Prompt(text=" ".join(words) or ".")]) == [max(1, len(words))]


DRAWS = [Prompt(text=FakeTokenizer().user_turn_start(), draw=draw) for draw in range(200)]
HOT = Sampling(max_new_tokens=64, temperature=1.0)


def test_with_a_temperature_each_draw_and_seed_has_its_own_answer():
    drawn = generate(DRAWS, sampling=HOT)
    assert drawn == generate(DRAWS[::-1], sampling=HOT)[::-1]
    assert len({outcome.text for outcome in drawn}) > 150
    assert drawn != generate(DRAWS, sampling=replace(HOT, seed=1))
    assert len({outcome.text for outcome in generate(DRAWS, sampling=replace(HOT, temperature=0.0))}) == 1
    assert generate(PROMPTS, sampling=replace(SAMPLING, temperature=1.0)) != generate(PROMPTS)


def test_behind_the_start_of_a_users_turn_stands_an_instruction_or_nothing():
    texts = [outcome.text for outcome in generate(DRAWS, sampling=HOT, no_pair_rate=0.3)]
    assert texts.count("") / 200 == pytest.approx(0.3, abs=0.13)
    assert all(text.endswith(".") and len(text.split()) > 8 for text in texts if text)
    assert FakeTokenizer().user_turn_start().strip() in FakeTokenizer.special_tokens
