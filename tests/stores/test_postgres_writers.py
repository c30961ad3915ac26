"""Who writes when, with a statement that ends when the test says so: what it does in a database is tested in `test_postgres.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from contract import a_thread, an_event

from dooers.config import WorkerConfig
from dooers.models import Change, Thread
from dooers.stores import postgres_writers
from dooers.stores.postgres_connection import Line, Pool
from dooers.stores.postgres_writers import Group, Outcomes, Writers

pytestmark = pytest.mark.anyio


class Statements:
    """Those that were sent, by the threads in them, and the writers that sent them."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self._ends: list[asyncio.Event] = []
        self._more = asyncio.Event()
        self.writers = Writers(
            Pool(WorkerConfig(database_type="postgres", database_name="none")),
            self._write,
            self._apart,
            lambda change, then: True,
            8,
        )

    def add(self, *threads: Thread) -> list[asyncio.Future[Change]]:
        return [self.writers.add(Change(thread=thread, events=(an_event(thread),))) for thread in threads]

    async def until(self, number: int) -> None:
        while len(self.sent) < number:
            self._more.clear()
            await self._more.wait()

    def end(self, number: int) -> None:
        self._ends[number].set()

    async def _write(self, line: Line, groups: list[Group]) -> list[Outcomes | None]:
        self.sent.append([group.thread_id for group in groups])
        self._ends.append(end := asyncio.Event())
        self._more.set()
        await end.wait()
        return [[*group.changes] for group in groups]

    async def _apart(self, line: Line, group: Group) -> Outcomes:
        return [*group.changes]


@pytest.fixture
async def statements() -> AsyncIterator[Statements]:
    statements = Statements()
    yield statements
    await statements.writers.drain()


async def test_what_comes_while_a_statement_is_on_its_way_is_the_next_statement(
    statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_writers, "GATHER", 3600.0)
    first, second, third = a_thread(), a_thread(), a_thread()
    futures = statements.add(first)
    await statements.until(1)
    for thread in (second, third):
        futures += statements.add(thread)
        await asyncio.sleep(0)
    statements.end(0)
    await statements.until(2)
    statements.end(1)
    await asyncio.gather(*futures)
    assert statements.sent == [[first.id], [second.id, third.id]]


async def test_a_statement_that_takes_long_does_not_hold_up_the_next(
    statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_writers, "GATHER", 0.0)
    first, second = a_thread(), a_thread()
    slow = statements.add(first)
    await statements.until(1)
    futures = statements.add(second)
    await statements.until(2)
    statements.end(1)
    await asyncio.gather(*futures)
    assert statements.sent == [[first.id], [second.id]]
    assert not slow[0].done()
    statements.end(0)
    await asyncio.gather(*slow)


async def test_what_comes_for_a_thread_that_is_being_written_waits_for_its_turn(
    statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_writers, "GATHER", 0.0)
    thread, other = a_thread(), a_thread()
    futures = statements.add(thread)
    await statements.until(1)
    futures += statements.add(thread, other, thread)
    await statements.until(2)
    statements.end(0)
    await statements.until(3)
    statements.end(1)
    statements.end(2)
    await asyncio.gather(*futures)
    assert statements.sent == [[thread.id], [other.id], [thread.id]]
