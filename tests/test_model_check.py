"""Queue, plan and slots against plain lists, and the journal against a plain dictionary."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from scheduler.backends.base import BackendInfo
from scheduler.backends.fake import FakeBackend
from scheduler.errors import RequestFailed
from scheduler.journal import Journal
from scheduler.lane import Entry, Lane
from scheduler.step import Step
from scheduler.types import Answer, FinishReason, Outcome, Request, Sampling, Usage
from tests.doubles import config
from tests.questions import question
from tests.tenants import TENANT

SETTINGS = settings(max_examples=60, stateful_step_count=60, deadline=None)


class LaneAgainstLists(RuleBasedStateMachine):
    """Does the same to a lane and to lists; a plan may choose within its window, no further."""

    @initialize(
        slots=st.integers(1, 4), max_batch=st.integers(1, 5), queue_limit=st.integers(1, 12)
    )
    def begin(self, slots: int, max_batch: int, queue_limit: int) -> None:
        info = BackendInfo("fake", slots, None, "fake")
        options = config(max_batch=max_batch, queue_limit=queue_limit)
        self.lane = Lane("default", FakeBackend(slots), info, options)
        self.limit, self.max_batch, self.slots = queue_limit, max_batch, slots
        self.step = Step([])
        self.queued: list[Entry] = []
        self.window: list[Entry] = []
        self.running: dict[int, Entry] = {}
        self.paused: list[Entry] = []
        self.returning: list[Entry] = []
        self.number = 0

    @precondition(lambda self: len(self.queued) < self.limit)
    @rule(group=st.sampled_from("abc"), tokens=st.integers(1, 50))
    def put(self, group: str, tokens: int) -> None:
        assert not self.lane.queue.full_for(TENANT)
        asked = question(self.number, prefix_group=group, sampling=Sampling(max_tokens=tokens))
        entry = Entry(asked, self.step, TENANT, asked_at=0.0)
        self.number += 1
        self.lane.queue.put(entry)
        self.queued.append(entry)

    @rule()
    def assign(self) -> None:
        free = sorted(set(range(self.slots)) - set(self.running))
        assigned = self.lane.assign()
        slots = [entry.slot for entry in assigned]
        assert len(set(slots)) == len(slots)
        assert set(slots) <= set(free)
        for entry in assigned:
            assert entry.slot is not None
            if self.returning:
                assert entry is self.returning.pop(0)
            else:
                if not self.window:
                    self.window = self.queued[: self.max_batch]
                    del self.queued[: self.max_batch]
                assert entry in self.window
                self.window.remove(entry)
            entry.dispatched = True
            self.running[entry.slot] = entry
        if len(assigned) < len(free):
            waiting = [*self.returning, *self.window, *self.queued]
            assert not waiting, "a slot stays idle"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), again=st.booleans())
    def end(self, data: st.DataObject, again: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        entry = self.running.pop(slot)
        self.lane.release(entry)
        assert entry.slot is None
        if again:
            self.paused.append(entry)

    @precondition(lambda self: self.paused)
    @rule()
    def come_back(self) -> None:
        entry = self.paused.pop(0)
        self.lane.give_back(entry)
        self.returning.append(entry)

    @precondition(lambda self: self.returning)
    @rule(data=st.data())
    def cancel_one_that_comes_back(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.returning))
        self.returning.remove(entry)
        self.lane.release(entry)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        everything = [*self.queued, *self.window, *self.running.values(), *self.paused]
        if not everything:
            return
        entry = data.draw(st.sampled_from(everything))
        waits = entry in self.queued or entry in self.window
        assert self.lane.withdraw(entry) == waits
        for place in (self.queued, self.window):
            if entry in place:
                place.remove(entry)

    @invariant()
    def lists_and_lane_agree(self) -> None:
        if not hasattr(self, "lane"):
            return
        assert self.lane.in_flight == len(self.running)
        assert len(self.lane.queue) == len(self.queued)
        waiting = [*self.queued, *self.window, *self.returning, *self.running]
        assert self.lane.idle == (not waiting)
        assert f"{len(self.returning)} returning, {len(self.window)} planned" in repr(self.lane)


FINGERPRINTS = ("one", "two")


class JournalAgainstDict(RuleBasedStateMachine):
    """Stores, recalls, closes and crashes; a dictionary says what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._directory = Path(tempfile.mkdtemp())
        self._path = self._directory / "journal-0"
        self._lives = 0
        self.known: dict[tuple[int, int, str], Answer | str] = {}
        self.opened()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def opened(self) -> None:
        self.journal = Journal(self._path)
        self.run(self.journal.open())

    def teardown(self) -> None:
        self.run(self.journal.aclose())
        self._runner.close()
        shutil.rmtree(self._directory)

    @rule(
        number=st.integers(0, 3),
        reask=st.integers(0, 1),
        fingerprint=st.sampled_from(FINGERPRINTS),
        text=st.text(max_size=20),
        outcome=st.sampled_from([Outcome.OK, Outcome.INVALID]),
        tokens=st.integers(0, 5),
    )
    def store(
        self,
        number: int,
        reask: int,
        fingerprint: str,
        text: str,
        outcome: Outcome,
        tokens: int,
    ) -> None:
        answer = Answer(
            text, outcome, FinishReason.STOP, seed=tokens, reask=reask, usage=Usage(tokens, 1)
        )
        self.run(self.journal.store(request(number), answer, fingerprint))
        self.known.setdefault((number, reask, fingerprint), answer)

    @rule(
        number=st.integers(0, 3),
        reask=st.integers(0, 1),
        fingerprint=st.sampled_from(FINGERPRINTS),
        text=st.text(max_size=20),
    )
    def store_failure(self, number: int, reask: int, fingerprint: str, text: str) -> None:
        error = RequestFailed(text, 3)
        self.run(self.journal.store_failure(request(number), reask, error, fingerprint))
        self.known.setdefault((number, reask, fingerprint), text)

    @rule()
    def close_and_open(self) -> None:
        self.run(self.journal.aclose())
        self.opened()

    @rule()
    def crash_and_open(self) -> None:
        """What is on disk at this moment is what a killed process leaves."""
        self._lives += 1
        left = self._directory / f"journal-{self._lives}"
        for suffix in ("", "-wal"):
            file = Path(f"{self._path}{suffix}")
            if file.exists():
                shutil.copy(file, f"{left}{suffix}")
        self.run(self.journal.aclose())
        self._path = left
        self.opened()

    @invariant()
    def journal_and_dictionary_agree(self) -> None:
        for number in range(4):
            for reask in range(2):
                for fingerprint in FINGERPRINTS:
                    found = self.journal.recall(request(number), reask, fingerprint)
                    assert found == self.known.get((number, reask, fingerprint))


def request(number: int) -> Request:
    return question(number)


TestLaneAgainstLists = LaneAgainstLists.TestCase
TestLaneAgainstLists.settings = SETTINGS
TestJournalAgainstDict = JournalAgainstDict.TestCase
TestJournalAgainstDict.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
