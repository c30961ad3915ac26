"""How many threads a list has, asked for with each of its pages. Where there are thousands it may be some seconds old.

To count them costs as much as there is to count, which is more than the page itself does. A short list is counted each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

from dooers.stores import Store

__all__ = ["LARGE", "Totals"]

# From how many on a total is remembered, and for how many seconds.
LARGE, KEPT = 1000, 10.0
# How many lists are remembered.
LISTS = 1000

_List: TypeAlias = tuple[tuple[str, str], ...]


class Totals:
    """The totals of large lists, for a while."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[_List, tuple[float, int]] = {}

    async def of(self, equal: Mapping[str, str], containing: str | None) -> int:
        """How many threads have these columns; see `Store.count_threads` for how far they are counted, and for those with a text."""
        if containing is not None:
            return await self._store.count_threads(equal, containing=containing)
        key, now = tuple(sorted(equal.items())), asyncio.get_running_loop().time()
        until, total = self._known.get(key, (0.0, 0))
        if now < until:
            return total
        total = await self._store.count_threads(equal)
        if total >= LARGE:
            if len(self._known) >= LISTS:
                self._known.clear()
            self._known[key] = now + KEPT, total
        else:
            self._known.pop(key, None)
        return total
