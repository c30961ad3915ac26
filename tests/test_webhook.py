"""Delivery to a webhook, which here is a real HTTP server: one that takes, refuses, breaks off, hangs, lies and babbles."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import random
import socket
import ssl
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import trustme
from attrs import define, evolve, fields
from hypothesis import given
from hypothesis import strategies as st
from receiver import WITHIN, Receiver, Reply, a_receiver, answer, eventually, reset
from samples import T0
from snippets import blocks, run

from dooers import AnalyticsBatch, ConfigError, WorkerConfig, WorkerServer
from dooers.clock import SystemClock
from dooers.config import signing_key
from dooers.courier import retry_after, signatures
from dooers.webhook import Limits, Losses, Webhook, full_jitter

# As patient as the real ones, but quicker.
QUICK = Limits(pause=0.001, longest_pause=0.01)
NOTHING = Limits(pause=0, longest_pause=0)


def webhook_for(url: str, *, limits: Limits = QUICK, clock: Any = None, **more: Any) -> Webhook:
    inside = {name: more.pop(name) for name in ("jitter", "monotonic") if name in more}
    config = WorkerConfig(
        database_type="memory",
        analytics_webhook_url=url,
        **{f"analytics_{name}": value for name, value in {"flush_interval": 600, **more}.items()},
    )
    return Webhook(config, clock or SystemClock(), limits=limits, **inside)


def take(webhook: Webhook, *numbers: int, worker_id: str = "worker-1", **more: Any) -> None:
    for number in numbers:
        webhook.take(worker_id, f"e{number}", {"event": f"e{number}", **more})
        check(webhook)


def check(webhook: Webhook) -> None:
    """What holds at any moment: nothing is lost without being counted, and the sums are those of what is there."""
    assert webhook.taken == webhook.delivered + webhook.dropped + webhook.waiting
    batch = webhook._batch
    lines = webhook._lines.values()
    assert webhook.waiting == sum(map(len, lines)) + (batch.count if batch else 0)
    assert webhook._bytes == sum(len(text) for line in lines for text in line) + (batch.weight if batch else 0)
    assert webhook.waiting <= webhook._limits.events
    assert webhook._bytes <= webhook._limits.bytes
    assert all(lines)


async def closed(webhook: Webhook, within: float = WITHIN) -> None:
    await webhook.close(within)
    check(webhook)
    assert webhook.waiting == 0


def names(receiver: Receiver) -> list[list[str]]:
    return [request.names for request in receiver.requests]


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# ---------------------------------------------------------------- batches


async def test_a_full_batch_is_sent_at_once_and_whole() -> None:
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=3)
        take(webhook, 0, 1, 2)
        (request,) = await receiver.until(1)
        assert request.names == ["e0", "e1", "e2"]
        assert (
            set(request.batch)
            == {"batch_id", "worker_id", "events", "sent_at"}
            == {one.name for one in fields(AnalyticsBatch)}
        )
        assert request.batch["worker_id"] == "worker-1"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["webhook-id"] == request.batch["batch_id"]
        await closed(webhook)
        assert webhook.delivered == 3


async def test_no_batch_is_larger_than_the_batch_size() -> None:
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=10)
        take(webhook, *range(45))
        await closed(webhook)
        assert [event for batch in names(receiver) for event in batch] == [f"e{n}" for n in range(45)]
        assert [len(batch) for batch in names(receiver)] == [10, 10, 10, 10, 5]
        assert len({request.headers["webhook-id"] for request in receiver.requests}) == 5
        assert (webhook.delivered, webhook.dropped) == (45, 0)


async def test_what_is_no_full_batch_is_sent_after_the_interval_over_the_same_connection() -> None:
    async with a_receiver(answer(200, body=b'{"ok":true}'), answer(204)) as receiver:
        webhook = webhook_for(receiver.url, batch_size=100, flush_interval=0.05)
        for n in range(3):
            take(webhook, n)
            await receiver.until(n + 1)
            await eventually(lambda: webhook.waiting == 0)
        assert names(receiver) == [["e0"], ["e1"], ["e2"]]
        assert receiver.connections == 1
        await closed(webhook)


async def test_nothing_is_sent_before_the_interval_or_a_full_batch() -> None:
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=3)
        take(webhook, 1, 2)
        await asyncio.sleep(0.1)
        assert receiver.requests == []
        await closed(webhook)
        assert names(receiver) == [["e1", "e2"]]


async def test_a_batch_is_of_one_worker_and_nobodys_flood_takes_the_others_turn() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, batch_size=4)
        take(webhook, *range(9), worker_id="flood")
        await receiver.until(1)
        take(webhook, 1, 2, worker_id='quiet "é\\')
        receiver.open.set()
        await closed(webhook)
        sent = [(request.batch["worker_id"], request.names) for request in receiver.requests]
        assert sent == [
            ("flood", ["e0", "e1", "e2", "e3"]),
            ("flood", ["e4", "e5", "e6", "e7"]),
            ('quiet "é\\', ["e1", "e2"]),
            ("flood", ["e8"]),
        ]


async def test_a_batch_is_bounded_in_bytes_too() -> None:
    limits = Limits(batch_bytes=5000)
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, limits=limits, batch_size=100)
        take(webhook, *range(20), data="x" * 1000)
        take(webhook, 20, data="y" * 4600)
        take(webhook, 21, data="z" * 1000)
        await closed(webhook)
        assert [event for batch in names(receiver) for event in batch] == [f"e{n}" for n in range(22)]
        assert max(len(request.body) for request in receiver.requests) <= 5000
        assert [len(batch) for batch in names(receiver)] == [4, 4, 4, 4, 4, 1, 1]


async def test_an_event_that_no_batch_can_hold_is_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=2)
        take(webhook, 1, data="x" * 1_000_000)
        take(webhook, 2, 3)
        await closed(webhook)
        assert names(receiver) == [["e2", "e3"]]
        assert webhook.dropped == 1
    assert "'e1' has 1000" in caplog.text


async def test_what_cannot_be_written_as_json_is_dropped_and_the_next_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, data=object())
        take(webhook, 2)
        await closed(webhook)
        assert names(receiver) == [["e2"]]
        assert webhook.dropped == 1
    assert "'e1' has no JSON form" in caplog.text


# ---------------------------------------------------------------- a webhook that fails


@pytest.mark.parametrize("reply", [408, 425, 429, 500, 502, 503, 599, None, reset, b"nonsense\r\n\r\n"])
async def test_a_batch_that_failed_is_sent_again_as_it_was(reply: Any) -> None:
    async with a_receiver(reply, reply) as receiver:
        webhook = webhook_for(receiver.url, batch_size=2)
        take(webhook, 1, 2, 3)
        await receiver.until(3)
        await closed(webhook)
        assert names(receiver) == [["e1", "e2"]] * 3 + [["e3"]]
        assert len({request.body for request in receiver.requests[:3]}) == 1
        assert len({request.headers["webhook-id"] for request in receiver.requests[:3]}) == 1
        assert (webhook.delivered, webhook.dropped, webhook.failed_attempts) == (3, 0, 2)


@pytest.mark.parametrize("status", [301, 304, 400, 401, 404, 410, 413, 422])
async def test_a_batch_that_was_refused_is_dropped_at_once_and_the_next_is_sent(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_receiver(status) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, 2)
        await closed(webhook)
        assert names(receiver) == [["e1"], ["e2"]]
        assert (webhook.delivered, webhook.dropped, webhook.failed_attempts) == (1, 1, 1)
    assert f"it answers {status}" in caplog.text


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_the_log_says_so(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with a_receiver() as elsewhere:
        async with a_receiver(answer(status, f"location: {elsewhere.url}?token=never")) as receiver:
            with caplog.at_level(logging.DEBUG):
                webhook = webhook_for(receiver.url, batch_size=1)
                take(webhook, 1)
                await closed(webhook)
        assert elsewhere.connections == 0
    assert "a redirect is not followed" in caplog.text
    assert "never" not in caplog.text


async def test_a_batch_that_keeps_failing_is_dropped_and_counted_and_the_next_is_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_receiver(*[500] * 8) as receiver:
        webhook = webhook_for(receiver.url, batch_size=2)
        take(webhook, 0, 1, 2, 3)
        await receiver.until(9)
        await closed(webhook)
        assert names(receiver) == [["e0", "e1"]] * 8 + [["e2", "e3"]]
        assert (webhook.delivered, webhook.dropped, webhook.failed_attempts) == (2, 2, 8)
    assert "2 events dropped so far, the last 2 because the webhook failed 8 times: it answers 500" in caplog.text


async def test_pauses_double_up_to_a_bound_and_jitter_has_all_of_each() -> None:
    asked: list[float] = []

    def jitter(most: float) -> float:
        asked.append(most)
        return 0.0

    limits = Limits(pause=0.5, longest_pause=10, attempts=8)
    async with a_receiver(*[500] * 10) as receiver:
        webhook = webhook_for(receiver.url, limits=limits, jitter=jitter, batch_size=1)
        take(webhook, 1, 2)
        await receiver.until(11)
        await eventually(lambda: webhook.waiting == 0)
        # The eleventh attempt is the third of the second batch: it is the webhook that is given time, not a batch.
        assert asked == [0.5, 1, 2, 4, 8, 10, 10, 10, 10, 10]
        receiver.replies.append(500)
        take(webhook, 3)
        await eventually(lambda: webhook.waiting == 0)
        assert asked[10:] == [0.5]
        await closed(webhook)


def test_full_jitter_is_anything_up_to_the_bound() -> None:
    found = [full_jitter(10) for _ in range(1000)]
    assert 0 <= min(found) < 1
    assert 9 < max(found) <= 10


# ---------------------------------------------------------------- Retry-After


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_webhook_that_says_when_to_come_again_is_left_alone_until_then(status: int, form: str) -> None:
    clock = Standing(T0)
    header = "1" if form == "seconds" else format_datetime(T0 + timedelta(seconds=1), usegmt=True)
    async with a_receiver(answer(status, f"retry-after: {header}")) as receiver:
        webhook = webhook_for(receiver.url, limits=NOTHING, clock=clock, batch_size=1)
        take(webhook, 1)
        first, second = await receiver.until(2)
        assert second.at - first.at > 0.95
        await closed(webhook)
        assert webhook.delivered == 1


async def test_what_a_webhook_asks_for_is_bounded_and_jitter_comes_on_top() -> None:
    limits = Limits(pause=100, longest_pause=100, retry_after=0.2)
    never = format_datetime(datetime(9999, 12, 31, tzinfo=UTC), usegmt=True)
    async with a_receiver(answer(503, "retry-after: " + "9" * 400), answer(429, f"retry-after: {never}")) as receiver:
        webhook = webhook_for(receiver.url, limits=limits, jitter=lambda most: most / 1000, batch_size=1)
        take(webhook, 1)
        first, second, third = await receiver.until(3)
        assert 0.28 < second.at - first.at < 20
        assert 0.28 < third.at - second.at < 20
        await closed(webhook)


@define
class Standing:
    """A clock that stands."""

    time: datetime

    def now(self) -> datetime:
        return self.time

    def new_id(self) -> str:
        return "batch-1"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("9" * 5000, float("inf")),
        ("Thu, 01 Jan 2026 00:02:00 GMT", 120),
        ("Thu, 01 Jan 2026 01:02:00 +0100", 120),
        ("Thu, 01 Jan 2026 00:02:00 -0000", 120),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0),
        ("Thursday, 01-Jan-26 00:02:00 GMT", 120),
        (None, None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Thu, 99 Jan 2026 00:02:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_its_forms(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, T0) == seconds


@given(st.one_of(st.text(), st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [+-]?\w+")))
def test_no_retry_after_is_an_error(header: str) -> None:
    found = retry_after(header, T0)
    assert found is None or found >= 0


# ---------------------------------------------------------------- a webhook that hangs, and one that babbles


async def half_an_answer(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/pl")
    await asyncio.Event().wait()


async def a_byte_now_and_then(writer: asyncio.StreamWriter) -> None:
    """Slow enough never to end, quick enough that no wait for the next byte is long."""
    for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"x" * 100_000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.01)


async def many_false_starts(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("hang", [half_an_answer, a_byte_now_and_then, many_false_starts])
async def test_an_answer_that_does_not_come_in_time_is_a_failed_attempt(
    hang: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with a_receiver(hang) as receiver:
        webhook = webhook_for(receiver.url, limits=evolve(QUICK, timeout=0.3), batch_size=1)
        take(webhook, 1)
        await receiver.until(2)
        await closed(webhook)
        assert names(receiver) == [["e1"], ["e1"]]
        assert (webhook.delivered, webhook.failed_attempts) == (1, 1)


async def test_a_status_counts_even_if_the_rest_of_its_answer_hangs() -> None:
    async def no_body(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12")
        await asyncio.Event().wait()

    async with a_receiver(no_body) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, 2)
        await closed(webhook)
        assert names(receiver) == [["e1"], ["e2"]]
        assert (webhook.delivered, webhook.failed_attempts) == (2, 0)


async def test_a_gigabyte_of_answer_is_not_read() -> None:
    written = 0

    async def gigabyte(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")
        while written < 2**30:
            writer.write(bytes(2**18))
            await writer.drain()
            written += 2**18

    async with a_receiver(gigabyte) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, 2)
        await closed(webhook)
        assert webhook.delivered == 2
        assert names(receiver) == [["e1"], ["e2"]]
    # What the kernel's buffers on both sides hold is sent, whoever reads.
    assert written < 2**25


async def test_a_compressed_bomb_stays_compressed() -> None:
    bomb = answer(200, "content-encoding: gzip", body=b"this is no gzip")
    async with a_receiver(bomb) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1)
        await closed(webhook)
        assert webhook.delivered == 1


async def test_cookies_are_not_kept() -> None:
    async with a_receiver(answer(200, "set-cookie: a=b")) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, 2)
        await closed(webhook)
        assert "cookie" not in receiver.requests[1].headers


async def test_a_slow_webhook_delays_nobody_who_tracks() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 0)
        await receiver.until(1)
        with in_time(2):
            take(webhook, *range(1, 500))
        assert len(receiver.requests) == 1
        receiver.open.set()
        await closed(webhook)
        assert names(receiver) == [[f"e{n}"] for n in range(500)]
        assert webhook.dropped == 0


# ---------------------------------------------------------------- what is kept, and what is lost


async def test_more_than_the_buffer_holds_drops_the_oldest_that_waits_and_counts_it() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, limits=Limits(events=50), batch_size=10)
        take(webhook, *range(10))
        await receiver.until(1)
        take(webhook, *range(10, 90))
        assert (webhook.dropped, webhook.waiting) == (40, 50)
        receiver.open.set()
        await closed(webhook)
        assert [event for batch in names(receiver) for event in batch] == [
            f"e{n}" for n in (*range(10), *range(50, 90))
        ]
        assert webhook.delivered == 50


async def test_the_buffer_is_bounded_in_bytes_too() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, limits=Limits(bytes=100_000), batch_size=1)
        take(webhook, 0)
        await receiver.until(1)
        take(webhook, *range(1, 30), data="x" * 10_000)
        assert webhook.waiting == 10
        take(webhook, 30, data="x" * 95_000)
        assert webhook.waiting == 2
        assert webhook.dropped == 29
        await webhook.close(0)
        check(webhook)


async def test_a_hundred_thousand_events_while_the_webhook_hangs_cost_bounded_memory_and_the_drops_are_exact() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, limits=Limits(bytes=4 * 1024 * 1024), batch_size=10)
        take(webhook, *range(10))
        await receiver.until(1)
        gc.collect()
        tracemalloc.start()
        try:
            for n in range(100_000):
                webhook.take("worker-1", "burst", {"event": "burst", "n": n, "data": "x" * 100})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        check(webhook)
        assert (webhook.taken, webhook.waiting, webhook.dropped) == (100_010, 10_000, 90_010)
        assert peak < 6 * 1024 * 1024
        receiver.open.set()
        await closed(webhook)
        assert webhook.delivered == 10_000
        last = [event["n"] for request in receiver.requests[1:] for event in request.batch["events"]]
        assert last == list(range(90_010, 100_000))


@define
class Watch:
    """A stopwatch that is turned by hand."""

    time: float = 0.0

    def __call__(self) -> float:
        return self.time


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_drops_are_told_at_once_then_at_growing_distance_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses(watch := Watch())
    losses.add(5, "it hangs")
    assert said(caplog) == ["analytics: 5 events dropped so far, the last 5 because it hangs"]
    lines = []
    for _ in range(24 * 3600):
        watch.time += 1
        losses.add(10, "it hangs")
        lines += [(watch.time, line) for line in said(caplog)]
    assert [moment for moment, _ in lines[:7]] == [60, 180, 420, 900, 1860, 3780, 7380]
    assert len(lines) == 7 + 21
    assert lines[0][1] == "analytics: 605 events dropped so far, the last 10 because it hangs"
    losses.over()
    losses.over()
    assert said(caplog) == ["analytics: the webhook takes events again; 864005 were dropped meanwhile"]
    assert losses.count == 864_005
    # A new outage soon after is told with the next line that is due; one after a long quiet at once.
    losses.add(1, "it hangs again")
    losses.over()
    assert said(caplog) == []
    watch.time += 3 * 3600
    losses.add(1, "it hangs again")
    assert said(caplog) == ["analytics: 2 events dropped so far, the last 1 because it hangs again"]
    watch.time += 60
    losses.add(1, "it hangs again")
    assert len(said(caplog)) == 1


def test_a_webhook_that_takes_every_other_batch_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses(watch := Watch())
    for _ in range(3600):
        watch.time += 1
        losses.add(10, "it answers 400")
        losses.over()
    assert losses.count == 36_000
    assert len(said(caplog)) <= 14


async def test_a_webhook_that_was_away_is_told_of_twice(caplog: pytest.LogCaptureFixture) -> None:
    async with a_receiver(*[500] * 30) as receiver:
        webhook = webhook_for(receiver.url, limits=evolve(QUICK, attempts=2), batch_size=1)
        take(webhook, *range(20))
        await eventually(lambda: webhook.waiting == 0)
        assert (webhook.delivered, webhook.dropped) == (5, 15)
        assert said(caplog) == [
            "analytics: 1 events dropped so far, the last 1 because the webhook failed 2 times: it answers 500",
            "analytics: the webhook takes events again; 15 were dropped meanwhile",
        ]
        await closed(webhook)
    assert said(caplog) == []


# ---------------------------------------------------------------- closing


async def test_closing_sends_what_is_left_once() -> None:
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=100)
        take(webhook, 1)
        await closed(webhook)
        await closed(webhook)
        assert names(receiver) == [["e1"]]


async def test_what_is_taken_after_closing_is_dropped_and_counted() -> None:
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        before = asyncio.all_tasks()
        await closed(webhook)
        take(webhook, 1)
        assert (webhook.dropped, webhook.waiting) == (1, 0)
        assert asyncio.all_tasks() == before
        assert receiver.connections == 0


@asynccontextmanager
async def nobody_accepts() -> AsyncIterator[str]:
    """A port on which connections are made by the kernel only: what is sent there stays in small buffers."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def hanging(where: str) -> AsyncIterator[tuple[str, Any]]:
    """The address of a webhook that hangs there, and an event for it."""
    if where == "connect":
        # TLS: somebody answers the telephone, and says nothing.
        async with nobody_accepts() as address:
            yield f"https://{address}/hook", None
    elif where == "sending":
        async with nobody_accepts() as address:
            yield f"http://{address}/hook", "x" * 24 * 1024 * 1024
    else:
        replies = [half_an_answer] if where == "half an answer" else []
        async with a_receiver(*replies, slow=where == "answer") as receiver:
            yield receiver.url, None


@pytest.mark.parametrize("where", ["connect", "sending", "answer", "half an answer"])
@pytest.mark.parametrize("mid_way", [True, False])
async def test_closing_returns_in_time_wherever_the_webhook_hangs(
    where: str, mid_way: bool, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(bytes=2**26, batch_bytes=2**25)
    before = asyncio.all_tasks()
    async with hanging(where) as (url, data):
        webhook = webhook_for(url, limits=limits, batch_size=2)
        take(webhook, 1, data=data)
        take(webhook, 2, 3)
        if mid_way:
            await eventually(lambda: webhook._batch is not None)
            await asyncio.sleep(0.05)
        with in_time(5):
            await closed(webhook, 0.5)
        assert (webhook.delivered, webhook.dropped) == (0, 3)
        assert [task for task in asyncio.all_tasks() - before if task.get_name() == "dooers-analytics"] == []
    assert "3 events were not delivered before the worker closed" in caplog.text


async def test_a_webhook_that_hangs_in_the_handshake_leaves_no_connection_open() -> None:
    ended = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        with suppress(ConnectionError):
            await reader.read()
        ended += 1
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        webhook = webhook_for(url, limits=evolve(QUICK, timeout=0.05), batch_size=1)
        take(webhook, 1)
        await eventually(lambda: webhook.dropped == 1)
        await eventually(lambda: ended == webhook.failed_attempts == 8)
        await closed(webhook)


async def test_closing_with_no_time_at_all_returns_at_once() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, 2)
        await receiver.until(1)
        with in_time(2):
            await closed(webhook, 0)
        assert webhook.dropped == 2


async def test_a_webhook_that_is_not_there_is_given_up_soon_and_counted() -> None:
    async with a_receiver() as receiver:
        pass
    webhook = webhook_for(receiver.url, batch_size=2)
    take(webhook, 0, 1, 2)
    with in_time(WITHIN / 2):
        await closed(webhook)
    assert (webhook.dropped, webhook.delivered) == (3, 0)
    assert webhook.failed_attempts <= 4


async def test_closing_cuts_a_pause_short_for_one_more_try() -> None:
    limits = Limits(pause=3600, longest_pause=3600)
    async with a_receiver(answer(503, "retry-after: 200")) as receiver:
        webhook = webhook_for(receiver.url, limits=limits, batch_size=1)
        take(webhook, 1)
        await eventually(lambda: webhook.failed_attempts == 1)
        with in_time(WITHIN / 2):
            await closed(webhook)
        assert names(receiver) == [["e1"], ["e1"]]
        assert webhook.delivered == 1


async def test_closing_does_not_wait_for_a_webhook_that_asks_for_more_time_than_there_is() -> None:
    async with a_receiver(*[answer(503, "retry-after: 200")] * 9) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, 2)
        with in_time(WITHIN / 2):
            await closed(webhook)
        assert len(receiver.requests) <= 2
        assert webhook.dropped == 2


async def test_closing_that_is_cancelled_still_counts_and_leaves_no_task() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1, 2)
        await receiver.until(1)
        sender = webhook._sender
        assert sender is not None
        closing = asyncio.create_task(webhook.close(WITHIN))
        await asyncio.sleep(0.01)
        closing.cancel()
        await asyncio.wait([closing, sender])
        check(webhook)
        assert (webhook.dropped, webhook.waiting) == (2, 0)


# ---------------------------------------------------------------- loops that end


async def test_the_sender_is_no_part_of_the_turn_that_was_the_first_to_track() -> None:
    whose: ContextVar[str] = ContextVar("whose")
    whose.set("a turn's")
    seen: list[str] = []

    def jitter(most: float) -> float:
        seen.append(whose.get("nobody's"))
        return 0.0

    async with a_receiver(500) as receiver:
        webhook = webhook_for(receiver.url, jitter=jitter, batch_size=1)
        take(webhook, 1)
        await receiver.until(2)
        assert seen == ["nobody's"]
        await closed(webhook)


async def test_a_sender_that_a_dying_loop_cancelled_does_not_keep_events_to_itself() -> None:
    async with a_receiver(slow=True) as receiver:
        webhook = webhook_for(receiver.url, batch_size=2)
        take(webhook, 1, 2, 3)
        await receiver.until(1)
        sender = webhook._sender
        assert sender is not None
        sender.cancel()
        receiver.open.set()
        await closed(webhook)
        # It may have arrived the first time: the receiver knows by the id.
        assert names(receiver) == [["e1", "e2"], ["e1", "e2"], ["e3"]]
        assert len({request.headers["webhook-id"] for request in receiver.requests}) == 2
        assert (webhook.delivered, webhook.dropped) == (3, 0)


def test_what_waits_is_sent_on_another_loop_when_the_first_has_ended() -> None:
    loop = asyncio.new_event_loop()

    async def before(webhook: Webhook) -> None:
        take(webhook, 1)
        await asyncio.sleep(0)

    async def after() -> None:
        async with a_receiver() as receiver:
            webhook._courier._url = receiver.url
            take(webhook, 2)
            await closed(webhook)
            assert names(receiver) == [["e1", "e2"]]

    async def end(orphan: asyncio.Task[None]) -> None:
        # On a loop, as its client needs one to be closed. Else the collector ends it, within whatever test is running then.
        stopped: Any = orphan.get_coro()
        stopped.close()

    webhook = webhook_for("http://127.0.0.1:9/hook", batch_size=10)
    loop.run_until_complete(before(webhook))
    orphan = webhook._sender
    loop.close()
    assert orphan is not None
    assert not orphan.done()
    asyncio.run(after())
    asyncio.run(end(orphan))
    orphan._log_destroy_pending = False  # type: ignore[attr-defined]


@contextmanager
def a_receiver_in_a_thread() -> Iterator[Receiver]:
    """A receiver that outlives the loops of a test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = a_receiver()
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(WITHIN)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(WITHIN)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("size", [1, 100])
def test_a_worker_delivers_on_each_loop_it_is_opened_on_also_if_nobody_closes_it(size: int) -> None:
    async def track(name: str, *, close: bool) -> None:
        await (await worker.analytics()).track(name)
        if close:
            await worker.close()

    with a_receiver_in_a_thread() as receiver:
        worker = WorkerServer(
            WorkerConfig(database_type="memory", analytics_webhook_url=receiver.url, analytics_batch_size=size)
        )
        for number in range(4):
            asyncio.run(track(f"loop.{number}", close=number % 2 == 0))
        assert names(receiver) == [[f"loop.{number}"] for number in range(4)]


# ---------------------------------------------------------------- signed

WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


async def signed(secret: Any, *replies: int) -> Receiver:
    async with a_receiver(*replies) as receiver:
        webhook = webhook_for(receiver.url, batch_size=1, webhook_secret=secret)
        webhook.take("worker-1", "é", {"event": "é", "data": "\u2028 \U0001f600"})
        await closed(webhook)
        return receiver


async def test_a_batch_is_signed_as_the_standards_own_library_verifies() -> None:
    receiver = await signed(WHSEC, 500, 429)
    assert len(receiver.requests) == 3
    for request in receiver.requests:
        batch = standardwebhooks.Webhook(WHSEC).verify(request.body, request.headers)
        assert batch["events"][0]["event"] == "é"
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(WHSEC).verify(request.body + b" ", request.headers)
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(b"another").verify(request.body, request.headers)


async def test_a_secret_that_is_any_text_is_its_bytes() -> None:
    (request,) = (await signed(("päss, word",))).requests
    standardwebhooks.Webhook("päss, word".encode()).verify(request.body, request.headers)


async def test_several_secrets_sign_each_so_that_a_receiver_may_know_either() -> None:
    (request,) = (await signed(f"new, {WHSEC}")).requests
    for secret in (b"new", WHSEC):
        standardwebhooks.Webhook(secret).verify(request.body, request.headers)
    assert request.headers["webhook-signature"].count("v1,") == 2


@pytest.mark.parametrize("secret", [None, "", ()])
async def test_without_a_secret_nothing_is_signed_but_the_id_is_told(secret: Any) -> None:
    (request,) = (await signed(secret)).requests
    assert "webhook-signature" not in request.headers
    assert request.headers["webhook-id"] == request.batch["batch_id"]


async def test_each_attempt_has_the_time_of_its_own() -> None:
    clock = Standing(T0)
    async with a_receiver(500, slow=True) as receiver:
        webhook = webhook_for(receiver.url, clock=clock, batch_size=1, webhook_secret="s")
        take(webhook, 1)
        await receiver.until(1)
        clock.time += timedelta(hours=1)
        receiver.open.set()
        first, second = await receiver.until(2)
        await closed(webhook)
    stamps = [int(request.headers["webhook-timestamp"]) for request in (first, second)]
    assert stamps == [T0.timestamp(), T0.timestamp() + 3600]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    assert first.body == second.body


async def test_the_receiver_of_the_page_knows_what_is_genuine_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [
        one for one in blocks("docs/survival.md") if one.heading == "The analytics webhook" and one.language == "python"
    ]
    names: dict[str, Any] = {"__name__": "receiver"}
    await run(block.text, names, block.place)
    verified = names["verified"]
    (request,) = (await signed("old,a secret")).requests
    headers = request.headers
    assert verified(b"a secret", headers, request.body)
    assert verified(b"old", headers, request.body)
    assert not verified(b"new", headers, request.body)
    assert not verified(b"old", headers, request.body + b" ")
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert not verified(b"old", {**headers, name: "é"}, request.body)
        assert not verified(b"old", {**headers, name: ""}, request.body)
    late = int(headers["webhook-timestamp"]) - 301
    stale = {**headers, "webhook-timestamp": str(late)}
    stale["webhook-signature"] = signatures([b"old"], headers["webhook-id"], late, request.body)
    assert not verified(b"old", stale, request.body)


def test_a_known_answer() -> None:
    # By `printf 'batch-1.1767225600.{"a":1}' | openssl dgst -sha256 -hmac secret -binary | base64`, and the same with the other key.
    body = b'{"a":1}'
    expected = "v1,gIvzuY1n1k8ESQc38FkG6gbbrhKamqUAjbuWO3C1wdo= v1,NI3j2RbvYMvml0Ao60lgFlVTdMy6PhUIT1Ep3xqh/00="
    assert signatures([b"secret", signing_key("whsec_b3RoZXI=")], "batch-1", 1767225600, body) == expected


@pytest.mark.parametrize(
    ("secret", "key"),
    [("whsec_b3RoZXI=", b"other"), ("whsec_b3RoZXI", b"other"), ("b3RoZXI=", b"b3RoZXI="), ("é", b"\xc3\xa9")],
)
def test_the_key_of_a_secret(secret: str, key: bytes) -> None:
    assert signing_key(secret) == key


# ---------------------------------------------------------------- nothing of it is told


@pytest.mark.parametrize("failing", ["refused", "reset", "nonsense", "redirect", "certificate"])
async def test_no_log_line_has_the_url_or_the_secret(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    replies: dict[str, Reply] = {
        "reset": reset,
        "nonsense": b"never-said\r\n\r\n",
        "redirect": answer(302, "location: /never-there"),
    }
    tls = None
    if failing == "certificate":
        trustme.CA().issue_cert("127.0.0.1").configure_cert(tls := ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    caplog.set_level(logging.DEBUG)
    async with a_receiver(replies.get(failing, 500), tls=tls) as receiver:
        url = receiver.url.replace("://", "://user:never-userinfo@") + "/never-path?token=never-token"
        if failing == "refused":
            url = url.replace(str(receiver.url.split(":")[2].split("/")[0]), "1")
        webhook = webhook_for(url, limits=evolve(QUICK, attempts=1), batch_size=1, webhook_secret="never-secret")
        take(webhook, 1)
        await eventually(lambda: webhook.dropped == 1)
        await closed(webhook)
    if receiver.requests:
        assert receiver.requests[0].headers["authorization"].startswith("Basic ")
    assert "1 events dropped" in caplog.text
    assert "never" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith(("httpx", "httpcore"))]


async def test_what_others_in_the_process_ask_by_httpx_is_logged_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    import httpx

    caplog.set_level(logging.INFO)
    async with a_receiver() as receiver:
        webhook = webhook_for(receiver.url, batch_size=1)
        take(webhook, 1)
        await receiver.until(1)
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{receiver.url}?mine", content=b"{}")
        await closed(webhook)
    assert len([line for line in caplog.messages if line.startswith("HTTP Request") and "?mine" in line]) == 1
    assert len([line for line in caplog.messages if line.startswith("HTTP Request")]) == 1


# ---------------------------------------------------------------- TLS, and what is told at the start


async def test_it_is_delivered_over_tls_and_a_stranger_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for issuer, delivered in ((authority, 1), (trustme.CA(), 0)):
        issuer.issue_cert("127.0.0.1").configure_cert(tls := ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        async with a_receiver(tls=tls) as receiver:
            webhook = webhook_for(receiver.url, batch_size=1)
            take(webhook, 1)
            await eventually(lambda webhook=webhook: webhook.delivered or webhook.failed_attempts)  # type: ignore[misc]
            await closed(webhook)
            assert (webhook.delivered, len(receiver.requests)) == (delivered, delivered)


@pytest.mark.parametrize(
    "url", ["http://", "http:///never", "https://[never", "http://never:port/", "http://a:99999999/"]
)
async def test_a_url_that_nothing_can_be_sent_to_is_told_when_the_worker_starts_and_not_shown(url: str) -> None:
    worker = WorkerServer(WorkerConfig(database_type="memory", analytics_webhook_url=url))
    with pytest.raises(ConfigError, match=r"WorkerConfig\.analytics_webhook_url: expected") as refused:
        await worker.ensure_initialized()
    assert "never" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_missing_httpx_is_told_when_the_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigError, match="pip install httpx"):
        webhook_for("http://127.0.0.1/hook")


# ---------------------------------------------------------------- anything, in any order


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_every_event_is_delivered_or_counted_and_each_worker_in_order(seed: int) -> None:
    chance = random.Random(seed)
    replies: list[Any] = [200, 200, 200, 201, 204, 301, 400, 413, 429, 500, None, reset, half_an_answer, b"nonsense"]
    limits = Limits(
        events=60,
        bytes=8000,
        batch_bytes=2500,
        timeout=0.2,
        pause=0.001,
        longest_pause=0.005,
        attempts=3,
        retry_after=0,
    )
    async with a_receiver(*chance.choices(replies, k=300)) as receiver:
        webhook = webhook_for(receiver.url, limits=limits, batch_size=chance.randint(1, 9), flush_interval=0.01)
        for number in range(600):
            worker_id = f"worker-{chance.randrange(3)}"
            data = object() if chance.random() < 0.01 else "x" * int(chance.expovariate(1 / 200))
            take(webhook, number, worker_id=worker_id, data=data)
            if chance.random() < 0.02 and webhook._sender:
                webhook._sender.cancel()
            if chance.random() < 0.2:
                await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01]))
                check(webhook)
        await closed(webhook, 5)
        assert webhook.taken == 600 == webhook.delivered + webhook.dropped
        first: dict[str, Any] = {}
        for request in receiver.requests:
            same = first.setdefault(request.headers["webhook-id"], request)
            assert same.body == request.body
            assert len(request.body) <= limits.batch_bytes
        for worker_id in {request.batch["worker_id"] for request in first.values()}:
            numbers = [
                int(name[1:])
                for request in first.values()
                if request.batch["worker_id"] == worker_id
                for name in request.names
            ]
            assert numbers == sorted(set(numbers))
