"""The way of a turn: open it, let it run when its place comes, store and publish each step, stop it, end it. The same for both doors.

What a step alters is `turn.py`'s business, who sees it `broadcast.py`'s, what the handler does `stage.py`'s. The rules that live here:

- **Durable before visible.** A Change is published, and handed to a dispatch caller, from the callback of its stored future.
- **One task a turn.** The handler, its dependencies and their teardown all run in the turn's own task, so cancel scopes and context
  variables behave as in any coroutine. The task belongs to the worker: no socket's end stops it, and only a caller's explicit cancel.
- **Every way out closes the run.** Success, error, cancel, a stream abandoned half-way, a worker that closes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from dooers.admission import Admission
from dooers.analytics import Collector
from dooers.brokers import Broker
from dooers.config import WorkerConfig
from dooers.context import WorkerSettings
from dooers.deadline import Deadline
from dooers.deaf import Deaf
from dooers.exceptions import HandlerError
from dooers.lanes import Lanes
from dooers.locks import Locks
from dooers.models import Change, ThreadEvent
from dooers.openturn import Message, OpenTurn, TurnStatus
from dooers.relay import Relay
from dooers.stage import Stage
from dooers.stats import Counts
from dooers.steps import Sink, Steps
from dooers.stores import Store, applied, landed
from dooers.turn import Clock, Turn

__all__ = ["Runner", "waited_threads"]

log = logging.getLogger("dooers")

# The threads whose turns wait for what runs here: a turn that waited for one of them would wait for itself.
waited_threads: ContextVar[frozenset[str]] = ContextVar("dooers_waited_threads", default=frozenset())
# Of the time that turns have to end when the worker closes: how much of it their handlers have to stop.
STOPPING = 0.8


class Runner:
    """Runs turns, and owns their tasks."""

    def __init__(
        self,
        config: WorkerConfig,
        store: Store,
        relay: Relay,
        broker: Broker,
        collector: Collector,
        clock: Clock,
        lanes: Lanes,
        settings: Callable[..., WorkerSettings],
        counts: Counts,
        process_id: str,
    ) -> None:
        self._config = config
        self._store = store
        self._relay = relay
        self._broker = broker
        self._process_id = process_id
        self._collector = collector
        self._clock = clock
        self._lanes = lanes
        self._counts = counts
        self._stage = Stage(config, store, collector, clock, settings, self.commit)
        self._turns: set[OpenTurn] = set()
        self._unrun: set[OpenTurn] = set()  # stored, in the queue, and nobody has let them run yet
        self._locks = Locks(broker)
        # Waits where this process may have been taken for dead. The pulse sets it.
        self.sure: Callable[[], Awaitable[None] | None] = lambda: None
        self._deaf = Deaf(self._stage, self._ended)
        self._admission = Admission(
            config,
            store,
            broker,
            clock,
            lanes,
            submit=self.submit,
            steps=self._steps,
            at_work=self._at_work,
            replace=lambda turn: self.cancel(thread_id=turn.thread.id, before=turn.event.seq),
            wait=self._unrun.add,
        )

    @property
    def running(self) -> int:
        """How many turns have a task: they run or wait for their place."""
        return len(self._turns)

    @property
    def at_work(self) -> int:
        """How many turns run; the others wait for their place, or for somebody to run them."""
        return sum(opened.status == "running" for opened in list(self._turns))

    @property
    def waiting(self) -> int:
        """How many turns wait."""
        return len(self._turns) + len(self._unrun) - self.at_work

    @property
    def ends_waiting(self) -> int:
        """How many ends of turns wait for a database that is away."""
        return self._stage.ends_waiting

    @property
    def runs(self) -> list[str]:
        """The runs of the turns that are at work."""
        return [opened.steps.turn.run.id for opened in self._turns if opened.steps.turn.run is not None]

    def is_answering(self, thread_id: str) -> bool:
        """Whether a turn of this thread runs or waits."""
        return any(opened.thread.id == thread_id for opened in self._turns)

    def over(self, event_id: str) -> asyncio.Future[None] | None:
        """Done when the turn of this message is over; None where it is over already, or is none of this process."""
        return next((opened.over for opened in self._turns | self._unrun if opened.event.id == event_id), None)

    def growing(self, thread_id: str) -> list[ThreadEvent]:
        """The messages of a thread that are being streamed, with their text so far."""
        growing = [opened.steps.growing for opened in self._turns if opened.thread.id == thread_id]
        here = [event for one in growing if one is not None and (event := one.so_far()) is not None]
        return here + self._relay.growing(thread_id)

    # ------------------------------------------------------------ storing and telling

    def submit(
        self, change: Change, then: Callable[[asyncio.Future[Change]], None] | None = None
    ) -> asyncio.Future[Change]:
        """Store a Change and publish it the moment it is durable, whatever `then` is to be done. In order of the calls."""
        future = applied(self._store, change)

        def stored(_: asyncio.Future[Change]) -> None:
            try:
                self._publish(future)
            finally:
                if then is not None:
                    then(future)

        future.add_done_callback(stored)
        return future

    async def commit(self, change: Change) -> Change:
        """`submit`, and wait for it. Being cancelled here does not unwrite anything."""
        return await landed(self.submit(change))

    def _publish(self, future: asyncio.Future[Change]) -> None:
        if future.cancelled() or future.exception() is not None:
            return  # whoever submitted it hears of that
        change = future.result()
        if change.repeated:
            return
        if change.removes:
            self._forget(change)
        try:
            self._relay.publish(change)
            self._collector.observe(change)
        except Exception:
            # It is stored; whoever missed it gets it with the next snapshot. The store's own loop must not suffer.
            log.exception("publishing a change of thread %s failed", change.thread.id)

    def _forget(self, change: Change) -> None:
        for opened in self._stop(thread_id=change.thread.id):
            # A thread of the same id may be made again: nothing of these turns belongs in it.
            opened.steps.forget("the thread was deleted")

    # ------------------------------------------------------------ what other processes say

    def heard_change(self, change: Change) -> None:
        """Another process has deleted a thread, or buried a run that it took for dead: neither may go on here."""
        if change.removes:
            self._forget(change)
        for run in change.runs:
            if run.status != "running":
                self.buried(run.id)
        self._collector.show(change)

    def heard_cancel(self, thread_id: str | None, run_id: str | None, before: int | None) -> None:
        """Somebody asked another process to stop these turns."""
        self._stop(thread_id=thread_id, run_id=run_id, before=before)
        if before is not None:  # one of these messages may be stored, and its turn not be there yet
            for coming in self._admission.opening:
                coming.add_done_callback(lambda _: self._stop(thread_id=thread_id, before=before))

    def buried(self, run_id: str) -> None:
        """Another process took a run of this one for dead, and closed it. It does not go on, and has its end already."""
        for opened in self._stop(run_id=run_id):
            opened.steps.forget("its run was closed by another process")

    def close_later(self, change: Change) -> None:
        """Store this end of a run with the next `close_again`; one that was stored, and only its answer lost, is told then."""
        self._stage.close_later(change)

    async def close_again(self) -> None:
        """Store ends of turns, and give back locks, where that could not be done when they came."""
        self._locks.give_back_again()
        await self._stage.close_again()

    # ------------------------------------------------------------ a turn opens

    async def open(
        self, message: Message, accept: Callable[[OpenTurn], None], known: Callable[[OpenTurn], None] | None = None
    ) -> OpenTurn:
        """Store a message and take its place in the thread's queue; `accept` decides what becomes of its turn. See `Admission.open`."""
        return await self._admission.open(message, accept, known)

    def _steps(self, stored: Change) -> Steps:
        event = stored.events[0]
        turn = Turn(
            thread=stored.thread,
            event_id=event.id,
            seq=event.seq,
            assistant_name=self._config.assistant_name,
            process_id=self._process_id,  # a run says whose it is, so that others see to it when this process dies
        )
        return Steps(turn, self.submit, self.sure, self._relay, self._clock, self._config.pipeline_depth)

    def _at_work(self, event_id: str) -> TurnStatus | None:
        """How the turn of a message stands that runs or waits here."""
        return next((one.status for one in self._turns | self._unrun if one.event.id == event_id), None)

    def start(self, opened: OpenTurn, sink: Sink | None = None, *, detached: bool = True) -> None:
        """Let the turn run in a task of its own, when its place in the thread's queue comes."""
        self._unrun.discard(opened)
        opened.steps.sink = sink
        inherited = frozenset() if detached else waited_threads.get()
        drain = self._drain(opened, inherited | {opened.thread.id})
        opened.task = asyncio.create_task(drain, name=f"dooers-turn-{opened.event.id}")
        # Not in the task itself: one that is cancelled before its first step never runs a line of its own.
        opened.task.add_done_callback(
            lambda task: self._ended(opened, None if task.cancelled() or task.exception() else task.result())
        )
        self._turns.add(opened)

    def _ended(self, opened: OpenTurn, error: HandlerError | None) -> None:
        """The turn is over, or has been given up: free its place and tell who follows. Twice is no harm."""
        if opened.watch is not None:
            opened.watch.cancel()
        if opened.status in ("waiting", "running") and not opened.repeated:
            opened.status = "canceled"
        self._turns.discard(opened)
        self._unrun.discard(opened)
        if opened.locked:
            opened.locked = False
            self._locks.give_back(opened.thread.id)
        opened.ticket.leave()
        sink, opened.steps.sink = opened.steps.sink, None
        if sink is not None:
            sink.end(error)
        if not opened.over.done():
            opened.over.set_result(None)
            if not opened.repeated:
                self._counts.turn(opened.status)

    # ------------------------------------------------------------ a turn is stopped

    def cancel(
        self, *, thread_id: str | None = None, run_id: str | None = None, before: int | None = None
    ) -> list[OpenTurn]:
        """Stop the turns of a thread, waiting ones too (of messages `before` a number), or the turn of a run, in whichever process
        they are; which they were in this one."""
        self._relay.tell_cancel(thread_id, run_id, before)
        return self._stop(thread_id=thread_id, run_id=run_id, before=before)

    def _stop(
        self, *, thread_id: str | None = None, run_id: str | None = None, before: int | None = None
    ) -> list[OpenTurn]:
        found = [
            opened
            for opened in self._turns | self._unrun
            if (opened.thread.id == thread_id and (before is None or opened.event.seq < before))
            or (run_id is not None and opened.steps.turn.run is not None and opened.steps.turn.run.id == run_id)
        ]
        for opened in found:
            self.stop(opened)
        return found

    async def ended(self, *turns: OpenTurn) -> None:
        """Return when turns that were stopped are over, or have been given up."""
        if turns:
            await asyncio.wait([opened.over for opened in turns], timeout=2 * self._config.teardown_timeout + 3)

    def stop(self, opened: OpenTurn, *, expired: bool = False) -> None:
        """Cancel the handler at its await, and see to it that the turn ends. Also frees the place of a turn that nobody runs.

        Stopping twice is stopping once: a second cancellation would hit the handler's `finally` and its teardown. So would the
        first, where the handler has ended: then the teardown is only watched, and the turn keeps the outcome it has.
        """
        if opened.canceled or opened.expired or opened.closing:
            return
        if opened.task is None:
            opened.canceled = True
            self._ended(opened, None)
            return
        if not opened.leaving:
            opened.canceled, opened.expired = not expired, expired
            opened.task.cancel()
        # Long enough for the handler's `finally` and its dependencies' teardown, each of which is bounded by itself.
        again = 2 * self._config.teardown_timeout + 1
        if opened.watch is None:
            opened.watch = asyncio.get_running_loop().call_later(again, self._deaf.insist, opened)

    # ------------------------------------------------------------ a turn runs

    async def _drain(self, opened: OpenTurn, waiting: frozenset[str]) -> HandlerError | None:
        """The turn's task, from its place in the queue to its clean end; what it failed with, for who follows it."""
        waited_threads.set(waiting)
        error: BaseException | None = None
        timer: asyncio.TimerHandle | None = None
        try:
            await opened.ticket.wait()
            ours_since: float | None = None
            if opened.ticket.in_line:
                ours_since = await self._locks.take(opened.thread.id)
                opened.locked = True
            if await self._admission.is_answered(opened, ours_since):
                return None
            opened.status = "running"
            seconds = opened.message.handler.timeout or self._config.handler_timeout
            if seconds is not None:
                timer = asyncio.get_running_loop().call_later(seconds, partial(self.stop, opened, expired=True))
            await self._stage.perform(opened)
        except asyncio.CancelledError as raised:
            # Asked for by `stop` or by a loop that ends; else the handler awaited something that was cancelled.
            task = asyncio.current_task()
            opened.canceled = opened.canceled or (not opened.expired and task is not None and task.cancelling() > 0)
            error = raised
        except BaseException as raised:
            error = raised
        if timer is not None:
            timer.cancel()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            await self._stage.conclude(opened, error)
            raise error
        if opened.closing:
            return None  # it was given up meanwhile
        opened.closing = True  # from here on there is nothing left to stop, only an end to be stored
        error = TimeoutError("the handler took too long") if opened.expired else error
        return await self._stage.conclude(opened, error)

    # ------------------------------------------------------------ the worker closes

    async def finish(self, deadline: Deadline) -> None:
        """Take no more messages, and let turns finish as long as the grace lasts; also those whose message is just being stored."""
        self._admission.closing = True
        await deadline.grace(lambda: [*self._admission.opening, *(opened.over for opened in self._turns)])

    async def close(self, deadline: Deadline, part: float) -> None:
        """Cancel what is left, and wait until each turn has closed its run; what does not end in this part of the time is left behind.

        Handlers that do not stop are found out earlier: their turns' ends are to be stored too.
        """
        stopped: set[OpenTurn] = set()
        while (left := deadline.share(part * STOPPING)) > 0:
            for opened in (self._turns | self._unrun) - stopped:
                self.stop(opened)
                stopped.add(opened)
            ending: list[asyncio.Future[Any]] = [*self._admission.opening, *(opened.over for opened in self._turns)]
            if not ending:
                break
            await asyncio.wait(ending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for opened in self._turns | self._unrun:
            self.stop(opened)
            self._deaf.insist(opened, patience=deadline.share(part) / 4)
        if ending := [*(opened.over for opened in self._turns), *self._deaf.last_words]:
            await asyncio.wait(ending, timeout=deadline.share(part))
        await self._deaf.leave(deadline, self._turns)
        for opened in list(self._turns):
            self._ended(opened, None)
