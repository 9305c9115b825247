"""Chooses the next tokens of many requests at once, each by its own sampling, for continuous batching.

The manager of transformers takes the largest logit of each row. This class stands where it keeps its logits
processors and changes the rows of the requests that ask for more: it subtracts the penalties of what the completion
holds, and where there is a temperature it draws a token and leaves only that one possible. The uniform number of a draw
is the one that belongs to its place in the completion, so that a request that the manager evicts and computes again
goes on as it would have.

Cost: per step and request, its completion so far as a list on the CPU; `draw_tokens` for those that draw. It needs the
newest tokens on the CPU before the next step, so it works neither with CUDA graphs nor with the manager's asynchronous
batches; a manager for greedy requests alone goes without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.seeding import rng
from synth_model.engines.token_drawing import draw_tokens
from synth_model.generation import Sampling

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenChoice:
    """How the tokens of one request are chosen.

    Args:
        num_prompt_tokens: Where its completion begins.
        frequency_penalty: See `synth_model.generation.Sampling`.
        presence_penalty: Likewise.
        temperature: Likewise.
        top_p: Likewise.
        uniforms: float64 in [0, 1), one for each token that the completion may have; empty without a temperature.
    """

    num_prompt_tokens: int
    frequency_penalty: float
    presence_penalty: float
    temperature: float
    top_p: float
    uniforms: np.ndarray


def is_plain(sampling: Sampling) -> bool:
    """Whether the largest logit is always the choice."""
    return not sampling.temperature and not sampling.frequency_penalty and not sampling.presence_penalty


def token_choice(sampling: Sampling, *, num_prompt_tokens: int, seed: int) -> TokenChoice:
    """The choice for a prompt whose draws have a seed of their own; the same numbers as one stream drawn in order."""
    num_draws = sampling.max_new_tokens if sampling.temperature else 0
    return TokenChoice(
        num_prompt_tokens=num_prompt_tokens,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        uniforms=rng(seed, "tokens").random(num_draws),
    )


class TokenChooser:
    """Takes the place of ``ContinuousBatchingManager.logit_processor``, and has what the manager asks of that.

    Each request carries its `TokenChoice` as the keyword argument ``choice`` of ``add_request``.
    """

    do_processing = True
    tensors_required = 0

    def __init__(self) -> None:
        self._states: list[Any] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Nothing: what a request asks for comes with the request, not as tensors."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Asserts that a request has its choice and nothing else."""
        assert set(kwargs) == {"choice"}, sorted(kwargs)

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: torch.Tensor) -> None:
        """Notes which requests get a token in the next step, in the order of the rows of the logits."""
        self._states = [request.state for request in requests_in_batch if request.has_new_token]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, tensor_args: torch.Tensor) -> torch.Tensor:
        """Logits after penalties and draws, float32, shape (requests in the step, vocabulary).

        Those that get a token stand first; the rows behind them, for prompts not yet read to their end, mean nothing.
        ``input_ids`` holds only the last token of each and is not used.
        """
        completions = []
        for state in self._states:
            choice: TokenChoice = state.logit_processor_kwargs["choice"]
            # The manager counts what was generated before an eviction among the initial tokens.
            completions.append((choice, (state.initial_tokens + state.generated_tokens)[choice.num_prompt_tokens :]))
        assert len(completions) <= len(scores), (len(completions), len(scores))
        return choose_tokens(scores, completions)


def choose_tokens(scores: torch.Tensor, completions: Sequence[tuple[TokenChoice, Sequence[int]]]) -> torch.Tensor:
    """The logits with the penalties taken off; in rows that draw, only the drawn token is possible.

    Args:
        scores: float32, shape (rows, vocabulary).
        completions: Of each of the first rows, how it chooses, and the tokens that its completion holds.
    """
    import torch

    rows: list[int] = []
    tokens: list[int] = []
    penalties: list[float] = []
    for row, (choice, completion) in enumerate(completions):
        if choice.frequency_penalty:
            rows += [row] * len(completion)
            tokens += completion
            penalties += [-choice.frequency_penalty] * len(completion)
        if choice.presence_penalty:
            present = set(completion)
            rows += [row] * len(present)
            tokens += present
            penalties += [-choice.presence_penalty] * len(present)
    device = scores.device
    if rows:
        # On the flat matrix a token that stands there twice is lowered twice.
        places = torch.tensor(rows, device=device) * scores.shape[1] + torch.tensor(tokens, device=device)
        lowered = scores.flatten().scatter_add(0, places, torch.tensor(penalties, dtype=scores.dtype, device=device))
        scores = lowered.view_as(scores)
    drawing: dict[tuple[float, float], list[int]] = {}
    for row, (choice, _) in enumerate(completions):
        if choice.temperature:
            drawing.setdefault((choice.temperature, choice.top_p), []).append(row)
    if drawing:
        scores = scores.clone()
    for (temperature, top_p), members in drawing.items():
        uniforms = [completions[row][0].uniforms[len(completions[row][1])] for row in members]
        index = torch.tensor(members, device=device)
        drawn = draw_tokens(
            scores[index],
            temperature=temperature,
            top_p=top_p,
            uniforms=torch.tensor(uniforms, dtype=torch.float64, device=device),
        )
        scores[index] = torch.full_like(scores[index], float("-inf")).scatter_(1, drawn, 0.0)
    return scores
