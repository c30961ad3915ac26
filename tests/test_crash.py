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
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from attrs import Factory, define
from services.audit import Audit, Books, check_file, look_into_postgres, look_into_sqlite
from services.crashing import FAULTS, FIELDS
from services.crowd import LIFE, Caller, Death, Lives, Person, Told, WrongError
from services.postgres import Address

KILLS = int(os.environ.get("DOOERS_TEST_KILLS", "120"))
SEED = int(os.environ.get("DOOERS_TEST_SEED", "1"))
# Kills on one database; then comes a new one, so that a long night does not become a long look at what is old.
ROUND = 120
AUDIT_EVERY = 10
UP_WITHIN = 20.0
HEARTBEAT, TIMEOUT = 0.15, 0.5
BURIED_WITHIN = 20.0
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
        self.counted.update(
            kills=self.lives.number,
            said=len(told.said),
            repeats=told.repeats,
            deleted=len(told.deleted),
            events=len(told.events),
        )
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
                await asyncio.wait_for(asyncio.gather(*living), UP_WITHIN)
            finally:
                for task in living:
                    task.cancel()
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
        until = time.monotonic() + BURIED_WITHIN
        await asyncio.gather(*(one.live(url, last=True) for one in people))
        while (audit := await self._audit(told)).running() and time.monotonic() < until:
            await asyncio.sleep(HEARTBEAT)
        self.counted.update(
            stored=len(audit.events),
            ran=len(audit.ran),
            unanswered=len(audit.unanswered()),
            untold=len(audit.untold()),
            buried=len(audit.broke_off()),
        )
        await self.lives.kill()
        print(self.seed, dict(self.counted), f"{self.slowest:.2f} s to start, log of {self.largest} bytes")
        audit.check_end()
        wrong = [line for line in self.lives.log.read_text().splitlines() if re.match(r"(WARNING|ERROR) ", line)]
        if wrong := [line for line in wrong if not EXPECTED.search(line)]:
            raise WrongError(f"the server has logged {wrong[:5]}")


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


def on_sqlite(home: Path, seed: int, fault: str = "") -> Series:
    home.mkdir()
    file = home / "worker.db"
    lives = Lives({"database_type": "sqlite", "database_name": str(file), **TIMES}, home, fault)
    return Series(lives, lambda: look_into_sqlite(file), seed, file)


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
        await on_sqlite(tmp_path / fault, SEED, fault).run(60)
