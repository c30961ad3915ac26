"""When a worker is open: opened once however many ask first, kept by a task of its own, closed with its event loop at the latest.

What opening and closing consist of is the owner's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from dooers.deadline import Deadline, apart, leave
from dooers.exceptions import ClosingError, StoreError

__all__ = ["Lifecycle", "longest"]

log = logging.getLogger("dooers")

# Seconds that closing may take beyond its bound: an event loop that was busy is behind with its timers.
LITTLE = 1.0
_all: WeakSet[Lifecycle] = WeakSet()


def longest() -> float:
    """Seconds within which every worker of this process has closed, if all of them are asked to now."""
    return max((life.bound for life in _all), default=0.0)


class Lifecycle:
    """Opens on first use, and again after it was closed, also on another event loop."""

    def __init__(
        self,
        open: Callable[[], Awaitable[None]],
        shut: Callable[[Deadline], Coroutine[Any, Any, None]],
        grace: float,
        timeout: float,
    ) -> None:
        self._open = open
        self._shut = shut
        self._grace, self._timeout = grace, timeout
        self._home: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._leaving = asyncio.Event()
        _all.add(self)

    @property
    def bound(self) -> float:
        """Seconds that closing takes at most."""
        return self._grace + self._timeout + LITTLE

    @property
    def closing(self) -> bool:
        """Whether it is about to close: what is under way may go on, nothing new is taken."""
        return self._ready is not None and self._leaving.is_set()

    async def begin(self) -> None:
        """Open if it is not open. After a failure the next call tries again. While it closes it still is, for what is under way."""
        ready = self._ready
        if ready is None or ready.get_loop() is not asyncio.get_running_loop():
            if ready is not None and not ready.get_loop().is_closed():
                raise StoreError("this worker is open on another event loop; close() it there first")
            self._ready = ready = asyncio.get_running_loop().create_future()
            self._leaving = asyncio.Event()
            self._home = asyncio.create_task(self._stay(ready, self._leaving), name="dooers-worker")
        await asyncio.shield(ready)

    async def _stay(self, ready: asyncio.Future[None], leaving: asyncio.Event) -> None:
        """The worker's own task: opens, stays, closes. A loop that ends cancels it, and so closes a worker nobody closed."""
        try:
            try:
                await self._open()
            except BaseException as error:
                why = ClosingError() if leaving.is_set() else StoreError("the worker was not opened")
                _fail(ready, error if isinstance(error, Exception) else why)
                return
            if not ready.done():  # else it was left behind, and closes at once
                ready.set_result(None)
            # Whoever closes it while it opens has nothing under way.
            grace, ends = 0.0 if leaving.is_set() else self._grace, False
            try:
                await leaving.wait()
            except asyncio.CancelledError:
                ends = True
            leaving.set()
            await self._close(grace, ends)
        finally:
            if self._ready is ready:
                self._ready = None

    async def _close(self, grace: float, ends: bool) -> None:
        # In a task that a loop which ends does not cancel: it has its own bound, and only hears of it.
        deadline = Deadline(grace, self._timeout)
        closing = apart(self._shut(deadline))
        while not closing.done():
            if ends:
                deadline.hurry()
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError:
                ends = True
        closing.result()

    def leave(self) -> None:
        """Begin to close, if it is open."""
        self._leaving.set()

    async def end(self) -> None:
        """Close if it is open; returns when that is done, or its time is over."""
        home, ready = self._home, self._ready
        if home is None or home.get_loop() is not asyncio.get_running_loop() or home.done():
            return
        self.leave()
        until = asyncio.get_running_loop().time() + self.bound
        if ready is not None and not ready.done():
            # It opens, which may take for ever where a database does not answer.
            await asyncio.wait([ready], timeout=self._grace + LITTLE / 2)
            if not ready.done():
                home.cancel()
        _, late = await asyncio.wait([home], timeout=until - asyncio.get_running_loop().time())
        if late:
            log.error("the worker could not be closed within %g seconds; it is left behind", self.bound)
            home.cancel()
            leave(home, ends=False)
            if ready is not None:  # until it ends, nobody can open the worker again
                _fail(ready, ClosingError())
        if home.done():
            if self._home is home:
                self._home = None
            with suppress(asyncio.CancelledError):
                home.result()


def _fail(ready: asyncio.Future[None], error: Exception) -> None:
    if not ready.done():
        ready.set_exception(error)
        ready.exception()  # whoever waited may have gone
