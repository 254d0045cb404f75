"""A llama-server as far as its flags go: a process that a run starts and stops as its own.

`python -m tests.wire.flag_server FLAGS` takes llama-server's flags, says that it has what they
ask for, and answers by the schema of each request. With `--alias ends` it ends once it has been
asked for its properties, with exit status 3.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from itertools import pairwise
from pathlib import Path

from scheduler.backends.fake import example_of
from tests.wire.scripted_server import (
    CHAT,
    PROPS,
    Reply,
    ScriptedServer,
    Seen,
    answer_body,
    props_body,
)

ENDS = "ends"


def put_program(path: Path) -> Path:
    """Write a program that starts this server, whatever directory it is started in."""
    root = Path(__file__).parent.parent.parent
    lines = ["#!/bin/sh", f"PYTHONPATH='{root}' exec '{sys.executable}' -m {__name__} \"$@\"", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    path.chmod(0o755)
    return path


def _answer(seen: Seen) -> Reply:
    body = seen.json
    schema = body["response_format"]["json_schema"]["schema"]
    # Not of the whole body, which names a slot too.
    draw = random.Random(json.dumps([body["messages"], body["seed"]]))
    return Reply(answer_body(json.dumps(example_of(schema, draw))))


def main(flags: list[str]) -> int:
    """Serve until somebody ends the process."""
    value = dict(pairwise(flags))
    slots = int(value["--parallel"])
    over = threading.Event()

    def props(seen: Seen) -> Reply:
        if value.get("--alias") == ENDS:
            over.set()
        settings = {"n_ctx": int(value["--ctx-size"]) // slots}
        return Reply(
            props_body(
                total_slots=slots,
                model_path=value["--model"],
                model_alias=value.get("--alias", ""),
                default_generation_settings=settings,
            )
        )

    with ScriptedServer(int(value["--port"])) as server:
        server.on(PROPS, props)
        server.on(CHAT, _answer)
        over.wait()
    return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
