"""An HTTP server on this machine that speaks as much of OpenAI's protocol as a test makes it, and notes what it got."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server does with a request.

    Args:
        status: The answer's status.
        body: Its content; what is no string is sent as JSON.
        headers: Further headers.
        seconds: How long the answer takes.
        is_dropped: Whether the connection is closed in the middle of the answer.
    """

    status: int = 200
    body: Any = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    is_dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request: its path, headers and fields, and when it came, by the monotonic clock."""

    path: str
    headers: dict[str, str]
    fields: dict[str, Any]
    at_seconds: float


class EndpointServer:
    """Runs on a free port; ``answer`` decides, from any thread, what becomes of a request."""

    def __init__(self, answer: Callable[[Received], Reply]) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.most_at_once = 0
        self._num_open = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *arguments: Any) -> None:
                pass  # a client that has given up

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        request = Received(
            path=handler.path,
            headers={name.lower(): value for name, value in handler.headers.items()},
            fields=json.loads(content),
            at_seconds=time.monotonic(),
        )
        with self._lock:
            self.received.append(request)
            self._num_open += 1
            self.most_at_once = max(self.most_at_once, self._num_open)
        try:
            reply = self.answer(request)
            time.sleep(reply.seconds)
        finally:
            # Before the answer is out: the next request may be here before this thread goes on.
            with self._lock:
                self._num_open -= 1
        body = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode("utf-8")
        handler.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if reply.is_dropped:
            handler.wfile.write(body[: len(body) // 2])
            handler.close_connection = True
        else:
            handler.wfile.write(body)


@contextmanager
def serving(answer: Callable[[Received], Reply]) -> Iterator[EndpointServer]:
    """A server that ends with the block."""
    server = EndpointServer(answer)
    try:
        yield server
    finally:
        server.close()
