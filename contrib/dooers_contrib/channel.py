"""What the channels (`whatsapp`, `slack`, `telegram`) share: a body that is read within bounds, a message that is stored before it is
acknowledged, answers that go out in order, requests that are made again. Nothing here knows any vendor's format.

The rule of all of them: 200 means that the message is in the database. Until then the vendor is told 503 and brings it again, and
`idempotency_key` sees to it that a message that comes twice has one turn. What goes out is not kept: an answer that the vendor
does not take within the attempts, or whose process dies meanwhile, stays in the thread and is not sent.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias, TypeVar
from uuid import NAMESPACE_URL, uuid5
from weakref import WeakValueDictionary

import httpx
from attrs import evolve, field, frozen
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from dooers import (
    ConfigError,
    ContentPart,
    DispatchError,
    DispatchStream,
    DooersError,
    HandlerError,
    Identity,
    WorkerEvent,
    WorkerServer,
)
from dooers_contrib.body import Refused

__all__ = [
    "MAX_BODY",
    "Channel",
    "Lookup",
    "Lost",
    "Outgoing",
    "Taken",
    "dicts",
    "pieces",
    "same",
    "seconds",
    "secret",
    "text_at",
]

log = logging.getLogger("dooers")

# Who somebody is: from a vendor's id to what is known of them, None for nothing. Sync or async.
Lookup: TypeAlias = Callable[[str], Any]
T = TypeVar("T")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

MAX_BODY = 4 * 1024 * 1024  # what a vendor sends at once
MAX_ANSWER = 1024 * 1024
LONGEST_PAUSE = 60.0
# How soon people see that an answer is being made, and how often again. An answer that is quicker needs no sign.
FIRST_SIGN, NEXT_SIGN = 0.3, 4.0
# Of what a lookup gives, these say who the sender is. All of it is with the stored message, as `data["customer"]`.
WHO = ("organization_id", "workspace_id", "user_name", "user_email", "user_role")
# What dispatch says of a message that will never be taken, however often it comes.
HOPELESS = frozenset({"INVALID_VALUE", "TOO_LARGE", "NOT_FOUND", "FORBIDDEN"})
SORRY = "Sorry, something went wrong. Please try again."


class Lost(Exception):
    """A vendor's API did not do it. `again` is whether it might, later."""

    def __init__(self, why: str, *, again: bool = False) -> None:
        super().__init__(why)
        self.again = again


# ---------------------------------------------------------------- what comes in


def same(one: str | None, other: str) -> bool:
    """Whether two texts are the same, in a time that does not say where they differ. Bytes, as `hmac` takes no other texts than ASCII."""
    return one is not None and hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def secret(name: str, value: str) -> str:
    """A secret that is one. With an empty one anybody could sign."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{name}: expected a text that is not empty, got {type(value).__name__ if value else 'nothing'}"
        )
    return value


def dicts(value: Any, *path: str) -> list[dict[str, Any]]:
    """The objects in the list at a path of keys; an empty list where anything is of another shape."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def text_at(value: Any, *path: str) -> str:
    """The text (or whole number, as a text) at a path of keys; empty where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 1 << 63 else ""
    return value if isinstance(value, str) else ""


@frozen
class Taken:
    """A message as a channel read it. `place` says which conversation of the channel it is in; `to` is what a reply needs."""

    key: str
    sender: str
    place: str
    to: Any
    text: str = ""
    content: list[ContentPart] = field(factory=list)
    name: str = ""
    data: dict[str, Any] = field(factory=dict)


# ---------------------------------------------------------------- what goes out


def pieces(text: str, limit: int) -> list[str]:
    """A text in messages of at most `limit` UTF-16 units, as vendors count, cut between lines or words where that is possible."""
    found: list[str] = []
    rest = text.strip()
    while rest:
        end = _fits(rest, limit)
        if end < len(rest):
            for mark in ("\n\n", "\n", " "):
                cut = rest.rfind(mark, end // 2, end + 1)
                if cut > 0:
                    end = cut
                    break
        found.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return found


def _fits(text: str, limit: int) -> int:
    """How many characters from the start are within the limit."""
    end = min(len(text), limit)
    over = len(text[:end].encode("utf-16-le", "surrogatepass")) // 2 - limit
    while over > 0:
        end -= (over + 1) // 2
        over = len(text[:end].encode("utf-16-le", "surrogatepass")) // 2 - limit
    return end


def seconds(text: str | None) -> float | None:
    """A `Retry-After` as a number of seconds; None for anything else."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


@frozen
class Outgoing:
    """A vendor's HTTP API for the length of one answer: each request is made again while it is worth it, `attempts` times in all."""

    client: httpx.AsyncClient
    attempts: int
    pause: float

    async def call(
        self,
        url: str,
        again: Callable[[httpx.Response, Any], float | bool] = lambda response, told: False,
        **request: Any,
    ) -> dict[str, Any]:
        """POST until it is taken; the JSON that came back. `again` says of an answer whether to repeat it, or after how many seconds.

        Lost when it is not taken. After a timeout nobody knows whether it was: it is sent again, as twice is better than never.
        """
        pause, why = self.pause, ""
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(min(pause, LONGEST_PAUSE))
            pause = self.pause * 2**attempt
            try:
                response = await self.client.post(url, **request)
            except httpx.HTTPError as error:
                why = type(error).__name__  # not its text, which may have the URL in it, and that a token
                continue
            told = _json(response)
            wait = again(response, told)
            if response.status_code == 429 or response.status_code >= 500 or wait is not False:
                asked = seconds(response.headers.get("retry-after")) if isinstance(wait, bool) else wait
                pause, why = pause if asked is None else asked, f"status {response.status_code}"
                continue
            if not response.is_success:
                raise Lost(f"status {response.status_code}: {str(told)[:300]}")
            return told
        raise Lost(f"{self.attempts} attempts, the last one: {why}", again=True)


def _json(response: httpx.Response) -> dict[str, Any]:
    if len(response.content) > MAX_ANSWER:
        return {}
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------- in between


@frozen(eq=False)
class Channel:
    """Brings messages into a worker and answers out of it, for one vendor."""

    name: str
    worker: WorkerServer
    send: Callable[[Outgoing, Any, WorkerEvent], Awaitable[None]]
    handler: Callable[..., Any] | str | None
    worker_id: str | None
    organization_id: str
    workspace_id: str
    lookup: Lookup | None
    sorry: str | None
    attempts: int
    pause: float
    timeout: float
    sign: Callable[[Outgoing, Any], Awaitable[None]] | None = None
    veil: Callable[[httpx.Request], Awaitable[None]] | None = None
    _tls: Any = field(factory=httpx.create_ssl_context, repr=False)  # reads the authorities from disk: once
    _speaking: WeakValueDictionary[str, asyncio.Lock] = field(factory=WeakValueDictionary, repr=False)
    _tasks: set[asyncio.Task[Any]] = field(factory=set, repr=False)

    def client(self) -> httpx.AsyncClient:
        """A client to use once. None is kept, as an endpoint has no end at which to close it."""
        hooks: dict[str, list[Callable[..., Any]]] = {"request": [self.veil] if self.veil is not None else []}
        return httpx.AsyncClient(verify=self._tls, timeout=self.timeout, follow_redirects=False, event_hooks=hooks)

    async def take(self, messages: AsyncGenerator[Taken, None]) -> Response:
        """Store messages, and answer 200 for it; what they bring about goes on afterwards.

        503 when one of them could not be stored: the vendor brings all of them again, and those that were stored are known.
        """
        # Shielded: of a dispatch that is cut off the message may be stored already, with a turn that is stopped and never run again.
        return await asyncio.shield(self._kept(self._take(messages)))

    def _kept(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=f"dooers-{self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take(self, messages: AsyncGenerator[Taken, None]) -> Response:
        stored = list[asyncio.Task[None]]()
        status = 200
        async with aclosing(messages) as each:
            try:
                async for message in each:
                    if (task := await self._store(message)) is not None:
                        stored.append(task)
            except DispatchError as error:
                log.warning("%s: a message was not stored, and is to be brought again: %s", self.name, error)
                status = 503
            except Lost as error:
                log.warning("%s: what a message refers to was not to be had now: %s", self.name, error)
                status = 503
        # The server waits for it when it shuts down; a request that is cut off does not cut off the answer.
        return Response(status_code=status, background=BackgroundTask(_all, stored) if stored else None)

    async def _store(self, message: Taken) -> asyncio.Task[None] | None:
        known = await self._known(message.sender)
        who = {name: known[name] for name in WHO if known is not None and isinstance(known.get(name), str)}
        who = {
            "organization_id": self.organization_id,
            "workspace_id": self.workspace_id,
            "user_name": message.name,
        } | who
        worker_id = self.worker.config.worker_id if self.worker_id is None else self.worker_id
        place = json.dumps([self.name, worker_id, who["organization_id"], who["workspace_id"], message.place])
        thread_id = str(uuid5(NAMESPACE_URL, place))
        try:
            person = Identity(**who, user_id=message.sender)
            if not await self._may_write(person, thread_id):
                log.info("%s: a message of somebody who may not write there is left out", self.name)
                return None
            stream = await self.worker.dispatch(
                self.handler,
                metadata=person,
                worker_id=worker_id,
                message=message.text,
                content=message.content or None,
                thread_id=thread_id,
                data={"channel": self.name, "customer": known, **message.data},
                idempotency_key=f"{self.name}:{message.key}",
            )
        except DooersError as error:
            if error.code not in HOPELESS:
                raise DispatchError(str(error), code=error.code) from error
            log.error("%s: a message is left out, since it can never be stored: %s", self.name, error)
            return None
        if stream.is_repeat:
            return None  # whoever took it first answers it
        stream.detach()  # the turn is the worker's from here on, whatever becomes of this request
        return self._kept(self._answer(stream, message.to))

    async def _may_write(self, person: Identity, thread_id: str) -> bool:
        """What `permissions` and `@worker.authorize` say, which dispatch does not ask. The answer goes out, so it takes reading, too."""
        thread = await (await self.worker.repository()).get_thread(thread_id)
        return all(self.worker.allows(person, operation, thread) for operation in ("thread.read", "thread.post"))

    async def _known(self, sender: str) -> dict[str, Any] | None:
        if self.lookup is None:
            return None
        try:
            found = self.lookup(sender)
            found = await found if inspect.isawaitable(found) else found
        except Exception as error:
            raise DispatchError(f"the lookup of a sender failed: {error!r}") from error
        return dict(found) if isinstance(found, Mapping) else None

    async def _answer(self, stream: DispatchStream, to: Any) -> None:
        """Send what the turn says. One answer of a conversation at a time, so that a late one does not cut into the next."""
        lock = self._speaking.setdefault(stream.thread_id, asyncio.Lock())
        async with lock, self.client() as client:
            out = Outgoing(client, self.attempts, self.pause)
            try:
                async with self._signs(out, to):
                    async for event in stream:
                        await self._say(out, stream, to, event)
            except HandlerError:
                if self.sorry is not None:
                    await self._say(out, stream, to, WorkerEvent("text", {"text": self.sorry}))
            except Exception:
                log.exception("%s: the answer in thread %s could not be read", self.name, stream.thread_id)

    @asynccontextmanager
    async def _signs(self, out: Outgoing, to: Any) -> AsyncIterator[None]:
        """While this lasts, the person sees that somebody is at it, if the vendor has a sign for that. Nothing waits for it."""
        if self.sign is None:
            yield
            return
        task = asyncio.create_task(self._sign(self.sign, evolve(out, attempts=1), to), name=f"dooers-{self.name}-sign")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _sign(self, sign: Callable[[Outgoing, Any], Awaitable[None]], out: Outgoing, to: Any) -> None:
        try:
            await asyncio.sleep(FIRST_SIGN)
            while True:
                await sign(out, to)
                await asyncio.sleep(NEXT_SIGN)
        except Lost as error:  # who is not allowed a sign, or has too many, gets the answer all the same
            log.debug("%s: no sign that an answer is being made: %s", self.name, error)

    async def _say(self, out: Outgoing, stream: DispatchStream, to: Any, event: WorkerEvent) -> None:
        try:
            await self.send(out, to, event)
        except Lost as error:
            log.error("%s: a message of thread %s was not sent: %s", self.name, stream.thread_id, error)
        except Exception:
            log.exception("%s: a message of thread %s was not sent", self.name, stream.thread_id)

    def endpoint(self, answer: Callable[[Request], Awaitable[Response]]) -> Endpoint:
        """An endpoint for Starlette's and FastAPI's routes that answers what is refused with its status, and no word why."""

        async def endpoint(request: Request) -> Response:
            try:
                return await answer(request)
            except Refused as refused:
                if refused.status in (401, 403):
                    log.warning("%s: a request was refused: it is not signed with our secret", self.name)
                return PlainTextResponse("", refused.status)

        return endpoint


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.shield(asyncio.gather(*tasks, return_exceptions=True))
