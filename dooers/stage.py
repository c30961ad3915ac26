"""Where a handler is run: driven one event at a time, in the turn's own task, and the end of its turn stored. When is `runner.py`'s.

- **Pipelined.** The handler does not wait for the disk: up to `pipeline_depth` Changes of a turn are on their way, in order. A write
  that fails stops the turn.
- **Every outcome leaves a clean thread**: the run closed, what was on its way stored, and of a failure a safe text.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from dooers.analytics import Collector
from dooers.codec import clean
from dooers.config import WorkerConfig
from dooers.context import WorkerAnalytics, WorkerContext, WorkerIncoming, WorkerMemory, WorkerSettings
from dooers.exceptions import HandlerError, NotFoundError, told
from dooers.models import Change, evolve
from dooers.openturn import OpenTurn
from dooers.send import WorkerSend
from dooers.steps import SourceFailed, Steps, close_source
from dooers.stores import Store, answered
from dooers.turn import Clock, Outcome, as_event, closing

__all__ = ["Stage"]

log = logging.getLogger("dooers")

# Ends of turns that wait for a database that is away, at most.
UNCLOSED = 1_000


class Stage:
    """What it takes to run handlers."""

    def __init__(
        self,
        config: WorkerConfig,
        store: Store,
        collector: Collector,
        clock: Clock,
        settings: Callable[..., WorkerSettings],
        commit: Callable[[Change], Awaitable[Change]],
    ) -> None:
        self._config = config
        self._store = store
        self._collector = collector
        self._clock = clock
        self._settings = settings
        self._commit = commit
        self._send = WorkerSend()
        self._unclosed: deque[Change] = deque(maxlen=UNCLOSED)

    async def perform(self, opened: OpenTurn) -> None:
        """Drive the handler: one event, one step, on to the next. What a stream of its fails with is raised at its `yield`."""
        steps, failed = opened.steps, None
        async with opened.message.handler.run(self._values(opened, steps)) as yielded:
            try:
                while True:
                    if steps.sink is not None:
                        await steps.wanted()
                    try:
                        value = await (anext(yielded) if failed is None else yielded.athrow(failed))
                    except StopAsyncIteration:
                        break
                    failed = None
                    event = as_event(value, self._send.text)
                    if opened.canceled or opened.expired:
                        # A handler that caught its cancellation and went on: what it yields now is too late.
                        await close_source(event.data.get("source"))
                        return
                    try:
                        await steps.take(event)
                    except SourceFailed as raised:
                        failed = raised.error
            finally:
                opened.leaving = True
        await steps.settle()

    async def conclude(self, opened: OpenTurn, error: BaseException | None) -> HandlerError | None:
        """Store the end of a turn; what it failed with, for who follows it."""
        # A thread that is deleted takes its turns along, also one whose handler had ended when it was.
        canceled = opened.canceled or opened.steps.gone
        outcome: Outcome = "canceled" if canceled else "succeeded" if error is None else "failed"
        await self._close(opened, outcome, error)
        opened.status = "canceled" if opened.steps.gone else outcome
        return HandlerError(f"the handler failed: {error!r}", error) if error and outcome == "failed" else None

    async def _close(self, opened: OpenTurn, outcome: Outcome, error: BaseException | None) -> None:
        """Leave a clean thread, whatever happened, and survive it if even that cannot be stored."""
        steps = opened.steps
        notice = None
        if outcome == "failed":
            error_id = self._clock.new_id()
            what = "This took too long." if opened.expired else "Something went wrong."
            notice = clean(told(what, error or TimeoutError(), error_id, expose=self._config.expose_errors))
            log.error(
                "handler %s failed in thread %s (error %s)",
                opened.message.handler.name,
                opened.thread.id,
                error_id,
                exc_info=error,
            )
        elif error is not None and not isinstance(error, asyncio.CancelledError):
            log.warning("handler %s failed while it was stopped", opened.message.handler.name, exc_info=error)
        ends: list[Change] = []
        try:
            with suppress(asyncio.CancelledError):  # of a loop that ends: the run must be closed all the same
                await steps.finish()
            ends = self._ends(opened, outcome, notice)
            while ends and not steps.gone:
                await self._store_end(ends[0])
                del ends[0]
        except NotFoundError:
            steps.forget("its thread was deleted, or its run closed by another process")
            log.info("the thread %s was deleted, or the run in it closed, while a turn ran in it", opened.thread.id)
        except asyncio.CancelledError:
            log.warning("the turn in thread %s was cancelled again while it was being closed", opened.thread.id)
        except Exception as unclosed:  # the last line of defence: the queue must move on
            log.error("the end of a turn in thread %s could not be stored: %r", opened.thread.id, unclosed)
            for change in ends:
                self.close_later(change)

    def _ends(self, opened: OpenTurn, outcome: Outcome, notice: str | None) -> list[Change]:
        """What is to be stored when a turn ends: more than one Change only where writes of it have failed."""
        steps = opened.steps
        runs = steps.left_open()
        last = runs.pop() if runs else None
        ends = [closing(evolve(steps.turn, run=run), outcome, self._clock) for run in runs]
        ends.append(closing(evolve(steps.turn, run=last), outcome, self._clock, notice=notice, traced=steps.traced))
        return [change for change in ends if change is not None]

    async def _store_end(self, change: Change) -> None:
        """Store an end. Where its run has ended already, by a write of which nobody here got the answer, people are told how."""
        try:
            await self._commit(change)
        except NotFoundError:
            with answered():
                run = None if change.during is None else await self._store.run(change.during)
            if run is not None and run.status != "running":
                await self._commit(evolve(change, during=None, runs=(run,), events=()))
            raise

    @property
    def ends_waiting(self) -> int:
        """How many ends wait for `close_again`."""
        return len(self._unclosed)

    def close_later(self, change: Change) -> None:
        """Keep an end for `close_again`."""
        self._unclosed.append(change)

    async def close_again(self) -> None:
        """Store the ends that could not be stored when they came: while this process lives, nobody else closes its runs."""
        while self._unclosed:
            change = self._unclosed[0]
            try:
                # Each in its time: one whose thread hangs does not keep the others back, nor does one that can never be stored.
                async with asyncio.timeout(self._config.run_timeout):
                    await self._store_again(change)
            except BaseException:
                self._unclosed.rotate(-1)  # one that can never be stored does not keep the others back
                raise
            if self._unclosed and self._unclosed[0] is change:
                self._unclosed.popleft()

    async def _store_again(self, change: Change) -> None:
        with suppress(NotFoundError):  # the thread was deleted meanwhile, or the run closed
            with answered():
                known = bool(change.events) and await self._store.event(change.events[0].id) is not None
            # It may have been stored, and the answer lost: then it is only to be told.
            await self._store_end(evolve(change, during=None, events=()) if known else change)

    def _values(self, opened: OpenTurn, steps: Steps) -> dict[str, Any]:
        """What this turn gives to whoever asks for it by name."""
        message, thread = opened.message, opened.thread
        context = WorkerContext(
            thread_id=thread.id,
            event_id=opened.event.id,
            worker_id=message.worker_id,
            identity=message.identity,
            thread_title=thread.title,
            thread_created_at=thread.created_at,
            handler=message.handler.name,
            waited=asyncio.get_running_loop().time() - opened.stored_at,
        )
        # Two names, so that nobody takes a client's word for what their own code has said.
        said = "client_data" if message.from_client else "data"
        return {
            "incoming": WorkerIncoming(opened.event.content, context, **{said: opened.event.data}),
            "send": self._send,
            "memory": WorkerMemory(self._store, thread.id, turn_seq=opened.event.seq, settle=steps.settle),
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
