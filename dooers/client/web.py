"""A client over a real WebSocket, which it makes again when it is lost. The one place that knows the `websockets` library, and loads it
when somebody connects.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from dooers.client.connection import Frame, Gone, Link
from dooers.client.lifeline import Lifeline
from dooers.client.talk import Talk
from dooers.client.unfolding import Unfolding
from dooers.client.updates import Connecting, Lost, Reconnected
from dooers.exceptions import DisconnectedError

__all__ = ["Client"]

# Snapshots hold up to 100 events of up to 4 MiB each in theory; a bound all the same, so that a wrong server cannot eat the memory.
MAX_FRAME = 64 * 1024 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Seconds that a peer has to answer to a close.
CLOSING = 2.0

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]


class Client(Talk):
    """A client of a worker, as one user. Entering it connects; one event loop, any number of tasks.

    A connection that is lost is made again, for up to `retry_for` seconds (0: never), and everything goes on: what was not acknowledged
    is sent again and done once, what was followed is told from where it was left. `on_connection` is called with `Lost` and
    `Reconnected`; streams have them among their updates. A refusal is never tried again.

    `auth_token` may be a function, also an async one: it is asked for each connection, so an expired token is replaced. `within` is how
    many seconds an answer, or the first sign of one, may take. `quiet` is how many seconds of silence end the turn of a handler that
    opens no run. `deltas` asks for the text of messages while they are written. `heartbeat` is how many seconds pass between two
    signs of life; a peer that misses one for as long is taken for lost.

    Entering raises DisconnectedError where nobody answers, and the worker's own error (UnauthenticatedError,
    ForbiddenError) where it refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        worker_id: str = "worker",
        organization_id: str = "local",
        workspace_id: str = "local",
        user_id: str = "local",
        user_name: str | None = None,
        user_email: str | None = None,
        user_role: str | None = None,
        auth_token: Token | None = None,
        deltas: bool = True,
        within: float = 60.0,
        quiet: float = 1.0,
        retry_for: float = 60.0,
        heartbeat: float = 20.0,
        on_connection: Callable[[Connecting], None] | None = None,
    ) -> None:
        self.url = url
        self.user_id = user_id
        named = {"user_name": user_name, "user_email": user_email, "user_role": user_role}
        self._claims: dict[str, Any] = {
            "worker_id": worker_id,
            "organization_id": organization_id,
            "workspace_id": workspace_id,
            "user_id": user_id,
            **{name: value for name, value in named.items() if value is not None},
            "client": {"capabilities": ["deltas"] if deltas else []},
        }
        self._token = auth_token
        self._heartbeat = heartbeat
        self._on_connection = on_connection
        line = Lifeline(
            self._dial,
            self._connect,
            within=within,
            retry_for=retry_for,
            renews=callable(auth_token),
            beat=heartbeat,
            tell=self._tell,
        )
        super().__init__(line, quiet)

    async def __aenter__(self) -> Self:
        await self._line.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._line.close()

    async def ask(self, frame_type: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send any frame; the payload of the answer to it.

        A refusal is raised as the error of its code (NotFoundError for NOT_FOUND; DooersError with `.code` for one without a
        class), a connection that is lost for good as DisconnectedError, no answer within `within` seconds as NoAnswerError.
        """
        return await self._line.ask(frame_type, payload)

    async def _connect(self) -> Mapping[str, Any]:
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        return self._claims if token is None else {**self._claims, "auth_token": token}

    async def _dial(self) -> Link:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        # A proxy from the environment is right for the internet and never for this very machine.
        proxy: Literal[True] | None = None if urlsplit(self.url).hostname in LOOPBACK else True
        try:
            socket = await connect(
                self.url,
                proxy=proxy,
                max_size=MAX_FRAME,
                ping_interval=self._heartbeat,
                ping_timeout=self._heartbeat,
                close_timeout=CLOSING,
            )
        except (OSError, WebSocketException, ValueError, EOFError) as error:
            raise DisconnectedError(f"cannot connect to {self.url}: {str(error) or repr(error)}") from error
        return _Socket(socket)

    def _tell(self, frame: Frame) -> None:
        for update in Unfolding().take(frame) if self._on_connection is not None else ():
            if isinstance(update, Lost | Reconnected) and self._on_connection is not None:
                self._on_connection(update)


class _Socket:
    """A WebSocket as a link. A task of its own writes, so that nobody who is cancelled leaves half of what was to be sent behind."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._outbox: asyncio.Queue[str] = asyncio.Queue()
        self._writer = asyncio.create_task(self._write(), name="client-writer")

    def put(self, text: str) -> None:
        self._outbox.put_nowait(text)

    async def _write(self) -> None:
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):  # the reader knows why, and tells
            while True:
                await self._socket.send(await self._outbox.get())

    async def get(self) -> str:
        from websockets.exceptions import ConnectionClosed

        try:
            text: str = await self._socket.recv(decode=True)
        except ConnectionClosed:
            self._writer.cancel()
            raise Gone(self._socket.close_code, self._socket.close_reason or "") from None
        return text

    async def close(self) -> None:
        self._writer.cancel()
        await self._socket.close()
        await asyncio.wait([self._writer])

    def abort(self) -> None:
        self._socket.transport.abort()
