"""Handlers that do not stop when they are told to: they are told once more, then their turns end without them. When is `runner.py`'s."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from dooers.deadline import Deadline
from dooers.exceptions import HandlerError
from dooers.openturn import OpenTurn
from dooers.stage import Stage

__all__ = ["Deaf"]

log = logging.getLogger("dooers")


class Deaf:
    """Those of one worker. `ended` is told of each turn that has ended without its handler."""

    def __init__(self, stage: Stage, ended: Callable[[OpenTurn, HandlerError | None], None]) -> None:
        self._stage = stage
        self._ended = ended
        # The ends of their turns, while they are being stored.
        self.last_words: set[asyncio.Task[None]] = set()
        # What they are called, for as long as they do not stop.
        self._names: dict[asyncio.Task[Any], str] = {}

    def insist(self, opened: OpenTurn, patience: float = 1.0) -> None:
        """A handler that has swallowed its cancellation gets another, and is then left to itself: the turn ends without it."""
        task = opened.task
        if task is not None and not opened.closing and not task.done() and task not in self._names:
            task.cancel()
            log.error("handler %s does not stop; its turn ends without it", opened.message.handler.name)
            self._names[task] = opened.message.handler.name
            task.add_done_callback(lambda task: self._names.pop(task, None))
            giving_up = asyncio.create_task(self._give_up(opened, task, patience), name="dooers-give-up")
            self.last_words.add(giving_up)
            giving_up.add_done_callback(self.last_words.discard)

    async def _give_up(self, opened: OpenTurn, task: asyncio.Task[HandlerError | None], patience: float) -> None:
        await asyncio.wait([task], timeout=patience)
        if task.done() or opened.closing:
            return
        opened.closing = True
        opened.steps.seal()
        self._ended(opened, await self._stage.conclude(opened, TimeoutError("the handler does not stop")))

    async def leave(self, deadline: Deadline, turns: Iterable[OpenTurn]) -> None:
        """The worker closes, and the time for turns is over: go on without what does not end, be it a handler or the end of one of
        these turns, which cannot be stored."""
        storing = {opened.task: opened.thread.id for opened in turns if opened.closing and opened.task is not None}
        for task, name in list(self._names.items()):
            storing.pop(task, None)
            deadline.leave(task, f"handler {name}")
        await deadline.end(
            {task: f"storing the end of a turn in thread {thread_id}" for task, thread_id in storing.items()}
            | dict.fromkeys(self.last_words, "storing the end of a turn whose handler does not stop")
        )
