"""A server that speaks like a llama-server and answers by script, byte for byte as told.

On raw sockets in threads, so that it can do what no HTTP library lets a server do: hang,
drip, reset, break off. Knows nothing of this project; `chaos_server.py` runs it as a process
of its own, and `tests/integration/test_contract.py` holds it against a real llama-server.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

CHAT = "POST /v1/chat/completions"
HEALTH = "GET /health"
PROPS = "GET /props"
MODELS = "GET /v1/models"
TEMPLATE = "POST /apply-template"
TOKENIZE = "POST /tokenize"

_POLL_S = 0.02
PATIENCE_S = 60.0
"""How long a busy machine may take for what is done at once on an idle one."""


def answer_body(text: str = "hello", **message: Any) -> dict[str, Any]:
    """The body that a llama-server answers a chat completion with."""
    return {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "created": 1795362838,
        "model": "demo",
        "system_fingerprint": "b0-unknown",
        "object": "chat.completion",
        "usage": {
            "completion_tokens": 15,
            "prompt_tokens": 39,
            "total_tokens": 54,
            "prompt_tokens_details": {"cached_tokens": 38},
        },
        "id": "chatcmpl-1",
        "timings": {
            "cache_n": 38,
            "prompt_n": 1,
            "prompt_ms": 0.822,
            "predicted_n": 15,
            "predicted_ms": 6.67,
        },
    }


def error_body(code: int, message: str, kind: str, **more: Any) -> dict[str, Any]:
    """The body that a llama-server describes an error with."""
    return {"error": {"code": code, "message": message, "type": kind, **more}}


def props_body(**changes: Any) -> dict[str, Any]:
    """What a llama-server's /props say, as far as anyone reads it."""
    return {
        "default_generation_settings": {"n_ctx": 2048, "params": {"temperature": 0.8}},
        "total_slots": 4,
        "model_alias": "demo",
        "model_ftype": "Q8_0",
        "model_path": "/models/secret/demo.gguf",
        "chat_template": "{{ messages }}",
        "build_info": "b1234-abc",
        **changes,
    }


@dataclass(frozen=True)
class Reply:
    """One answer of the script.

    Attributes:
        body: JSON data, or bytes as they are.
        raw: Sent instead of a status line, headers and body.
        claimed_length: What Content-Length says, if not the truth.
        drip_s: Seconds between two bytes of the body.
        hold: Answer once this is set.
        hang: Never answer; the connection stays open until the client hangs up.
        reset: Close with a reset instead of an answer.
        close: Close the connection after the answer, which says so, as a real server's last answer
            does: a client that is not told may send its next request into the closing connection.
    """

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json; charset=utf-8"
    raw: bytes | None = None
    claimed_length: int | None = None
    drip_s: float = 0.0
    delay_s: float = 0.0
    hold: threading.Event | None = None
    hang: bool = False
    reset: bool = False
    close: bool = False


@dataclass(frozen=True)
class Seen:
    """One request as it came in."""

    route: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answering = Reply | Callable[[Seen], Reply]
"""A reply, or what decides one from the request."""

LOADING = Reply(error_body(503, "Loading model", "unavailable_error"), status=503)


class ScriptedServer:
    """A context manager; `on` says what a route answers, the last reply again and again."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._script: dict[str, list[Answering]] = {}
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self.seen: list[Seen] = []
        self.connections = 0
        self.hung_up = threading.Event()
        self.reset()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def reset(self) -> None:
        """Go back to a healthy server with four slots, and forget what was seen."""
        with self._lock:
            self._script = defaultdict(
                lambda: [Reply(error_body(404, "File Not Found", "not_found_error"), status=404)],
                {
                    HEALTH: [Reply({"status": "ok"})],
                    PROPS: [Reply(props_body())],
                    MODELS: [Reply({"data": [{"id": "/models/secret/listed.gguf"}]})],
                    TEMPLATE: [Reply({"prompt": "<s>hi"})],
                    TOKENIZE: [Reply({"tokens": [0, 1, 2]})],
                    CHAT: [Reply(answer_body())],
                },
            )
            self.seen.clear()
            self.connections = 0
            self.hung_up.clear()

    def on(self, route: str, *replies: Answering) -> None:
        """Answer `route` (`GET /props`) with `replies` in turn, then with the last one."""
        with self._lock:
            self._script[route] = list(replies)

    def requests(self, route: str = CHAT) -> list[Seen]:
        """What came in on `route`, in order."""
        with self._lock:
            return [seen for seen in self.seen if seen.route == route]

    def wait_for(self, route: str = CHAT, count: int = 1) -> None:
        """Return once so many requests have come in on `route`."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.requests(route)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.requests(route))} of {count} requests on {route}")
            time.sleep(0.002)

    def note(self, request: Seen, reply: Reply, *, served: bool, seconds: float) -> None:
        """Called when a request is over; `served` is False where the client hung up."""

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=5)
        self._listener.close()

    def _spawn(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(_POLL_S)
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with self._lock:
                self.connections += 1
            self._spawn(self._converse, connection)

    def _converse(self, connection: socket.socket) -> None:
        connection.settimeout(_POLL_S)
        # Head and body are two writes: the second is not to wait for the first's receipt.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            buffer = b""
            while True:
                request, buffer = self._read(connection, buffer)
                if request is None:
                    return
                with self._lock:
                    self.seen.append(request)
                    replies = self._script[request.route]
                    said = replies.pop(0) if len(replies) > 1 else replies[0]
                reply = said if isinstance(said, Reply) else said(request)
                began = time.monotonic()
                try:
                    served = self._send(connection, reply)
                except OSError:
                    served = False
                self.note(request, reply, served=served, seconds=time.monotonic() - began)
                if not served:
                    return
                if reply.close or reply.raw is not None or reply.reset or reply.hang:
                    return
                if reply.claimed_length is not None:
                    return

    def _read(self, connection: socket.socket, buffer: bytes) -> tuple[Seen | None, bytes]:
        while b"\r\n\r\n" not in buffer:
            chunk = self._receive(connection)
            if not chunk:
                return None, b""
            buffer += chunk
        head, _, rest = buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", "0"))
        while len(rest) < length:
            chunk = self._receive(connection)
            if not chunk:
                return None, b""
            rest += chunk
        method, target, _ = first.split(" ")
        return Seen(f"{method} {target}", headers, rest[:length]), rest[length:]

    def _receive(self, connection: socket.socket) -> bytes:
        while not self._closing.is_set():
            try:
                return connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return b""
        return b""

    def _send(self, connection: socket.socket, reply: Reply) -> bool:
        """Answer; False where the client hung up before the answer was out."""
        if not self._stays(connection, math.inf if reply.hang else reply.delay_s):
            self.hung_up.set()
            return False
        if reply.hold is not None:
            reply.hold.wait(60)
        if reply.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return True
        if reply.raw is not None:
            connection.sendall(reply.raw)
            return True
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        length = len(body) if reply.claimed_length is None else reply.claimed_length
        head = f"HTTP/1.1 {reply.status} Scripted\r\nServer: llama.cpp\r\n"
        if reply.content_type:
            head += f"Content-Type: {reply.content_type}\r\n"
        if reply.close:
            head += "Connection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode("latin-1"))
        if not reply.drip_s:
            connection.sendall(body)
            return True
        for byte in body:
            if not self._stays(connection, reply.drip_s):
                self.hung_up.set()
                return False
            connection.sendall(bytes([byte]))
        return True

    def _stays(self, connection: socket.socket, seconds: float) -> bool:
        """Wait so long; return at once with False when the client hangs up meanwhile."""
        until = time.monotonic() + seconds
        while not self._closing.is_set():
            left = until - time.monotonic()
            if left <= 0:
                return True
            try:
                connection.settimeout(min(_POLL_S, left))
                if not connection.recv(1, socket.MSG_PEEK):
                    return False
                time.sleep(min(_POLL_S, left))  # the next request is here already
            except TimeoutError:
                continue
            except OSError:
                return False
            finally:
                connection.settimeout(_POLL_S)
        return True
