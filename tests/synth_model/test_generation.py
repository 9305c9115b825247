from dataclasses import replace

import pytest

from synth_model.generation import ChatMessage, Prompt, Sampling, completion_key, prompt_seed

CHAT = Prompt(messages=(ChatMessage(role="user", content="a"), ChatMessage(role="user", content="b")))


def test_a_completion_key_tells_model_sampling_and_prompt_apart():
    variants = [
        (Prompt(text="a"), "model", Sampling()),
        (Prompt(text="b"), "model", Sampling()),
        (Prompt(text="a"), "model 2", Sampling()),
        (Prompt(text="a"), "model", Sampling(max_new_tokens=255)),
        (Prompt(text="a"), "model", Sampling(frequency_penalty=0.1)),
        (Prompt(text="a"), "model", Sampling(presence_penalty=0.1)),
        (Prompt(text="a"), "model", Sampling(temperature=0.1)),
        (Prompt(text="a"), "model", Sampling(top_p=0.1)),
        (Prompt(text="a"), "model", Sampling(seed=1)),
        (Prompt(text="a", draw=1), "model", Sampling()),
        (CHAT, "model", Sampling()),
        (replace(CHAT, response_prefix="Q:"), "model", Sampling()),
        (replace(CHAT, messages=CHAT.messages[::-1]), "model", Sampling()),
        (replace(CHAT, messages=CHAT.messages[:1]), "model", Sampling()),
    ]
    keys = [completion_key(prompt, model_id=model, sampling=sampling) for prompt, model, sampling in variants]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)
    assert keys == [completion_key(prompt, model_id=model, sampling=sampling) for prompt, model, sampling in variants]


def test_the_key_of_a_completion_stays_the_same_from_version_to_version():
    # A journal is worthless once the keys change.
    assert (
        completion_key(Prompt(text="a"), model_id="m", sampling=Sampling())
        == "74fde2939a506d3597eb2a82aabec0eeed89bb54ec1f980aedcca46931dbbaa2"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"presence_penalty": -2.1}, "presence_penalty is -2.1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": 2.1}, "temperature is 2.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_impossible_sampling_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.mark.parametrize("values", [{}, {"text": "a", "messages": CHAT.messages}])
def test_a_prompt_is_a_string_or_a_conversation(values):
    with pytest.raises(AssertionError):
        Prompt(**values)


def test_each_prompt_draw_and_seed_has_its_own_seed():
    prompts = [Prompt(text="a"), Prompt(text="b"), CHAT, *(Prompt(text="a", draw=draw) for draw in range(1, 50))]
    seeds = [prompt_seed(prompt, sampling=Sampling(seed=seed)) for prompt in prompts for seed in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    # Other settings reshape what is drawn, but not the draws.
    same = {prompt_seed(prompts[0], sampling=Sampling(temperature=t, max_new_tokens=n)) for t in (0, 1) for n in (1, 2)}
    assert len(same) == 1
