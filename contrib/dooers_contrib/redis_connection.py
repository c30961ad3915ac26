"""The connections to Redis that its broker has: a URL, a mouth that speaks, and an ear that listens. What is said is `redis.py`'s."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import orjson
from attrs import define

from dooers import ConfigError, StoreError

try:
    from redis.asyncio import ConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ReadOnlyError, RedisError
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "redis":
        raise
    raise ModuleNotFoundError("pip install 'dooers-workers-server[redis]'", name="redis") from None

__all__ = ["ConnectionPool", "Ear", "Mouth", "RedisError", "new_pool", "read_url"]

log = logging.getLogger("dooers")

# What waits to be said while Redis is away, at most; the oldest goes first, and the others hear that something is missing.
WAITING, WAITING_BYTES = 10_000, 32 * 1024 * 1024
# What is said at once: few enough that who hears it is not held up, and that the answers to questions do not wait.
TEXTS, BYTES, QUESTIONS = 100, 256 * 1024, 500
# Seconds before the first try to come back, and between later ones.
FIRST, LATER = 0.05, 0.5


def new_pool(url: str, patience: float, name: str) -> ConnectionPool:
    """Connections to a URL that `read_url` has read, each of which answers within `patience` seconds or ends.

    `name` is what CLIENT LIST shows.
    """
    # One that is lost is not replaced by redis-py in silence: something may have been missed, and somebody must know. Nor does it
    # ask on its own whether we listen still; and protocol 3 would only add notices that reconnect, too.
    return ConnectionPool.from_url(
        url,
        client_name=name,
        socket_timeout=patience,
        socket_connect_timeout=patience,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
    )


# Options of redis-py that are the broker's business, and those that are the pool's and not a connection's.
_OURS = ("channel", "protocol", "health_check_interval", "retry_on_timeout", "decode_responses", "max_connections")


def read_url(url: str) -> tuple[str, int, str | None]:
    """The URL as redis-py reads it, the number of its database, and the channel that it names.

    No part of it goes into an error: if something is wrong with it, any may be of a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
        options = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _wrong(f"one like {_LIKE}; {_QUOTED}") from None
    if "@" in parts.path + parts.query or parts.fragment:
        raise _wrong(f"no @, # or ? but between its parts; {_QUOTED}")
    if parts.scheme == "unix" and not parts.path:
        raise _wrong("the path of a socket, such as unix:///run/redis.sock?db=0")
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
        raise _wrong(f"the number of a database after the host, such as redis://host:6379/0; {_QUOTED}")
    channel = options.get("channel", [None])[-1]
    if channel == "":
        raise _wrong("a name after channel=, or no channel")
    options = {name: values for name, values in options.items() if name not in _OURS}
    plain = parts._replace(query=urlencode(options, doseq=True)).geturl()
    return plain, _check(plain, set(options)), channel


def _check(url: str, options: set[str]) -> int:
    """Whether redis-py can make a connection of it; the number of its database."""
    try:
        pool = ConnectionPool.from_url(url)
        known: set[str] = set()
        for made in pool.connection_class.__mro__[:-1]:
            known.update(inspect.signature(made.__init__).parameters)  # type: ignore[misc]
        strange = sorted(options - known)
        if not strange:
            pool.make_connection()  # type: ignore[no-untyped-call]
            return int(pool.connection_kwargs.get("db", 0))
    except Exception:
        raise _wrong("options with values of their kind, such as ?db=0&socket_keepalive=yes") from None
    near = [match for option in strange for match in get_close_matches(option, known, 1)]
    raise _wrong(f"options of redis-py's connections{f' (did you mean {near[0]!r}?)' if near else ''}")


def _wrong(what: str) -> ConfigError:
    return ConfigError(f"WorkerConfig.broker_url: expected {what}")


_LIKE = "redis://user:password@host:6379/0, rediss:// for TLS, or unix:///run/redis.sock"
_QUOTED = "a password stands in it as urllib.parse.quote(password, safe='') writes it"


@define(eq=False)
class _Question:
    """A command, and what waits for its answer. After `until` nobody needs it."""

    command: tuple[str | bytes | int, ...]
    answer: asyncio.Future[Any]
    until: float


class Mouth:
    """What this process says and asks, in order, on one connection.

    Where the connection breaks nobody knows what was heard, so it is said again under the same number, and who heard it leaves it out.
    """

    def __init__(self, pool: ConnectionPool, channel: str, me: str, patience: float) -> None:
        self._redis = Redis(connection_pool=pool)
        self._channel, self._me, self._patience = channel, me, patience
        self._texts: deque[tuple[str, int]] = deque()
        self._size = 0
        self._dropped = False
        self._number = 0
        self._frame: bytes | None = None
        self._questions: deque[_Question] = deque()
        self._closed = False
        self._something, self._idle = asyncio.Event(), asyncio.Event()

    def say(self, text: str) -> None:
        self._texts.append((text, len(text.encode())))
        self._size += self._texts[-1][1]
        while len(self._texts) > WAITING or self._size > WAITING_BYTES:
            self._size -= self._texts.popleft()[1]
            if not self._dropped:
                log.warning(
                    "Redis is away, and more waits to be said than fits: other processes will read the database"
                )
            self._dropped = True
        self._wake()

    def ask(self, *command: str | bytes | int, within: float = 3600.0) -> asyncio.Future[Any]:
        """The answer to come; StoreError where there is none within so many seconds. Cancelled, it is asked for no more."""
        loop = asyncio.get_running_loop()
        question = _Question(command, loop.create_future(), loop.time() + within)
        if self._closed:
            _fail(question, "the broker is closed")
        else:
            self._questions.append(question)
            self._wake()
        return question.answer

    def _wake(self) -> None:
        self._idle.clear()
        self._something.set()

    async def drain(self) -> None:
        """Return when everything was said, and every question answered."""
        await self._idle.wait()

    def close(self) -> None:
        self._closed = True
        while self._questions:
            _fail(self._questions.popleft(), "the broker is closed")

    async def run(self) -> None:
        pause = FIRST
        while True:
            await self._something.wait()
            self._something.clear()
            while self._prepare():
                try:
                    async with asyncio.timeout(self._patience):
                        await self._send()
                except (Exception, asyncio.CancelledError) as error:
                    if _to_end():
                        raise
                    if pause == FIRST:
                        log.warning(
                            "the broker cannot reach Redis (%s); what it has to say waits", type(error).__name__
                        )
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LATER)
                else:
                    pause = FIRST
            self._idle.set()

    def _prepare(self) -> bool:
        """Put what is next into a frame, and forget what nobody needs; whether there is something to send."""
        now = asyncio.get_running_loop().time()
        for question in self._questions:
            if question.until < now:
                _fail(question, "Redis did not answer in time")
        self._questions = deque(question for question in self._questions if not question.answer.done())
        if self._frame is None and (self._texts or self._dropped):
            self._number += 1
            texts, size = list[str](), 0
            while self._texts and len(texts) < TEXTS and (not texts or size + self._texts[0][1] <= BYTES):
                text, length = self._texts.popleft()
                texts.append(text)
                size += length
            self._size -= size
            self._frame = orjson.dumps([self._me, self._number, self._dropped, texts])
            self._dropped = False
        return self._frame is not None or bool(self._questions)

    async def _send(self) -> None:
        questions = list(islice(self._questions, QUESTIONS))
        async with self._redis.pipeline(transaction=False) as pipe:
            if self._frame is not None:
                pipe.execute_command("PUBLISH", self._channel, self._frame)
            for question in questions:
                pipe.execute_command(*question.command)
            answers = await pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, ReadOnlyError):  # it is a replica by now: the next connection may find who is not
                await self._redis.connection_pool.disconnect()
                raise answer
        if self._frame is not None:
            self._frame = None
            if isinstance(answers.pop(0), Exception):
                log.error("Redis lets the broker publish nothing on %s: other processes hear nothing", self._channel)
        for question, answer in zip(questions, answers, strict=True):
            self._questions.popleft()
            if isinstance(answer, Exception):
                _fail(question, f"Redis refused it ({type(answer).__name__})")
            elif not question.answer.done():
                question.answer.set_result(answer)


def _to_end() -> bool:
    """Whether somebody ends this task. Closing a connection twice may look like it, and must end no task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fail(question: _Question, why: str) -> None:
    if not question.answer.done():
        question.answer.set_exception(StoreError(why))
        question.answer.exception()  # which counts as looked at: some questions are asked by nobody who waits


class Ear:
    """The connection that listens. `hear` gets what is said on its channels; `back` is called whenever it was away.

    Not redis-py's PubSub: that one reconnects in silence.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        channels: tuple[str, ...],
        patience: float,
        hear: Callable[[str, bytes], None],
        back: Callable[[], None],
    ) -> None:
        self._pool, self._channels, self._patience, self._hear, self._back = pool, channels, patience, hear, back

    async def run(self, listening: asyncio.Future[None]) -> None:
        """Listen for ever. `listening` is when it does for the first time, or why it cannot."""
        pause = FIRST
        while True:
            connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(self._patience):
                    await connection.connect()
                    await connection.send_command("SUBSCRIBE", *self._channels)
                    for _ in self._channels:
                        await connection.read_response()
                pause = FIRST
                if listening.done():
                    log.info("the broker listens to Redis again")
                    self._back()
                else:
                    listening.set_result(None)
                await self._listen(connection)
            except (Exception, asyncio.CancelledError) as error:
                if _to_end():
                    raise
                if not listening.done():
                    listening.set_exception(error if isinstance(error, Exception) else ConnectionError())
                    return
                if pause == FIRST:
                    log.warning("the broker has lost Redis (%s), and tries to come back", type(error).__name__)
            finally:
                with suppress(Exception):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LATER)

    async def _listen(self, connection: Any) -> None:
        """Hear, until the connection ends. One that is dead says nothing, as a quiet one does: so quiet ones are asked."""
        asked = False
        while True:
            said = await connection.read_response(timeout=self._patience, disconnect_on_error=False)
            if said is None:
                if asked:
                    raise TimeoutError("no answer to a ping")
                await connection.send_command("PING")
            elif said[0] == b"message":
                self._hear(said[1].decode(), said[2])
                await asyncio.sleep(0)  # what has arrived already is read without waiting, however much it is
            asked = said is None
