"""Lanes that several schedulers use at once: one set of slots for many runs.

Each scheduler keeps what is its own (steps, journal, retries, log, counts); its requests
wait in the lanes as those of one tenant among others, and take turns with theirs. All of
them live on one event loop. It decides nothing: whose turn it is, is `queue.py`'s answer.
"""

from __future__ import annotations

import anyio

from scheduler.backends.base import Backend, Placement
from scheduler.config import SchedulerConfig
from scheduler.lane import Lane


class SharedLanes:
    """The lanes of some backends, made when the first scheduler asks for them.

    Backends whose slots come and go are watched by `watch`, which whoever made this runs
    in a task.
    """

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._added = anyio.Event()
        self._watching = anyio.CancelScope()

    def __repr__(self) -> str:
        return f"<SharedLanes {self._lanes}>"

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes that there are by now."""
        return tuple(self._lanes)

    @property
    def need_watching(self) -> bool:
        """Whether the slots of some backend come and go."""
        return any(isinstance(lane.backend, Placement) for lane in self._lanes)

    async def lane(self, name: str, backend: Backend, config: SchedulerConfig) -> Lane:
        """Return the lane of `backend`, with the settings of who asked for it first.

        Raises:
            ConfigError: More slots are configured than the backend has.
            BackendUnavailable: The backend did not get ready.
        """
        info = await backend.start()
        for lane in self._lanes:
            if lane.backend is backend:
                return lane
        lane = Lane(name, backend, info, config)
        self._lanes.append(lane)
        self._added.set()
        self._added = anyio.Event()
        return lane

    async def watch(self) -> None:
        """Dispatch when slots of a backend in several places come back, until stopped."""
        seen = 0
        with self._watching:
            async with anyio.create_task_group() as watches:
                while True:
                    for lane in self._lanes[seen:]:
                        if isinstance(lane.backend, Placement):
                            watches.start_soon(lane.backend.watch, lane.dispatch)
                    seen = len(self._lanes)
                    await self._added.wait()

    def stop_watching(self) -> None:
        """End `watch`."""
        self._watching.cancel()
