from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synth_model.engines.token_choice import TokenChooser, choose_tokens, is_plain, token_choice
from synth_model.engines.token_drawing import draw_tokens
from synth_model.generation import Sampling

VOCABULARY = 7
GREEDY = Sampling(max_new_tokens=5)
PENALIZED = Sampling(max_new_tokens=5, frequency_penalty=0.5)
HOT = Sampling(max_new_tokens=5, temperature=1.3, top_p=0.9)
BOTH = Sampling(max_new_tokens=5, temperature=0.7, frequency_penalty=-1.0)
PRESENT = Sampling(max_new_tokens=5, presence_penalty=1.25)
ALL = Sampling(max_new_tokens=5, temperature=0.7, frequency_penalty=0.5, presence_penalty=-0.75)


def choice(sampling, seed=3):
    return token_choice(sampling, num_prompt_tokens=2, seed=seed)


@pytest.mark.parametrize(
    ("sampling", "plain"),
    [(GREEDY, True), (Sampling(top_p=0.5), True), (PENALIZED, False), (PRESENT, False), (HOT, False)],
)
def test_only_greedy_without_a_penalty_is_plain(sampling, plain):
    assert is_plain(sampling) is plain


def test_a_row_that_asks_for_nothing_stays_and_one_with_a_penalty_is_lowered_once_a_time():
    scores = torch.arange(14.0).reshape(2, 7)
    chosen = choose_tokens(scores, [(choice(GREEDY), [1, 1]), (choice(PENALIZED), [6, 2, 6])])
    assert chosen.tolist() == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9 - 0.5, 10, 11, 12, 13 - 1.0]]
    chosen = choose_tokens(scores, [(choice(PRESENT), [1, 1, 3]), (choice(PRESENT), [])])
    assert chosen.tolist() == [[0, 1 - 1.25, 2, 3 - 1.25, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13]]
    # The logits given are the model's; nothing is written to them.
    assert scores.flatten().tolist() == list(range(14))


def test_a_row_that_draws_leaves_one_token_and_its_place_says_which_number_it_takes():
    scores = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    drawn = []
    for length in range(HOT.max_new_tokens):
        row = choose_tokens(scores, [(choice(HOT), [0] * length)])[0]
        assert torch.isneginf(row).sum() == VOCABULARY - 1
        uniform = torch.tensor([choice(HOT).uniforms[length]])
        assert row.argmax() == draw_tokens(scores, temperature=1.3, top_p=0.9, uniforms=uniform)
        drawn.append(int(row.argmax()))
    assert len(set(drawn)) > 1


samplings = st.sampled_from([GREEDY, PENALIZED, HOT, BOTH, PRESENT, ALL])
completions = st.lists(st.integers(0, VOCABULARY - 1), max_size=4)


@given(st.lists(st.tuples(samplings, completions, st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 99))
def test_rows_together_are_the_rows_alone(rows, seed):
    scores = torch.randn(len(rows) + 1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    pairs = [(choice(sampling, seed), completion) for sampling, completion, seed in rows]
    together = choose_tokens(scores, pairs)
    for row, pair in enumerate(pairs):
        assert torch.equal(together[row], choose_tokens(scores[row : row + 1], [pair])[0])
        # The oracle: penalties by counting, then the draw.
        sampling, completion, _ = rows[row]
        lowered = scores[row].clone()
        for token, count in Counter(completion).items():
            for _ in range(count):
                lowered[token] -= sampling.frequency_penalty
        for token in set(completion):
            lowered[token] -= sampling.presence_penalty
        expected = lowered.argmax()
        if sampling.temperature:
            uniform = torch.tensor([pair[0].uniforms[len(completion)]])
            expected = draw_tokens(
                lowered[None], temperature=sampling.temperature, top_p=sampling.top_p, uniforms=uniform
            )
        assert together[row].argmax() == expected
    # Rows behind them belong to prompts that get no token yet.
    assert torch.equal(together[-1], scores[-1])


def test_the_numbers_of_a_prompt_are_its_own():
    assert choice(HOT).uniforms.dtype == np.float64
    assert len(choice(HOT).uniforms) == HOT.max_new_tokens
    assert choice(HOT, seed=3).uniforms.tolist() == choice(HOT, seed=3).uniforms.tolist()
    assert choice(HOT, seed=3).uniforms.tolist() != choice(HOT, seed=4).uniforms.tolist()
    assert len(choice(PENALIZED).uniforms) == 0


def test_what_was_generated_before_an_eviction_counts_as_the_completion():
    def request(initial, generated, *, has_new_token):
        state = SimpleNamespace(
            initial_tokens=initial, generated_tokens=generated, logit_processor_kwargs={"choice": choice(PENALIZED)}
        )
        return SimpleNamespace(state=state, has_new_token=has_new_token)

    chooser = TokenChooser()
    scores = torch.zeros(3, VOCABULARY)
    requests = [
        request([1, 2], [], has_new_token=False),
        request([1, 2], [3, 4], has_new_token=True),
        # Evicted after its first token: prompt and token are its initial tokens now.
        request([1, 2, 3], [4], has_new_token=True),
    ]
    chooser.prepare_tensor_args(requests_in_batch=requests, arg_storage=torch.empty(0))
    chosen = chooser(torch.zeros(3), scores, torch.empty(0))
    assert chosen.tolist() == [[0, 0, 0, -0.5, -0.5, 0, 0]] * 2 + [[0] * VOCABULARY]


def test_a_request_must_say_how_it_chooses():
    TokenChooser().check_kwargs({"choice": choice(GREEDY)})
    with pytest.raises(AssertionError):
        TokenChooser().check_kwargs({})
