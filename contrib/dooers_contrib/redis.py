"""A broker over Redis (or Valkey): pub/sub for what is told, a key with a lease for each lock. `broker_url="redis://host:6379/0"`.

Pub/sub keeps nothing: what is said while a process is away is not heard. It is told so when it is back, and reads the store. The same
where Redis itself was restarted. Durability is the database's business, never Redis's: none of its persistence needs to be on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex
from typing import Any

from dooers import StoreError, WorkerConfig

try:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError
except ModuleNotFoundError as missing:
    if missing.name != "redis":
        raise
    raise ModuleNotFoundError("pip install 'dooers-workers-server[redis]'", name="redis") from None

__all__ = ["RedisBroker"]

log = logging.getLogger("dooers")

# A lock is leased for this long, in seconds, and renewed three times as often: who dies lets go of it in so many.
LEASE = 6.0
# Seconds between two looks whether a lock is free; whoever frees one that is wanted says so at once.
LOOK = 0.5
WAITING = 10_000

_FREE = """
if redis.call('get', KEYS[1]) == ARGV[1] then
    redis.call('del', KEYS[1])
    redis.call('publish', ARGV[2], 'free ' .. KEYS[1])
end
"""
_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"


class RedisBroker:
    """An ordinary broker, over a Redis server."""

    alone = False
    by_store = False
    limit: int | None = 16 * 1024 * 1024

    def __init__(self, config: WorkerConfig) -> None:
        self._url = config.broker_url or "redis://localhost:6379/0"
        self._timeout = config.database_timeout
        # Workers that share a Redis are told apart by their tables.
        name = f"dooers:{config.database_name}:{config.database_table_prefix}"
        self._channel, self._free_channel, self._lock_prefix = f"{name}:news", f"{name}:free", f"{name}:lock:"
        self._redis: Any = None
        self._me = token_hex(16)
        self._waiting: deque[str] = deque(maxlen=WAITING)
        self._something = asyncio.Event()
        self._freed: dict[str, set[asyncio.Event]] = {}
        self._held: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: Callable[[str], None] = lambda text: None
        self._missed: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ the connection

    async def open(self, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._heard, self._missed = heard, missed
        self._redis = Redis.from_url(
            self._url, decode_responses=True, socket_connect_timeout=self._timeout, health_check_interval=15
        )
        listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        listener = self._spawn(self._listen(listening))
        try:
            async with asyncio.timeout(self._timeout):
                await listening
        except BaseException as error:
            listener.cancel()
            await self._redis.aclose()
            if isinstance(error, RedisError | OSError | TimeoutError):
                raise StoreError(f"the broker cannot reach Redis ({type(error).__name__})") from error
            raise
        self._spawn(self._speak())
        self._spawn(self._renew())

    async def close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self._timeout, 2.0)):
                while self._waiting:
                    await asyncio.sleep(0.005)
        for key in list(self._held):
            with suppress(RedisError, OSError):
                await self._free(key, self._held.pop(key))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._redis is not None:
            with suppress(RedisError, OSError):
                await self._redis.aclose()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name="dooers-broker")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self, listening: asyncio.Future[None]) -> None:
        """Hear what is told. Whenever the connection comes back, something may have been missed."""
        pause = 0.05
        while True:
            try:
                async with self._redis.pubsub() as ear:
                    await ear.subscribe(self._channel, self._free_channel)
                    await ear.get_message(timeout=self._timeout)  # that we are subscribed
                    if listening.done():
                        self._missed()
                    else:
                        listening.set_result(None)
                    pause = 0.05
                    while True:
                        said = await ear.get_message(ignore_subscribe_messages=True, timeout=None)
                        if said is not None:
                            self._hear(said["channel"], said["data"])
            except (RedisError, OSError) as error:
                if not listening.done():
                    listening.set_exception(error)
                    return
                log.warning("the broker has lost Redis: %s", type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _hear(self, channel: str, text: str) -> None:
        if channel == self._channel:
            self._heard(text)
            return
        for event in self._freed.get(text.removeprefix("free "), ()):
            event.set()

    # ------------------------------------------------------------ speaking

    def tell(self, text: str) -> None:
        self._waiting.append(text)
        self._something.set()

    async def _speak(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while self._waiting:
                texts = [self._waiting.popleft() for _ in range(min(len(self._waiting), 100))]
                try:
                    async with self._redis.pipeline(transaction=False) as pipe:
                        for text in texts:
                            pipe.publish(self._channel, text)
                        await pipe.execute()
                except (RedisError, OSError) as error:
                    log.info("what the broker had to say waits: %s", type(error).__name__)
                    self._waiting.extendleft(reversed(texts))
                    await asyncio.sleep(LOOK)

    # ------------------------------------------------------------ locks

    async def lock(self, key: str) -> None:
        name, token = self._lock_prefix + key, f"{self._me}:{token_hex(8)}"
        freed = asyncio.Event()
        self._freed.setdefault(name, set()).add(freed)
        try:
            while not await self._take(name, token):
                freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await freed.wait()
        except asyncio.CancelledError:
            # It may have been given to us in this moment.
            self._spawn(self._let_go(name, token))
            raise
        finally:
            self._freed[name].discard(freed)
            if not self._freed[name]:
                del self._freed[name]
        self._held[key] = token

    async def _take(self, name: str, token: str) -> bool:
        try:
            return bool(await self._redis.set(name, token, nx=True, px=int(LEASE * 1000)))
        except (RedisError, OSError) as error:
            raise StoreError(f"the broker cannot reach Redis ({type(error).__name__})") from error

    def unlock(self, key: str) -> None:
        token = self._held.pop(key, None)
        if token is not None:
            self._spawn(self._let_go(self._lock_prefix + key, token))

    async def _let_go(self, name: str, token: str) -> None:
        with suppress(RedisError, OSError):  # then the lease ends by itself
            await self._redis.eval(_FREE, 1, name, token, self._free_channel)

    async def _free(self, key: str, token: str) -> None:
        await self._let_go(self._lock_prefix + key, token)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            for key, token in list(self._held.items()):
                with suppress(RedisError, OSError):
                    kept = await self._redis.eval(_RENEW, 1, self._lock_prefix + key, token, int(LEASE * 1000))
                    if not kept and self._held.get(key) == token:
                        log.warning("thread %s may be answered by two processes: Redis was away too long", key)
