"""Draws the next token of each row by inverting its cumulative distribution at a given uniform number.

The randomness is one number a row and token, and it comes from outside: the same numbers give the same tokens on any
device and in any batch, which a generator that fills a whole batch at once cannot promise. Tokens are laid out in the
order of the vocabulary, not by probability, so that two tokens that rounding makes change places change no draw.

Cost: a softmax in float64 and a cumulative sum over the vocabulary; for ``top_p`` below 1 also a search for the most
probable tokens, which does not sort the vocabulary unless the distribution is nearly flat.

Source: Holtzman et al. 2020 (arXiv 1904.09751), section 3.1, for the nucleus that ``top_p`` keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_FIRST_CANDIDATES = 512


def draw_tokens(logits: torch.Tensor, *, temperature: float, top_p: float, uniforms: torch.Tensor) -> torch.Tensor:
    """One token a row, int64, shape (batch, 1).

    Args:
        logits: Floating point, shape (batch, vocabulary); minus infinity is a token that cannot be drawn.
        temperature: Above 0; divides the logits.
        top_p: Above 0 and at most 1. Kept are the most probable tokens, as few as together reach it, and those as
            probable as the last of them.
        uniforms: float64 in [0, 1), shape (batch,), on the logits' device.
    """
    import torch

    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1:
        least = _least_in_nucleus(probabilities, top_p=top_p)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    # Divided by itself the last one is exactly 1, above any uniform number; the first one above the number belongs to
    # a token whose probability is not 0.
    return torch.searchsorted(cumulative / cumulative[:, -1:], uniforms[:, None], right=True)


def _least_in_nucleus(probabilities: torch.Tensor, *, top_p: float) -> torch.Tensor:
    """The least probability that is kept in each row, shape (batch, 1)."""
    vocabulary = probabilities.shape[-1]
    count = min(_FIRST_CANDIDATES, vocabulary)
    top = probabilities.topk(count).values
    while count < vocabulary and bool((top.sum(dim=-1) < top_p).any()):
        count = min(8 * count, vocabulary)
        top = probabilities.topk(count).values
    # A token is in while those before it fall short; the first one always is.
    num_kept = (top.cumsum(dim=-1) - top < top_p).sum(dim=-1, keepdim=True)
    return top.gather(1, num_kept - 1)
