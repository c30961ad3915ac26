"""Who writes next: Changes wait in a lane a thread, a few tasks take what waits in a lane and write it. Knows no SQL.

Within a thread everything keeps its order; threads are written side by side, on as many connections as there are tasks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from dooers.exceptions import DooersError
from dooers.models import Change
from dooers.stores.postgres_connection import Line, Pool

__all__ = ["GROUP", "Outcome", "Writers"]

# Changes written in one statement at most.
GROUP = 256
# Seconds that a writer with nothing to do keeps its connection: to take one, and to start a task, costs about as much as a statement.
LINGER = 1.0

# A Change as it is stored, or why it is not.
Outcome: TypeAlias = Change | DooersError
_Waiting: TypeAlias = tuple[Change, "asyncio.Future[Change]", float]


class Writers:
    """`write` gets a connection, a group of Changes and the time the last of them was given; it answers for each and never raises,
    not even when it is cancelled. `together` says whether a Change may follow another in one group."""

    def __init__(
        self,
        pool: Pool,
        write: Callable[[Line, list[Change], float], Awaitable[list[Outcome]]],
        together: Callable[[Change, Change], bool],
        most: int,
    ) -> None:
        self._pool, self._write, self._together, self._most = pool, write, together, most
        # A lane is there for as long as something waits in it or is being written; in `_ready` while nobody writes it.
        self._lanes: dict[str, deque[_Waiting]] = {}
        self._ready: deque[str] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        # Writers with nothing to do, the latest last; the result says whether there is something again.
        self._idle: list[asyncio.Future[bool]] = []

    def add(self, change: Change) -> asyncio.Future[Change]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Change] = loop.create_future()
        lane = self._lanes.get(change.thread.id)
        if lane is None:
            lane = self._lanes[change.thread.id] = deque()
            self._ready.append(change.thread.id)
        lane.append((change, future, loop.time()))
        self._wake()
        return future

    async def drain(self) -> None:
        """Return when nothing waits any more, and nobody has a connection."""
        while self._lanes or self._tasks:
            self._wake()
            for idle in self._idle:
                _end(idle, False)
            if self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def _wake(self) -> None:
        """See to it that somebody writes what is ready."""
        while self._ready and self._idle:
            if _end(self._idle.pop(), True):
                return
        if self._ready and len(self._tasks) < self._most:
            task = asyncio.create_task(self._work(), name="dooers-postgres-write")
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        # One that a loop which ends cancelled before it began has written nothing: another one must.
        self._tasks.discard(task)
        self._wake()

    async def _work(self) -> None:
        async with self._pool.line() as line:
            while self._ready or await self._more():
                while self._ready:
                    await self._write_next(line)

    async def _write_next(self, line: Line) -> None:
        thread_id = self._ready.popleft()
        lane = self._lanes[thread_id]
        group = self._group(lane)
        try:
            outcomes = await self._write(line, [change for change, _, _ in group], group[-1][2])
            for (_, future, _), outcome in zip(group, outcomes, strict=True):
                if future.done():
                    continue  # whoever asked was cancelled
                if isinstance(outcome, Change):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
        finally:
            if lane:
                self._ready.append(thread_id)
            else:
                del self._lanes[thread_id]

    async def _more(self) -> bool:
        """Wait for something to do, for a while."""
        loop = asyncio.get_running_loop()
        idle: asyncio.Future[bool] = loop.create_future()
        self._idle.append(idle)
        late = loop.call_later(LINGER, _end, idle, False)
        try:
            return await idle
        finally:
            late.cancel()
            if idle in self._idle:
                self._idle.remove(idle)

    def _group(self, lane: deque[_Waiting]) -> list[_Waiting]:
        group = [lane.popleft()]
        while lane and len(group) < GROUP and self._together(group[-1][0], lane[0][0]):
            group.append(lane.popleft())
        return group


def _end(idle: asyncio.Future[bool], more: bool) -> bool:
    if idle.done():
        return False
    idle.set_result(more)
    return True
