"""How a message gets in: stored, with a place in its thread's queue, once. What becomes of its turn then is `runner.py`'s.

A message that came before is no new one. It is taken up again only where its turn left no trace, because its process died over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from dooers.access import check_may_own, scope_of, visible
from dooers.brokers import Broker
from dooers.config import TurnOrder, WorkerConfig
from dooers.exceptions import ClosingError, NotFoundError, ThreadBusyError
from dooers.lanes import Lanes, Ticket
from dooers.models import Change, EventQuery, Scope, ThreadEvent, evolve
from dooers.openturn import Message, OpenTurn, TurnStatus
from dooers.steps import Steps
from dooers.stores import Store, answered, outcome_of
from dooers.turn import Clock, opening

__all__ = ["Admission"]

# Seconds that a repeat waits before its turn takes place in the stead of one in another process that left no trace so far. So whoever comes
# to its turn sooner than that, counted from before its message was stored, can not have been overtaken by a repeat, and need not look.
SOON = 0.1


class Admission:
    """The way in, of one worker.

    `at_work` says how the turn of a message stands that runs or waits in this process; `replace` stops the turns before one; `wait`
    is given a turn that nobody has started.
    """

    def __init__(
        self,
        config: WorkerConfig,
        store: Store,
        broker: Broker,
        clock: Clock,
        lanes: Lanes,
        submit: Callable[[Change, Callable[[asyncio.Future[Change]], None]], asyncio.Future[Change]],
        steps: Callable[[Change], Steps],
        at_work: Callable[[str], TurnStatus | None],
        replace: Callable[[OpenTurn], object],
        wait: Callable[[OpenTurn], None],
    ) -> None:
        self._config = config
        self._store = store
        self._broker = broker
        self._clock = clock
        self._lanes = lanes
        self._submit = submit
        self._steps = steps
        self._at_work = at_work
        self._replace = replace
        self._wait = wait
        # Messages on their way to the database: whoever waits for one of these has its turn before it, if there is one.
        self.opening: set[asyncio.Future[Change]] = set()
        # The worker closes: nothing new gets in.
        self.closing = False

    async def open(
        self, message: Message, accept: Callable[[OpenTurn], None], known: Callable[[OpenTurn], None] | None = None
    ) -> OpenTurn:
        """Store a message and take its place in the thread's queue; `accept` decides what becomes of its turn.

        `accept` is called in the very step in which a new message is known to be stored, also when whoever waits here was
        cancelled meanwhile: a message that is in the database does not stay unanswered because a socket went away. For one that came
        before, `known` is called in that step, and `accept` once it is clear what became of its turn.

        Raises NotFoundError for a thread that is not there or not for this identity, ThreadBusyError for a full queue, ClosingError
        from a worker that closes, StoreError when the database does not say that it did it. Only after the last may it be stored.
        """
        if self.closing:
            raise ClosingError
        scope = scope_of(message.identity, message.worker_id, private=self._config.private_threads)
        check_may_own(scope)
        change = self._change(message, scope)
        # The place is taken before anything is awaited: turns run in the order in which messages came.
        # With the scope in the key, somebody who may not see a thread cannot stand in its queue either.
        key, order = (scope, change.thread.id), message.handler.order or self._config.turn_order
        busy: ThreadBusyError | None = None
        try:
            ticket = self._lanes.place(key, order)
        except ThreadBusyError as error:
            if change.repeat_key is None:
                raise
            # A repeat is no new message, so it is not refused. As an append to a thread that is nowhere, only a repeat succeeds.
            busy, ticket = error, self._lanes.beside(key)
            change = evolve(change, thread=evolve(change.thread, id=self._clock.new_id()), opens=False)
        loop = asyncio.get_running_loop()
        # Cancelled with whoever waits here; the message goes its way all the same.
        opened: asyncio.Future[OpenTurn] = loop.create_future()
        came_at = loop.time()

        def stored(future: asyncio.Future[Change]) -> None:
            self.opening.discard(future)
            try:
                turn = self._opened(message, outcome_of(future), ticket, came_at)
                if not turn.repeated:
                    if order == "replace":  # not before it is stored: a repeat replaces nothing
                        self._replace(turn)
                    self._accept(turn, accept)
                elif known is not None:
                    known(turn)
            except BaseException as error:
                ticket.leave()
                if not opened.done():
                    opened.set_exception(busy if busy is not None and isinstance(error, NotFoundError) else error)
                    opened.exception()  # whoever waited may go in this moment: then nobody hears of it, which is no error
            else:
                if not opened.done():
                    opened.set_result(turn)

        self.opening.add(self._submit(change, stored))
        turn = await opened
        if turn.repeated:
            await self._take_up(turn, scope, order)
            try:
                self._accept(turn, accept)
            except BaseException:
                turn.ticket.leave()
                raise
        return turn

    def _change(self, message: Message, scope: Scope) -> Change:
        return opening(
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

    def _accept(self, turn: OpenTurn, accept: Callable[[OpenTurn], None]) -> None:
        accept(turn)
        if turn.task is None and not turn.canceled and not turn.repeated:
            self._wait(turn)

    async def _take_up(self, turn: OpenTurn, scope: Scope, order: TurnOrder) -> None:
        """Find out what became of the first turn of a message that came again. One that left no trace, because its process died or
        nobody ever ran it, takes place now."""
        # Beside others nobody waits, so nobody could tell whether another process is at it.
        unsure = order == "parallel" and not self._broker.alone
        trace = await self._seen(turn.event)
        if trace is None and not unsure and not self._broker.alone:
            await asyncio.sleep(SOON)
            trace = await self._seen(turn.event)
        turn.status = trace or "waiting"
        if trace is None and not unsure and not self.closing and visible(turn.thread, scope):
            with suppress(ThreadBusyError):
                turn.ticket = self._lanes.place((scope, turn.thread.id), order)
                turn.repeated, turn.again = False, True

    async def _seen(self, event: ThreadEvent) -> TurnStatus | None:
        """What there is of the turn of a message, here or in the store."""
        trace = self._at_work(event.id) or await _trace_of(self._store, event)
        return trace or self._at_work(event.id)  # another repeat may have been quicker

    async def is_answered(self, opened: OpenTurn, ours_since: float | None) -> bool:
        """Whether a message that came again through another process was answered there, before this turn got its place.

        Not where it was soon enough, nor where no other process can have held the thread since the message came.
        """
        soon = self._broker.alone or asyncio.get_running_loop().time() - opened.came_at < SOON
        if not opened.again and (soon or (ours_since is not None and ours_since <= opened.came_at)):
            return False
        trace = await _trace_of(self._store, opened.event)
        if trace is not None:
            opened.repeated, opened.status = True, trace
        return opened.repeated

    def _opened(self, message: Message, stored: Change, ticket: Ticket, came_at: float) -> OpenTurn:
        if stored.repeated:
            ticket.leave()
        return OpenTurn(
            message=message,
            steps=self._steps(stored),
            event=stored.events[0],
            created=stored.created,
            repeated=stored.repeated,
            ticket=ticket,
            came_at=came_at,
        )


async def _trace_of(store: Store, event: ThreadEvent) -> TurnStatus | None:
    """How the turn of a message stands, as far as the store knows; None where there is no trace of one.

    Every turn that ends leaves one. So without a trace the turn is still to come, or its process died before it had begun to answer.
    """
    with answered():
        run = await store.run(event.id)  # a turn's first run has the id of its message
        if run is not None:
            return run.status
        query = EventQuery(thread_id=event.thread_id, turn=event.turn_seq, limit=2, oldest_first=True)
        found = await store.events(query)
        if not found:
            return "canceled"  # the message is gone, with its thread or by itself
        return "succeeded" if len(found) > 1 else None
