"""How many threads a list has: a short list is counted each time, a large one now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from dooers.stores import COUNTED
from dooers.stores.memory import MemoryStore
from dooers.totals import KEPT, LARGE, LISTS, Totals

pytestmark = pytest.mark.anyio

LIST = {"worker_id": "worker-1"}


class Crowded(MemoryStore):
    """A store with as many threads as it is told."""

    threads_of: dict[str, int]
    counted = 0

    async def count_threads(
        self, equal: Mapping[str, str], at_most: int = COUNTED, containing: str | None = None
    ) -> int:
        self.counted += 1
        return min(self.threads_of[containing or equal["worker_id"]], at_most)


@pytest.fixture
def store() -> Crowded:
    store = Crowded()
    store.threads_of = {"worker-1": LARGE, "worker-2": 5, "a title": LARGE}
    return store


async def test_a_short_list_is_counted_each_time(store: Crowded) -> None:
    totals = Totals(store)
    assert await totals.of({"worker_id": "worker-2"}, None) == 5
    store.threads_of["worker-2"] = 6
    assert await totals.of({"worker_id": "worker-2"}, None) == 6


async def test_the_total_of_a_large_list_is_remembered_for_a_while() -> None:
    store = Crowded()
    store.threads_of = {"worker-1": LARGE, "worker-2": LARGE + 7}
    totals, loop = Totals(store), asyncio.get_running_loop()
    assert await totals.of(LIST, None) == LARGE
    store.threads_of["worker-1"] = 3
    assert await totals.of(LIST, None) == LARGE
    assert await totals.of({"worker_id": "worker-2"}, None) == LARGE + 7
    assert store.counted == 2
    key = tuple(LIST.items())
    until, _ = totals._known[key]
    assert loop.time() < until <= loop.time() + KEPT
    totals._known[key] = loop.time(), LARGE  # that while is over
    assert await totals.of(LIST, None) == 3
    assert key not in totals._known


async def test_a_search_is_counted_each_time(store: Crowded) -> None:
    totals = Totals(store)
    assert [await totals.of(LIST, "a title"), await totals.of(LIST, "a title")] == [LARGE, LARGE]
    assert store.counted == 2


async def test_no_more_lists_are_remembered_than_there_is_room_for(store: Crowded) -> None:
    totals = Totals(store)
    store.threads_of = {str(n): LARGE for n in range(LISTS + 1)}
    for name in store.threads_of:
        await totals.of({"worker_id": name}, None)
    assert len(totals._known) <= LISTS
