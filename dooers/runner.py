"""The way of a turn: open it, run the handler, store each step, publish it, close it. The same for both doors.

What a step alters is `turn.py`'s business, who sees it `broadcast.py`'s. The rules that live here:

- **Durable before visible.** A Change is published, and handed to a dispatch caller, from the callback of its stored future.
- **Pipelined.** The handler does not wait for the disk: up to `pipeline_depth` Changes of a turn are on their way, in order. A write
  that fails stops the turn.
- **One task a turn.** The handler, its dependencies and their teardown all run in the turn's own task, so cancel scopes and context
  variables inside them behave as in any coroutine. The task belongs to the worker: no socket's end, no caller's end but its own
  explicit cancel stops it.
- **Every way out closes the run.** Success, error, cancel, a stream abandoned half-way, a worker that closes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypeAlias

from attrs import Factory, define, field, frozen

from dooers.access import check_may_own, scope_of
from dooers.analytics import Collector
from dooers.broadcast import Broadcast
from dooers.config import WorkerConfig
from dooers.context import WorkerAnalytics, WorkerContext, WorkerIncoming, WorkerMemory, WorkerSettings
from dooers.exceptions import HandlerError, NotFoundError, ThreadBusyError
from dooers.lanes import Lanes, Ticket
from dooers.models import Change, ContentPart, Identity, ThreadEvent
from dooers.send import WorkerEvent, WorkerSend
from dooers.stores import Store
from dooers.turn import Clock, Outcome, Turn, as_event, closing, opening, step

__all__ = ["Handler", "Message", "OpenTurn", "Runner", "Sink", "TurnStatus"]

log = logging.getLogger("dooers")

TurnStatus: TypeAlias = Literal["waiting", "running", "succeeded", "failed", "canceled"]

# The threads whose turns wait for what runs here: a turn that waited for one of them would wait for itself.
waited_threads: ContextVar[frozenset[str]] = ContextVar("dooers_waited_threads", default=frozenset())


class Handler(Protocol):
    """A handler with its plan. `inject.py` makes them; this is all the runner needs of one."""

    @property
    def name(self) -> str: ...

    def run(self, values: Mapping[str, Any]) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """What the handler yields, inside a context that sets up its dependencies and tears them down."""
        ...


class Sink(Protocol):
    """Who follows a turn from inside the process: a dispatch stream."""

    async def wanted(self, count: int) -> None:
        """Return when the caller wants more than `count` events."""
        ...

    def put(self, event: WorkerEvent) -> None:
        """An event, stored."""
        ...

    def end(self, error: HandlerError | None) -> None:
        """There is no more."""
        ...


@frozen(kw_only=True)
class Message:
    """What comes in through either door."""

    worker_id: str
    identity: Identity
    content: list[ContentPart]
    handler: Handler
    thread_id: str | None = None
    create: bool = False
    thread_title: str | None = None
    data: dict[str, Any] | None = None
    client_event_id: str | None = None
    repeat_key: str | None = None


@define(eq=False)
class OpenTurn:
    """A message that is stored, and its turn, which runs, will run, or (`repeated`) ran before."""

    message: Message
    turn: Turn
    event: ThreadEvent
    created: bool
    repeated: bool
    ticket: Ticket
    status: TurnStatus = "waiting"
    task: asyncio.Task[HandlerError | None] | None = None
    canceled: bool = False

    def cancel(self) -> None:
        """Ask the turn to stop: the handler is cancelled at its await. Also frees the place of a turn that has not begun.

        Asking twice is asking once: a second cancellation would hit the handler's `finally` and its dependencies' teardown.
        """
        if self.canceled:
            return
        self.canceled = True
        if self.task is not None:
            self.task.cancel()
        else:
            self.status = "canceled"
            self.ticket.leave()


class Runner:
    """Runs turns, and owns their tasks."""

    def __init__(
        self,
        config: WorkerConfig,
        store: Store,
        broadcast: Broadcast,
        collector: Collector,
        clock: Clock,
        lanes: Lanes,
        settings: Callable[..., WorkerSettings],
    ) -> None:
        self._config = config
        self._store = store
        self._broadcast = broadcast
        self._collector = collector
        self._clock = clock
        self._lanes = lanes
        self._settings = settings
        self._turns: set[OpenTurn] = set()
        self._send = WorkerSend()
        self._closing = False

    @property
    def running(self) -> int:
        """How many turns have a task: they run or wait for their place."""
        return len(self._turns)

    def is_answering(self, thread_id: str) -> bool:
        """Whether a turn of this thread runs or waits."""
        return any(opened.turn.thread.id == thread_id for opened in self._turns)

    # ------------------------------------------------------------ storing and telling

    def submit(self, change: Change) -> asyncio.Future[Change]:
        """Store a Change and publish it the moment it is durable. In order of the calls."""
        future = self._store.apply(change)
        future.add_done_callback(self._publish)
        return future

    async def commit(self, change: Change) -> Change:
        """`submit`, and wait for it. Being cancelled here does not unwrite anything."""
        return await asyncio.shield(self.submit(change))

    def _publish(self, future: asyncio.Future[Change]) -> None:
        if future.cancelled() or future.exception() is not None:
            return  # whoever submitted it hears of that
        change = future.result()
        if change.repeated:
            return
        if change.removes:
            for opened in self._turns:
                if opened.turn.thread.id == change.thread.id:
                    opened.cancel()
        try:
            self._broadcast.publish(change)
            self._collector.observe(change)
        except Exception:
            # It is stored; whoever missed it gets it with the next snapshot. The store's own loop must not suffer.
            log.exception("publishing a change of thread %s failed", change.thread.id)

    # ------------------------------------------------------------ a turn opens

    async def open(self, message: Message) -> OpenTurn:
        """Store a message and take its place in the thread's queue. What is returned is durable; nothing runs yet.

        Raises NotFoundError for a thread that is not there or not for this identity, ThreadBusyError for a full queue,
        StoreError when the database does not do it. After each of them nothing is stored.
        """
        if self._closing:
            raise ThreadBusyError("the worker is closing; try again when it is back")
        scope = scope_of(message.identity, message.worker_id, private=self._config.private_threads)
        check_may_own(scope)
        change = opening(
            message.identity,
            scope,
            message.content,
            self._clock,
            thread_id=message.thread_id,
            create=message.create,
            title=message.thread_title,
            data=message.data,
            client_event_id=message.client_event_id,
            repeat_key=message.repeat_key,
        )
        # The place is taken before anything is awaited: turns run in the order in which messages came.
        # With the scope in the key, somebody who may not see a thread cannot stand in its queue either.
        ticket = self._lanes.join((scope, change.thread.id))
        try:
            stored = await self.commit(change)
        except BaseException:
            ticket.leave()
            raise
        if stored.repeated:
            ticket.leave()
        event = stored.events[0]
        return OpenTurn(
            message=message,
            turn=Turn(thread=stored.thread, seq=event.seq, assistant_name=self._config.assistant_name),
            event=event,
            created=stored.created,
            repeated=stored.repeated,
            ticket=ticket,
        )

    def start(self, opened: OpenTurn, sink: Sink | None = None, *, detached: bool = True) -> None:
        """Let the turn run in a task of its own, when its place in the thread's queue comes."""
        inherited = frozenset() if detached else waited_threads.get()
        drain = self._drain(opened, sink, inherited | {opened.turn.thread.id})
        opened.task = asyncio.create_task(drain, name=f"dooers-turn-{opened.event.id}")
        self._turns.add(opened)

        def ended(task: asyncio.Task[HandlerError | None]) -> None:
            # Not in the task itself: one that is cancelled before its first step never runs a line of its own.
            if opened.status in ("waiting", "running"):
                opened.status = "canceled"
            self._turns.discard(opened)
            opened.ticket.leave()
            if sink is not None:
                sink.end(None if task.cancelled() or task.exception() else task.result())

        opened.task.add_done_callback(ended)

    # ------------------------------------------------------------ a turn runs

    async def _drain(self, opened: OpenTurn, sink: Sink | None, waiting: frozenset[str]) -> HandlerError | None:
        """The turn's task, from its place in the queue to its clean end; what it failed with, for who follows it."""
        waited_threads.set(waiting)
        steps = _Steps(opened.turn, self.submit, sink, self._config.pipeline_depth)
        error: BaseException | None = None
        try:
            await opened.ticket.wait()
            opened.status = "running"
            await self._perform(opened, steps, sink)
        except asyncio.CancelledError as raised:
            # Asked for by `OpenTurn.cancel` or by a loop that ends; else the handler awaited something that was cancelled.
            task = asyncio.current_task()
            opened.canceled = opened.canceled or (task is not None and task.cancelling() > 0)
            error = raised
        except BaseException as raised:
            error = raised
        outcome: Outcome = "canceled" if opened.canceled else "succeeded" if error is None else "failed"
        await self._close(opened, steps, outcome, error)
        opened.status = outcome
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
        return HandlerError(f"the handler failed: {error!r}", error) if error and outcome == "failed" else None

    async def _perform(self, opened: OpenTurn, steps: _Steps, sink: Sink | None) -> None:
        """Drive the handler: one event, one step, on to the next."""
        async with opened.message.handler.run(self._values(opened, steps)) as yielded:
            while True:
                if sink is not None:
                    await sink.wanted(steps.taken)
                try:
                    value = await anext(yielded)
                except StopAsyncIteration:
                    break
                if opened.canceled:
                    # A handler that caught its cancellation and went on: what it yields now is too late.
                    return
                await steps.take(as_event(value, self._send.text), self._clock)
        await steps.settle()

    async def _close(self, opened: OpenTurn, steps: _Steps, outcome: Outcome, error: BaseException | None) -> None:
        """Leave a clean thread, whatever happened, and survive it if even that cannot be stored."""
        notice = None
        if outcome == "failed":
            error_id = self._clock.new_id()
            notice = f"Something went wrong. If it happens again, mention this number: {error_id}"
            log.error(
                "handler %s failed in thread %s (error %s)",
                opened.message.handler.name,
                opened.turn.thread.id,
                error_id,
                exc_info=error,
            )
        try:
            await steps.finish()
            change = closing(steps.turn, outcome, self._clock, notice=notice)
            if change is not None:
                await self.commit(change)
        except NotFoundError:
            log.info("thread %s was deleted while a turn ran in it", opened.turn.thread.id)
        except asyncio.CancelledError:
            log.warning("the turn in thread %s was cancelled again while it was being closed", opened.turn.thread.id)
        except Exception as unclosed:  # the last line of defence: the queue must move on
            log.error("the end of a turn in thread %s could not be stored: %r", opened.turn.thread.id, unclosed)

    def _values(self, opened: OpenTurn, steps: _Steps) -> dict[str, Any]:
        """What this turn gives to whoever asks for it by name."""
        message, thread = opened.message, opened.turn.thread
        context = WorkerContext(
            thread_id=thread.id,
            event_id=opened.event.id,
            worker_id=message.worker_id,
            identity=message.identity,
            thread_title=thread.title,
            thread_created_at=thread.created_at,
        )
        return {
            "incoming": WorkerIncoming(opened.event.content, context),
            "send": self._send,
            "memory": WorkerMemory(self._store, thread.id, turn_seq=opened.turn.seq, settle=steps.settle),
            "analytics": WorkerAnalytics(
                self._collector,
                self._clock,
                message.worker_id,
                thread=thread,
                user_id=message.identity.user_id,
                run_id=lambda: None if steps.turn.run is None else steps.turn.run.id,
            ),
            "settings": self._settings(message.worker_id, keep=True),
            "identity": message.identity,
        }

    # ------------------------------------------------------------ the worker closes

    async def close(self, grace: float) -> None:
        """Let turns finish for `grace` seconds, then cancel the rest and wait until each has closed its run."""
        self._closing = True
        tasks = {opened.task for opened in self._turns if opened.task is not None}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace)
        for opened in list(self._turns):
            opened.cancel()
        if late:
            _, stuck = await asyncio.wait(late, timeout=self._config.teardown_timeout)
            if stuck:
                log.error(
                    "%d turns did not end within %s s and are abandoned", len(stuck), self._config.teardown_timeout
                )


@define(eq=False)
class _Steps:
    """The Changes of one turn on their way to the disk, in order: at most `depth` of them, each event told when it is stored."""

    turn: Turn
    _submit: Callable[[Change], asyncio.Future[Change]]
    _sink: Sink | None
    _depth: int
    taken: int = 0
    _flight: deque[tuple[WorkerEvent, asyncio.Future[Change] | None]] = field(init=False, default=Factory(deque))
    _failure: BaseException | None = field(init=False, default=None)
    _moved: asyncio.Event = field(init=False, default=Factory(asyncio.Event))

    async def take(self, event: WorkerEvent, clock: Clock) -> None:
        """Send one yielded event on its way. Waits only while too many are; raises what an earlier one failed with."""
        while len(self._flight) >= self._depth and self._failure is None:
            await self._move()
        if self._failure is not None:
            raise self._failure
        self.turn, change = step(self.turn, event, clock)
        self.taken += 1
        future = None if change is None else self._submit(change)
        self._flight.append((event, future))
        if future is None:
            self._land()
        else:
            future.add_done_callback(self._land)

    async def settle(self) -> None:
        """Return when everything taken so far is stored; raise what failed."""
        await self.finish()
        if self._failure is not None:
            raise self._failure

    async def finish(self) -> None:
        """Return when nothing is on its way any more, whatever became of it."""
        while self._flight:
            await self._move()

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _land(self, _: object = None) -> None:
        while self._flight and ((future := self._flight[0][1]) is None or future.done()):
            event, _future = self._flight.popleft()
            stored = None
            if future is not None:
                if future.cancelled() or future.exception() is not None:
                    self._failure = self._failure or (None if future.cancelled() else future.exception())
                    continue
                stored = future.result()
            if self._sink is not None and self._failure is None:
                self._sink.put(_told(event, stored))
        self._moved.set()


def _told(event: WorkerEvent, stored: Change | None) -> WorkerEvent:
    if stored is None or not stored.events:
        return event
    entry = stored.events[0]
    # Ids that a tool event was given on its way are the caller's to know.
    data = entry.data if event.send_type.startswith("tool_") and entry.data is not None else event.data
    return WorkerEvent(event.send_type, {**event.data, **data}, event=entry)
