"""Delivery to a webhook: what is taken goes into a bounded buffer, and from there in signed batches to a URL, one after the other.

Who delivers waits, who takes never does. A webhook that hangs, fails or floods costs time and memory within `Limits`, and events
that are counted. What an event is, and which there are, is `analytics.py`'s business; how one request is made, `courier.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from datetime import datetime
from typing import Any

from attrs import field, frozen

from dooers.codec import dumps
from dooers.config import WorkerConfig
from dooers.courier import Courier, kinds, retry_after
from dooers.exceptions import quoted
from dooers.turn import Clock

__all__ = ["Limits", "Losses", "Webhook", "full_jitter"]

log = logging.getLogger("dooers")

# Statuses after which the same batch may be taken a moment later. All others below 500 say that it never will be.
_PASSING = (408, 425, 429)


@frozen(kw_only=True)
class Limits:
    """How much is kept, and how long somebody is tried. Seconds and bytes."""

    # Of what waits and what is under way, together; then the oldest that waits is dropped.
    events: int = 10_000
    bytes: int = 16 * 1024 * 1024
    # Below the megabyte that web servers let through when nobody has told them otherwise.
    batch_bytes: int = 1_000_000
    # One attempt, from the connection to the answer's headers.
    timeout: float = 10.0
    # Attempts of one batch, and the pauses between attempts: at most `pause`, then twice that, and so on up to `longest_pause`.
    attempts: int = 8
    pause: float = 0.5
    longest_pause: float = 30.0
    # The longest pause that a webhook may ask for.
    retry_after: float = 300.0
    # While closing: how many attempts in a row may fail until the rest is given up.
    last_attempts: int = 3


@frozen
class Batch:
    """What one POST carries. It keeps id and body however often it is sent."""

    id: str
    count: int
    weight: int
    body: bytes = field(repr=False)


def full_jitter(most: float) -> float:
    """Anything up to `most`, so that many who failed together do not come back together."""
    return random.uniform(0, most)


class Losses:
    """Counts what is lost and says so: at once, then at growing distance, and once more when it is over."""

    FIRST, LONGEST = 60.0, 3600.0

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._distance = self.FIRST
        self._silent_until = float("-inf")
        self._since = 0
        self._said = False
        self.count = 0

    def add(self, events: int, why: str) -> None:
        """Count, and say so if it is time to."""
        self.count += events
        self._since += events
        now = self._monotonic()
        if now < self._silent_until:
            return
        quiet = now - self._silent_until > self._distance
        self._distance = self.FIRST if quiet else min(2 * self._distance, self.LONGEST)
        self._silent_until = now + self._distance
        self._said = True
        log.warning("analytics: %d events dropped so far, the last %d because %s", self._since, events, why)

    def over(self) -> None:
        """The webhook takes events, and there is room for more."""
        if self._said:
            log.warning("analytics: the webhook takes events again; %d were dropped meanwhile", self._since)
            self._since, self._said = 0, False


class Webhook:
    """Takes events, delivers them, and counts: `taken` is always `delivered + dropped + waiting`. Made for one event loop at a time."""

    def __init__(
        self,
        config: WorkerConfig,
        clock: Clock,
        *,
        limits: Limits | None = None,
        jitter: Callable[[float], float] = full_jitter,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch_size = config.analytics_batch_size
        self._interval = config.analytics_flush_interval
        self._clock = clock
        self._limits = Limits() if limits is None else limits
        self._jitter = jitter
        self._losses = Losses(monotonic)
        self._courier = Courier(config.analytics_webhook_url or "", config.analytics_webhook_secret or ())
        # What waits, of each worker in order; the first worker is next. A batch is cut when it is its turn, and stays until it is settled.
        self._lines: dict[str, deque[bytes]] = {}
        self._batch: Batch | None = None
        self._attempts = 0
        self._bytes = 0
        # Attempts that failed in a row, of whichever batch: it is the webhook that is given time to recover.
        self._streak = 0
        self._asked_for = 0.0
        self._sender: asyncio.Task[None] | None = None
        self._enough = self._closing = asyncio.Event()
        self._deadline: float | None = None
        self.taken = 0
        self.delivered = 0
        self.waiting = 0
        self.failed_attempts = 0

    @property
    def dropped(self) -> int:
        """Events that were taken and will not be delivered."""
        return self._losses.count

    # ------------------------------------------------------------ taking

    def take(self, worker_id: str, name: str, event: Any) -> None:
        """Take one event, as a value with a JSON form. Never waits, never raises."""
        self.taken += 1
        try:
            # As text, since that has a size, and takes a fraction of the memory.
            text = dumps(event).encode()
        except Exception as error:
            self._losses.add(1, f"{quoted(name)} has no JSON form ({type(error).__name__})")
            return
        # Around a batch of one there are its id, its worker's in whatever escapes, and some words.
        if len(text) > self._limits.batch_bytes - 6 * len(worker_id) - 256:
            self._losses.add(1, f"{quoted(name)} has {len(text)} bytes, more than one request may have")
        elif self._deadline is not None:
            self._losses.add(1, "the worker was closing")
        else:
            self._lines.setdefault(worker_id, deque()).append(text)
            self.waiting += 1
            self._bytes += len(text)
            while self._lines and (self.waiting > self._limits.events or self._bytes > self._limits.bytes):
                self._drop_oldest()
            self._have_sender()
            if self.waiting >= self._batch_size:
                self._enough.set()

    def _drop_oldest(self) -> None:
        worker_id, line = next(iter(self._lines.items()))
        self._bytes -= len(line.popleft())
        self.waiting -= 1
        if not line:
            del self._lines[worker_id]
        self._losses.add(1, "the webhook does not keep up and the buffer is full")

    # ------------------------------------------------------------ closing

    async def close(self, within: float) -> None:
        """Send what is left, then stop. Returns within that many seconds; what is not delivered by then is counted as dropped."""
        if self._deadline is not None:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        # A tenth of the time is for an attempt that is cut off, to let go of its connection.
        self._deadline = loop.time() + within * 0.9
        self._streak, self._asked_for = 0, 0.0
        sender = self._sender
        try:
            while self.waiting:
                sender = self._have_sender()
                self._closing.set()
                self._enough.set()
                await asyncio.wait([sender], timeout=self._deadline - loop.time())
                # A loop that ends has cancelled the sender before it comes to us. What is left deserves another one all the same.
                if not (sender.done() and sender.cancelled()):
                    break
        finally:
            self._give_up()
            if sender is not None and sender.get_loop() is loop and not sender.done():
                sender.cancel()
                await asyncio.wait([sender], timeout=max(0.0, end - loop.time()))

    def _give_up(self) -> None:
        if lost := self.waiting:
            self._losses.count += lost
            log.warning("analytics: %d events were not delivered before the worker closed", lost)
        # Before the sender is cancelled: it has nothing more to settle, also if it does not let itself be.
        self._lines.clear()
        self._batch, self._sender = None, None
        self.waiting = self._bytes = 0

    # ------------------------------------------------------------ the sender

    def _have_sender(self) -> asyncio.Task[None]:
        sender = self._sender
        if sender is None or sender.done() or sender.get_loop() is not asyncio.get_running_loop():
            # New events too: the old ones may belong to a loop that has ended.
            self._enough, self._closing = asyncio.Event(), asyncio.Event()
            # A context of its own: it is no part of the turn that happens to be the first to have something to tell.
            self._sender = sender = asyncio.create_task(self._send(), name="dooers-analytics", context=Context())
        return sender

    async def _send(self) -> None:
        while self._deadline is None or self.waiting:
            # A client that was cut off keeps what it was doing in its pool; after a failure the next attempt has a new one.
            async with self._courier.client() as client:
                fit = True
                while fit and (self._deadline is None or self.waiting):
                    await self._due()
                    while self.waiting and (fit := await self._attempt(client)):
                        pass
            if not await self._rest():
                return

    async def _due(self) -> None:
        """Wait until there is a full batch, or the interval is over. What is late already waits for nothing more."""
        if not (self._streak and self.waiting):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._enough.wait()
        self._enough.clear()

    async def _rest(self) -> bool:
        """Wait as long as the webhook needs to recover; False where this worker has not that much time left."""
        if self._streak == 0 or not self.waiting:
            return True
        most = min(self._limits.pause * 2.0 ** min(self._streak - 1, 60), self._limits.longest_pause)
        seconds = self._jitter(most) + min(self._asked_for, self._limits.retry_after)
        if self._deadline is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()
            return True
        left = self._deadline - asyncio.get_running_loop().time()
        if self._streak >= self._limits.last_attempts or seconds >= left:
            return False
        await asyncio.sleep(seconds)
        return True

    async def _attempt(self, client: Any) -> bool:
        """Send the next batch; whether the webhook is fit for the one after it."""
        batch = self._batch
        if batch is None:
            self._batch = batch = self._cut()
            self._attempts = 0
        self._attempts += 1
        self._asked_for = 0.0
        try:
            stamp = int(self._clock.now().timestamp())
            status, header = await self._courier.post(client, batch.id, stamp, batch.body, self._limits.timeout)
            why = f"it answers {status}"
        except Exception as error:  # whatever the network does, the next attempt may work
            status, header, why = 0, None, kinds(error)
        if batch is not self._batch:
            return False  # given up meanwhile
        if 200 <= status < 300:
            self._streak = 0
            self.delivered += batch.count
            self._settle(batch)
            if 2 * self.waiting <= self._limits.events and 2 * self._bytes <= self._limits.bytes:
                self._losses.over()
            return True
        self.failed_attempts += 1
        log.debug("analytics: batch %s, attempt %d: %s", batch.id, self._attempts, why)
        if 0 < status < 500 and status not in _PASSING:
            if 300 <= status < 400:
                why += ", and a redirect is not followed: what is signed goes to the URL that was set, or nowhere"
            self._streak = 0
            self._refuse(batch, f"the webhook does not take them: {why}")
            return True
        self._streak += 1
        self._asked_for = retry_after(header, self._clock.now()) or 0.0
        if self._attempts >= self._limits.attempts:
            self._refuse(batch, f"the webhook failed {self._attempts} times: {why}")
        return False

    def _cut(self) -> Batch:
        """The next batch: of one worker, in order, within the bounds. What that worker has more waits until the others had their turn."""
        worker_id = next(iter(self._lines))
        line = self._lines.pop(worker_id)
        batch_id, now = self._clock.new_id(), self._clock.now()
        room = self._limits.batch_bytes - len(_envelope(batch_id, worker_id, [], now))
        events = [line.popleft()]
        weight = len(events[0])
        while line and len(events) < self._batch_size and weight + len(events) + len(line[0]) <= room:
            weight += len(line[0])
            events.append(line.popleft())
        if line:
            self._lines[worker_id] = line
        return Batch(batch_id, len(events), weight, _envelope(batch_id, worker_id, events, now))

    def _settle(self, batch: Batch) -> None:
        self._batch = None
        self.waiting -= batch.count
        self._bytes -= batch.weight

    def _refuse(self, batch: Batch, why: str) -> None:
        self._settle(batch)
        self._losses.add(batch.count, why)


def _envelope(batch_id: str, worker_id: str, events: list[bytes], sent_at: datetime) -> bytes:
    """The JSON of `analytics.AnalyticsBatch`, around events that are JSON already."""
    head, tail = dumps({"batch_id": batch_id, "worker_id": worker_id}), dumps({"sent_at": sent_at})
    return b'%b,"events":[%b],%b' % (head[:-1].encode(), b",".join(events), tail[1:].encode())
