"""When a worker is open: opened once however many ask first, kept by a task of its own, closed with its event loop at the latest.

What opening and closing consist of is the owner's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dooers.exceptions import StoreError

__all__ = ["Lifecycle"]


class Lifecycle:
    """Opens on first use, and again after it was closed, also on another event loop."""

    def __init__(
        self, open: Callable[[], Awaitable[None]], shut: Callable[[float], Awaitable[None]], grace: float
    ) -> None:
        self._open = open
        self._shut = shut
        self._grace = grace
        self._home: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._leaving = asyncio.Event()

    async def begin(self) -> None:
        """Open if it is not open. After a failure the next call tries again."""
        ready = self._ready
        if ready is None or ready.get_loop() is not asyncio.get_running_loop():
            if ready is not None and not ready.get_loop().is_closed():
                raise StoreError("this worker is open on another event loop; close() it there first")
            self._ready = ready = asyncio.get_running_loop().create_future()
            self._leaving = asyncio.Event()
            self._home = asyncio.create_task(self._stay(ready), name="dooers-worker")
        await asyncio.shield(ready)

    async def _stay(self, ready: asyncio.Future[None]) -> None:
        """The worker's own task: opens, stays, closes. A loop that ends cancels it, and so closes a worker nobody closed."""
        try:
            await self._open()
        except BaseException as error:
            self._ready = None
            ready.set_exception(error if isinstance(error, Exception) else StoreError("the worker was not opened"))
            ready.exception()
            return
        if not ready.done():
            ready.set_result(None)
        grace = self._grace
        try:
            await self._leaving.wait()
        except asyncio.CancelledError:
            grace = 0
        self._ready = None
        await self._shut(grace)

    async def end(self) -> None:
        """Close if it is open; returns when that is done."""
        home = self._home
        if home is not None and home.get_loop() is asyncio.get_running_loop() and not home.done():
            self._leaving.set()
            await asyncio.wait([home])
            self._home = None
            home.result()
