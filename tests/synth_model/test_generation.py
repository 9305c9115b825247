from dataclasses import replace

import pytest

from synth_model.generation import ChatMessage, Prompt, Sampling, completion_key

CHAT = Prompt(messages=(ChatMessage(role="user", content="a"), ChatMessage(role="user", content="b")))


def test_a_completion_key_tells_model_sampling_and_prompt_apart():
    variants = [
        (Prompt(text="a"), "model", Sampling()),
        (Prompt(text="b"), "model", Sampling()),
        (Prompt(text="a"), "model 2", Sampling()),
        (Prompt(text="a"), "model", Sampling(max_new_tokens=255)),
        (Prompt(text="a"), "model", Sampling(frequency_penalty=0.1)),
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
        == "fb622f38814d020751a3a38391bafddbac95ff1d6a965f092db0887c11b085dc"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
    ],
)
def test_impossible_sampling_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.mark.parametrize("values", [{}, {"text": "a", "messages": CHAT.messages}])
def test_a_prompt_is_a_string_or_a_conversation(values):
    with pytest.raises(AssertionError):
        Prompt(**values)
