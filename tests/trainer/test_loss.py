import math

import numpy as np
import pytest
import torch

from trainer.loss import (
    IGNORED_LABEL,
    count_targets,
    mean_losses,
    next_tokens,
    sum_by_row,
    sums_by_component,
    token_losses,
)

X = IGNORED_LABEL


def row_losses(logits, *, labels):
    losses = token_losses(logits.flatten(0, 1), targets=next_tokens(labels))
    return sum_by_row(losses, num_rows=len(labels)).cross_entropy


def test_logits_before_a_token_are_held_against_it():
    # A model that is sure that the next token is this one plus one.
    ids = torch.tensor([[3, 4, 5, 6]])
    logits = torch.full((1, 4, 10), -1e4)
    for position in range(4):
        logits[0, position, ids[0, position] + 1] = 1e4
    assert row_losses(logits, labels=ids).tolist() == [0.0]
    # The same logits one position later predict every token wrongly.
    assert row_losses(logits.roll(1, dims=1), labels=ids).item() > 1e3


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary_for_each_target():
    labels = torch.tensor([[X, 1, 2, X], [X, X, X, X], [5, 1, X, 3]])
    losses = row_losses(torch.zeros(3, 4, 16), labels=labels)
    assert count_targets(labels).tolist() == [2, 0, 2]
    assert losses.tolist() == pytest.approx([2 * math.log(16), 0, 2 * math.log(16)])


def test_against_a_sum_over_positions_in_float64():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(3, 7, 11))
    labels = np.where(draw.random((3, 7)) < 0.4, X, draw.integers(0, 11, (3, 7)))
    expected = [
        sum(
            math.log(np.exp(logits[row, t - 1]).sum()) - logits[row, t - 1, labels[row, t]]
            for t in range(1, 7)
            if labels[row, t] != X
        )
        for row in range(3)
    ]
    losses = row_losses(torch.tensor(logits, dtype=torch.float32), labels=torch.tensor(labels))
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_widened_first():
    logits = torch.randn(2, 5, 64).to(torch.bfloat16)
    labels = torch.randint(0, 64, (2, 5))
    losses = row_losses(logits, labels=labels)
    assert losses.dtype == torch.float32
    assert losses.tolist() == row_losses(logits.float(), labels=labels).tolist()


def test_components_are_weighted_by_tokens_not_by_rows():
    labels = torch.tensor([[X, 1, 1, 1], [X, 1, X, X], [X, X, 1, 1]])
    sums = sums_by_component(
        torch.tensor([3.0, 5.0, 4.0]), labels=labels, component_ids=torch.tensor([0, 0, 2]), num_components=3
    )
    assert sums.tolist() == [[8.0, 4.0], [0.0, 0.0], [4.0, 2.0]]
    assert mean_losses(sums, components=("a", "b", "c")) == (2.0, {"a": 2.0, "c": 2.0})


def test_z_loss_is_the_squared_logarithm_of_the_denominator():
    """Against its definition in float64, gradient included; what is reported stays as it was."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(6, 11)).requires_grad_()
    targets = torch.tensor([4, X, 0, 10, X, 7])
    losses = token_losses(logits, targets=targets, z_loss=0.3)
    assert torch.equal(losses.cross_entropy, token_losses(logits, targets=targets).cross_entropy)

    exact = logits.detach().double().requires_grad_()
    log_z = exact.exp().sum(dim=1).log()
    expected = torch.where(targets == X, 0.0, 0.3 * log_z**2)
    assert losses.z.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert expected.count_nonzero() == 4
    (actual_gradient,) = torch.autograd.grad(losses.z.sum(), logits)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(actual_gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


def test_without_z_loss_there_is_none():
    assert token_losses(torch.randn(3, 5), targets=torch.tensor([1, 2, X])).z.tolist() == [0.0, 0.0, 0.0]
