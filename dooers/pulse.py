"""The heartbeat of a process's runs, and the end of runs whose process is dead.

A run that is running says now and then that somebody is still at it. One that has said nothing for `run_timeout` seconds is closed as
failed by whichever process sees it first; its thread goes on. If its process was only slow, it stops there when it hears of that.
Times are those of the processes' clocks, which are to agree to within a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import datetime, timedelta
from math import inf

from attrs import evolve

from dooers.brokers import Broker
from dooers.codec import clean
from dooers.config import WorkerConfig
from dooers.exceptions import NotFoundError, told
from dooers.models import Run
from dooers.runner import Runner
from dooers.stores import Store
from dooers.turn import Clock, mourning

__all__ = ["Pulse"]

log = logging.getLogger("dooers")


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
        self._task: asyncio.Task[None] | None = None
        # Until when nobody can have taken this process for dead, and whoever waits to know that again.
        self._sure_until = 0.0
        self._again = asyncio.Event()

    def start(self) -> None:
        """Begin to beat, and look for the dead, now and with each beat."""
        self._sure_until = inf
        self._runner.sure = self.sure
        self._task = asyncio.create_task(self._beat(), name="dooers-pulse")

    async def stop(self) -> None:
        """Beat no more."""
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
        finally:
            self._be_sure(inf)  # nobody is to wait for a beat that does not come

    async def sure(self) -> None:
        """Return when others know that this process lives. One that stood still finds out first which of its runs they have closed."""
        while asyncio.get_running_loop().time() >= self._sure_until:
            await self._again.wait()

    def _be_sure(self, since: float) -> None:
        self._sure_until = since + self._config.run_timeout
        self._again.set()
        self._again.clear()

    async def _beat(self) -> None:
        loop, every = asyncio.get_running_loop(), self._config.run_heartbeat
        # When the database was last heard of, and from when on others have had the time to say that they live. One that was away was
        # away for everybody: whoever comes back first must not take the rest for dead.
        seen, fair = (loop.time(), 0.0) if self._alone else (-inf, inf)
        while True:
            began = loop.time()
            try:
                if self._runner.running:
                    await self._store.beat(self._process_id, self._clock.now())
                elif loop.time() - seen > 2 * every:
                    await self._store.ping()
                silent, seen = loop.time() - seen, loop.time()
                if silent > 2 * every:
                    fair = seen + 2 * every
                if silent > self._config.run_timeout:
                    await self._find_buried()
                self._be_sure(began)
                await self._runner.close_again()
                if seen >= fair:
                    await self._bury()
            except Exception as error:
                seen = -inf
                log.warning("the heartbeat of running turns was not stored: %r", error)
            await asyncio.sleep(every)

    async def _find_buried(self) -> None:
        """This process was slow, or the database away, for so long that others may have closed runs of it, unheard."""
        for run_id in self._runner.runs:
            run = await self._store.run(run_id)
            if run is not None and run.status != "running":
                self._runner.buried(run_id)

    async def _bury(self) -> None:
        """Close the runs of the dead. The end of each is stored together with the word of it: whoever dies over that leaves the run as it
        was, to be found by the next look."""
        now = self._clock.now()
        before = now - timedelta(seconds=self._config.run_timeout)
        dead = await self._store.silent(before, now)
        # All at once: one thread that cannot be written is to keep nobody from the others.
        failed = await asyncio.gather(*(self._mourn(run, now) for run in dead), return_exceptions=True)
        for error in failed:
            if error is not None:
                raise error

    async def _mourn(self, run: Run, now: datetime) -> None:
        thread, error_id = await self._store.thread(run.thread_id), self._clock.new_id()
        if thread is None:
            return
        dead = TimeoutError("its process gave no sign of life")
        text = clean(told("The answer broke off.", dead, error_id, expose=self._config.expose_errors))
        over = evolve(run, status="failed", ended_at=now, error=text)
        with suppress(NotFoundError):  # it has ended after all, another process was faster, or the thread is gone
            await self._runner.commit(mourning(thread, over, self._clock))
            log.error("run %s in thread %s was left by a dead process (error %s)", run.id, run.thread_id, error_id)
