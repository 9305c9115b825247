"""One life of transformers' continuous batching over a model: from the allocation of its cache to its end.

The manager computes all its requests in one thread, whatever threads they come from. A session adds what the manager
leaves open: each request is a future of its own; a manager that dies fails every future with the error that killed it;
one that makes no step for too long is given up; and the end of the process ends it.

The session's collector is a daemon thread, and so is the manager's, which it starts: a thread of the manager that
hangs in a kernel cannot keep the process alive.

Attention: with FlashAttention (on CUDA, where the package is installed) the manager reads the pages where they lie.
Without it, it gathers the keys of all requests of a step and masks those of the others, so that a step costs the
number of its tokens times the tokens of all requests together: right, and the only way on the CPU, but not fast.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any

from synth_model.engines.token_choice import TokenChoice, TokenChooser

_POLL_SECONDS = 0.1
_STOP_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class ContinuousBatchingOptions:
    """How much continuous batching takes at once; what does not fit waits.

    Args:
        page_size: Tokens a page. Prompts share whole pages of what they begin with, so that smaller pages share more.
            FlashAttention needs multiples of 256.
        cache_tokens: Tokens whose keys and values are kept, of running requests and, while there is room, of finished
            ones. 0 takes ``memory_fraction`` of the GPU's free memory, and on the CPU ``engine.max_batch_tokens``.
        memory_fraction: Share of the GPU's memory, free once the model is loaded, for the cache and all computing.
        max_step_tokens: Most tokens in one forward pass: a token of each running request, and parts of new prompts.
        max_requests: Most requests that run together. So many do only while several threads call, or while
            ``engine.max_batch_size``, which bounds a call, is well above this: each call ends with its last prompt.
        stall_seconds: A manager that finishes no forward pass in this time is given up.
    """

    page_size: int = 256
    cache_tokens: int = 0
    memory_fraction: float = 0.85
    max_step_tokens: int = 4096
    max_requests: int = 256
    stall_seconds: float = 600.0

    def check(self, *, context_length: int) -> None:
        """Refuses what cannot work.

        Raises:
            ValueError: A setting is impossible.
        """
        for name, least in (("page_size", 4), ("max_step_tokens", 1), ("max_requests", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"engine.continuous.{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.cache_tokens and self.cache_tokens < context_length:
            raise ValueError(
                f"engine.continuous.cache_tokens ({self.cache_tokens}) is below engine.context_length "
                f"({context_length}): the longest prompt would find no room. Give more, or 0 for what fits."
            )
        if not 0 < self.memory_fraction < 1:
            raise ValueError(
                f"engine.continuous.memory_fraction is {self.memory_fraction}; it must be between 0 and 1."
            )
        if self.stall_seconds <= 0:
            raise ValueError(f"engine.continuous.stall_seconds is {self.stall_seconds}; it must be above 0.")

    def divided(self, divisor: int, *, context_length: int) -> ContinuousBatchingOptions:
        """The same with so much less of everything that takes memory, as far as it goes."""
        return replace(
            self,
            cache_tokens=self.cache_tokens and max(context_length, self.cache_tokens // divisor),
            memory_fraction=self.memory_fraction / divisor,
            max_step_tokens=max(1, self.max_step_tokens // divisor),
            max_requests=max(1, self.max_requests // divisor),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenRequest:
    """A prompt as token ids, with how many new ones it may get and how they are chosen."""

    ids: list[int]
    max_new_tokens: int
    choice: TokenChoice


class StalledError(RuntimeError):
    """The manager made no step for too long."""


class ContinuousBatchingSession:
    """A running ``ContinuousBatchingManager``.

    Args:
        model: A transformers model in evaluation mode, on its device. One session at a time may have it.
        options: How much to take at once.
        num_halvings: How often the options were halved; for who started the session.
        context_length: Tokens of the longest prompt with its completion.
        eos_ids: Tokens that end a completion.
        is_plain: Whether all requests are greedy and without penalties, which allows the manager CUDA graphs.
    """

    def __init__(
        self,
        model: Any,
        *,
        options: ContinuousBatchingOptions,
        num_halvings: int,
        context_length: int,
        eos_ids: Sequence[int],
        is_plain: bool,
    ) -> None:
        self.options = options
        self.num_halvings = num_halvings
        self.is_plain = is_plain
        # Why the session takes no requests any more.
        self.error: Exception | None = None
        self._eos_ids = list(eos_ids)
        self._futures: dict[str, Future[list[int]]] = {}
        self._num_requests = 0
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        # When the last forward pass was seen, or the first request after a rest came.
        self._last_progress = time.monotonic()
        self._manager = _make_manager(
            model, options=options, context_length=context_length, eos_ids=self._eos_ids, is_plain=is_plain
        )
        self._collector = threading.Thread(target=self._run, name="continuous batching", daemon=True)
        self._collector.start()

    def submit(self, requests: Sequence[TokenRequest]) -> list[Future[list[int]]]:
        """Hands requests to the manager and returns at once.

        The future of a request gives its new token ids, those that end it included, or raises what killed the manager,
        the same error for all requests that were under way; `StalledError` when it hangs.
        """
        with self._lock:
            futures: list[Future[list[int]]] = []
            for request in requests:
                future: Future[list[int]] = Future()
                futures.append(future)
                if self.error is not None:
                    future.set_exception(self.error)
                    continue
                if not self._futures:
                    self._last_progress = time.monotonic()
                request_id = str(self._num_requests)
                self._num_requests += 1
                self._futures[request_id] = future
                # A manager that is dying drops the request; the collector fails its future.
                self._manager.add_request(
                    request.ids,
                    request_id=request_id,
                    max_new_tokens=request.max_new_tokens,
                    eos_token_id=self._eos_ids,
                    **({} if self.is_plain else {"choice": request.choice}),
                )
            return futures

    def drain(self) -> None:
        """Waits until all requests under way are done or failed."""
        with self._lock:
            futures = list(self._futures.values())
        wait(futures)

    def close(self) -> None:
        """Ends the manager, failing what is under way, and frees its cache; again is harmless."""
        self._is_closing.set()
        self._collector.join(timeout=_STOP_SECONDS + 1)

    def abandon(self) -> None:
        """As `close`, when the session's owner is forgotten or the process ends.

        The garbage collector may call it in any thread, the session's own included, which must not wait for
        themselves; they are daemon threads, as the thread that ends a process is not.
        """
        self._is_closing.set()
        if not threading.current_thread().daemon:
            self.close()

    def _run(self) -> None:
        """The collector: starts the manager, hands out what it delivers, and ends it."""
        self._manager.start()
        # The frames of a traceback hold tensors that the next session needs the memory of.
        error = self._collect().with_traceback(None)
        # A thread that hangs is told to end, should it ever go on, but not waited for.
        self._manager.stop(block=not isinstance(error, StalledError), timeout=_STOP_SECONDS, hard_stop=True)
        self._manager.distributed_helper.destroy_cpu_comm_group()
        self._end(error)
        del self._manager

    def _end(self, error: Exception) -> None:
        with self._lock:
            self.error = error
            futures = list(self._futures.values())
            self._futures.clear()
        for future in futures:
            future.set_exception(error)

    def _collect(self) -> Exception:
        """Hands out results until the session ends; returns why."""
        failed: dict[str, str] = {}
        last_step = 0
        while not self._is_closing.is_set():
            output = self._manager.get_result(timeout=_POLL_SECONDS)
            if output is not None:
                if output.error is not None:
                    # Whether it failed alone or with the manager shows when the queue is empty.
                    failed[output.request_id] = output.error
                else:
                    self._take(output.request_id).set_result(output.generated_tokens)
                continue
            status = self._manager.background_thread_status
            if not self._manager.is_running() or status.fatal_error is not None:
                return status.fatal_error or RuntimeError("Continuous batching ended without an error.")
            # A manager that dies stops to take requests before it fails those it has.
            if failed and status.can_accept_new_requests() is None:
                for request_id, message in failed.items():
                    self._take(request_id).set_exception(RuntimeError(message))
                failed.clear()
            step = getattr(self._manager, "current_batch", 0)
            if step != last_step:
                last_step, self._last_progress = step, time.monotonic()
            elif self._futures and time.monotonic() - self._last_progress > self.options.stall_seconds:
                return StalledError(
                    f"Continuous batching finished no forward pass in {self.options.stall_seconds} s "
                    f"(engine.continuous.stall_seconds) with {len(self._futures)} prompts under way. "
                    "End this process and start again; what is done is kept."
                )
        return RuntimeError("The engine was closed.")

    def _take(self, request_id: str) -> Future[list[int]]:
        with self._lock:
            return self._futures.pop(request_id)


def _make_manager(
    model: Any, *, options: ContinuousBatchingOptions, context_length: int, eos_ids: list[int], is_plain: bool
) -> Any:
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=eos_ids or -1),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=options.page_size,
            # Rounded up, and one more, so that the longest prompt fits beside the rounding.
            num_blocks=-(-options.cache_tokens // options.page_size) + 1 if options.cache_tokens else None,
            max_batch_tokens=options.max_step_tokens,
            max_memory_percent=options.memory_fraction,
            max_requests_per_batch=options.max_requests,
            allow_block_sharing=True,
            # What needs each new token on the CPU before the next step; None leaves it to the manager.
            use_async_batching=None if is_plain else False,
            use_cuda_graph=None if is_plain else False,
        ),
        workload_hints=WorkloadHints(max_prompt_length=context_length, num_requests=options.max_requests),
    )
    if not is_plain:
        manager.logit_processor = TokenChooser()
    return manager
