"""The heartbeat of a process's runs, and the end of runs whose process is dead.

A run that is running says now and then that somebody is still at it. One that has said nothing for `run_timeout` seconds is closed as
failed by whichever process sees it first; its thread goes on. If its process was only slow, it stops there when it hears of that.
Times are those of the processes' clocks, which are to agree to within a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from math import inf
from typing import Any, TypeVar

from dooers.brokers import Broker
from dooers.codec import clean
from dooers.config import WorkerConfig
from dooers.exceptions import NotFoundError, told
from dooers.models import Run, evolve
from dooers.runner import Runner
from dooers.stores import Store, answered
from dooers.turn import Clock, mourning

__all__ = ["Pulse"]

log = logging.getLogger("dooers")
T = TypeVar("T")


class Pulse:
    """One process's heartbeat."""

    def __init__(
        self, config: WorkerConfig, store: Store, runner: Runner, broker: Broker, clock: Clock, process_id: str
    ) -> None:
        self._alone = broker.alone
        self._config = config
        self._store = store
        self._runner = runner
        self._clock = clock
        self._process_id = process_id
        self._tasks: set[asyncio.Task[None]] = set()
        self._burying: asyncio.Task[None] | None = None
        # When the database was last heard of, and from when on others have had the time to say that they live. One that was away was
        # away for everybody: whoever comes back first must not take the rest for dead.
        self._seen, self._fair = -inf, inf
        # Until when nobody can have taken this process for dead, and whoever waits to know that again.
        self._sure_until = 0.0
        self._again = asyncio.Event()

    def start(self) -> None:
        """Begin to beat, and look for the dead, now and with each beat."""
        self._sure_until = inf
        self._runner.sure = self.sure
        if self._alone:
            self._seen, self._fair = asyncio.get_running_loop().time(), 0.0
        self._spawn(self._go_on(), "dooers-pulse")

    async def stop(self) -> None:
        """Beat no more."""
        try:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            self._be_sure(inf)  # nobody is to wait for a beat that does not come

    def sure(self) -> Awaitable[None] | None:
        """What to wait for until others know that this process lives, None where they do: nearly always, and it is asked at each step.

        One that stood still finds out first which of its runs they have closed.
        """
        return None if asyncio.get_running_loop().time() < self._sure_until else self._be_heard()

    async def _be_heard(self) -> None:
        while asyncio.get_running_loop().time() >= self._sure_until:
            await self._again.wait()

    def _be_sure(self, since: float) -> None:
        self._sure_until = since + self._config.run_timeout
        self._again.set()
        self._again.clear()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _go_on(self) -> None:
        while True:
            stored = await self._survived(self._beat, "the heartbeat of running turns was not stored")
            if stored and (self._burying is None or self._burying.done()):
                # Beside the beats: what takes its time with the dead must not make this process look like one of them.
                self._burying = self._spawn(self._see_to_the_dead(self._seen >= self._fair), "dooers-pulse-dead")
            await asyncio.sleep(self._config.run_heartbeat)

    async def _survived(self, work: Callable[[], Awaitable[None]], otherwise: str) -> bool:
        """Do something; whether it was done."""
        try:
            await work()
        except Exception as error:
            self._seen = -inf
            log.warning("%s: %r", otherwise, error)
            return False
        return True

    async def _in_time(self, call: Awaitable[T]) -> T:
        """A call that hangs is given up by the time that it is of no use any more: each by itself, as there may be many to make."""
        async with asyncio.timeout(self._config.run_timeout):
            with answered():
                return await call

    async def _beat(self) -> None:
        loop, every = asyncio.get_running_loop(), self._config.run_heartbeat
        began = loop.time()
        if self._runner.running:
            await self._in_time(self._store.beat(self._process_id, self._clock.now()))
        elif began - self._seen > 2 * every:
            await self._in_time(self._store.ping())
        silent, self._seen = loop.time() - self._seen, loop.time()
        if silent > 2 * every:
            self._fair = self._seen + 2 * every
        if silent > self._config.run_timeout:
            await self._find_buried()
        self._be_sure(began)

    async def _see_to_the_dead(self, bury: bool) -> None:
        await self._survived(self._runner.close_again, "the end of a turn could not be stored")
        if bury:
            await self._survived(self._bury, "the runs of dead processes could not be closed")

    async def _find_buried(self) -> None:
        """This process was slow, or the database away, for so long that others may have closed runs of it, unheard."""
        for run_id in self._runner.runs:
            run = await self._in_time(self._store.run(run_id))
            if run is not None and run.status != "running":
                self._runner.buried(run_id)

    async def _bury(self) -> None:
        """Close the runs of the dead. The end of each is stored together with the word of it: whoever dies over that leaves the run as it
        was, to be found by the next look."""
        now = self._clock.now()
        before = now - timedelta(seconds=self._config.run_timeout)
        dead = await self._in_time(self._store.silent(before, now))
        # All at once: one thread that cannot be written is to keep nobody from the others.
        failed = await asyncio.gather(*(self._mourn(run, now) for run in dead), return_exceptions=True)
        for error in failed:
            if error is not None:
                raise error

    async def _mourn(self, run: Run, now: datetime) -> None:
        thread, error_id = await self._in_time(self._store.thread(run.thread_id)), self._clock.new_id()
        if thread is None:
            return
        dead = TimeoutError("its process gave no sign of life")
        text = clean(told("The answer broke off.", dead, error_id, expose=self._config.expose_errors))
        over = evolve(run, status="failed", ended_at=now, error=text)
        change = mourning(thread, over, self._clock)
        try:
            await self._in_time(self._runner.commit(change))
        except NotFoundError:
            return  # it has ended after all, another process was faster, or the thread is gone
        except Exception:
            self._runner.close_later(change)
            raise
        log.error("run %s in thread %s was left by a dead process (error %s)", run.id, run.thread_id, error_id)
