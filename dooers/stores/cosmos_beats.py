"""Signs of life in Cosmos DB, and the end of runs whose process gave none. How a run is closed is `cosmos_writer.py`'s business.

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
from itertools import chain
from math import ceil
from typing import Any
from uuid import uuid4

from attrs import frozen

from dooers.exceptions import StoreError
from dooers.models import Run
from dooers.stores.cosmos_container import BATCH, Conflict, Container, Operation
from dooers.stores.cosmos_documents import OPEN_RUNS, PROCESS, process_document, process_partition
from dooers.stores.cosmos_writer import Writer
from dooers.stores.rows import moment, stamp

__all__ = ["Beats"]

log = logging.getLogger("dooers")

# A process's document is kept this many seconds beyond what its runs have: nobody is to be told dead by a document that went too early.
KEPT = 3600
# Threads whose runs are closed at the same time.
GRAVES = 16


@frozen
class _Grave:
    """Runs of one thread that are to be closed in one transaction, and the mark by which it is known again."""

    thread_id: str
    names: list[str]
    mark: str


class Beats:
    """What one process knows of the others' signs of life."""

    def __init__(self, container: Container, writer: Writer, run_timeout: float) -> None:
        self._container = container
        self._writer = writer
        self._seconds = ceil(run_timeout) + KEPT
        # Every run that runs has given a sign since then, or then.
        self._alive_since: datetime | None = None
        # What could not be closed, or was and nobody heard of it.
        self._unsure: list[_Grave] = []
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

    async def bury(self, before: datetime, at: datetime, error: str) -> list[Run]:
        """Close what has given no sign since `before`."""
        if self._alive_since is not None and before <= self._alive_since:
            return []
        self._alive_since = at
        try:
            return await self._bury(before, at, error)
        except BaseException:
            self._alive_since = None
            raise

    async def _bury(self, before: datetime, at: datetime, error: str) -> list[Run]:
        rows = await self._container.query(OPEN_RUNS, {})
        heard = await self._heard({row["process_id"] for row in rows if row.get("process_id") is not None})
        dead: defaultdict[str, list[str]] = defaultdict(list)
        for row in rows:
            began = moment(row["started_at"])
            last = max(began, heard.get(row.get("process_id"), began))
            if last < before:
                dead[row["thread_id"]].append(row["id"])
            elif self._alive_since is not None:
                self._alive_since = min(self._alive_since, last)
        graves, self._unsure = self._unsure, []
        known = {name for grave in graves for name in grave.names}
        for thread_id, names in dead.items():
            new = [name for name in names if name not in known]
            for first in range(0, len(new), BATCH - 1):
                graves.append(_Grave(thread_id, new[first : first + BATCH - 1], uuid4().hex[:20]))
        return list(chain.from_iterable(await asyncio.gather(*(self._close(grave, at, error) for grave in graves))))

    async def _heard(self, process_ids: Collection[str]) -> dict[Any, datetime]:
        """When these processes last said that they live; those that did."""
        read = [self._container.read(PROCESS, process_partition(process_id)) for process_id in process_ids]
        found = await asyncio.gather(*read)
        return {one: moment(sign["at"]) for one, sign in zip(process_ids, found, strict=True) if sign is not None}

    async def _close(self, grave: _Grave, at: datetime, error: str) -> list[Run]:
        async with self._room:
            try:
                return await self._writer.bury(grave.thread_id, grave.names, grave.mark, at, error)
            except (StoreError, Conflict) as failed:
                # Those of other threads are closed: whoever asked must hear of them. These are looked at again.
                self._alive_since = None
                self._unsure.append(grave)
                log.warning("runs of a dead process in thread %s could not be closed: %r", grave.thread_id, failed)
                return []
