"""The loss with the output layer in it, against the loss of all logits at once."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.linear_cross_entropy import in_chunks, require_liger
from trainer.loss import IGNORED_LABEL, token_losses

HIDDEN_SIZE, VOCAB_SIZE = 8, 64


def draw(num_tokens, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, HIDDEN_SIZE, generator=generator)
    targets = torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=generator)
    targets[torch.rand(num_tokens, generator=generator) < 0.3] = IGNORED_LABEL
    layer = torch.nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return hidden.requires_grad_(), targets, layer


def gradients(losses, hidden, layer, weights):
    # Each token with a weight of its own, so that no token's gradient can stand for another's.
    return torch.autograd.grad(((losses.cross_entropy + losses.z) * weights).sum(), [hidden, *layer.parameters()])


@settings(deadline=None, max_examples=30)
@given(
    num_tokens=st.integers(1, 40),
    chunk_tokens=st.integers(1, 50),
    z_loss=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 9),
)
def test_chunks_change_nothing(num_tokens, chunk_tokens, z_loss, seed):
    hidden, targets, layer = draw(num_tokens, seed=seed)
    expected = token_losses(layer(hidden), targets=targets, z_loss=z_loss)
    actual = in_chunks(hidden, output_layer=layer, targets=targets, z_loss=z_loss, chunk_tokens=chunk_tokens)
    weights = torch.linspace(0.5, 2, num_tokens)
    for one, other in zip(
        (*actual, *gradients(actual, hidden, layer, weights)),
        (*expected, *gradients(expected, hidden, layer, weights)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_logits_are_not_kept():
    """What autograd keeps for the way back, which with the plain loss are the logits."""

    def num_kept(compute):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            losses = compute()
        assert losses.cross_entropy.requires_grad
        return sum(sizes)

    hidden, targets, layer = draw(64)
    chunked = num_kept(lambda: in_chunks(hidden, output_layer=layer, targets=targets, z_loss=0.1, chunk_tokens=4))
    plain = num_kept(lambda: token_losses(layer(hidden), targets=targets, z_loss=0.1))
    assert plain > 64 * VOCAB_SIZE
    assert chunked <= 64 * HIDDEN_SIZE + 2 * 64


def test_liger_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"there is no GPU in use. Use --loss.kernel torch"):
        require_liger(torch.device("cpu"), output_layer=torch.nn.Linear(2, 2))


_LIGER_PROGRAM = """
import torch
from tests.trainer.test_linear_cross_entropy import draw, gradients
from trainer.linear_cross_entropy import with_liger
from trainer.loss import token_losses
for z_loss in (0.0, 0.1):
    hidden, targets, layer = draw(24)
    weights = torch.linspace(0.5, 2, 24)
    expected = token_losses(layer(hidden), targets=targets, z_loss=z_loss)
    actual = with_liger(hidden, output_layer=layer, targets=targets, z_loss=z_loss)
    for one, other in zip(
        (*actual, *gradients(actual, hidden, layer, weights)), (*expected, *gradients(expected, hidden, layer, weights))
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
print("equal")
"""


@pytest.mark.slow
def test_liger_computes_the_same():
    """On a GPU, or without one in Triton's interpreter, which has to be chosen before Triton is imported."""
    pytest.importorskip("liger_kernel", reason="the extra 'liger' is not installed")
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ} if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    program = _LIGER_PROGRAM
    if torch.cuda.is_available():
        program = program.replace("import torch\n", "import torch\ntorch.set_default_device('cuda')\n", 1)
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.strip() == "equal", result.stderr
