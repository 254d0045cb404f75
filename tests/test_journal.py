"""The journal: what was acknowledged is there, what is there is right, or it is refused."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError, JournalError, RequestFailed
from scheduler.journal import Journal, JournalDamaged, question_key
from scheduler.journal_record import record_of
from scheduler.seeds import request_seed
from scheduler.types import Answer, FinishReason, Message, Outcome, Request, Usage
from tests.doubles import NoLog, config
from tests.questions import question, questions
from tests.unmeasured import unmeasured

pytestmark = pytest.mark.virtual_time

PLAIN = Request("agent-1", (Message("user", "x"),))
FULL = Request(
    "Zoë", (Message("user", "x"),), epoch=2, step=7, kind="accept", ordinal=1, base_seed=42
)
ODD_TEXTS = {
    "empty": "",
    "half a surrogate pair": "a\ud800b",
    "zero": "\0",
    "separators": "a\u2028b\u2029c\x85d\r\n",
    "emoji": "\U0001f600 é e\u0301",
    "quotes": "\"'`; DROP TABLE answers; --",
    "a megabyte": "wörd " * 200_000,
}


def answer(text: str = "yes", **fields: Any) -> Answer:
    return Answer(text, Outcome.OK, FinishReason.STOP, **{"seed": 7, **fields})


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Journal]:
    journal = Journal(path, **options)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.aclose()


async def written(path: Path, count: int = 3) -> None:
    """Leave a closed journal with `count` answers."""
    async with opened(path) as journal:
        for request in questions(count):
            await journal.store(request, answer(), "m")


class Complaints(NoLog):
    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.errors.append((event, fields))


# --- keys


@pytest.mark.parametrize(
    ("request_", "reask", "fingerprint", "key"),
    [
        (PLAIN, 0, "model-1", "4bb3f65fe730ac2b24a21eaa3ce1f75a1d720b239ca6e9c8412086dcbf641027"),
        (PLAIN, 1, "model-1", "7c53ebb9965aff950320afa596506219a7d8f631daafa3ac38b051d3dc37594f"),
        (PLAIN, 0, "model-2", "8c75366029c4be9a42ff4674cfa226f0f1e45da20a9137bb20c81b6d3b88222b"),
        (FULL, 0, "model-1", "571643905745a6c0afeb853ea89f4058f228ce3a32888eea6552c3cdb406344f"),
    ],
)
def test_key_vectors(request_: Request, reask: int, fingerprint: str, key: str) -> None:
    assert question_key(request_, reask, fingerprint) == key


# --- what goes in comes out


@pytest.mark.parametrize("name", ODD_TEXTS)
async def test_an_answer_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    text = ODD_TEXTS[name]
    before = Answer(
        text,
        Outcome.INVALID,
        FinishReason.LENGTH,
        seed=request_seed(FULL, 2),
        reask=2,
        usage=Usage(100, 20, 80),
        reasoning=text[::-1],
        violation=text[:100],
    )
    async with opened(tmp_path / "j") as journal:
        await journal.store(FULL, before, "m")
        assert journal.recall(FULL, 2, "m") == before
    async with opened(tmp_path / "j") as journal:
        assert journal.recall(FULL, 2, "m") == before
        assert journal.recall(FULL, 0, "m") is None
        assert journal.recall(FULL, 2, "other") is None


@pytest.mark.parametrize("text", ["refused", "a\u2028b", "half \udc00 pair"])
async def test_a_failure_comes_back_as_its_message(text: str, tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.store_failure(PLAIN, 1, RequestFailed(text, 4), "m")
    async with opened(tmp_path / "j") as journal:
        assert journal.recall(PLAIN, 1, "m") == text
        assert journal.recall(PLAIN, 0, "m") is None


async def test_times_are_not_kept(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.store(PLAIN, answer(), "m")
        found = journal.recall(PLAIN, 0, "m")
    assert isinstance(found, Answer)
    assert found.timings == answer().timings


async def test_the_first_answer_counts(tmp_path: Path) -> None:
    async with opened(tmp_path / "j") as journal:
        await journal.store(PLAIN, answer("first"), "m")
        await journal.store(PLAIN, answer("second"), "m")
        live = journal.recall(PLAIN, 0, "m")
    async with opened(tmp_path / "j") as journal:
        assert journal.recall(PLAIN, 0, "m") == live == answer("first")


async def test_concurrent_stores_are_all_kept(tmp_path: Path) -> None:
    requests = questions(200)
    async with opened(tmp_path / "j") as journal:
        async with anyio.create_task_group() as tasks:
            for request in requests:
                tasks.start_soon(journal.store, request, answer(request.agent_id), "m")
        assert journal.stored == 200
    async with opened(tmp_path / "j") as journal:
        found = [journal.recall(request, 0, "m") for request in requests]
    assert found == [answer(request.agent_id) for request in requests]


async def test_counts_and_repr(tmp_path: Path) -> None:
    await written(tmp_path / "j", 3)
    async with opened(tmp_path / "j") as journal:
        await journal.store(question(9), answer(), "m")
        journal.recall(questions(1)[0], 0, "m")
        assert repr(journal) == "<Journal j: 4 known, 1 stored>"
        assert journal.recalled == 1


# --- opening and closing


async def test_closed_twice_and_used_after(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    await journal.aclose()
    await journal.open()
    await journal.aclose()
    await journal.aclose()
    with pytest.raises(JournalError, match="is not open"):
        await journal.store(PLAIN, answer(), "m")


async def test_closed_journal_is_one_file(tmp_path: Path) -> None:
    await written(tmp_path / "j")
    assert [entry.name for entry in os.scandir(tmp_path)] == ["j"]


async def test_two_journals_at_once_keep_their_own(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as first, opened(tmp_path / "b") as second:
        await first.store(PLAIN, answer("a"), "m")
        await second.store(PLAIN, answer("b"), "m")
        assert first.recall(PLAIN, 0, "m") == answer("a")
        assert second.recall(PLAIN, 0, "m") == answer("b")


async def test_one_file_has_one_journal_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j"
    async with opened(path) as journal:
        with pytest.raises(ConfigError, match="in use by another run"):
            await Journal(path).open()
        await journal.store(PLAIN, answer(), "m")
    async with opened(path) as journal:
        assert journal.recall(PLAIN, 0, "m") == answer()


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_acknowledged_answers_survive_a_killed_process(synchronous: str, tmp_path: Path) -> None:
    path = tmp_path / "j"
    program = [sys.executable, "-c", _WRITER, str(path), synchronous]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged = [child.stdout.readline().strip() for _ in range(150)]
        child.kill()
        acknowledged += child.stdout.read().split()
    assert (tmp_path / "j-wal").stat().st_size > 0
    check_acknowledged(path, acknowledged)


def check_acknowledged(path: Path, names: list[str]) -> None:
    async def main() -> None:
        async with opened(path) as journal:
            found = [journal.recall(question(name), 0, "m") for name in names]
        assert found == [answer(f"answer of {name}") for name in names]

    anyio.run(main)


_WRITER = """
import sys
from pathlib import Path
import anyio
from scheduler.journal import Journal
from scheduler.types import Answer, FinishReason, Message, Outcome, Request

async def main():
    journal = Journal(Path(sys.argv[1]), synchronous=sys.argv[2])
    await journal.open()
    for number in range(100_000):
        name = f"agent-{number}"
        text = f"I am {name}. What now?"
        messages = (Message("system", "You trade."), Message("user", text))
        found = Answer(f"answer of {name}", Outcome.OK, FinishReason.STOP, seed=7)
        await journal.store(Request(name, messages), found, "m")
        print(name, flush=True)

anyio.run(main)
"""


# --- what is refused


async def test_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path)
    _change(path, "PRAGMA user_version = 9")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="has version 9, this release writes 1"):
        await Journal(path).open()
    assert path.read_bytes() == before


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    _change(path, "CREATE TABLE answers (theirs TEXT)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is a database, but not a journal"):
        await Journal(path).open()
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not SQLite at all, but long enough" * 99, b"\xff" * 4096])
async def test_a_file_that_is_no_database_is_refused_and_left_alone(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not a journal, or is damaged"):
        await Journal(path).open()
    assert path.read_bytes() == content


async def test_a_journal_without_its_table_is_refused(tmp_path: Path) -> None:
    await written(tmp_path / "j")
    _change(tmp_path / "j", "DROP TABLE answers")
    with pytest.raises(ConfigError, match="not a journal, or is damaged"):
        await Journal(tmp_path / "j").open()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE other (x)",
    ],
)
async def test_a_journal_that_holds_anything_else_is_refused(
    statement: str, tmp_path: Path
) -> None:
    await written(tmp_path / "j")
    _change(tmp_path / "j", statement)
    with pytest.raises(ConfigError, match="something else than the one table"):
        await Journal(tmp_path / "j").open()


@pytest.mark.parametrize(
    "record",
    [
        *(
            '{"outcome": "ok"}',
            "[1]",
            '"text"',
            "no JSON",
            '{"outcome": {}}',
            '{"outcome": "failed"}',
        ),
        *(
            json.dumps({**record_of(answer()), name: value})
            for name, value in [
                ("text", 7),
                ("violation", None),
                ("seed", "7"),
                ("reask", True),
                ("usage", {"prompt_tokens": 1, "other": 2}),
                ("finish_reason", "tired"),
            ]
        ),
    ],
)
async def test_a_record_of_another_shape_is_damage_and_not_a_crash(
    record: str, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    await written(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        for (key,) in connection.execute("SELECT key FROM answers").fetchall():
            digest = sha256(f"{key}\n{record}".encode()).hexdigest()
            connection.execute(
                "UPDATE answers SET record = ?, sha256 = ? WHERE key = ?", (record, digest, key)
            )
    async with opened(path) as journal:
        with pytest.raises(ConfigError, match="has not the shape of one"):
            journal.recall(questions(3)[0], 0, "m")


async def test_a_changed_answer_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path)
    content = path.read_bytes()
    at = content.index(b'"text": "yes"') + len(b'"text": "')
    path.write_bytes(content[:at] + b"n" + content[at + 1 :])
    with pytest.raises(JournalDamaged, match=r"the answer to agent-00\d act .* is not what was"):
        await Journal(path).open()


async def test_answers_that_changed_places_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path)
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT key, label, record, sha256 FROM answers").fetchall()
        keys = [key for key, *_ in rows]
        connection.execute("DELETE FROM answers")
        for key, (_, *rest) in zip(reversed(keys), rows, strict=True):
            connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (key, *rest))
    connection.close()
    with pytest.raises(JournalDamaged, match="is not what was stored"):
        await Journal(path).open()


async def test_an_answer_that_a_damaged_page_hides_is_missed(tmp_path: Path) -> None:
    """Each answer that is left is right, so only the page itself tells that one has gone."""
    path = tmp_path / "j"
    await written(path, 40)
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    leaves = [at for at in range(size, len(content), size) if content[at] == INDEX_LEAF]
    cells = int.from_bytes(content[leaves[-1] + 3 : leaves[-1] + 5], "big")
    content[leaves[-1] + 3 : leaves[-1] + 5] = (cells - 1).to_bytes(2, "big")
    path.write_bytes(content)
    with pytest.raises(JournalDamaged, match="is damaged"):
        await Journal(path).open()


async def test_a_file_cut_anywhere_is_refused_or_has_only_right_answers(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path, 40)
    content = path.read_bytes()
    refused = 0
    for length in range(0, len(content), len(content) // 37):
        path.write_bytes(content[:length])
        try:
            async with opened(path) as journal:
                found = [journal.recall(request, 0, "m") for request in questions(40)]
        except ConfigError:
            refused += 1
        else:
            assert set(found) <= {None, answer()}, f"cut to {length} bytes"
            assert length == 0, "only an empty file is as good as none"
    assert refused > 30


FLIPS = 200
INDEX_LEAF = 10  # https://www.sqlite.org/fileformat2.html#b_tree_pages


@pytest.mark.parametrize("which", ["journal", "wal"])
async def test_flipped_bits_are_found_or_do_no_harm(
    which: str, anyio_backend_name: str, tmp_path: Path
) -> None:
    path, wal = tmp_path / "j", tmp_path / "j-wal"
    requests = questions(40)
    journal = Journal(path)
    await journal.open()
    for request in requests:
        await journal.store(request, answer(f"{request.agent_id} says"), "m")
    files = {path: path.read_bytes(), wal: wal.read_bytes()}
    await journal.aclose()
    if which == "journal":
        files = {path: path.read_bytes(), wal: b""}
    target = path if which == "journal" else wal
    refused = 0
    for seed in range(anyio_backend_name == "trio", FLIPS, 2):  # half on each event loop
        draw = random.Random(seed)
        damaged = bytearray(files[target])
        for _ in range(draw.choice([1, 1, 2, 20])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        for file, content in {**files, target: bytes(damaged)}.items():
            file.write_bytes(content)
        try:
            async with opened(path) as found:
                answers = [found.recall(request, 0, "m") for request in requests]
        except ConfigError:
            refused += 1
            continue
        for request, one in zip(requests, answers, strict=True):
            assert one in (None, answer(f"{request.agent_id} says")), seed
        if which == "journal":  # a WAL's end may be lost, as if it had never been written
            assert None not in answers, seed
    assert refused > (FLIPS // 8 if which == "journal" else -1)


async def test_a_torn_wal_keeps_what_is_whole(tmp_path: Path) -> None:
    path, wal = tmp_path / "j", tmp_path / "j-wal"
    journal = Journal(path)
    await journal.open()
    for request in questions(40):
        await journal.store(request, answer(), "m")
    main, frames = path.read_bytes(), wal.read_bytes()
    await journal.aclose()
    counts = []
    for length in range(0, len(frames) + 1, len(frames) // 23):
        path.write_bytes(main)
        wal.write_bytes(frames[:length])
        async with opened(path) as torn:
            found = [torn.recall(request, 0, "m") for request in questions(40)]
        count = sum(one is not None for one in found)
        assert found == [answer()] * count + [None] * (40 - count)
        counts.append(count)
    assert counts == sorted(counts)
    assert counts[0] < 5
    assert counts[-1] >= 38


async def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="can't be written: unable to open"):
        await Journal(tmp_path / "missing/j").open()


# --- writing fails


async def test_a_disk_without_room_for_a_new_journal_is_said(tmp_path: Path) -> None:
    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    with pytest.raises(JournalError, match=r"disk is full. Make room .* --resume"):
        await Journal(tmp_path / "j", connect=connect).open()
    await written(tmp_path / "j")  # what that left is no obstacle once there is room


def _change(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


async def _fails_from(path: Path, number: int) -> Callable[..., sqlite3.Connection]:
    """Make an empty journal; return what opens it on a disk that is full from store `number` on."""
    async with opened(path):
        pass

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(*args, **options)
        connection.execute(
            "CREATE TEMP TRIGGER full BEFORE INSERT ON main.answers "
            f"WHEN (SELECT count(*) FROM answers) >= {number - 1} "
            "BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END"
        )
        connection.commit()
        return connection

    return connect


@pytest.mark.parametrize("number", range(1, 51, 2))
async def test_a_failing_store_aborts_the_run_which_can_be_resumed(
    number: int, anyio_backend_name: str, tmp_path: Path
) -> None:
    number += anyio_backend_name == "trio"  # half of the numbers on each event loop
    path = tmp_path / "j"
    full = await _fails_from(path, number)
    requests = questions(51)
    first = FakeBackend(delay=lambda *_: 1.0)
    async with opened(path, connect=full) as journal:
        async with Scheduler(first, config(on_failure="noop"), journal=journal) as scheduler:
            with pytest.raises(JournalError, match=r"disk is full.*--resume"):
                await scheduler.run_step(requests)
        assert journal.stored == number - 1
        assert journal.broken is None
    assert first.calls <= number + 4
    second = FakeBackend()
    async with opened(path) as journal, Scheduler(second, journal=journal) as scheduler:
        completions = await scheduler.run_step(requests)
    async with Scheduler(FakeBackend()) as scheduler:
        expected = await scheduler.run_step(requests)
    assert [one.text for one in completions] == [one.text for one in expected]
    assert second.calls == 51 - (number - 1)


@pytest.mark.parametrize("number", [1, 2, 7, 50])
async def test_a_failing_store_is_said_once_and_the_run_goes_on(
    number: int, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    full = await _fails_from(path, number)
    log = Complaints()
    async with opened(path, on_error="continue", log=log, connect=full) as journal:
        async with Scheduler(FakeBackend(), journal=journal) as scheduler:
            completions = await scheduler.run_step(questions(60))
        assert all(one.ok for one in completions)
        assert journal.stored == number - 1
        assert journal.broken is not None
        assert "disk is full" in journal.broken
    assert [event for event, _ in log.errors] == ["journal.broken"]
    assert "disk is full" in log.errors[0][1]["reason"]
    async with opened(path) as journal:
        kept = [journal.recall(r, 0, FakeBackend()._info.fingerprint) for r in questions(60)]
    assert sum(one is not None for one in kept) == number - 1


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size there")
def test_a_disk_that_is_really_full_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    """The child may write 200 kB to a file; what it has said is stored must be there."""
    path = tmp_path / "j"
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,)*2)\n{_WRITER}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), "normal"],
        env=unmeasured(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "JournalError" in done.stderr
    assert "can't be written" in done.stderr
    acknowledged = done.stdout.split()
    assert len(acknowledged) > 10
    check_acknowledged(path, acknowledged)
