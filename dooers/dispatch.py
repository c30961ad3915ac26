"""The second door: what `await worker.dispatch(...)` returns. The same turn as a WebSocket message, followed from inside the process.

Iterating is what runs the handler, one step for each event asked for. The stream remembers what it gave out, so a second
iteration or `collect()` reads that again and runs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from dooers.exceptions import DispatchError, HandlerError
from dooers.models import EventQuery, ThreadEvent
from dooers.runner import OpenTurn, Runner, TurnStatus, waited_threads
from dooers.send import WorkerEvent
from dooers.stores import Store

__all__ = ["DispatchStream"]

log = logging.getLogger("dooers")
EVERYTHING = 1 << 62


class _Follower:
    """The runner's side of a stream (`runner.Sink`): what was stored so far, how much is wanted, and whether that is all."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        self.ended = False
        self.error: HandlerError | None = None
        self.wants = 0
        self._asked = asyncio.Event()
        self._moved = asyncio.Event()

    async def wanted(self, count: int) -> None:
        while self.wants <= count:
            self._asked.clear()
            await self._asked.wait()

    def put(self, event: WorkerEvent) -> None:
        self.events.append(event)
        self._moved.set()

    def end(self, error: HandlerError | None) -> None:
        self.ended, self.error = True, error
        self._moved.set()

    def want(self, count: int) -> None:
        if count > self.wants:
            self.wants = count
            self._asked.set()

    async def move(self) -> None:
        """Return when something came, or at once when nothing more will."""
        self._moved.clear()
        if not self.ended:
            await self._moved.wait()


class DispatchStream:
    """A turn that is stored and waits to be run: by iterating, `collect()` or `detach()`.

    Leaving the iteration early cancels the turn. Raises HandlerError where the handler raised; by then the turn is over and
    recorded. A stream that nobody runs holds its place in the thread's queue until it is cancelled, closed or forgotten.
    """

    def __init__(self, runner: Runner, store: Store, opened: OpenTurn) -> None:
        self._runner = runner
        self._store = store
        self._opened = opened
        self._follower = _Follower()
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------ known at once

    @property
    def thread_id(self) -> str:
        """The thread the message is in."""
        return self._opened.turn.thread.id

    @property
    def event_id(self) -> str:
        """The message itself."""
        return self._opened.event.id

    @property
    def is_new_thread(self) -> bool:
        """Whether this message opened its thread."""
        return self._opened.created

    @property
    def is_repeat(self) -> bool:
        """Whether the same `idempotency_key` came before: nothing runs, the stream gives what was stored then."""
        return self._opened.repeated

    @property
    def status(self) -> TurnStatus:
        """How far the turn is: waiting, running, succeeded, failed or canceled."""
        return "succeeded" if self._opened.repeated else self._opened.status

    # ------------------------------------------------------------ running it

    def __aiter__(self) -> AsyncIterator[WorkerEvent]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[WorkerEvent]:
        await self._begin()
        follower = self._follower
        position = 0
        try:
            while True:
                if position < len(follower.events):
                    position += 1
                    yield follower.events[position - 1]
                elif follower.ended:
                    break
                else:
                    follower.want(position + 1)
                    await follower.move()
        finally:
            # Left early, by break, error or cancel: the turn goes too, unless somebody wants all of it.
            if not follower.ended and follower.wants < EVERYTHING:
                await self.cancel()
        if follower.error is not None:
            raise follower.error

    async def collect(self) -> list[WorkerEvent]:
        """Run the turn to its end and return all its events; again, without running it again, each further time."""
        await self._begin()
        detached = self._follower.wants == EVERYTHING
        self._follower.want(EVERYTHING)
        try:
            while not self._follower.ended:
                await self._follower.move()
        except asyncio.CancelledError:
            if not detached:
                await self.cancel()
            raise
        if self._follower.error is not None:
            raise self._follower.error
        return list(self._follower.events)

    def detach(self) -> None:
        """Let the turn run to its end in the background; the worker sees to it. Its errors are logged and recorded."""
        self._follower.want(EVERYTHING)
        self._start(detached=True)

    async def cancel(self) -> None:
        """Stop the turn, wherever it is, and return when it has been closed. No harm after its end."""
        task = self._opened.task
        if self._follower.ended or self._opened.repeated:
            return
        self._opened.cancel()
        if task is None:
            self._follower.end(None)
        elif task is not asyncio.current_task():
            await asyncio.wait([task])

    async def aclose(self) -> None:
        """The same as `cancel`, by the name that generators have for it."""
        await self.cancel()

    async def _begin(self) -> None:
        if self._opened.repeated:
            await self._replay()
        elif not self._follower.ended and self.thread_id in waited_threads.get():
            raise DispatchError(
                f"thread {self.thread_id} is being answered by the handler that waits here: it would wait for itself. "
                "Use stream.detach()",
                code="THREAD_BUSY",
            )
        else:
            self._start(detached=False)

    def _start(self, *, detached: bool) -> None:
        if self._opened.task is None and not self._follower.ended and not self._opened.repeated:
            self._runner.start(self._opened, self._follower, detached=detached)

    async def _replay(self) -> None:
        """Give what the first delivery stored."""
        if self._follower.ended:
            return
        stored = await self._store.events(EventQuery(thread_id=self.thread_id, turn=self._opened.event.turn_seq))
        if not self._follower.ended:
            answers = [event for event in stored if event.id != self.event_id and not event.notice]
            self._follower.events = [_replayed(event) for event in answers]
            self._follower.end(None)

    def __del__(self) -> None:
        opened = getattr(self, "_opened", None)
        if opened is None or opened.task is not None or opened.repeated or opened.canceled:
            return
        log.warning(
            "the dispatch stream of thread %s was dropped without being run: its message is stored and stays unanswered; "
            "iterate it, collect() it or detach() it",
            opened.turn.thread.id,
        )
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(opened.cancel)


def _replayed(event: ThreadEvent) -> WorkerEvent:
    kind, data = _REPLAY.get(event.type, _message_of)(event)
    return WorkerEvent(kind, data, event=event)


def _message_of(event: ThreadEvent) -> Any:
    part = event.content[0] if event.content else None
    if part is None or part.type == "text":
        return "text", {"text": event.text, "author": event.author}
    names = ("url", "mime_type", "alt") if part.type == "image" else ("url", "filename", "mime_type")
    return part.type, {**{name: getattr(part, name) for name in names}, "author": event.author}


def _tool_of(kind: str) -> Callable[[ThreadEvent], Any]:
    return lambda event: (kind, dict(event.data or {}))


_REPLAY: dict[str, Callable[[ThreadEvent], Any]] = {
    "tool.call": _tool_of("tool_call"),
    "tool.result": _tool_of("tool_result"),
    "tool.transaction": _tool_of("tool_transaction"),
}
