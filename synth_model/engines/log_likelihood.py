"""How likely a causal language model finds given continuations; see `synth_model.scoring`.

Requests that share a prompt are computed together: prompts of a batch are read once each, padded on the left; their
keys and values are repeated for the continuations, which follow padded on the left too, so that all end in the last
column and only the columns of the longest continuation need logits. Batches are sorted by the prompts' length and
bounded by count, by padded tokens and by the memory of the logits. A batch that does not fit the memory is halved; one
that fails otherwise is tried again request by request.

Prompt, lead and continuation are tokenized as one string, since that is what a model sees; the continuation's tokens
are those behind what it has in common with the string that ends before it.

Cost: a forward pass over each distinct prompt and one over each lead with its continuation. Not done here:
continuations longer than the context, scores of single tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from synth_model.generation import Failure, Prompt
from synth_model.scoring import Score, ScoringOutcome, ScoringRequest

if TYPE_CHECKING:
    import torch

    from synth_model.prompt_tokenizer import ModelTokenizer

# Logits of a batch, in numbers: 128 MiB of float32, and as much again while they are summed.
_MAX_LOGITS = 1 << 25


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRequest:
    """A scoring request in token ids.

    Args:
        prompt_ids: What requests may share; at least one.
        ids: What follows; at least one token more than is scored.
        num_scored: How many of the last ``ids`` are scored; at least one.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    num_scored: int

    def __post_init__(self) -> None:
        assert self.prompt_ids, self
        assert len(self.ids) > self.num_scored > 0, self


def score_continuations(
    requests: Sequence[ScoringRequest],
    *,
    model: Any,
    tokenizer: ModelTokenizer,
    context_length: int,
    max_batch_size: int,
    max_batch_tokens: int,
) -> list[ScoringOutcome]:
    """One outcome a request, in order; see `synth_model.scoring.ScoringEngine.score`.

    Args:
        requests: What to score.
        model: A transformers causal language model in evaluation mode, on its device.
        tokenizer: The model's tokenizer.
        context_length: Most tokens of a request; a longer one is a `Failure`.
        max_batch_size: Most requests computed together.
        max_batch_tokens: Most tokens computed together, padding included.
    """
    outcomes: dict[int, ScoringOutcome] = {}
    encoded: dict[int, EncodedRequest] = {}
    for index, request in enumerate(requests):
        found = encode_request(request, tokenizer=tokenizer, context_length=context_length)
        if isinstance(found, Failure):
            outcomes[index] = found
        else:
            encoded[index] = found
    indices = sorted(encoded, key=lambda index: (-len(encoded[index].prompt_ids), encoded[index].prompt_ids, index))
    for batch in _batches(
        [encoded[index] for index in indices],
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
        max_columns=max(1, _MAX_LOGITS // model.get_output_embeddings().weight.shape[0]),
    ):
        members = indices[batch.start : batch.stop]
        scored = _score_safely([encoded[index] for index in members], model)
        outcomes.update(zip(members, scored, strict=True))
    return [outcomes[index] for index in range(len(requests))]


def encode_request(
    request: ScoringRequest, *, tokenizer: ModelTokenizer, context_length: int
) -> EncodedRequest | Failure:
    """A request in token ids, or why it cannot be scored."""
    try:
        prompt = tokenizer.render(request.prompt)
        texts = [prompt, prompt + request.lead, prompt + request.lead + request.continuation]
        prompt_ids, lead_ids, ids = tokenizer.encode([Prompt(text=text) for text in texts])
    except ValueError as error:
        return Failure(reason="prompt_not_encodable", detail=str(error))
    if len(ids) > context_length:
        return Failure(reason="prompt_too_long", detail=f"{len(ids)} tokens exceed the context of {context_length}.")
    # The last token of what stands before may go on in the continuation; then it is a token of the continuation.
    start = _num_common(lead_ids, ids)
    # The logits that tell the first scored token are those of the token before it, which must not be in the prompt.
    num_shared = min(_num_common(prompt_ids, ids), start - 1)
    if num_shared < 1 or start == len(ids):
        return Failure(reason="prompt_not_encodable", detail=f"{len(ids)} tokens leave nothing to score.")
    return EncodedRequest(prompt_ids=tuple(ids[:num_shared]), ids=tuple(ids[num_shared:]), num_scored=len(ids) - start)


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    limit = min(len(first), len(second))
    return next((index for index in range(limit) if first[index] != second[index]), limit)


def _batches(
    requests: Sequence[EncodedRequest], *, max_batch_size: int, max_batch_tokens: int, max_columns: int
) -> Iterator[range]:
    """Neighbours that are computed together; the first of a batch has its longest prompt.

    Args:
        requests: Longest prompt first.
        max_batch_size: Most requests a batch.
        max_batch_tokens: Most tokens a batch, each request counted as the longest prompt and the longest rest.
        max_columns: Most scored tokens a batch, each request counted as the one with the most.
    """
    start, longest, scored = 0, 0, 0
    for index, request in enumerate(requests):
        size = index - start + 1
        longest, scored = max(longest, len(request.ids)), max(scored, request.num_scored + 1)
        num_tokens = (len(requests[start].prompt_ids) + longest) * size
        if size > 1 and (size > max_batch_size or num_tokens > max_batch_tokens or scored * size > max_columns):
            yield range(start, index)
            start, longest, scored = index, len(request.ids), request.num_scored + 1
    if requests:
        yield range(start, len(requests))


def _score_safely(batch: list[EncodedRequest], model: Any) -> list[ScoringOutcome]:
    import torch

    try:
        return list(log_likelihoods(batch, model=model))
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            num_tokens = len(batch[0].prompt_ids) + len(batch[0].ids)
            return [Failure(reason="out_of_memory", detail=f"{num_tokens} tokens: {error}")]
        half = len(batch) // 2
    except (RuntimeError, ValueError, IndexError) as error:
        if len(batch) == 1:
            return [Failure(reason="scoring_failed", detail=f"{type(error).__name__}: {error}")]
        return [outcome for request in batch for outcome in _score_safely([request], model)]
    # Outside of the handler, whose error keeps the tensors of the failed batch alive.
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return _score_safely(batch[:half], model) + _score_safely(batch[half:], model)


def log_likelihoods(batch: Sequence[EncodedRequest], *, model: Any) -> list[Score]:
    """The scores of one batch, in order; requests with the same prompt stand next to each other."""
    import torch

    prompts: list[list[int]] = []
    prompt_of_request: list[int] = []
    for prompt, group in groupby(batch, key=lambda request: request.prompt_ids):
        prompt_of_request += [len(prompts)] * len(list(group))
        prompts.append(list(prompt))
    device = model.device
    prompt_ids, prompt_mask = _left_padded(prompts, device=device)
    ids, mask = _left_padded([list(request.ids) for request in batch], device=device)
    num_logits = max(request.num_scored for request in batch) + 1
    with torch.inference_mode():
        cache = model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            position_ids=_positions(prompt_mask),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        rows = torch.tensor(prompt_of_request, device=device)
        cache.batch_select_indices(rows)
        whole_mask = torch.cat([prompt_mask[rows], mask], dim=1)
        logits = model(
            input_ids=ids,
            attention_mask=whole_mask,
            position_ids=_positions(whole_mask)[:, prompt_ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=num_logits,
        ).logits[:, :-1]
        targets = ids[:, ids.shape[1] - num_logits + 1 :]
        chosen = logits.gather(2, targets[:, :, None])[:, :, 0].float() - logits.float().logsumexp(2)
    # Summed in double precision, so that the sum of a long response loses nothing.
    chosen = chosen.double().cpu()
    return [
        Score(log_likelihood=float(row[-request.num_scored :].sum()), num_tokens=request.num_scored)
        for row, request in zip(chosen, batch, strict=True)
    ]


def _left_padded(rows: Sequence[list[int]], *, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both int64 (number of rows, longest row); padding is token 0, masked."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """The position of each column, counted over what is not masked; shape of the mask, int64."""
    return (mask.cumsum(1) - 1).clamp(min=0)
