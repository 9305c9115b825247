"""Generates at an OpenAI-compatible endpoint: a server of one's own (vLLM, SGLang, llama.cpp, ``transformers serve``)
or a hosted one.

A conversation goes to ``chat/completions``, where the server applies its chat template, or, rendered here, to
``completions``; a string always goes to ``completions``. There it is sent as token ids, so that the server cannot add a
second BOS, or, to a server that takes strings only, as the string that the server's tokenizer turns into these ids.

All prompts of all calls share one limit of concurrent requests. The `openai` client tries a request again that found
no server, ran into the time limit, or was answered with 408, 409, 429 or 5xx: with exponential backoff, or after as
long as the answer's ``Retry-After`` asks. An answer that holds no completion is asked for again a few times.

Whose fault is it, when that does not help? A prompt counts as bad, a `Failure`, only if it fails once more right after
the endpoint has answered a harmless prompt. Everything else, such as a server that is gone or that takes none of the
run's parameters, is raised: a run that stops can go on later, while a corpus turned into failures is lost.

Cost: requests wait in one thread with an event loop, whatever their number. Not done here: streaming, the batch API of
hosted endpoints, a limit across machines (each worker keeps to ``max_concurrency``), a limit on how long a server may
keep a connection by sending its answer in drops. A drawn completion is as reproducible as the server makes its seeds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from contracts.record_files import lone_surrogate
from synth_model.engines.prompt_encoding import encode_prompt
from synth_model.generation import ChatMessage, Completion, Failure, Outcome, Prompt, Sampling, prompt_seed
from synth_model.prompt_tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from synth_model.engines import EngineConfig

_Result = TypeVar("_Result")

# An answer without a completion comes from a proxy that hiccups, or it always comes: few attempts tell which.
_MAX_BAD_RESPONSE_RETRIES = 3
_FIRST_PAUSE_SECONDS = 0.5
# Whether an endpoint answers at all is to be known soon.
_MAX_CHECK_RETRIES = 2
# Statuses that speak of the request itself: sent again, it would fare no better.
_REFUSALS = (400, 413, 422)
_NOT_ALLOWED = (401, 403, 404)
_HARMLESS_TEXT = "Hello"


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """How an OpenAI-compatible endpoint is asked.

    Args:
        base_url: The endpoint, such as ``http://localhost:8000/v1``.
        api_key_env: Name of the environment variable that holds the key, on every machine that asks; empty for none.
        tokenizer: Hub name or folder of the model's tokenizer, which measures lengths; empty is ``engine.model``.
        api: Where conversations go: ``chat`` (the server renders them) or ``completions`` (they are rendered here, with
            the words that the model's turn is to begin with). Strings always go to ``completions``.
        prompt_form: How ``completions`` gets a prompt: ``token_ids``, or ``text`` for servers that take nothing else.
        max_concurrency: Most requests at the same time, of one worker.
        max_retries: How often a request is tried again, with pauses that grow to 8 s: 20 last over two minutes.
        timeout_seconds: Longest wait for a connection, and for the answer to a request.
        extra_body: Further fields of each request, such as ``{"chat_template_kwargs": {"enable_thinking": false}}``; a
            null leaves out a field that would be sent.
    """

    base_url: str = ""
    api_key_env: str = ""
    tokenizer: str = ""
    api: Literal["chat", "completions"] = "chat"
    prompt_form: Literal["token_ids", "text"] = "token_ids"
    max_concurrency: int = 32
    max_retries: int = 20
    timeout_seconds: float = 600.0
    extra_body: dict[str, Any] = field(default_factory=dict, hash=False)

    def check(self) -> None:
        """Refuses what cannot work, before any work.

        Raises:
            ValueError: A setting is impossible.
        """
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"engine.endpoint.base_url is {self.base_url!r}; give the URL of the endpoint, such as "
                "'http://localhost:8000/v1'."
            )
        if self.max_concurrency < 1:
            raise ValueError(f"engine.endpoint.max_concurrency is {self.max_concurrency}; it must be at least 1.")
        if self.max_retries < 0:
            raise ValueError(f"engine.endpoint.max_retries is {self.max_retries}; it must be at least 0.")
        if self.timeout_seconds <= 0:
            raise ValueError(f"engine.endpoint.timeout_seconds is {self.timeout_seconds}; it must be above 0.")


class EndpointUnavailableError(RuntimeError):
    """The endpoint is gone, overloaded or broken; no prompt is at fault."""


class BadResponseError(Exception):
    """The endpoint answered with success, but the answer holds no completion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """A prompt on its way.

    Args:
        prompt: The prompt.
        num_prompt_tokens: Its length by the tokenizer here.
        path: ``/chat/completions`` or ``/completions``.
        body: The request's fields.
    """

    prompt: Prompt
    num_prompt_tokens: int
    path: str
    body: Mapping[str, Any]

    @property
    def is_chat(self) -> bool:
        """Whether the server renders the conversation."""
        return self.path == "/chat/completions"


class EndpointEngine:
    """See the module's description. Threads may share it; nothing is asked before the first prompt.

    Raises:
        ValueError: The package ``openai`` or the key is missing, or there is no such tokenizer.
    """

    def __init__(self, config: EngineConfig) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ValueError("engine.kind 'endpoint' needs the package openai: pip install '.[endpoint]'.") from error
        # One line a request, were it left as it is.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._options = config.endpoint
        self._model = config.model
        self._context_length = config.context_length
        self._tokenizer = ModelTokenizer(
            config.endpoint.tokenizer or config.model, trust_remote_code=config.trust_remote_code
        )
        self._client = openai.AsyncOpenAI(
            base_url=config.endpoint.base_url,
            api_key=_api_key(config.endpoint.api_key_env),
            max_retries=config.endpoint.max_retries,
            timeout=config.endpoint.timeout_seconds,
        )
        self._slots = asyncio.Semaphore(config.endpoint.max_concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint-engine", daemon=True)
        self._thread.start()

    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Outcome]:
        """One outcome a prompt, in the prompts' order.

        Raises:
            ValueError: The endpoint knows no such model or key, or takes no request of this kind.
            EndpointUnavailableError: It does not answer, or answers nothing but errors.
        """
        requests = [self._request(prompt, sampling) for prompt in prompts]
        return self._wait_for(self._complete_all(requests))

    def check(self, prompt: Prompt) -> None:
        """Asks for one token behind a prompt such as the run will send, so that nothing is begun that cannot work.

        Raises:
            ValueError: There is no such endpoint, model or key, or the endpoint takes no such prompt.
        """
        request = self._request(prompt, Sampling(max_new_tokens=1))
        if isinstance(request, Failure):
            raise ValueError(f"The prompts of this run cannot be sent to an endpoint: {request.detail}")
        try:
            self._wait_for(self._check_that_it_answers(request))
        except EndpointUnavailableError as error:
            raise ValueError(str(error)) from error

    def close(self) -> None:
        """Gives up what is under way and ends the engine's thread."""
        if self._loop.is_closed():
            return
        self._wait_for(self._give_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _give_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        # Their callers wait in other threads: the loop must not stop before they have been told.
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _wait_for(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # An interrupt leaves this thread; what it waited for must not go on.
            future.cancel()
            raise

    def _request(self, prompt: Prompt, sampling: Sampling) -> _Request | Failure:
        ids = encode_prompt(prompt, tokenizer=self._tokenizer, sampling=sampling, context_length=self._context_length)
        if isinstance(ids, Failure):
            return ids
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        penalties = {name: getattr(sampling, name) for name in ("frequency_penalty", "presence_penalty")}
        body |= {name: penalty for name, penalty in penalties.items() if penalty}
        if sampling.temperature:
            # Some servers keep seeds in 32 bits, with a sign.
            body |= {"top_p": sampling.top_p, "seed": prompt_seed(prompt, sampling=sampling) >> 32}
        if prompt.messages and self._options.api == "chat":
            path, body["messages"] = "/chat/completions", [asdict(message) for message in prompt.messages]
        elif self._options.prompt_form == "token_ids":
            path, body["prompt"] = "/completions", ids
        else:
            try:
                path, body["prompt"] = "/completions", text_read_as(ids, prompt=prompt, tokenizer=self._tokenizer)
            except ValueError as error:
                return Failure(reason="prompt_not_encodable", detail=str(error))
        body |= self._options.extra_body
        return _Request(
            prompt=prompt,
            num_prompt_tokens=len(ids),
            path=path,
            body={name: value for name, value in body.items() if value is not None},
        )

    async def _complete_all(self, requests: Sequence[_Request | Failure]) -> list[Outcome]:
        tasks = {
            index: asyncio.ensure_future(self._complete(request))
            for index, request in enumerate(requests)
            if isinstance(request, _Request)
        }
        try:
            await asyncio.gather(*tasks.values())
        except BaseException:
            # The first error that is no prompt's own ends all of them.
            for task in tasks.values():
                task.cancel()
            await asyncio.wait(tasks.values())
            raise
        return [
            request if isinstance(request, Failure) else tasks[index].result() for index, request in enumerate(requests)
        ]

    async def _complete(self, request: _Request) -> Outcome:
        import openai

        async with self._slots:
            try:
                return await self._ask(request, client=self._client)
            except (openai.APIError, BadResponseError) as error:
                self._raise_if_never_the_prompts_fault(error)
                await self._check_that_it_answers(self._harmless(request), after=error)
                if getattr(error, "status_code", None) in _REFUSALS:
                    return Failure(reason="prompt_refused", detail=_describe(error))
            try:
                return await self._ask(request, client=self._client.with_options(max_retries=0))
            except (openai.APIError, BadResponseError) as error:
                self._raise_if_never_the_prompts_fault(error)
                reason = "bad_response" if isinstance(error, BadResponseError) else "endpoint_failed"
                return Failure(reason=reason, detail=_describe(error))

    async def _ask(self, request: _Request, *, client: Any) -> Outcome:
        """The completion, after as many attempts as the client makes.

        Raises:
            openai.APIError: There was an error instead of an answer.
            BadResponseError: There was an answer without a completion, each time.
        """
        num_retries = min(client.max_retries, _MAX_BAD_RESPONSE_RETRIES)
        for attempt in range(num_retries + 1):
            answer = await client.post(request.path, cast_to=str, body=request.body)
            try:
                return self._read(answer, request)
            except BadResponseError:
                if attempt == num_retries:
                    raise
            await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, answer: str, request: _Request) -> Outcome:
        fields = _parse(answer)
        choice = fields["choices"][0]
        finish_reason = choice.get("finish_reason")
        if finish_reason == "content_filter":
            return Failure(reason="content_filtered", detail="The endpoint's filter stopped the completion.")
        text = choice.get("text")
        if request.is_chat:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else None
        # JSON can spell half of a surrogate pair, which is no text.
        if not isinstance(text, str) or lone_surrogate(text) is not None or finish_reason not in ("stop", "length"):
            raise BadResponseError(f"The answer holds no completion that has ended: {answer[:200]!r}")
        if request.is_chat and text.lstrip().startswith(request.prompt.response_prefix):
            text = text.lstrip().removeprefix(request.prompt.response_prefix)
        usage = fields.get("usage")
        num_prompt_tokens, num_new_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        if num_new_tokens is None:
            (num_new_tokens,) = self._tokenizer.count_text([text])
        return Completion(
            text=text,
            finish_reason=finish_reason,
            num_prompt_tokens=request.num_prompt_tokens if num_prompt_tokens is None else num_prompt_tokens,
            num_new_tokens=num_new_tokens,
        )

    def _raise_if_never_the_prompts_fault(self, error: Exception) -> None:
        status = getattr(error, "status_code", None)
        if status in _NOT_ALLOWED:
            raise ValueError(
                f"The endpoint {self._options.base_url} does not serve the model {self._model!r} with the key of "
                f"engine.endpoint.api_key_env ({self._options.api_key_env!r}): {_describe(error)}"
            ) from error
        if status == 429:
            raise EndpointUnavailableError(
                f"The endpoint {self._options.base_url} still limits the rate after {self._options.max_retries} "
                f"retries: {_describe(error)} Lower engine.endpoint.max_concurrency, or start the run again later; "
                "what is done is kept."
            ) from error

    def _harmless(self, request: _Request) -> _Request:
        """The same request with a prompt that no endpoint can find anything wrong with."""
        body = dict(request.body)
        if request.is_chat:
            body["messages"] = [asdict(ChatMessage(role="user", content=_HARMLESS_TEXT))]
        elif isinstance(body["prompt"], str):
            body["prompt"] = _HARMLESS_TEXT
        else:
            (body["prompt"],) = self._tokenizer.encode([Prompt(text=_HARMLESS_TEXT)])
        return replace(request, body=body)

    async def _check_that_it_answers(self, request: _Request, *, after: Exception | None = None) -> None:
        """Sends a request whose answer is of no interest, as long as it is one.

        Raises:
            ValueError: The endpoint refuses it.
            EndpointUnavailableError: It gives no answer; the message tells the error ``after`` which this was tried.
        """
        import openai

        client = self._client.with_options(max_retries=min(_MAX_CHECK_RETRIES, self._options.max_retries))
        try:
            _parse(await client.post(request.path, cast_to=str, body=request.body))
        except (openai.APIError, BadResponseError) as error:
            self._raise_if_never_the_prompts_fault(error)
            if getattr(error, "status_code", None) in _REFUSALS:
                raise ValueError(
                    f"The endpoint {self._options.base_url} refuses every request at {request.path} for the model "
                    f"{self._model!r}: {_describe(error)}"
                ) from error
            raise EndpointUnavailableError(
                f"The endpoint {self._options.base_url} does not complete prompts of the model {self._model!r}: "
                f"{_describe(after or error)} What is done is kept; start the run again when the endpoint works."
            ) from error


def _parse(answer: str) -> dict[str, Any]:
    """A response body whose first choice is an object.

    Raises:
        BadResponseError: It is something else.
    """
    try:
        fields = json.loads(answer)
        if isinstance(fields["choices"][0], dict):
            return dict(fields)
    # A page of HTML, an error reported as a success, nesting that no parser follows.
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    raise BadResponseError(f"The answer holds no completion: {answer[:200]!r}")


def text_read_as(ids: Sequence[int], *, prompt: Prompt, tokenizer: ModelTokenizer) -> str:
    """The string that a server's tokenizer, which adds what it adds to any text, reads as a prompt's token ids.

    Raises:
        ValueError: There is none.
    """
    text = tokenizer.render(prompt)
    for candidate in (text, text.removeprefix(tokenizer.tokenizer.bos_token or "")):
        if tokenizer.tokenizer(candidate)["input_ids"] == list(ids):
            return candidate
    raise ValueError(
        "The server's tokenizer would read other tokens than the prompt's, because of those that it adds to every "
        "text. Set engine.endpoint.prompt_form to 'token_ids'."
    )


def _api_key(variable: str) -> str:
    if not variable:
        return "none"
    key = os.environ.get(variable, "")
    if not key:
        raise ValueError(
            f"engine.endpoint.api_key_env is {variable!r}, but no such environment variable is set on this machine."
        )
    return key


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _describe(error: Exception) -> str:
    response, cause = getattr(error, "response", None), error.__cause__
    if response is not None:
        message = f"HTTP {response.status_code}: {response.text[:300]}"
    else:
        message = f"{error} ({type(cause).__name__}: {cause})" if cause is not None else str(error)
    return " ".join(message.split())
