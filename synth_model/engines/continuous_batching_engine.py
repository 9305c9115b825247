"""Generates with transformers' continuous batching: requests join and leave a running batch, over a paged cache.

Made for CUDA; the CPU runs the same code for tests, slower than padded batches. The batch is started with the first
prompts and goes on over calls, rounds and threads: each call waits for its own prompts and no others. Prompts that
begin alike share the pages of their keys and values, also with finished ones whose pages still lie in the cache: round
r+1 of a chain computes only what follows round r's prompt and the part of its completion that stands again in the same
tokens. Only whole pages are shared; pages of finished prompts go, all together, when the cache runs short; nothing is
shared by models with a sliding window, unless it is as long as the context.

Running out of memory starts the batch anew with half of everything, and the prompts under way again, until they are
computed one by one. Another error ends the batch too; each prompt under way is then tried alone, so that one bad
prompt costs itself. What is not a prompt's doing (a lost device, a batch that hangs) is raised.

The tokens are those of padded batches: the same ends, penalties and draws (`synth_model.engines.token_choice`); only
rounding may differ. Greedy prompts without a penalty can use CUDA graphs, others cannot; a call of the other sort
waits for the batch to run empty and starts it anew, once: a batch that chooses tokens takes both.

Cost: the cache is allocated once for each start. Attention and its cost: see `continuous_batching_session`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from synth_model.engines.continuous_batching_session import (
    ContinuousBatchingSession,
    StalledError,
    TokenRequest,
)
from synth_model.engines.log_likelihood import score_continuations
from synth_model.engines.model_loading import load_model
from synth_model.engines.prompt_encoding import encode_prompt, make_completion
from synth_model.engines.token_choice import is_plain, token_choice
from synth_model.generation import Failure, Outcome, Prompt, Sampling, prompt_seed
from synth_model.scoring import ScoringOutcome, ScoringRequest

if TYPE_CHECKING:
    from synth_model.engines import EngineConfig

_LOGGER = logging.getLogger(__name__)

# After so many halvings of what a batch may take, what still runs out of memory fails.
_MAX_HALVINGS = 4


class ContinuousBatchingEngine:
    """A causal language model of the Hugging Face hub, or a folder, as a `synth_model.generation.Engine`.

    Raises:
        ValueError: No such model or device, or a context longer than the model's.
    """

    def __init__(self, config: EngineConfig) -> None:
        loaded = load_model(config)
        self._model, self._tokenizer, self._eos_ids = loaded.model, loaded.tokenizer, loaded.eos_ids
        self._config = config
        options = config.continuous
        if loaded.device == "cpu" and not options.cache_tokens:
            options = replace(options, cache_tokens=config.max_batch_tokens)
        self._options = options
        self._num_halvings = 0
        drop_idle_window(self._model.config.get_text_config(), context_length=config.context_length)
        # Guards the session: which one it is, and what is handed to it.
        self._lock = threading.Lock()
        self._session: ContinuousBatchingSession | None = None
        self._abandon_session: weakref.finalize[..., ContinuousBatchingEngine] | None = None
        self._is_closed = False

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order.

        Raises:
            RuntimeError: The device is lost or the batch hangs, and the process must start again; or the engine is
                closed.
        """
        outcomes: dict[int, Outcome] = {}
        requests: dict[int, TokenRequest] = {}
        for index, prompt in enumerate(prompts):
            ids = encode_prompt(
                prompt, tokenizer=self._tokenizer, sampling=sampling, context_length=self._config.context_length
            )
            if isinstance(ids, Failure):
                outcomes[index] = ids
                continue
            seed = prompt_seed(prompt, sampling=sampling)
            requests[index] = TokenRequest(
                ids=ids,
                max_new_tokens=sampling.max_new_tokens,
                choice=token_choice(sampling, num_prompt_tokens=len(ids), seed=seed),
            )
        # Neighbours in this order begin alike, and what one has computed the next can share.
        order = sorted(requests, key=lambda index: requests[index].ids)
        completed = self._complete([requests[index] for index in order], is_plain=is_plain(sampling))
        outcomes.update(zip(order, completed, strict=True))
        return [outcomes[index] for index in range(len(prompts))]

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringOutcome]:
        """One outcome a request, in the requests' order; see `synth_model.engines.log_likelihood`.

        In padded batches, since there is nothing to generate; while no prompt is under way, since both need the memory
        that the cache leaves. The pages of finished prompts stay.
        """
        with self._lock:
            if self._session is not None:
                self._session.drain()
            return score_continuations(
                requests,
                model=self._model,
                tokenizer=self._tokenizer,
                context_length=self._config.context_length,
                max_batch_size=self._config.max_batch_size,
                max_batch_tokens=self._config.max_batch_tokens,
            )

    def close(self) -> None:
        """Ends the batch, failing prompts under way, and frees its cache. The engine takes no prompts afterwards."""
        with self._lock:
            self._is_closed = True
            if self._session is not None:
                self._session.close()

    def _complete(self, requests: Sequence[TokenRequest], *, is_plain: bool) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        waiting = list(range(len(requests)))
        while waiting:
            with self._lock:
                session = self._running_session(is_plain=is_plain)
                futures = session.submit([requests[index] for index in waiting])
            for index, future in zip(waiting, futures, strict=True):
                if future.exception() is None:
                    outcomes[index] = self._completion(requests[index], future.result())
            waiting = [index for index in waiting if index not in outcomes]
            if waiting and not self._may_shrink(session):
                break
        for index in waiting:
            outcomes[index] = self._complete_alone(requests[index], is_plain=is_plain)
        return [outcomes[index] for index in range(len(requests))]

    def _complete_alone(self, request: TokenRequest, *, is_plain: bool) -> Outcome:
        """Completes a prompt while no other is under way, so that an error is its own."""
        with self._lock:
            while True:
                session = self._running_session(is_plain=is_plain)
                session.drain()
                if session.error is not None:
                    # Another thread's prompt ended it meanwhile.
                    continue
                (future,) = session.submit([request])
                error = future.exception()
                if error is None:
                    return self._completion(request, future.result())
                if not self._may_shrink(session):
                    return _failure(request, error)

    def _completion(self, request: TokenRequest, new_ids: list[int]) -> Outcome:
        return make_completion(
            new_ids, num_prompt_tokens=len(request.ids), eos_ids=self._eos_ids, tokenizer=self._tokenizer
        )

    def _may_shrink(self, session: ContinuousBatchingSession) -> bool:
        """Whether what killed a session may not happen to a smaller one.

        Raises:
            RuntimeError: No session can do better.
        """
        if session.error is not None:
            _raise_if_hopeless(session.error)
        return _is_out_of_memory(session.error) and session.num_halvings < _MAX_HALVINGS

    def _running_session(self, *, is_plain: bool) -> ContinuousBatchingSession:
        """The session that takes such requests, started if need be; the lock is held."""
        if self._is_closed:
            raise RuntimeError("The engine is closed.")
        session = self._session
        if session is not None:
            if session.error is None and (is_plain or not session.is_plain):
                return session
            if self._may_shrink(session):
                self._num_halvings = session.num_halvings + 1
                _LOGGER.warning(
                    "Out of memory: continuous batching goes on with 1/%d of its tokens and requests. (%s)",
                    2**self._num_halvings,
                    session.error,
                )
            session.drain()
            session.close()
            assert self._abandon_session is not None
            self._abandon_session.detach()
        self._session = ContinuousBatchingSession(
            self._model,
            options=self._options.divided(2**self._num_halvings, context_length=self._config.context_length),
            num_halvings=self._num_halvings,
            context_length=self._config.context_length,
            eos_ids=self._eos_ids,
            is_plain=is_plain,
        )
        self._abandon_session = weakref.finalize(self, self._session.abandon)
        return self._session


def _is_out_of_memory(error: BaseException | None) -> bool:
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _raise_if_hopeless(error: BaseException) -> None:
    """Raises what no prompt is to blame for: after an error of the device every further call fails."""
    import torch

    if isinstance(error, (StalledError, torch.AcceleratorError)):
        raise error


def _failure(request: TokenRequest, error: BaseException) -> Failure:
    """The failure of a prompt that was alone when an error ended the batch; raises what is a fault of the program."""
    if _is_out_of_memory(error):
        return Failure(reason="out_of_memory", detail=f"{len(request.ids)} tokens: {error}")
    if isinstance(error, (RuntimeError, ValueError, IndexError)):
        return Failure(reason="generation_failed", detail=f"{type(error).__name__}: {error}")
    raise error


def drop_idle_window(config: Any, *, context_length: int) -> None:
    """Forgets a sliding window that no prompt outgrows: it changes nothing then, but keeps pages from being shared.

    Args:
        config: The text config of a transformers model, changed in place.
        context_length: Tokens of the longest prompt with its completion.
    """
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "layer_types", None) is None and context_length <= window:
        config.sliding_window = None
