"""A client in process: the real frames, on this event loop, without a server. It is the client of `dooers.client` over another link, and
has what tests of the protocol itself need beside it: single frames, refusals as frames, a reader that sleeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from attrs import evolve

from dooers.client.connection import Frame, Gone, Link
from dooers.client.lifeline import Lifeline
from dooers.client.talk import Content, Talk
from dooers.client.turns import Turn
from dooers.client.updates import Reply
from dooers.exceptions import DisconnectedError
from dooers.protocol import ANSWERS
from dooers.server import WorkerServer
from dooers.testing.asserting import ExpectationError, in_short, misfit

__all__ = ["Closed", "WorkerClient"]

WITHIN = 10.0


class Closed(Exception):
    """The worker closed the connection; `code` is the WebSocket's close code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class _Socket:
    """The worker's side of the connection, as an accepted WebSocket; and the client's, as a link."""

    def __init__(self, headers: Mapping[str, str], query: str) -> None:
        self.scope = {
            "type": "websocket",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "query_string": query.encode(),
            "client": ("testclient", 50000),
        }
        self.to_worker: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.to_client: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        # A reader that has gone to sleep: tests clear it to see what the worker does with one.
        self.reading = asyncio.Event()
        self.reading.set()
        self.handling: asyncio.Task[None] | None = None
        self._left = False

    async def receive(self) -> dict[str, Any]:
        return await self.to_worker.get()

    async def send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        self.to_client.put_nowait(message)

    def put(self, text: str) -> None:
        self.to_worker.put_nowait({"type": "websocket.receive", "text": text})

    async def get(self) -> str:
        """The next text of the worker; Gone for its close, or with what `handle` raised as the cause."""
        assert self.handling is not None
        getting = asyncio.ensure_future(self.to_client.get())
        try:
            await asyncio.wait({getting, self.handling}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                raise Gone(1000 if self._left else 1006) from _failure(self.handling)
            message = getting.result()
        finally:
            getting.cancel()
        if message["type"] == "websocket.close":
            raise Gone(message["code"], message.get("reason", ""))
        text: str = message["text"]
        return text

    def abort(self) -> None:
        self._left = True
        self.reading.set()
        self.to_worker.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def close(self) -> None:
        """Leave, and wait until the worker has let go of it."""
        self.abort()
        assert self.handling is not None
        _, late = await asyncio.wait([self.handling], timeout=WITHIN)
        if late:
            raise TimeoutError("the worker does not let go of a connection that was closed")


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


class WorkerClient(Talk):
    """A client of a worker. Entering it connects; `claims` are the flat fields of `connect` (user_id, organization_id, ...).

    `say`, `stream`, `watch` and everything else of `dooers.client` is here too. An answer is over when its turn is: nothing is guessed from
    silence. `deltas` asks for the text of messages while they are written.

    Below that, single frames: `post` and `ask` send one, `receive` and `expect` read what has come, `unread` holds it.
    """

    def __init__(
        self,
        worker: WorkerServer,
        *,
        handler: Any = None,
        connect: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        deltas: bool = False,
        within: float = WITHIN,
        **claims: Any,
    ) -> None:
        self._worker = worker
        self._options: dict[str, Any] = {
            "handler": handler,
            "headers": headers,
            "query": query,
            "deltas": deltas,
            "within": within,
        }
        self._claims, self._given = claims, connect
        usual: dict[str, Any] = {
            "worker_id": worker.config.worker_id,
            "organization_id": "org-1",
            "workspace_id": "ws-1",
            "user_id": "user-1",
        }
        if deltas:
            usual["client"] = {"capabilities": ["deltas"]}
        self._connect: Mapping[str, Any] = connect if connect is not None else {**usual, **claims}
        self.socket = _Socket(headers or {}, query)
        # What has come and nobody has read, in order.
        self.unread: list[Frame] = []
        self._came = asyncio.Event()
        self._ended: Gone | None = None
        self._count = 0
        line = Lifeline(self._dial, self._claim, within=within, overhear=self._overhear, ended=self._overhear_end)
        super().__init__(line, quiet=1.0)

    async def __aenter__(self) -> Self:
        try:
            await self._line.open()
        except DisconnectedError:
            if self._ended is None:
                raise
            raise (self._ended.__cause__ or Closed(self._ended.code or 1006)) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drop()

    def as_(self, **claims: Any) -> WorkerClient:
        """Another client of the same worker, with these claims instead: `async with client.as_(user_id="bob") as bob:`."""
        if self._given is not None:
            return WorkerClient(self._worker, **self._options, connect={**self._given, **claims})
        return WorkerClient(self._worker, **self._options, **{**self._claims, **claims})

    async def open(self) -> None:
        """Open the socket, without `connect`."""
        await self._line.bare()

    async def drop(self) -> None:
        """Close the socket from this side, and wait until the worker has let go of it. What `handle` raised is raised here."""
        await self._line.close()
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    @property
    def _task(self) -> asyncio.Task[None] | None:
        return self.socket.handling

    async def _claim(self) -> Mapping[str, Any]:
        return self._connect

    async def _dial(self) -> Link:
        if self.socket.handling is not None:
            self.socket = _Socket(self._options["headers"] or {}, self._options["query"])
        self._ended = None
        self.socket.handling = asyncio.create_task(self._worker.handle(self.socket, self._options["handler"]))
        return self.socket

    def _settle(self, turn: Turn) -> None:
        # The turn is one of this very process: it is asked, nothing is told from frames.
        over = self._worker._parts.runner().over(turn.event_id or "")
        if over is None:
            turn.settle()
        else:
            over.add_done_callback(lambda _: turn.settle())

    async def say(
        self,
        text: str = "",
        thread_id: str | None = None,
        *,
        content: Content = (),
        data: Mapping[str, Any] | None = None,
        client_event_id: str | None = None,
    ) -> Reply:
        """Say something, in a new thread without `thread_id`; the whole answer, when the turn is over.

        Its `frames` are all that came meanwhile, also of other threads, and are read by that. A turn that fails is a Reply too: see its
        `status` and `error`, or `assert_succeeded`. A message that is refused raises the error of its code.
        """
        reply = await super().say(text, thread_id, content=content, data=data, client_event_id=client_event_id)
        mine = [at for at, frame in enumerate(self.unread) if _holds(frame, reply.event_id)]
        frames, self.unread = self.unread, []
        return evolve(reply, frames=frames[mine[-1] + 1 :]) if mine else reply

    # ------------------------------------------------------------ frames

    def _overhear(self, frame: Frame) -> None:
        self.unread.append(frame)
        self._came.set()

    def _overhear_end(self, link: Link, gone: Gone) -> None:
        if link is self.socket:
            self._ended = gone
            self._came.set()

    def post(self, frame_type: str, payload: Mapping[str, Any] | None = None, frame_id: str | None = None) -> str:
        """Send a frame and do not wait; its id."""
        self._count += 1
        frame_id = frame_id if frame_id is not None else f"f{self._count}"
        self._line.post(frame_type, payload or {}, frame_id)
        return frame_id

    def post_text(self, text: str) -> None:
        """Send any text."""
        self.socket.put(text)

    async def receive(self, within: float = WITHIN) -> Frame:
        """The next frame. TimeoutError if none comes, Closed when the worker has closed the connection."""
        async with asyncio.timeout(within):
            await self._more(0)
        return self.unread.pop(0)

    async def _more(self, than: int) -> None:
        """Return when more frames than that are unread."""
        while len(self.unread) <= than:
            if self._ended is not None:
                if self._ended.__cause__ is not None:
                    raise self._ended.__cause__
                raise Closed(self._ended.code or 1006)
            self._came.clear()
            await self._came.wait()

    async def expect(self, *types: str, within: float = WITHIN, **fields: Any) -> Frame:
        """The next frame of one of these types whose payload has these fields, compared as `assert_events` does; frames that come
        before it are passed over. ExpectationError (also a TimeoutError) when none comes, with what came instead."""
        passed: list[str] = []
        wanted = " or ".join(types) or "any frame"
        wanted += "".join(f" {name}={value!r}" for name, value in fields.items())
        try:
            async with asyncio.timeout(within):
                while True:
                    await self._more(0)
                    frame = self.unread.pop(0)
                    fault = misfit(fields, frame["payload"]) if not types or frame["type"] in types else ""
                    if fault is None:
                        return frame
                    passed.append(in_short(frame) + (f"   ({fault})" if fault else ""))
        except (TimeoutError, Closed) as error:
            came = "".join(f"\n  {line}" for line in passed) or " nothing"
            if isinstance(error, Closed):
                error.add_note(f"expected {wanted}; what came:{came}")
                raise
            raise ExpectationError(f"expected {wanted} within {within:g} s; what came:{came}") from None

    async def ask(self, frame_type: str, payload: Mapping[str, Any] | None = None) -> Frame:
        """Send a frame and return the answer to it, a frame, also where that is a refusal; what comes in between stays unread."""
        frame_id = self.post(frame_type, payload)
        seen = 0
        async with asyncio.timeout(WITHIN):
            while True:
                await self._more(seen)
                frame = self.unread[seen]
                answers = frame["type"] == ANSWERS.get(frame_type)
                if answers or (frame["type"] == "ack" and frame["payload"]["ack_id"] == frame_id):
                    return self.unread.pop(seen)
                seen += 1


def _holds(frame: Frame, event_id: str) -> bool:
    return frame["type"] == "event.append" and any(event["id"] == event_id for event in frame["payload"]["events"])
