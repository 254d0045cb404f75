"""A llama-server that misbehaves: a process of its own, with its own record of what it saw.

`python -m tests.wire.chaos_server SETTINGS` prints its port and serves until its stdin ends.
Whom it fails, and how, follows from the requests alone: from who asks (`script`), or from a
seed, the request's bytes and how often they came (`share`). What it answers follows from the
request too, so two runs can be compared. Each finished request is one line of its record.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from scheduler.backends.fake import example_of
from tests.wire.scripted_server import (
    CHAT,
    HEALTH,
    LOADING,
    PROPS,
    Reply,
    ScriptedServer,
    Seen,
    answer_body,
    error_body,
    props_body,
)

Fault = Callable[[Reply], Reply]
"""Makes of a good reply what goes wrong with it."""


def _body(body: Any, status: int = 200, **fields: Any) -> Fault:
    return lambda good: Reply(body, status, **fields)


def _patience(status: int, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return _body(error_body(status, "slow down", "unavailable"), status, headers=named)


def _too_long(status: int) -> Fault:
    if status == 500:
        return _body(error_body(500, "Context size has been exceeded.", "server_error"), 500)
    says = error_body(
        400, "request exceeds the available context size", "exceed_context_size_error"
    )
    says["error"] |= {"n_prompt_tokens": 4242, "n_ctx": 1024}
    return _body(says, 400)


def _halved(good: Reply) -> Reply:
    content = json.dumps(good.body).encode()
    return replace(good, body=content[: len(content) // 2], claimed_length=len(content))


def _untyped(good: Reply) -> Reply:
    return replace(good, content_type="")


PASSING: Mapping[str, Fault] = {
    "hang": lambda good: Reply(hang=True),
    "drip": lambda good: replace(good, drip_s=0.2),
    "reset": lambda good: Reply(reset=True),
    "close": lambda good: Reply(raw=b""),
    "half the headers": lambda good: Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "half the body": _halved,
    "no HTTP": lambda good: Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    "no content type": _untyped,
    "web page": _body(b"<html>nginx</html>", content_type="text/html"),
    "broken JSON": _body(b'{"choices": [{"mess'),
    "JSON, but a list": _body([1, 2]),
    "empty": _body(b""),
    "no choices": _body({**answer_body(), "choices": []}),
    "choices of another kind": _body({**answer_body(), "choices": {"0": None}}),
    "no text": _body({**answer_body(), "choices": [{"message": {"content": None}}]}),
    "error in a 200": _body(error_body(500, "oh no", "server_error")),
    "500": _body(error_body(500, "oh no", "server_error"), 500),
    "502 of a proxy": _body(b"<html>Bad Gateway</html>", 502, content_type="text/html"),
    "503 with Retry-After": _patience(503, Retry_After="0.1"),
    "429": _patience(429),
    "429 with Retry-After": _patience(429, Retry_After="0.1"),
    "429 until yesterday": _patience(429, Retry_After="Mon, 01 Jan 2024 00:00:00 GMT"),
    "429 until nonsense": _patience(429, Retry_After="soon; -5"),
    "204": _body(b"", 204),
}
"""What goes away when it is tried again."""

LASTING: Mapping[str, Fault] = {
    "400": _body(error_body(400, "bad temperature", "invalid_request_error"), 400),
    "401": _body(error_body(401, "Invalid API Key", "authentication_error"), 401),
    "404": _body(error_body(404, "File Not Found", "not_found_error"), 404),
    "redirect": _body(b"", 302, headers={"Location": "http://127.0.0.1:9/"}),
    "400 too long": _too_long(400),
    "500 too long": _too_long(500),
}
"""What would come again."""

FREE: Mapping[str, Fault] = {"loading": lambda good: LOADING}
"""What costs no attempt."""

SCHEMA_IGNORED = "schema ignored"

FAULTS: Mapping[str, Fault] = {
    **PASSING,
    **LASTING,
    **FREE,
    SCHEMA_IGNORED: _body(answer_body("Sure! Here is my answer.")),
}


@dataclass(frozen=True)
class Settings:
    """What a chaos server does.

    Attributes:
        record: The file to which its record is appended.
        port: Where it listens; 0 for a free port.
        slots: How many slots it says that it has.
        delay_s: Longest time that an answer takes; each draws its own from the request.
        loading_s: How long after its start it says that it loads its model.
        script: By a word of the prompt, what becomes of the first, second, ... time that such
            a request comes; after that it is answered.
        share: Share of all other requests that meet a fault.
        kinds: The faults that these draw from.
        most: Most faults that one request meets in a row.
        seed: Decides which requests do.
        model: The name of its model.
    """

    record: str
    port: int = 0
    slots: int = 4
    delay_s: float = 0.0
    loading_s: float = 0.0
    script: Mapping[str, list[str]] = field(default_factory=dict)
    share: float = 0.0
    kinds: list[str] = field(default_factory=lambda: list(PASSING))
    most: int = 2
    seed: int = 0
    model: str = "demo"

    def json(self) -> str:
        return json.dumps(asdict(self))


class ChaosServer(ScriptedServer):
    """Serves as `Settings` say and writes down what became of each request."""

    def __init__(self, settings: Settings, record: TextIO) -> None:
        super().__init__(settings.port)
        self._settings = settings
        self._record = record
        self._ready_at = time.monotonic() + settings.loading_s
        self._writing = threading.Lock()
        self._times: Counter[str] = Counter()
        self._did: dict[int, str] = {}
        self._in_flight = 0
        self.on(CHAT, self._chat)
        self.on(HEALTH, lambda seen: LOADING if self._loads else Reply({"status": "ok"}))
        props = props_body(total_slots=settings.slots, model_alias=settings.model)
        self.on(PROPS, Reply(props))

    @property
    def _loads(self) -> bool:
        return time.monotonic() < self._ready_at

    def _chat(self, seen: Seen) -> Reply:
        body = seen.json
        name = sha256(seen.body).hexdigest()
        draw = random.Random(f"{self._settings.seed} {name}")
        good = Reply(answer_body(_text(body, draw)), delay_s=self._settings.delay_s * draw.random())
        with self._writing:
            self._in_flight += 1
            nth = self._times[name]
            self._times[name] += 1
            did = self._did[id(seen)] = self._choice(body, draw, nth)
        return FAULTS[did](good) if did in FAULTS else good

    def _choice(self, body: Any, draw: random.Random, nth: int) -> str:
        """Return what becomes of the `nth` request with this body, from 0."""
        if self._loads:
            return "loading"
        prompt = json.dumps(body["messages"])
        for word, faults in self._settings.script.items():
            if word in prompt:
                nth = self._times[word]
                self._times[word] += 1
                return faults[nth] if nth < len(faults) else "answered"
        meets = draw.random() < self._settings.share
        kinds = draw.sample(self._settings.kinds, min(self._settings.most, draw.randint(1, 3)))
        return kinds[nth] if meets and nth < len(kinds) else "answered"

    def note(self, request: Seen, reply: Reply, *, served: bool, seconds: float) -> None:
        chat = request.route == CHAT
        with self._writing:
            line = {
                "route": request.route,
                "did": self._did.pop(id(request), "answered"),
                "served": served,
                "seconds": seconds,
                "in_flight": self._in_flight if chat else None,
                "prompt": request.json["messages"][-1]["content"] if chat else None,
                "seed": request.json.get("seed") if chat else None,
            }
            self._in_flight -= chat
            self._record.write(json.dumps(line) + "\n")
            self._record.flush()


def _text(body: Any, draw: random.Random) -> str:
    schema = (body.get("response_format") or {}).get("json_schema")
    if schema is not None:
        return json.dumps(example_of(schema["schema"], draw))
    return f"answer {draw.randrange(10**9)}"


def main() -> None:
    """Serve until stdin ends, which it does when the parent is gone."""
    settings = Settings(**json.loads(sys.argv[1]))
    with (
        Path(settings.record).open("a", encoding="utf-8") as record,
        ChaosServer(settings, record) as server,
    ):
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
