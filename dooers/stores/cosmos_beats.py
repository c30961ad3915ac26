"""Signs of life in Cosmos DB, and the runs whose process gave none. How a run is closed is `cosmos_writer.py`'s business.

What it costs, for a process that looks every two seconds:

- A sign of life is one small document of the process, written over and over (about 6 units), however many runs it has. A run that began
  after it, or whose process has never given one, counts from its beginning: that is what documents of older versions have.
- Looking for the dead asks all partitions for the runs that run (about 3 units for each of the service's own partitions, and a
  little for each such run), and reads the sign of each of their processes (1 unit). What was found out says until when nobody can
  be dead: as long as what is asked for lies before that, nothing is asked. So with nobody at work it is one query in `run_timeout`
  seconds, and nothing in between.

Whatever was begun since that look is younger than it, where the clocks of the hosts agree. Where they do not, it is found one look later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime
from math import ceil
from typing import Any

from dooers.exceptions import StoreError
from dooers.models import Run
from dooers.stores.cosmos_container import Conflict, Container, Operation
from dooers.stores.cosmos_documents import OPEN_RUNS, PROCESS, process_document, process_partition
from dooers.stores.cosmos_writer import Writer
from dooers.stores.rows import moment, run_of, stamp

__all__ = ["Beats"]

log = logging.getLogger("dooers")

# A process's document is kept this many seconds beyond what its runs have: nobody is to be told dead by a document that went too early.
KEPT = 3600
# Threads of dead runs that are looked at at the same time.
GRAVES = 16


class Beats:
    """What one process knows of the others' signs of life."""

    def __init__(self, container: Container, writer: Writer, run_timeout: float) -> None:
        self._container = container
        self._writer = writer
        self._seconds = ceil(run_timeout) + KEPT
        # Every run that runs has given a sign since then, or then.
        self._alive_since: datetime | None = None
        self._room = asyncio.Semaphore(GRAVES)

    def sign(self, process_id: str, at: datetime) -> tuple[str, list[Operation]]:
        """A process's sign of life: in which partition to write what."""
        document = process_document(process_id, stamp(at), self._seconds)
        return document["pk"], [("upsert", (document,), {})]

    def begun(self, runs: Iterable[Run]) -> None:
        """This process is about to write these runs."""
        for run in runs:
            if self._alive_since is not None and run.status == "running":
                self._alive_since = min(self._alive_since, run.started_at)

    async def silent(self, before: datetime, at: datetime) -> list[Run]:
        """The runs that have given no sign since `before`."""
        if self._alive_since is not None and before <= self._alive_since:
            return []
        self._alive_since = at
        try:
            dead = await self._look(before)
        except BaseException:
            self._alive_since = None
            raise
        if dead:
            self._alive_since = None  # until somebody has closed them, they are looked for again
        return dead

    async def _look(self, before: datetime) -> list[Run]:
        runs = [run_of(row["body"]) for row in await self._container.query(OPEN_RUNS, {})]
        heard = await self._heard({run.process_id for run in runs if run.process_id is not None})
        dead: defaultdict[str, list[Run]] = defaultdict(list)
        for run in runs:
            last = max(run.started_at, heard.get(run.process_id, run.started_at))
            if last < before:
                dead[run.thread_id].append(run)
            elif self._alive_since is not None:
                self._alive_since = min(self._alive_since, last)
        there = await asyncio.gather(*map(self._is_there, dead))
        return [run for runs, is_there in zip(dead.values(), there, strict=True) for run in runs if is_there]

    async def _is_there(self, thread_id: str) -> bool:
        """Whether there is a thread to say it in. What is left of one that was removed goes at last."""
        async with self._room:
            try:
                return await self._writer.tidy(thread_id)
            except (StoreError, Conflict) as failed:
                log.warning("thread %s, which a dead process has left, could not be looked at: %r", thread_id, failed)
                return True

    async def _heard(self, process_ids: Collection[str]) -> dict[Any, datetime]:
        """When these processes last said that they live; those that did."""
        read = [self._container.read(PROCESS, process_partition(process_id)) for process_id in process_ids]
        found = await asyncio.gather(*read)
        return {one: moment(sign["at"]) for one, sign in zip(process_ids, found, strict=True) if sign is not None}
