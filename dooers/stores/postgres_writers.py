"""Who writes next: Changes wait in a lane a thread, a few tasks take what waits in many lanes and write it at once. Knows no SQL.

Within a thread everything keeps its order. What cannot be written together with others is written apart, beside them: a thread that is
held up, or that spoils it for the rest, costs no other thread anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from attrs import Factory, define

from dooers.exceptions import DooersError
from dooers.models import Change
from dooers.stores.postgres_connection import Line, Pool

__all__ = ["GROUP", "Group", "Outcomes", "Writers"]

# Changes written in one statement, and of one thread, at most.
GROUP = 256
# Statements of many threads on their way at once.
TOGETHER = 2
# Seconds for which a statement on its way keeps the next from setting off, so that what comes is gathered: a statement costs as much as
# several threads in it. Where a commit takes longer than that, they take turns, and nobody waits for the whole of another's.
GATHER = 0.003
# Seconds that a writer with nothing to do keeps its connection: to take one, and to start a task, costs about as much as a statement.
LINGER = 1.0

# Of each Change of a group: as it is stored, or why it is not.
Outcomes: TypeAlias = list[Change | DooersError]


@define(eq=False)
class Group:
    """Changes of one thread that are written together, in order. `given`: when the last of them was, in the time of the loop."""

    thread_id: str
    changes: list[Change] = Factory(list)
    futures: list[asyncio.Future[Change]] = Factory(list)
    given: float = 0.0
    # A try before this one may have written them.
    unsure: bool = False

    def add(self, waiting: _Waiting) -> None:
        change, future, self.given = waiting
        self.changes.append(change)
        self.futures.append(future)

    def split(self) -> list[Group]:
        """A group of each Change, which nobody waits for."""
        return [Group(self.thread_id, [change], given=self.given, unsure=self.unsure) for change in self.changes]

    def end(self, outcomes: Outcomes) -> None:
        for future, outcome in zip(self.futures, outcomes, strict=True):
            if future.done():
                continue  # whoever asked was cancelled
            if isinstance(outcome, Change):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)


_Waiting: TypeAlias = tuple[Change, "asyncio.Future[Change]", float]


class Writers:
    """`write` gets a connection and groups of different threads, and answers for each group, with None for one that is to be written
    `apart`. That gets one group, and answers for it. Neither ever raises, not even when it is cancelled.

    `mergeable` says whether a Change may follow another in one group. There are `most` connections."""

    def __init__(
        self,
        pool: Pool,
        write: Callable[[Line, list[Group]], Awaitable[Sequence[Outcomes | None]]],
        apart: Callable[[Line, Group], Awaitable[Outcomes]],
        mergeable: Callable[[Change, Change], bool],
        most: int,
    ) -> None:
        self._pool, self._write, self._write_apart, self._mergeable = pool, write, apart, mergeable
        # A lane is there for as long as something waits in it or is being written; in `_ready` while nobody writes it.
        self._lanes: dict[str, deque[_Waiting]] = {}
        self._ready: deque[str] = deque()
        self._refused: deque[Group] = deque()
        # How many are at it together, and how many apart; of these, one less than there are connections, as they may be held up.
        self._together = self._apart = 0
        # When the latest statement set off, and the timer that looks whether the next may.
        self._set_off = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._most, self._most_together, self._most_apart = most, min(most, TOGETHER), max(1, most - 1)
        self._tasks: set[asyncio.Task[None]] = set()
        # Writers with nothing to do, the latest last; the result says whether there is something again.
        self._idle: list[asyncio.Future[bool]] = []
        self._called = False

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
        if self._later is not None:
            self._later.cancel()
            self._later = None  # whoever opens again may have another loop

    @property
    def _may_together(self) -> bool:
        if not self._ready or self._together == self._most_together:
            return False
        return not self._together or asyncio.get_running_loop().time() >= self._set_off + GATHER

    @property
    def _may_apart(self) -> bool:
        return bool(self._refused) and self._apart < self._most_apart

    def _wake(self) -> None:
        """See to it that somebody writes what is ready: one who comes for it, and calls the next if he leaves something."""
        if self._called:
            return
        if not (self._may_together or self._may_apart):
            if self._ready and self._together < self._most_together and self._later is None:
                # It is only too early for the next. Nobody has to look where one must end first: who wrote that goes on with this.
                self._later = asyncio.get_running_loop().call_at(self._set_off + GATHER, self._look_again)
            return
        while self._idle:
            if _end(self._idle.pop(), True):
                self._called = True
                return
        if len(self._tasks) < self._most:
            self._called = True
            task = asyncio.create_task(self._work(), name="dooers-postgres-write")
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        # One that a loop which ends cancelled before it began has written nothing: another one must.
        self._tasks.discard(task)
        self._called = False
        self._wake()

    async def _work(self) -> None:
        async with self._pool.line() as line:
            while self._may_apart or self._may_together or await self._more():
                self._called = False
                if self._may_apart:
                    await self._one_apart(line)
                elif self._may_together:
                    await self._some_together(line)

    async def _some_together(self, line: Line) -> None:
        groups, room = list[Group](), GROUP
        while self._ready and room:
            groups.append(self._group(self._ready.popleft(), room))
            room -= len(groups[-1].changes)
        self._together += 1
        self._set_off = asyncio.get_running_loop().time()
        self._wake()
        try:
            answers = await self._write(line, groups)
        finally:
            self._together -= 1
        for group, outcomes in zip(groups, answers, strict=True):
            if outcomes is None:
                self._refused.append(group)
            else:
                self._end(group, outcomes)

    def _look_again(self) -> None:
        self._later = None
        self._wake()

    async def _one_apart(self, line: Line) -> None:
        group = self._refused.popleft()
        self._apart += 1
        self._wake()
        try:
            outcomes = await self._write_apart(line, group)
        finally:
            self._apart -= 1
        self._end(group, outcomes)

    def _end(self, group: Group, outcomes: Outcomes) -> None:
        group.end(outcomes)
        if self._lanes[group.thread_id]:
            self._ready.append(group.thread_id)
        else:
            del self._lanes[group.thread_id]

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

    def _group(self, thread_id: str, room: int) -> Group:
        lane, group = self._lanes[thread_id], Group(thread_id)
        group.add(lane.popleft())
        while lane and len(group.changes) < room and self._mergeable(group.changes[-1], lane[0][0]):
            group.add(lane.popleft())
        return group


def _end(idle: asyncio.Future[bool], more: bool) -> bool:
    if idle.done():
        return False
    idle.set_result(more)
    return True
