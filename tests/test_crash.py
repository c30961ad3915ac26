"""The server is killed, at any instant, under load, again and again: what anybody was told stays true, and the next one goes on.

`services/crashing.py` is the worker, `services/crowd.py` the people, `services/audit.py` what is looked at. Choices come from a seed, times
are the machine's own. DOOERS_TEST_KILLS=2000 for a night, DOOERS_TEST_SEED=... to do one again.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from attrs import Factory, define
from services.audit import Audit, Books, check_file, look_into_postgres, look_into_sqlite
from services.crashing import FAULTS, FIELDS
from services.crowd import LIFE, Caller, Death, Lives, Person, Told, WrongError, a_client, read_all
from services.postgres import Address
from services.workers import Frame, text_of

from dooers.client import Client

KILLS = int(os.environ.get("DOOERS_TEST_KILLS", "105"))
SEED = int(os.environ.get("DOOERS_TEST_SEED", "1"))
# Kills on one database; then comes a new one, so that a long night does not become a long look at what is old.
ROUND = 120
AUDIT_EVERY = 10
UP_WITHIN = 20.0
HEARTBEAT, TIMEOUT = 0.15, 0.5
TIMES = {"run_heartbeat": HEARTBEAT, "run_timeout": TIMEOUT, "shutdown_grace": 0, "teardown_timeout": 1.0}
# What a server may complain of: the dead, what a handler was told to do, and no identity.
EXPECTED = re.compile(
    r"run \S+ in thread \S+ was left by a dead process|handler \S+ failed in thread|no @worker.authenticate hook"
)


@define(eq=False, repr=False)
class Series:
    """Life after life on one database."""

    lives: Lives
    look: Callable[[], Awaitable[Books]]
    seed: int
    file: Path | None = None
    deaths: list[str] = Factory(list)
    counted: Counter[str] = Factory(Counter)
    patience: float = 20.0  # seconds until the dead are buried
    slowest: float = 0.0
    largest: int = 0

    async def run(self, kills: int) -> Told:
        """Kill it so often. Whatever is found wrong says where, and how to do it again."""
        try:
            async with self.lives.open(), httpx.AsyncClient(trust_env=False, verify=False) as http:
                return await self._run(kills, http)
        except Exception as error:
            log = "\n".join(self.lives.log.read_text().splitlines()[-30:])
            raise WrongError(
                f"DOOERS_TEST_SEED={self.seed}, life {self.lives.number}, of deaths {self.deaths[-5:]}: {error!r}\n{log}"
            ) from error

    async def _run(self, kills: int, http: httpx.AsyncClient) -> Told:
        random, told = Random(self.seed), Told(self.lives)
        for _ in range(3):  # while the tables are made
            await self._live(("start", random.uniform(0, 0.3)), [], told)
        shared = [f"shared-{n}" for n in range(3)]
        people: list[Person | Caller] = [
            Person(f"p{n}", told, Random(f"{self.seed} {n}"), shared, FIELDS[n]) for n in range(4)
        ]
        people.append(Caller("c", told, Random(f"{self.seed} c"), shared, http))
        await self._open_threads(shared, http, told)
        while self.lives.number < kills:
            await self._live(_death(random), people, told)
        await self._end(people, told)
        return told

    async def _open_threads(self, shared: list[str], http: httpx.AsyncClient, told: Told) -> None:
        url = await self._begin(None)
        caller = Caller("first", told, Random(0), [], http)
        for thread_id in shared:
            await caller.call(url, caller.say("echo 1", thread_id))
        await self.lives.kill()

    async def _begin(self, death: Death | None) -> str:
        began = time.monotonic()
        url = await asyncio.wait_for(await self.lives.begin(death), UP_WITHIN)
        self.slowest = max(self.slowest, time.monotonic() - began)
        return url

    async def _live(self, death: Death, people: list[Person | Caller], told: Told) -> None:
        kind, when = death
        self.deaths.append(f"{kind} {when:.3f}")
        self.counted[f"by {kind}"] += 1
        if kind == "start":
            await self.lives.begin(None)
            await asyncio.sleep(when)
            await self.lives.kill()
        else:
            url = await self._begin(None if kind == "time" else (kind, when))
            if self.lives.number % AUDIT_EVERY == 0:
                await self._audit(told)
            living = [asyncio.create_task(one.live(url)) for one in people]
            try:
                everything: list[asyncio.Future[Any]] = [self.lives.dead, *living]
                await asyncio.wait(
                    everything, return_when=asyncio.FIRST_COMPLETED, timeout=when if kind == "time" else LIFE
                )
                self.counted["by itself"] += self.lives.dead.done()
                await self.lives.kill()
                await asyncio.wait_for(asyncio.wait(living), UP_WITHIN)
            finally:
                for task in living:
                    task.cancel()
                found = await asyncio.gather(*living, return_exceptions=True)
            for wrong in found:
                if wrong is not None:
                    raise wrong
        if self.file is not None and self.lives.number % AUDIT_EVERY == 0:
            self.largest = max(self.largest, check_file(self.file, self.lives.home))

    async def _audit(self, told: Told) -> Audit:
        ran = [line.split(" ") for line in self.lives.ran.read_text().splitlines()]
        audit = Audit(told, await self.look(), [(key, thread, event, int(life)) for key, thread, event, life in ran])
        audit.check()
        return audit

    async def _end(self, people: list[Person | Caller], told: Told) -> None:
        """One that may live: everything is said and answered, nothing runs that is dead, and no more is logged than that."""
        url = await self._begin(None)
        until = time.monotonic() + self.patience
        await asyncio.gather(*(one.live(url, last=True) for one in people))
        while (audit := await self._audit(told)).running() and time.monotonic() < until:
            await asyncio.sleep(HEARTBEAT)
        for thread_id in sorted({one.into for one in told.said.values() if one.into is not None}):
            audit.check_read(thread_id, await read_all(url, thread_id))
        await self.lives.kill()
        self._count(told, audit)
        print(self.seed, dict(self.counted), f"{self.slowest:.2f} s to start, log of {self.largest} bytes")
        audit.check_end()
        wrong = [line for line in self.lives.log.read_text().splitlines() if re.match(r"(WARNING|ERROR) ", line)]
        if wrong := [line for line in wrong if not EXPECTED.search(line)]:
            raise WrongError(f"the server has logged {wrong[:5]}")

    def _count(self, told: Told, audit: Audit) -> None:
        self.counted.update(
            kills=self.lives.number,
            said=len(told.said),
            repeats=told.repeats,
            deleted=len(told.deleted),
            shown=len(told.events),
            stored=len(audit.events),
            ran=len(audit.ran),
            ran_again=len(audit.ran) - len({key for key, *_ in audit.ran}),
            unanswered=len(audit.unanswered()),
            buried=len(audit.broke_off()),
            untold=len(audit.untold()),
        )


def _death(random: Random) -> Death:
    """How the next one dies."""
    kind = random.choices(["start", "time", "commit", "frame"], [1, 5, 4, 3])[0]
    if kind == "start":
        return "start", random.uniform(0, 0.1)
    if kind == "time":
        return "time", random.uniform(0, LIFE)
    if kind == "commit":
        return f"commit.{random.choice(['before', 'during', 'after'])}", random.randint(1, 60)
    return "frame", random.randint(1, 250)


def _rounds() -> list[tuple[int, int]]:
    """The seed of each, and how many kills."""
    return [(SEED + n, min(ROUND, KILLS - n * ROUND)) for n in range(-(-KILLS // ROUND))]


def on_sqlite(home: Path, seed: int, fault: str = "", patience: float = 20.0) -> Series:
    home.mkdir()
    file = home / "worker.db"
    lives = Lives({"database_type": "sqlite", "database_name": str(file), **TIMES}, home, fault)
    return Series(lives, lambda: look_into_sqlite(file), seed, file, patience=patience)


async def test_what_was_acknowledged_on_sqlite_outlives_a_kill_at_any_instant(tmp_path: Path) -> None:
    for seed, kills in _rounds():
        await on_sqlite(tmp_path / str(seed), seed).run(kills)


async def test_what_was_acknowledged_on_postgres_outlives_a_kill_at_any_instant(
    tmp_path: Path, postgres: Address
) -> None:
    for seed, kills in _rounds():
        home = tmp_path / str(seed)
        home.mkdir()
        async with postgres.database() as name:
            options: dict[str, Any] = {
                "database_type": "postgres",
                "database_host": postgres.host,
                "database_port": postgres.port,
                "database_user": postgres.user,
                "database_password": postgres.password,
                "database_name": name,
                "database_pool_max": 4,
                **TIMES,
            }
            await Series(Lives(options, home), lambda: look_into_postgres(postgres, name), seed).run(kills)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_worker_that_breaks_a_promise_is_found_out(tmp_path: Path, fault: str) -> None:
    with pytest.raises(WrongError, match="DOOERS_TEST_SEED"):
        await on_sqlite(tmp_path / fault, SEED, fault, patience=3 * TIMEOUT).run(40 if fault == "bury_nobody" else 300)


# ---------------------------------------------------------------- what a crash leaves


async def say(client: Client, text: str, thread_id: str | None = None) -> None:
    """Say something; its last word is its client_event_id."""
    event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": text}]}
    await client.ask("event.create", {"thread_id": thread_id, "client_event_id": text.split(" ")[2], "event": event})


async def follow(client: Client, thread_id: str) -> AsyncIterator[tuple[str, Frame]]:
    """What is there, and then what comes, as if it came: events and runs of a thread."""
    feed = client.frames()
    snapshot = await client.ask("thread.subscribe", {"thread_id": thread_id})
    for name in ("event", "run"):
        for one in snapshot[f"{name}s"]:
            yield name, one
    async for frame in feed:
        if frame["type"] == "run.upsert":
            yield "run", frame["payload"]["run"]
        for event in frame["payload"]["events"] if frame["type"] == "event.append" else ():
            yield "event", event


async def test_what_is_left_of_an_answer_whose_process_died_and_of_a_message_behind_it(tmp_path: Path) -> None:
    lives = on_sqlite(tmp_path / "one", SEED).lives
    async with lives.open():
        async with a_client(await (await lives.begin()), "ana") as client:
            feed = client.frames()
            await say(client, "stream 10000 a")
            told = [frame async for frame in until(feed, lambda frame: frame["type"] == "event.delta")]
            thread_id = told[-1]["payload"]["thread_id"]
            await say(client, "echo 1 b", thread_id)  # it waits for its turn
            await lives.kill()
        assert [line.split(" ")[0] for line in lives.ran.read_text().splitlines()] == ["a"]
        async with a_client(await (await lives.begin()), "ana") as client:
            there = follow(client, thread_id)
            # Of what was shown in pieces there is nothing, for nobody was told that it is stored. The run is told as failed in the
            # run's own error and in the thread, and only then: until then it is one that runs.
            events, runs = list[Frame](), list[Frame]()
            async for name, one in there:
                (events if name == "event" else runs).append(one)
                if name == "event" and one["actor"] == "system":
                    break
            assert [text_of(event) for event in events[:2]] == ["stream 10000 a", "echo 1 b"]
            notice = events[2]
            assert len(events) == 3
            assert notice["data"] == {"error": True}
            assert [run["status"] for run in runs if run["id"] == notice["run_id"]][-1:] in (["failed"], [])
            # What was begun is not begun again. What only waited is answered when it is said again.
            await say(client, "stream 10000 a", thread_id)
            await say(client, "echo 1 b", thread_id)
            async for _, one in there:
                if text_of(one if "content" in one else {"content": []}) == "re: echo 1 b":
                    break
            # The thread works.
            await say(client, "echo 1 c", thread_id)
            async for _, one in there:
                if text_of(one if "content" in one else {"content": []}) == "re: echo 1 c":
                    break
        assert [line.split(" ")[0] for line in lives.ran.read_text().splitlines()] == ["a", "b", "c"]


async def until(feed: AsyncIterator[Frame], true: Callable[[Frame], bool]) -> AsyncIterator[Frame]:
    """Frames up to the first that is so."""
    async for frame in feed:
        yield frame
        if true(frame):
            return
