"""One turn's Changes on their way to the disk, in order, and the message that grows while it is streamed. No handler is run here.

An event is told (to a dispatch caller; people are told by the runner) when its Change is stored. Deltas are the exception: they are seen
before anything is stored, are gathered for a few milliseconds, and are the first thing that a slow reader does without.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from attrs import Factory, define, field

from dooers.broadcast import Teller
from dooers.codec import clean
from dooers.exceptions import HandlerError, InvalidValueError, NotFoundError
from dooers.models import Change, Run, TextPart, Thread, ThreadEvent, evolve
from dooers.send import WorkerEvent
from dooers.stores import outcome_of
from dooers.turn import Clock, Turn, grown, sprout, step

__all__ = ["Growing", "Sink", "SourceFailed", "Steps", "close_source"]

# Seconds between two frames of deltas, and between two growing appends for clients that know no deltas (the wire page promises
# one at least every 0.5 s). The eye sees no difference below the first; a model can be ten times as fast.
DELTA_EVERY = 0.02
APPEND_EVERY = 0.25
# Seconds that closing an abandoned iterator may take.
CLOSE_WITHIN = 5.0
# Pieces of a message that are kept apart before they are put together.
JOINED = 100


class SourceFailed(Exception):
    """What a stream was read from raised `error`: for the handler to hear of, as if it had read that itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(repr(error))
        self.error = error


class Sink(Protocol):
    """Who follows a turn from inside the process: a dispatch stream."""

    async def wanted(self, count: int) -> None:
        """Return when the caller wants more than `count` events."""
        ...

    def hurry(self) -> None:
        """Wait for nothing more that the caller wants: the turn has to end."""
        ...

    def put(self, event: WorkerEvent) -> None:
        """An event, stored."""
        ...

    def delta(self, event: WorkerEvent) -> None:
        """A piece of a message that is being streamed; not stored."""
        ...

    def end(self, error: HandlerError | None) -> None:
        """There is no more."""
        ...


class Growing:
    """A message that is being streamed: its text so far, told in pieces to those who asked for pieces."""

    def __init__(self, event: ThreadEvent, author: str | None, thread: Thread, teller: Teller) -> None:
        self.event = event
        self.author = author
        self._thread = thread
        self._teller = teller
        self._told: list[str] = []
        self._untold: list[str] = []
        self.length = 0
        self._told_at = self._appended_at = 0.0
        self._telling: asyncio.TimerHandle | None = None
        self._appending: asyncio.TimerHandle | None = None

    @property
    def text(self) -> str:
        """All of it, with what is not told yet."""
        return "".join(self._told) + "".join(self._untold)

    @property
    def silence(self) -> float:
        """Seconds since a piece of it was told."""
        return time.monotonic() - self._told_at

    def so_far(self) -> ThreadEvent | None:
        """The event with the text that was told, marked as streaming; None while nothing was told.

        Without the rest: who gets this now gets that in the next delta.
        """
        return evolve(self.event, content=[TextPart("".join(self._told))]) if self._told else None

    def add(self, piece: str) -> None:
        """Take a piece; it is told at once, or together with what comes in the next few milliseconds."""
        self._untold.append(piece)
        self.length += len(piece)
        if self._telling is None:
            self._telling = _at(self._told_at + DELTA_EVERY, self._tell)

    def add_rest(self, whole: ThreadEvent) -> None:
        """Take what the whole message has beyond the pieces that have come."""
        rest = "".join(part.text for part in whole.content if isinstance(part, TextPart))[self.length :]
        if rest:
            self.add(rest)

    def end(self) -> None:
        """Tell what was not told yet; the whole event follows."""
        for timer in (self._telling, self._appending):
            if timer is not None:
                timer.cancel()
        if self._untold:
            self._tell_untold()

    def _tell_untold(self) -> None:
        text = "".join(self._untold)
        self._untold.clear()
        self._told = ["".join(self._told)] if len(self._told) > JOINED else self._told
        self._told.append(text)
        self._told_at = time.monotonic()
        self._teller.tell_delta(self._thread, self.event, self.length - len(text), text)

    def _tell(self) -> None:
        self._telling = None
        self._tell_untold()
        # By a timer of its own: what came last is seen in time also when the next piece is long in coming.
        if self._appending is None:
            self._appending = _at(self._appended_at + APPEND_EVERY, self._append)

    def _append(self) -> None:
        self._appending = None
        self._appended_at = time.monotonic()
        self._teller.tell_growing(self._thread, self.so_far)


@define(eq=False)
class Steps:
    """What a turn has taken so far: at most `depth` Changes on their way, in order. `sealed`: it takes no more; `traced`: there is
    something in the thread to see of it."""

    turn: Turn
    _submit: Callable[[Change, Callable[[asyncio.Future[Change]], None]], asyncio.Future[Change]]
    # Something to wait for where others may have taken this process for dead, and closed the run of this turn.
    _sure: Callable[[], Awaitable[None] | None]
    _teller: Teller
    _clock: Clock
    _depth: int
    sink: Sink | None = None
    taken: int = 0
    growing: Growing | None = None
    sealed: bool = False
    traced: bool = False
    _flight: deque[tuple[WorkerEvent, Change | None, asyncio.Future[Change] | None]] = field(
        init=False, default=Factory(deque)
    )
    # Runs that may be open in the store: begun, and not known to be ended there.
    _open: dict[str, Run] = field(init=False, default=Factory(dict))
    _failure: BaseException | None = field(init=False, default=None)
    _moved: asyncio.Event = field(init=False, default=Factory(asyncio.Event))

    async def wanted(self) -> None:
        """Return when whoever follows the turn wants its next event, at once if nobody does; raises what an earlier one failed with."""
        if self.sink is not None:
            await self.sink.wanted(self.taken)
            if self._failure is not None:
                raise self._failure

    async def take(self, event: WorkerEvent) -> None:
        """Send one yielded event on its way. Waits only while too many are; raises what an earlier one failed with, and SourceFailed
        where it is a stream whose source raises."""
        if event.send_type == "stream":
            await self._take_stream(event.data["source"], event.data["author"])
            return
        while len(self._flight) >= self._depth and self._failure is None:
            await self._move()
        if (doubt := self._sure()) is not None:
            await doubt
        if self._failure is not None:
            raise self._failure
        if self.sealed:
            raise asyncio.CancelledError("this turn is over")
        self.turn, change = step(self.turn, event, self._clock)
        self._launch(event, change)

    def _launch(self, event: WorkerEvent, change: Change | None) -> None:
        self.taken += 1
        if change is not None and (change.events or change.runs):
            self.traced = True
        future = None if change is None else self._submit(change, self._land)
        self._flight.append((event, change, future))
        if future is None:
            self._land()

    # ------------------------------------------------------------ a stream of text

    async def _take_stream(self, source: Any, author: str | None) -> None:
        """Consume the iterator: its pieces live, and one event with all of them at the end, whichever end that is."""
        whole, pieces = False, None
        try:
            await self.settle()  # what was yielded before it is seen before it
            self.growing = growing = Growing(
                sprout(self.turn, author, self._clock), author, self.turn.thread, self._teller
            )
            try:
                pieces = aiter(source)
                async for piece in pieces:
                    self._go_on()
                    self._take_piece(growing, piece)
                    # An iterator that never waits must not keep everybody else from being served, nor itself from being stopped.
                    await asyncio.sleep(0)
                    self._go_on()
            except Exception as error:
                if self._stopped:
                    raise  # its complaint of being stopped; the handler has nothing to mend
                raise SourceFailed(error) from error
            if (doubt := self._sure()) is not None:
                await doubt
            self._go_on()
            whole = True
        finally:
            self._end_stream(incomplete=not whole)
            for closed in (pieces, source) if pieces is not source else (source,):
                await close_source(closed)

    @property
    def _stopped(self) -> bool:
        task = asyncio.current_task()
        return self.sealed or (task is not None and task.cancelling() > 0)

    def _go_on(self) -> None:
        if self._stopped:
            # The iterator was cancelled, and went on or ended as if it were done.
            raise asyncio.CancelledError("this turn is over")

    def _take_piece(self, growing: Growing, piece: Any) -> None:
        if piece is not None and not isinstance(piece, str):
            raise InvalidValueError(f"send.stream: expected pieces of text, got {type(piece).__name__}")
        text = clean(piece or "")
        if text and not self.sealed:  # models send empty pieces at both ends
            growing.add(text)
            if self.sink is not None:
                self.sink.delta(WorkerEvent("delta", {"text": text, "event_id": growing.event.id}))

    def _end_stream(self, *, incomplete: bool) -> None:
        growing, self.growing = self.growing, None
        if growing is not None:
            growing.end()
            # One without a word is nothing: not stored, not seen, and no event for who follows the turn.
            if text := growing.text:
                change = grown(self.turn, growing.event, text, incomplete=incomplete)
                self._launch(WorkerEvent("text", {"text": text, "author": growing.author}), change)

    def seal(self) -> None:
        """Take no more; of a message that is being streamed, what there is of it is kept."""
        self._end_stream(incomplete=True)
        self.sealed = True

    def forget(self, why: str) -> None:
        """The thread or the run is gone: take no more, and write nothing of what is left."""
        growing, self.growing = self.growing, None
        if growing is not None:
            growing.end()
        self.sealed = True
        self._failure = self._failure or NotFoundError(why)

    # ------------------------------------------------------------ what is on its way

    @property
    def gone(self) -> bool:
        """Whether a write found no place any more: the thread was deleted under the turn, or its run closed by another process."""
        return isinstance(self._failure, NotFoundError)

    async def settle(self) -> None:
        """Return when everything taken so far is stored; raise what failed."""
        await self.finish()
        if self._failure is not None:
            raise self._failure

    async def finish(self) -> None:
        """Return when nothing is on its way any more, whatever became of it."""
        while self._flight:
            await self._move()
        if (doubt := self._sure()) is not None:
            await doubt

    def _note_runs(self, change: Change | None, known: bool) -> None:
        for run in () if change is None else change.runs:
            if run.status == "running":
                self._open[run.id] = run
            elif known:
                self._open.pop(run.id, None)

    def left_open(self) -> list[Run]:
        """The runs that this turn has begun, and of whose end it does not know that it is stored; the one that it is in is the last."""
        now = self.turn.run
        if self._flight:
            return [] if now is None else [now]
        others = [run for run in self._open.values() if now is None or run.id != now.id]
        return others if now is None else [*others, now]

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _land(self, _: object = None) -> None:
        while self._flight and ((future := self._flight[0][2]) is None or future.done()):
            event, change, _future = self._flight.popleft()
            stored = None
            if future is not None:
                try:
                    stored = outcome_of(future)
                except BaseException as error:
                    self._failure = self._failure or error
                self._note_runs(change, stored is not None)
                if stored is None:
                    if self.sink is not None:
                        self.sink.hurry()
                    continue
            if self.sink is not None and self._failure is None:
                self.sink.put(_told(event, stored))
        self._moved.set()


# ---------------------------------------------------------------- what they need


def _at(when: float, call: Callable[[], None]) -> asyncio.TimerHandle | None:
    """Call at a time of the monotonic clock: at once, or by a timer."""
    wait = when - time.monotonic()
    if wait > 0:
        return asyncio.get_running_loop().call_later(wait, call)
    call()
    return None


async def close_source(source: Any) -> None:
    """Close what a stream was read from, in bounded time, whatever it makes of that. No harm after its end."""
    close = getattr(source, "aclose", None) or getattr(source, "close", None)
    if close is None:
        return
    with suppress(Exception):  # the turn has its outcome already; an iterator's last complaint does not change it
        async with asyncio.timeout(CLOSE_WITHIN):
            closing = close()
            if hasattr(closing, "__await__"):
                await closing


def _told(event: WorkerEvent, stored: Change | None) -> WorkerEvent:
    if stored is None or not stored.events:
        return event
    entry = stored.events[0]
    # Ids that a tool event was given on its way are the caller's to know.
    data = entry.data if event.send_type.startswith("tool_") and entry.data is not None else event.data
    return WorkerEvent(event.send_type, {**event.data, **data}, event=entry)
