"""A client of a worker over a real WebSocket, for terminals, services and tests. Not the test client: that one needs no server.

```python
async with Client("ws://127.0.0.1:8000/ws", user_id="ana") as client:
    async for frame in client.send("hello"):
        print(frame["type"], frame["payload"])
```
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit
from uuid import uuid4
from weakref import WeakSet

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from dooers import exceptions
from dooers.codec import loads
from dooers.exceptions import DisconnectedError, DooersError, NoAnswerError, RateLimitedError
from dooers.protocol import ANSWERS, serialize

__all__ = ["Client"]

Frame: TypeAlias = dict[str, Any]

# Snapshots hold up to 100 events of up to 4 MiB each in theory; a bound all the same, so that a wrong server cannot eat the memory.
MAX_FRAME = 64 * 1024 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# A refusal is raised as what the worker itself raised, where the code tells.
ERRORS = {
    error.code: error
    for error in vars(exceptions).values()
    if isinstance(error, type) and issubclass(error, DooersError) and "code" in vars(error)
}


class _Feed:
    """Pushed frames, from the moment it was made until the connection ends."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Frame | DisconnectedError | None] = asyncio.Queue()

    def put(self, item: Frame | DisconnectedError | None) -> None:
        self._queue.put_nowait(item)

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
        return [item for _ in range(self._queue.qsize()) if isinstance(item := self._queue.get_nowait(), dict)]


class Client:
    """One connection to a worker, as one user. Entering it connects; one event loop, any number of tasks.

    `within` is how many seconds an answer, or the first sign of one, may take. `quiet` is how many seconds of silence end the
    turn of a handler that opens no run. `deltas` asks for the text of messages while they are written: `event.delta` frames, each
    with the next piece of the message `event_id`, which comes whole as an event at its end.

    Entering raises DisconnectedError where nobody answers, and the worker's own error (UnauthenticatedError,
    ForbiddenError) where it refuses. `server` then holds its name, version and capabilities.
    """

    def __init__(
        self,
        url: str,
        *,
        worker_id: str = "worker",
        organization_id: str = "local",
        workspace_id: str = "local",
        user_id: str = "local",
        auth_token: str | None = None,
        deltas: bool = False,
        within: float = 60.0,
        quiet: float = 1.0,
    ) -> None:
        self.url = url
        self.server: dict[str, Any] = {}
        self._claims: dict[str, Any] = {
            "worker_id": worker_id,
            "organization_id": organization_id,
            "workspace_id": workspace_id,
            "user_id": user_id,
            "client": {"capabilities": ["deltas"] if deltas else []},
        }
        if auth_token is not None:
            self._claims["auth_token"] = auth_token
        self._within = within
        self._quiet = quiet
        self._pending: dict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        # Weak, so that an iterator nobody holds any more stops collecting.
        self._feeds: WeakSet[_Feed] = WeakSet()
        self._turns: WeakSet[_Turn] = WeakSet()
        self._lost: DisconnectedError | None = DisconnectedError("not connected; use `async with`")

    async def __aenter__(self) -> Self:
        # A proxy from the environment is right for the internet and never for this very machine.
        proxy: Literal[True] | None = None if urlsplit(self.url).hostname in LOOPBACK else True
        try:
            self._socket: ClientConnection = await connect(self.url, proxy=proxy, max_size=MAX_FRAME)
        except (OSError, WebSocketException, ValueError) as error:
            raise DisconnectedError(f"cannot connect to {self.url}: {str(error) or repr(error)}") from error
        self._lost = None
        self._reader = asyncio.create_task(self._read(), name="dooers-client")
        try:
            self.server = (await self.ask("connect", self._claims)).get("server", {})
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._end(None)
        await self._socket.close()
        await self._reader

    # ------------------------------------------------------------ what it is for

    async def ask(self, frame_type: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a frame; the payload of the answer to it.

        A refusal is raised as the error of its code (NotFoundError for NOT_FOUND; DooersError with `.code` for one without a
        class), a lost connection as DisconnectedError, no answer within `within` seconds as NoAnswerError.
        """
        if self._lost is not None:
            raise self._lost
        frame_id = uuid4().hex
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[frame_id] = (ANSWERS.get(frame_type, "ack"), future)
        try:
            async with asyncio.timeout(self._within):
                with suppress(ConnectionClosed):  # the reader knows why, and tells through the future
                    await self._socket.send(serialize(frame_type, dict(payload or {}), frame_id))
                return await future
        except TimeoutError:
            raise NoAnswerError(f"no answer to {frame_type} within {self._within:g} s") from None
        finally:
            self._pending.pop(frame_id, None)

    def frames(self) -> AsyncIterator[Frame]:
        """The frames the worker pushes, from this call on: `{"id", "type", "payload"}` each. Answers are not among them.

        Ends when this side closes, raises DisconnectedError when the other one does. Whoever holds it has to read it: it
        keeps what it is not asked for.
        """
        feed = self._feed()
        if self._lost is not None:
            feed.put(self._lost)
        return feed

    async def send(self, text: str, thread_id: str | None = None) -> AsyncIterator[Frame]:
        """Say something, in a new thread without `thread_id`; the frames of that thread until the turn is over.

        Leaving early cancels nothing: the worker goes on. Raises what `ask` raises; NoAnswerError where the turn shows no sign.
        """
        feed = self._feed()
        key = uuid4().hex
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}
        payload: dict[str, Any] = {"client_event_id": key, "event": event}
        if thread_id is not None:
            payload["thread_id"] = thread_id
        await self.ask("event.create", payload)
        seen = feed.waiting()
        while (mine := _own(seen, key)) is None:
            seen.append(await self._next(feed, self._within))
        turn = _Turn(feed, mine["thread_id"], mine["id"])
        async for frame in self._follow(turn, seen):
            yield frame

    async def watch(self, thread_id: str) -> AsyncIterator[Frame]:
        """Look into a thread: its `thread.snapshot` first, then its frames for as long as somebody is at work in it.

        A message that is being written stands in the snapshot with its text so far, marked `streaming`; what comes goes on from there.
        """
        feed = self._feed()
        snapshot = await self.ask("thread.subscribe", {"thread_id": thread_id})
        yield {"id": "", "type": "thread.snapshot", "payload": snapshot}
        turn = _Turn(feed, snapshot["thread"]["id"])
        for run in snapshot["runs"]:
            turn.run(run)
        for event in snapshot["events"]:
            turn.event(event)
        if turn.busy:
            async for frame in self._follow(turn, feed.waiting()):
                yield frame

    async def cancel(self, *, thread_id: str | None = None, run_id: str | None = None) -> None:
        """Stop the answer of a run, or whatever is answered and waits in a thread. What was written so far is kept.

        Returns when the worker has taken it; a `send` of this client that waits for the answer gets the end of it and ends.
        InvalidValueError unless one of the two is given, NotFoundError where there is no such thing.
        """
        asked = {"thread_id": thread_id, "run_id": run_id}
        await self.ask("run.cancel", {name: value for name, value in asked.items() if value is not None})
        for turn in list(self._turns):
            turn.cancel(thread_id, run_id)

    def _feed(self) -> _Feed:
        feed = _Feed()
        self._feeds.add(feed)
        return feed

    async def _follow(self, turn: _Turn, seen: list[Frame]) -> AsyncIterator[Frame]:
        """The frames of a turn, those that are seen already first, until it is over."""
        self._turns.add(turn)
        while True:
            for frame in seen:
                if turn.take(frame):
                    yield frame
            if turn.ended:
                # Whatever belongs to the same step (an error notice, the next run) is in front of the pong.
                await self.ask("ping")
                seen = [frame for frame in turn.feed.waiting() if turn.take(frame)]
                for frame in seen:
                    yield frame
                if turn.ended:
                    return
            try:
                seen = [await self._next(turn.feed, self._patience(turn))]
            except NoAnswerError:
                if turn.answered or turn.canceled:
                    return
                raise

    def _patience(self, turn: _Turn) -> float | None:
        """How long silence may last: while something is going on, for ever; but a handler may take its time to obey a cancel."""
        if turn.busy:
            return self._within if turn.canceled else None
        return self._quiet if turn.answered or turn.canceled else self._within

    async def _next(self, feed: _Feed, limit: float | None) -> Frame:
        try:
            async with asyncio.timeout(limit):
                return await anext(feed)
        except TimeoutError:
            raise NoAnswerError(f"the worker said nothing for {limit:g} s") from None
        except StopAsyncIteration:
            raise DisconnectedError("this client was closed") from None

    # ------------------------------------------------------------ what comes in

    async def _read(self) -> None:
        try:
            with suppress(ConnectionClosed):
                async for text in self._socket:
                    self._take(loads(text))
        except (ValueError, TypeError, LookupError, AttributeError):
            self._end(DisconnectedError(f"{self.url} does not speak this protocol"))
            await self._socket.close(1002)
        code, reason = self._socket.close_code, self._socket.close_reason
        self._end(DisconnectedError(f"the connection was closed ({code}{f': {reason}' if reason else ''})", code))

    def _take(self, frame: Frame) -> None:
        kind, payload = frame["type"], frame["payload"]
        if kind == "ack":
            asked: str | None = payload["ack_id"]
        else:
            asked = next((one for one, (answer, _) in self._pending.items() if answer == kind), None)
            if asked is None:
                for feed in list(self._feeds):
                    feed.put(frame)
                return
        _, future = self._pending.pop(asked or "", (None, None))
        if future is None or future.done():
            return
        if payload.get("ok", True):
            future.set_result(payload)
        else:
            future.set_exception(_refusal(payload.get("error") or {}))

    def _end(self, lost: DisconnectedError | None) -> None:
        """There is no more: tell whoever waits. Only the first reason counts; none means that this side closed."""
        if self._lost is not None:
            return
        self._lost = lost if lost is not None else DisconnectedError("this client was closed")
        for feed in list(self._feeds):
            feed.put(lost)
        for _, future in self._pending.values():
            if not future.done():
                future.set_exception(self._lost)


class _Turn:
    """Tells the end of the turn that one message has opened, from the frames of its thread; without `event_id`, of all its turns.

    The first run of a turn has the id of its message, and the turn is over when its run is. A handler need not open a run; then silence
    after a whole message is all there is to go by.
    """

    def __init__(self, feed: _Feed, thread_id: str, event_id: str | None = None) -> None:
        self.feed = feed
        self.answered = False
        self.canceled = False
        self._thread_id = thread_id
        self._event_id = event_id
        # The messages of others, and so the ids of the runs that answer them; whether the run that answers this one has come.
        self._messages: set[str] = set()
        self._begun = event_id is None
        self._runs: set[str] = set()
        self._others: set[str] = set()
        self._growing: set[str] = set()
        self._over = False

    @property
    def busy(self) -> bool:
        """A run is open or a message is growing: the end will be told, however long it takes."""
        return bool(self._runs or self._growing)

    @property
    def ended(self) -> bool:
        return self._over and not self._runs

    def cancel(self, thread_id: str | None, run_id: str | None) -> None:
        """It was told to stop, if it is meant: it ends with its run or, where it has none, with a silence."""
        if self._thread_id == thread_id or run_id in self._runs:
            self.canceled = True
            self.feed.put({"id": "", "type": "", "payload": {}})  # whoever waits for the next frame looks again

    def take(self, frame: Frame) -> bool:
        """Whether the frame is one of the thread; the turn moves on with it."""
        payload = frame["payload"]
        run, thread = payload.get("run", {}), payload.get("thread", {})
        if self._thread_id not in (payload.get("thread_id"), run.get("thread_id"), thread.get("id")):
            return False
        match frame["type"]:
            case "run.upsert":
                self.run(run)
            case "event.delta":
                self._growing.add(payload["event_id"])
            case "event.append":
                for event in payload["events"]:
                    self.event(event)
            case "thread.deleted":
                self._runs.clear()
                self._over = True
        return True

    def run(self, run: Mapping[str, Any]) -> None:
        self._begun = self._begun or run["id"] == self._event_id
        if not self._begun or (self._event_id is not None and run["id"] in self._messages):
            self._others.add(run["id"])  # of a turn that ours has to wait for, or that waits for ours
        elif run["status"] == "running":
            self._runs.add(run["id"])
        else:
            self._runs.discard(run["id"])
            self._over = True

    def event(self, event: Mapping[str, Any]) -> None:
        if event["actor"] == "user":
            if event["id"] != self._event_id:
                self._messages.add(event["id"])
            return
        if event.get("streaming"):
            self._growing.add(event["id"])
            return
        self._growing.discard(event["id"])
        # A tool call is no answer yet: tools take their time, and silence after one means nothing.
        if event["type"] == "message" and event.get("run_id") not in self._others:
            self.answered = True


def _own(frames: list[Frame], key: str) -> Mapping[str, Any] | None:
    events = (event for frame in frames if frame["type"] == "event.append" for event in frame["payload"]["events"])
    return next((event for event in events if event.get("client_event_id") == key), None)


def _refusal(told: Mapping[str, Any]) -> DooersError:
    code, message = str(told.get("code", "SERVER_ERROR")), str(told.get("message", "refused"))
    error = ERRORS.get(code, DooersError)(message)
    error.code = code
    if isinstance(error, RateLimitedError):
        error.retry_after = float(told.get("retry_after", error.retry_after))
    return error
