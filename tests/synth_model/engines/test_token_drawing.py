from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from synth_model.engines import token_drawing
from synth_model.engines.token_drawing import draw_tokens

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
UNIFORM = st.floats(0, 1, exclude_max=True)


def logits_of(weights):
    """Logits whose softmax is in proportion to the weights."""
    return torch.tensor(weights, dtype=torch.float64).log()


def draw(logits, uniform, *, temperature=1.0, top_p=1.0):
    (token,) = draw_tokens(
        torch.as_tensor(logits)[None],
        temperature=temperature,
        top_p=top_p,
        uniforms=torch.tensor([uniform], dtype=torch.float64),
    ).tolist()
    return token[0]


def kept_shares(weights, *, top_p):
    """The oracle, in fractions: tokens are taken by weight, equal ones together, until they reach ``top_p``.

    None where rounding may decide.
    """
    kept, reached = set(), Fraction(0)
    for weight in sorted(set(weights), reverse=True):
        if abs(reached - top_p) < 1e-9:
            return None
        if reached > top_p:
            break
        kept.add(weight)
        # One of them may be enough; the others are as probable.
        reached += Fraction(weight * weights.count(weight), sum(weights))
    total = sum(weight for weight in weights if weight in kept)
    return [Fraction(weight, total) if weight in kept else Fraction(0) for weight in weights]


def test_the_draw_walks_through_the_vocabulary_in_order():
    logits = logits_of([1, 6, 3])
    uniforms = [0.0, 0.09, 0.11, 0.69, 0.71, 0.999]
    assert [draw(logits, uniform) for uniform in uniforms] == [0, 0, 1, 1, 2, 2]
    # The nucleus of 0.8 leaves the first one out, that of 0.5 the last one too.
    assert [draw(logits, uniform, top_p=0.8) for uniform in uniforms] == [1, 1, 1, 2, 2, 2]
    assert {draw(logits, uniform, top_p=0.5) for uniform in uniforms} == {1}
    assert draw(torch.tensor([1.0, float("-inf")]), 0.999999) == 0


@given(WEIGHTS, UNIFORM, st.sampled_from([0.05, 0.3, 0.51, 0.77, 0.95, 1.0]))
def test_the_token_is_the_one_that_counting_in_fractions_gives(weights, uniform, top_p):
    shares = kept_shares(weights, top_p=top_p)
    assume(shares is not None)
    ends = list(accumulate(shares))
    assume(all(abs(end - uniform) > 1e-9 for end in ends))
    expected = next(token for token, end in enumerate(ends) if end > uniform)
    assert draw(logits_of(weights), uniform, top_p=top_p) == expected
    # At a temperature of a half, a share goes with the square.
    squares = [weight * weight for weight in weights]
    assert draw(logits_of(weights), uniform, temperature=0.5) == draw(logits_of(squares), uniform)


@given(st.lists(st.tuples(st.lists(st.integers(1, 40), min_size=9, max_size=9), UNIFORM), min_size=1, max_size=6))
def test_rows_do_not_see_each_other(rows):
    together = draw_tokens(
        torch.stack([logits_of(weights) for weights, _ in rows]),
        temperature=0.7,
        top_p=0.8,
        uniforms=torch.tensor([uniform for _, uniform in rows], dtype=torch.float64),
    )
    alone = [draw(logits_of(weights), uniform, temperature=0.7, top_p=0.8) for weights, uniform in rows]
    assert together.flatten().tolist() == alone


@pytest.mark.parametrize("first_candidates", [1, 2, 7, 512])
def test_how_many_candidates_are_looked_at_first_changes_nothing(monkeypatch, first_candidates):
    logits = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0))
    uniforms = torch.linspace(0, 0.99, 16, dtype=torch.float64)
    expected = draw_tokens(logits, temperature=1.0, top_p=0.9, uniforms=uniforms)
    monkeypatch.setattr(token_drawing, "_FIRST_CANDIDATES", first_candidates)
    assert draw_tokens(logits, temperature=1.0, top_p=0.9, uniforms=uniforms).equal(expected)


def test_frequencies_are_the_kept_shares():
    weights = [20, 7, 4, 3, 1, 12]
    num_draws = 20_000
    uniforms = torch.rand(num_draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = logits_of(weights).expand(num_draws, -1)
    tokens = draw_tokens(logits, temperature=1.0, top_p=0.9, uniforms=uniforms)
    counts = torch.bincount(tokens.flatten(), minlength=len(weights)).tolist()
    expected = [float(num_draws * share) for share in kept_shares(weights, top_p=0.9)]
    assert [count > 0 for count in counts] == [True, True, True, False, False, True]
    statistic = sum((seen - count) ** 2 / count for seen, count in zip(counts, expected, strict=True) if count)
    # Three degrees of freedom: one in a thousand is above 16.3.
    assert statistic < 16.3
