"""The time a worker has to close, shared out among the stages of that, and what is left behind when it is over. What is to be done in
each stage is for whoever closes to know.

Two spans: a grace, in which turns may finish, and then a timeout, in which everything else has to be done. A stage gets what the ones
before it have left, and none may use up what is kept for those after it. What does not end in its share is cancelled, twice; what does
not end even then is named in the log and left behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar
from weakref import WeakSet

__all__ = ["Deadline", "apart", "leave"]

log = logging.getLogger("dooers")

T = TypeVar("T")

# Which part of the timeout, at most, somebody who was cancelled has to end; it is given twice.
SLACK = 0.02
# Seconds that a loop which ends has for the generators around what was left behind.
LITTLE = 0.5
# Tasks that were left behind, and the loops that do not complain of them. They are held: a task that is collected before its end throws
# GeneratorExit into whatever it stands in.
_left: set[asyncio.Task[Any]] = set()
_quiet: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


class Deadline:
    """Belongs to one closing, and to its event loop."""

    def __init__(self, grace: float, timeout: float) -> None:
        self._grace, self.timeout = grace, timeout
        self._loop = asyncio.get_running_loop()
        self._hurried = asyncio.Event()
        self._until = self._loop.time() + grace + timeout

    @property
    def hurried(self) -> bool:
        """Whether the event loop ends."""
        return self._hurried.is_set()

    def hurry(self) -> None:
        """The event loop ends: nobody has time to finish any more."""
        self._hurried.set()

    async def grace(self, waiting: Callable[[], Collection[asyncio.Future[Any]]]) -> None:
        """Return when nothing is left to wait for, or the grace is over. The timeout runs from then on."""
        until, hurried = self._loop.time() + self._grace, apart(self._hurried.wait())
        try:
            while (futures := waiting()) and not self.hurried and (left := until - self._loop.time()) > 0:
                await asyncio.wait([*futures, hurried], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
        self._until = self._loop.time() + self.timeout

    def left(self, part: float = 1.0) -> float:
        """Seconds until this part of the timeout is used up."""
        return max(0.0, self._until - (1 - part) * self.timeout - self._loop.time())

    def share(self, part: float) -> float:
        """The same for whoever is cancelled then, and needs some of it to end."""
        return self.left(part - 2 * SLACK)

    async def stage(self, part: float, works: Mapping[str, Coroutine[Any, Any, object]]) -> None:
        """Do these side by side until this part of the timeout is used up. What fails is told in the log: closing goes on."""
        tasks = {apart(work): what for what, work in works.items()}
        await asyncio.wait(tasks, timeout=self.share(part))
        await self.end({task: what for task, what in tasks.items() if not task.done()})
        for task, what in tasks.items():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                log.error("while the worker closed, something failed: %s", what, exc_info=error)

    async def end(self, tasks: Mapping[asyncio.Task[Any], str]) -> None:
        """Cancel these, and leave behind what does not end even so."""
        for task, what in tasks.items():
            log.error("while the worker closed, something took too long and was cancelled: %s", what)
            task.cancel()
        late = await self._await(tasks)
        for task in late:
            task.cancel()  # the first one may have begun another wait, in a `finally`
        for task in await self._await(late):
            self.leave(task, tasks[task])

    async def _await(self, tasks: Collection[asyncio.Task[Any]]) -> Collection[asyncio.Task[Any]]:
        return (await asyncio.wait(tasks, timeout=SLACK * self.timeout))[1] if tasks else ()

    def leave(self, task: asyncio.Task[Any], what: str) -> None:
        """Go on without a task that does not end."""
        if not task.done():
            log.error("while the worker closed, something did not stop and is left behind: %s", what)
            leave(task, ends=self.hurried)


def apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that a loop which ends does not cancel: whoever started it ends it, in bounded time."""
    task = asyncio.create_task(work)
    asyncio._unregister_task(task)  # "Extending asyncio" in Python's documentation
    return task


def leave(task: asyncio.Task[Any], *, ends: bool) -> None:
    """See to it that nobody waits for a task that cannot be stopped: `asyncio.run` would do so for ever, and without a word.

    If the loop `ends`, `asyncio.run` waits already, for what it has cancelled. Then the task is over: it is marked as cancelled, and
    what it stands in never goes on. Else it may go on while the loop lives, and end by itself.
    """
    _quieten(task.get_loop())
    _left.add(task)
    if ends:
        asyncio.Future.cancel(task)  # its own `cancel` asks the coroutine, which has been asked and does not end
    else:
        asyncio._unregister_task(task)
        task.add_done_callback(_left.discard)


def _quieten(loop: asyncio.AbstractEventLoop) -> None:
    """Keep a loop from waiting for what was left behind when it ends, and from complaining of it: the log has it already, by name.

    It closes async generators then. Those in which something left behind stands cannot be closed, and what those around them do about
    that may take for ever.
    """
    if loop in _quiet:
        return
    _quiet.add(loop)
    complain, close_generators = loop.get_exception_handler(), loop.shutdown_asyncgens

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        late = isinstance(error, asyncio.InvalidStateError) and "step(): already done" in str(error)
        if late or "asyncgen" in context:
            log.debug("of what was left behind: %s", context.get("message"))
        elif complain is not None:
            complain(loop, context)
        else:
            loop.default_exception_handler(context)

    async def close_in_time() -> None:
        closing = apart(close_generators())
        _left.update((await asyncio.wait([closing], timeout=LITTLE))[1])

    loop.set_exception_handler(handle)
    loop.shutdown_asyncgens = close_in_time  # type: ignore[method-assign]
