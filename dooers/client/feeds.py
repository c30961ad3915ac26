"""Frames on their way to whoever reads them: a queue for each reader, of one thread or of everything.

Nothing here waits for a reader: one that is held has to be read, it keeps what it is not asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Self

from dooers.client.connection import Frame
from dooers.exceptions import DooersError

__all__ = ["BACK", "LOST", "Feed", "of_client", "thread_of"]

# Told by the client itself, in the place where it happened; no frames of the wire.
LOST, BACK = "client.lost", "client.reconnected"


def of_client(kind: str, **payload: Any) -> Frame:
    """A frame that the client makes for its own readers."""
    return {"id": "", "type": kind, "payload": payload}


def thread_of(frame: Frame) -> str | None:
    """The thread that a frame is about; None for one that is about none."""
    payload = frame["payload"]
    for holder, name in ((payload, "thread_id"), (payload.get("run"), "thread_id"), (payload.get("thread"), "id")):
        if isinstance(holder, dict) and isinstance(found := holder.get(name), str):
            return found
    return None


class Feed:
    """Pushed frames, from the moment it was made until the client ends: of everything, or of one thread, once that is known.

    It is the thread in which the message with this `key` (its `client_event_id`) comes.
    """

    def __init__(
        self, thread_id: str | None = None, *, key: str | None = None, near: str | None = None, everything: bool = False
    ) -> None:
        self.thread_id = thread_id
        self.key = key
        # Where that message is said: a repeat may have been said elsewhere.
        self.near = near
        # Whether it is meant to have everything, not only until its thread is known.
        self.everything = everything
        # The runs whose end its reader waits for: it may come while there is no connection.
        self.runs: set[str] = set()
        self._queue: asyncio.Queue[Frame | DooersError | None] = asyncio.Queue()

    def claim(self, frame: Frame) -> None:
        """It is the thread of this frame, if the message that is waited for is in it."""
        if self.thread_id is not None or self.key is None or frame["type"] != "event.append":
            return
        if any(event.get("client_event_id") == self.key for event in frame["payload"]["events"]):
            self.thread_id = frame["payload"]["thread_id"]

    def wants(self, thread_id: str | None) -> bool:
        """Whether frames of a thread, or of none, are for its reader."""
        return self.thread_id is None or thread_id == self.thread_id

    def put(self, item: Frame | DooersError | None) -> None:
        """A frame, or the end: None where this side closed."""
        self._queue.put_nowait(item)

    def restart(self, frame: Frame) -> None:
        """This frame has all that waits, and more."""
        self.waiting()
        self.put(frame)

    def wake(self) -> None:
        """Whoever waits for the next frame looks again."""
        self.put(of_client(""))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        item = await self._queue.get()
        if isinstance(item, dict):
            return item
        self._queue.put_nowait(item)  # the end stays the end, however often somebody asks
        raise StopAsyncIteration if item is None else item

    def waiting(self) -> list[Frame]:
        """What has come and was not read yet."""
        items = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        self._put_ends(item for item in items if not isinstance(item, dict))
        return [item for item in items if isinstance(item, dict)]

    def _put_ends(self, ends: Iterable[DooersError | None]) -> None:
        for end in ends:
            self._queue.put_nowait(end)
