"""One connection: a reader that takes frames, a bounded outbox that a writer drains, and who it is. What frames do is in `routing.py`.

The reader and the writer are two tasks, so nobody who puts a text into the outbox ever waits for this socket. Turns are not tasks
of the session: when it ends, they go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from math import inf
from typing import Any, Protocol, TypeAlias
from urllib.parse import parse_qsl

import anyio
from anyio.abc import TaskGroup
from attrs import field, frozen

from dooers.access import Access
from dooers.broadcast import TRY_AGAIN, Broadcast, Growth
from dooers.config import WorkerConfig
from dooers.exceptions import DooersError, ProtocolError, RateLimitedError, UnauthenticatedError, told
from dooers.models import Identity, Scope, Thread
from dooers.protocol import ClientFrame, Dialect, parse, refusal, serialize
from dooers.quota import WEIGHT, Quota
from dooers.stats import Counts
from dooers.stores import answered
from dooers.turn import Clock

__all__ = ["AuthRequest", "Message", "Route", "Session", "WebSocketLike"]

log = logging.getLogger("dooers")

Message: TypeAlias = Any

# Close codes: 1013 is "try again later" (RFC 6455 registry), 4401, 4403 and 4408 mirror HTTP's 401, 403 and 408.
SLOW = TRY_AGAIN
WHO_ARE_YOU, NOT_YOU, NO_CONNECT, GOING_AWAY = 4401, 4403, 4408, 1012
REASONS = {
    TRY_AGAIN: "try again later",
    WHO_ARE_YOU: "not authenticated",
    NOT_YOU: "not allowed",
    NO_CONNECT: "no connect frame in time",
    GOING_AWAY: "the worker restarts",
}
CLOSE_WAIT = 5.0
# A proof that ends is looked at this often at least: the clock on the wall may be set meanwhile.
EXPIRY_WATCH = 60.0
BEFORE_CONNECT = 64 * 1024
# Messages whose rest a slow reader does without, at most; streams of long ago are forgotten.
WITHOUT = 1000


class WebSocketLike(Protocol):
    """An accepted WebSocket of a framework: Starlette's, FastAPI's, or any with the same two methods and a scope."""

    @property
    def scope(self) -> Any: ...
    def receive(self) -> Awaitable[Any]: ...
    def send(self, message: Any) -> Awaitable[None]: ...


@frozen(kw_only=True)
class AuthRequest:
    """What `@worker.authenticate` is given. `claims` is only what the client says of itself; believe nothing of it unproved.

    `headers` have lower-case names. `client` is the peer's address, host and port, where the server knows it.
    """

    claims: Identity
    worker_id: str
    auth_token: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    query_params: Mapping[str, str] = field(repr=False)
    client: tuple[str, int] | None

    @classmethod
    def of(cls, scope: Mapping[str, Any], worker_id: str, claims: Identity, auth_token: str | None) -> AuthRequest:
        """The request behind an ASGI scope and a `connect` frame."""
        client = scope.get("client")
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope.get("headers", ()):
            # A header may come in several lines, over HTTP/2 a cookie each: joined as each is meant to be.
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}{'; ' if name == 'cookie' else ', '}{value}" if name in headers else value
        return cls(
            claims=claims,
            worker_id=worker_id,
            auth_token=auth_token,
            headers=headers,
            query_params=dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)),
            client=None if client is None else (str(client[0]), int(client[1])),
        )


Route: TypeAlias = Callable[["Session", ClientFrame], Awaitable[None]]


def _nothing(thread: Thread) -> bool:
    """What somebody sees who has not said who they are."""
    return False


class Session:
    """A connection and its state. `broadcast` sees it as a member, routes as the one who asked."""

    def __init__(
        self,
        socket: WebSocketLike,
        route: Route,
        config: WorkerConfig,
        broadcast: Broadcast,
        clock: Clock,
        quota: Quota,
        counts: Counts,
    ) -> None:
        self.socket = socket
        self.quota = quota
        self._route = route
        self._config = config
        self._broadcast = broadcast
        self._clock = clock
        self._counts = counts
        self._outbox: deque[str] = deque()
        self._bytes = 0
        self._held: list[str] | None = None
        self._without: dict[str, None] = {}  # a set in the order of arrival
        self._asleep: asyncio.Future[None] | None = None  # the writer, while there is nothing to send
        self._close_code: int | None = None
        self._tasks: TaskGroup | None = None
        self._expiry: asyncio.TimerHandle | None = None
        # Done when it has ended; until then, the task that it serves in while a frame is being answered.
        self.over = asyncio.get_running_loop().create_future()
        self.answering: asyncio.Task[Any] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._heard_at = asyncio.get_running_loop().time()
        # Set by `connected`, and only by it.
        self._access: Access | None = None
        # Whether this connection may be told of a thread: asked of each session for each piece of news.
        self.sees: Callable[[Thread], bool] = _nothing
        self.dialect: Dialect = "flat"
        self.capabilities: frozenset[str] = frozenset()

    def connected(self, access: Access, quota: Quota, dialect: Dialect, capabilities: frozenset[str]) -> None:
        """The connection has an identity now; from here on it hears of what it may see, and counts with its like."""
        self._access, self.dialect, self.capabilities = access, dialect, capabilities
        self.sees = access.sees
        self.quota = quota
        quota.connections.add(self)
        self._broadcast.join(self)
        self._watch_expiry()
        self._watch_idle()

    @property
    def identity(self) -> Identity | None:
        """Who this is, None before `connect`."""
        return None if self._access is None else self._access.identity

    @property
    def access(self) -> Access:
        """What this connection may see and do. Not before `connect`."""
        assert self._access is not None
        return self._access

    @property
    def scope(self) -> Scope:
        """The part of the world this connection lives in."""
        return self.access.scope

    @property
    def worker_id(self) -> str:
        """The worker that this connection is to."""
        return self.access.scope.worker_id

    def _watch_expiry(self) -> None:
        """Close the session when the proof behind its identity has ended."""
        left = self._proof_left()
        if left is None:
            return
        if left <= 0:
            self.close(WHO_ARE_YOU)
        else:
            self._expiry = asyncio.get_running_loop().call_later(min(left, EXPIRY_WATCH), self._watch_expiry)

    def _proof_left(self) -> float | None:
        """Seconds until the identity's proof ends; None where it does not."""
        expires_at = None if self._access is None else self._access.identity.expires_at
        return None if expires_at is None else (expires_at - self._clock.now()).total_seconds()

    def _watch_idle(self) -> None:
        """Close the session when nothing was heard of its client for `idle_timeout`. It may come back: a client that lives pings."""
        if self._config.idle_timeout is None:
            return
        left = self._heard_at + self._config.idle_timeout - asyncio.get_running_loop().time()
        if left <= 0:
            self.close(TRY_AGAIN)
        else:
            self._idle = asyncio.get_running_loop().call_later(left, self._watch_idle)

    # ------------------------------------------------------------ out

    def put(self, text: str) -> None:
        """Queue a text. Over the bounds the session is closed: it comes back and resumes from the last event it has."""
        if self._close_code is not None:
            return
        if self._held is not None:
            self._held.append(text)
            return
        self._enqueue(text)

    @property
    def outbox(self) -> tuple[int, int]:
        """How many frames wait to be sent, and the size of them all."""
        return len(self._outbox), self._bytes

    @property
    def grows(self) -> Growth:
        """How this session sees a message that is being written."""
        if "deltas" in self.capabilities:
            return "deltas"
        return "growing" if self.dialect == "agents" else "done"

    def put_delta(self, text: str, event_id: str) -> None:
        """Queue a piece of a message, unless the reader is behind: then it does without, and gets the whole at the end.

        One that has missed a piece gets no later one of the same message either; `event_id` is empty for what needs no earlier.
        """
        frames, size = len(self._outbox) * 2, (self._bytes + len(text)) * 2
        behind = frames >= self._config.outbox_frames or (frames > 0 and size > self._config.outbox_bytes)
        if behind and event_id:
            self.go_without([event_id])
        if behind or event_id in self._without:
            self._counts.deltas_dropped += 1
        else:
            self.put(text)

    def go_without(self, event_ids: Iterable[str]) -> None:
        """Messages that are being written, and of which this session lacks a part: it gets them whole, when they are done."""
        for event_id in event_ids:
            self._without[event_id] = None
        while len(self._without) > WITHOUT:
            del self._without[next(iter(self._without))]

    def go_on_with(self, event_ids: Iterable[str]) -> None:
        """Messages that are being written, and that this session has up to now: it gets their pieces from here on."""
        for event_id in event_ids:
            self._without.pop(event_id, None)

    def send(self, frame_type: str, payload: dict[str, Any], frame_id: str | None = None) -> None:
        """Queue a frame for this session alone, ahead of whatever is held back."""
        if self._close_code is None:
            self._enqueue(serialize(frame_type, payload, frame_id if frame_id is not None else self._clock.new_id()))

    def hold(self) -> None:
        """Keep what is published back, until `release`: a snapshot is being read that must go out before it."""
        self._held = []

    def release(self) -> None:
        """Let go what was held back."""
        held, self._held = self._held or [], None
        for text in held:
            self.put(text)

    def _enqueue(self, text: str) -> None:
        outbox, size = self._outbox, self._bytes + len(text)
        # One frame is always taken, however large: a thread of long messages must stay readable.
        if outbox and (size > self._config.outbox_bytes or len(outbox) >= self._config.outbox_frames):
            log.warning("a session does not read: closed with %d frames unsent", len(outbox))
            self._counts.readers_dropped += 1
            outbox.clear()
            self._bytes = 0
            self.close(SLOW)
            return
        outbox.append(text)
        self._bytes = size
        if self._asleep is not None:
            self._wake()

    def _wake(self) -> None:
        asleep, self._asleep = self._asleep, None
        if asleep is not None and not asleep.done():
            asleep.set_result(None)

    def close(self, code: int) -> None:
        """End the session once what is queued is sent, or after a few seconds."""
        if self._close_code is None:
            self._close_code = code
            self._wake()
            # The writer ends the session when all is sent; a peer that takes nothing must not keep it.
            if self._tasks is not None:
                asyncio.get_running_loop().call_later(CLOSE_WAIT, self._tasks.cancel_scope.cancel)

    # ------------------------------------------------------------ the two tasks

    async def serve(self) -> None:
        """Serve the connection until either side ends it."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._write)
                await self._read()
                self._tasks.cancel_scope.cancel()
        finally:
            if self._access is not None:
                self._broadcast.leave(self)
            self.quota.connections.discard(self)
            for timer in (self._expiry, self._idle):
                if timer is not None:
                    timer.cancel()
        try:
            if self._close_code is not None:
                await self._say_close(self._close_code)
        finally:
            if not self.over.done():
                self.over.set_result(None)

    async def _read(self) -> None:
        me = asyncio.current_task()
        with anyio.CancelScope(deadline=anyio.current_time() + self._config.connect_timeout) as waiting:
            while True:
                message = await self.socket.receive()
                kind = message["type"]
                if kind == "websocket.disconnect":
                    self._close_code = None
                    return
                # Once it is to close, nothing is taken any more: a refused client cannot slip anything in.
                if kind == "websocket.receive" and self._close_code is None:
                    self.answering = me
                    await self._take(message.get("text"), len(message.get("bytes") or b""))
                    self.answering = None
                if self._access is not None and waiting.deadline != inf:
                    waiting.deadline = inf
        # Only an identity that was never given runs into the deadline.
        self.close(NO_CONNECT)
        await anyio.sleep_forever()

    async def _take(self, text: str | None, size: int) -> None:
        """Answer one frame. Whatever is wrong with it, the socket stays.

        Whoever sends too much is told so, and then not read from until there is room again: a flood fills its own buffers.
        """
        frame_id: str | None = None
        self._counts.frames_in += 1
        self._heard_at = asyncio.get_running_loop().time()
        wait = self.quota.take_frame(size or len(text or ""), self._heard_at)
        try:
            text = self._checked(text)
            if wait and len(text) > WEIGHT:  # not even read: that alone would cost what it may not have
                raise RateLimitedError(f"too many frames; ask again in {wait:.1g} s", wait)
            frame = parse(text)
            frame_id = frame.id
            self._check_proof()
            if wait:
                raise RateLimitedError(f"too many frames; ask again in {wait:.1g} s", wait)
            with answered():
                await self._route(self, frame)
        except DooersError as error:
            frame_id = error.frame_id if isinstance(error, ProtocolError) else frame_id
            if error.code == "SERVER_ERROR":
                self._refuse_unsafe(frame_id, error)
            else:
                self.send("ack", refusal(frame_id, error))
            if isinstance(error, UnauthenticatedError):
                self.close(WHO_ARE_YOU)
        except Exception as error:
            self._refuse_unsafe(frame_id, error)
        if wait:
            await anyio.sleep(wait)

    def _check_proof(self) -> None:
        left = self._proof_left()
        if left is not None and left <= 0:
            raise UnauthenticatedError("what proved your identity has expired; connect again")

    def _checked(self, text: str | None) -> str:
        if text is None:
            raise ProtocolError("binary frames are not part of the protocol; send text")
        limit = self._config.max_frame_bytes
        if self._access is None:  # who is not anybody yet needs no more than room for a token
            limit = min(limit, BEFORE_CONNECT)
        if len(text) > limit or (len(text) * 4 > limit and len(text.encode("utf-8", "surrogatepass")) > limit):
            raise ProtocolError(f"the frame is over {limit} bytes", code="TOO_LARGE")
        return text

    def _refuse_unsafe(self, frame_id: str | None, error: Exception) -> None:
        """An error whose text is not for clients: they get a number, the log has the rest under it."""
        error_id = self._clock.new_id()
        log.error("a frame could not be answered (error %s)", error_id, exc_info=error)
        text = told("Something went wrong on the server.", error, error_id, expose=self._config.expose_errors)
        self.send("ack", refusal(frame_id, DooersError(text)))

    async def _write(self) -> None:
        outbox, send, new_future = self._outbox, self.socket.send, asyncio.get_running_loop().create_future
        try:
            while self._close_code is None or outbox:
                while outbox:
                    text = outbox.popleft()
                    self._bytes -= len(text)
                    await send({"type": "websocket.send", "text": text})
                    self._counts.frames_out += 1
                if self._close_code is None:
                    self._asleep = asleep = new_future()
                    await asleep
        except Exception as error:  # every server has its own way to say that the peer is gone
            log.debug("a peer is gone: %r", error)
            self._close_code = None
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()

    async def _say_close(self, code: int) -> None:
        with anyio.move_on_after(CLOSE_WAIT):
            try:
                await self.socket.send({"type": "websocket.close", "code": code, "reason": REASONS.get(code, "")})
            except Exception as error:  # it is closed already, which is what was wanted
                log.debug("a peer was gone before the close: %r", error)
