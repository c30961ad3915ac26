"""Many conversations, made by the database itself in a few statements: for tests of plans, and for measuring. Not a test.

One tenant has nine threads of ten, as it goes; one has twenty, whatever there are; the rest is spread over a thousand
organizations. One thread has as many events as it is asked for, half as many runs, and one of those is running.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from attrs import frozen

__all__ = ["BIG", "LONG", "POSTGRES", "SMALL", "SQLITE", "START", "Dialect", "Plenty", "numbered"]

START = datetime(2026, 1, 1, tzinfo=UTC)
BIG = {"worker_id": "worker-1", "organization_id": "org-big", "workspace_id": "ws-1"}
SMALL = {"worker_id": "worker-1", "organization_id": "org-small", "workspace_id": "ws-1"}
SPREAD = 997

# Ids as wide as ours, and sorted by time as ours are.
_ID = "01900000-0000-7000-{kind}-%012d"
_KINDS = {"thread": "8000", "event": "8001", "run": "8002", "long event": "8003", "long run": "8004"}


def numbered(kind: str, n: int) -> str:
    """The id of the nth of these, from 0."""
    return _ID.format(kind=_KINDS[kind]) % n


LONG = numbered("thread", 0)


@frozen
class Dialect:
    """What databases say differently: the numbers below a bound, a number as twelve digits, so many seconds after `START`, JSON."""

    series: str
    digits: str
    time: str
    json: str


POSTGRES = Dialect(
    series="generate_series(0, {count} - 1) AS s (i)",
    digits="lpad(({n})::text, 12, '0')",
    time="TIMESTAMPTZ '2026-01-01 00:00:00+00' + ({n}) * INTERVAL '1 second'",
    json="'{text}'::jsonb",
)
SQLITE = Dialect(
    series="(WITH RECURSIVE s (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i < {count} - 1) SELECT i FROM s)",
    digits="printf('%012d', {n})",
    time="strftime('%Y-%m-%dT%H:%M:%S.000000+00:00', '2026-01-01', ({n}) || ' seconds')",
    json="'{text}'",
)

_THREADS = (
    "id, worker_id, organization_id, workspace_id, user_id, owner, created_at, updated_at, last_event_at, last_seq"
)
_EVENTS = "id, thread_id, seq, turn_seq, type, actor, content, run_id, repeat_key, notice, created_at"
_RUNS = "id, thread_id, status, started_at, ended_at, process_id, beat_at"


@frozen
class Plenty:
    """`threads` with two events and a run each, and the first of them with `events`. A turn of it is a message and its answer."""

    dialect: Dialect
    threads: int
    events: int
    prefix: str = "worker_"

    @property
    def users(self) -> int:
        """How many the big tenant has."""
        return max(20, self.threads // 200)

    @property
    def end(self) -> datetime:
        """After everything that is there."""
        return START + timedelta(seconds=max(self.threads, self.events) + 60)

    def statements(self) -> Iterator[str]:
        """What fills empty tables."""
        text, time = self.dialect.json.format, self._time
        small = f"i % 10 = 9 AND i < {20 * 10}"
        place = f"(i / 10) % {SPREAD}"
        threads = (
            f"SELECT {self._id('thread', 'i')}, 'worker-1', "
            f"CASE WHEN i % 10 < 9 THEN 'org-big' WHEN {small} THEN 'org-small' ELSE 'org-' || ({place}) END, "
            f"CASE WHEN i % 10 < 9 OR {small} THEN 'ws-1' ELSE 'ws-' || (i / 10 % 3) END, "
            f"'user-' || (i % {self.users}), "
            f"{text(text=_OWNER)}, {time('i')}, {time('i')}, {time('i')}, CASE WHEN i = 0 THEN {self.events} ELSE 2 END"
        )
        yield self._fill("threads", _THREADS, threads, self.threads)
        for thread, kind, seq, count in (
            ("i / 2 + 1", "event", "i % 2 + 1", (self.threads - 1) * 2),
            ("0", "long event", "i + 1", self.events),
        ):
            content = text(text=_CONTENT)
            events = (
                f"SELECT {self._id(kind, 'i')}, {self._id('thread', thread)}, {seq}, {seq} - i % 2, 'message', "
                f"CASE WHEN i % 2 = 0 THEN 'user' ELSE 'assistant' END, {content}, {self._id('run', 'i / 2')}, "
                f"CASE WHEN i % 2 = 0 THEN '{kind}-' || i END, 0, {time('i')}"
            )
            yield self._fill("events", _EVENTS, events, count)
        for thread, kind, count in (("i + 1", "run", self.threads - 1), ("0", "long run", self.events // 2)):
            running = f"i = {count - 1}"
            runs = (
                f"SELECT {self._id(kind, 'i')}, {self._id('thread', thread)}, "
                f"CASE WHEN {running} THEN 'running' ELSE 'succeeded' END, {time('i')}, "
                f"CASE WHEN {running} THEN NULL ELSE {time('i + 1')} END, 'process-' || (i % 4), {time('i')}"
            )
            yield self._fill("runs", _RUNS, runs, count)

    def _fill(self, table: str, columns: str, rows: str, count: int) -> str:
        return f'INSERT INTO "{self.prefix}{table}" ({columns}) {rows} FROM {self.dialect.series.format(count=count)}'

    def _id(self, kind: str, n: str) -> str:
        return f"'{numbered(kind, 0)[:-12]}' || {self.dialect.digits.format(n=n)}"

    def _time(self, n: str) -> str:
        return self.dialect.time.format(n=n)


_OWNER = (
    '{"user_id": "user-1", "user_name": "Ada", "user_email": "ada@example.com", "identity_ids": [], '
    '"user_role": "member", "system_role": "", "organization_role": "", "workspace_role": ""}'
)
_CONTENT = (
    '[{"type": "text", "text": "A line of what somebody said, of the length that lines of a chat tend to have."}]'
)
