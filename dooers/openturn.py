"""A message that came in, and its turn from then until it is over: what the runner keeps of it. State only; `runner.py` moves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, TypeAlias

from attrs import define, field, frozen

from dooers.config import TurnOrder
from dooers.exceptions import HandlerError
from dooers.lanes import Ticket
from dooers.models import ContentPart, Identity, Thread, ThreadEvent
from dooers.steps import Steps

__all__ = ["Handler", "Message", "OpenTurn", "TurnStatus"]

TurnStatus: TypeAlias = Literal["waiting", "running", "succeeded", "failed", "canceled"]


class Handler(Protocol):
    """A handler with its plan. `inject.py` makes them; this is all that the engine needs of one."""

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> TurnOrder | None: ...
    @property
    def timeout(self) -> float | None: ...

    def run(self, values: Mapping[str, Any]) -> AbstractAsyncContextManager[AsyncGenerator[Any, None]]:
        """What the handler yields, inside a context that sets up its dependencies and tears them down."""
        ...


@frozen(kw_only=True)
class Message:
    """What comes in through either door."""

    worker_id: str
    identity: Identity
    content: list[ContentPart]
    handler: Handler
    thread_id: str | None = None
    create: bool = False
    thread_title: str | None = None
    data: dict[str, Any] | None = None
    client_event_id: str | None = None
    repeat_key: str | None = None
    # Whether somebody outside wrote it, so that `data` is only their word.
    from_client: bool = False


@define(eq=False)
class OpenTurn:
    """A message that is stored, and its turn, which runs, will run, or (`repeated`) ran before, or runs elsewhere."""

    message: Message
    steps: Steps
    event: ThreadEvent
    created: bool
    repeated: bool
    ticket: Ticket
    came_at: float  # before it was given to the store
    again: bool = False  # a repeat of a message whose turn left no trace: it is answered now
    status: TurnStatus = "waiting"
    stored_at: float = field(factory=lambda: asyncio.get_running_loop().time())
    task: asyncio.Task[HandlerError | None] | None = None
    canceled: bool = False
    expired: bool = False
    leaving: bool = False  # the handler has ended, its teardown is under way
    closing: bool = False  # that too has ended, the end is being stored
    locked: bool = False  # no other process may answer in this thread
    watch: asyncio.TimerHandle | None = None
    over: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def thread(self) -> Thread:
        return self.steps.turn.thread
