"""The examples with a queue, on the real database and the real libraries: whatever happens to a job, it is answered once.

The web is the example itself, served; the queue's processes are those that a user starts, with a model that fails and hangs as it is told.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from attrs import Factory, define
from services.postgres import Address
from services.redis import redis_url
from serving import ROOT, WITHIN, Served, dooers_run

from dooers.client import Client, Looked

__all__ = ["redis_url"]


@define(eq=False)
class Site:
    """One example, served, in a directory of its own, and the processes of its queue."""

    command: list[str]
    home: Path
    web: Served
    settle: Callable[[], Awaitable[None]]  # until the queue is empty
    bury: Callable[[], Awaitable[None]]  # have a killed process taken for dead at once
    processes: list[subprocess.Popen[bytes]] = Factory(list)

    def start(self) -> subprocess.Popen[bytes]:
        with (self.home / f"process-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *self.command], cwd=self.home, stdout=log, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        return process

    @property
    def said(self) -> str:
        """What the processes have logged."""
        return "".join(path.read_text() for path in sorted(self.home.glob("process-*.log")))

    def asked(self, word: str) -> int:
        """How often the model was asked."""
        asked = self.home / f"asked-{word}"
        return len(asked.read_text().splitlines()) if asked.exists() else 0

    async def post(self, text: str, user_id: str, key: str | None = None) -> str:
        """A question over HTTP."""
        key = key or uuid4().hex
        async with httpx.AsyncClient(base_url=self.web.http, timeout=WITHIN) as http:
            answer = await http.post("/questions", json={"id": key, "user_id": user_id, "text": text})
        assert answer.status_code == 202, answer.text
        return key

    @asynccontextmanager
    async def person(self) -> AsyncIterator[Client]:
        async with Client(self.web.ws.replace("/ws", "/worker/ws"), user_id="somebody") as client:
            yield client

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(WITHIN)
        self.processes.clear()


async def until(true: Callable[[], Awaitable[Any]], site: Site) -> Any:
    """Wait for what other processes do; what was found then."""
    try:
        async with asyncio.timeout(WITHIN):
            while not (found := await true()):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it did not come to that:\n{site.said[-5000:]}\n{site.web.said[-2000:]}") from None
    return found


async def thread_of(client: Client, user_id: str, site: Site) -> str:
    """The one thread that somebody's question has opened."""

    async def found() -> list[str]:
        return [thread.id for thread in (await client.threads()).items if thread.user_id == user_id]

    [thread_id] = await until(found, site)
    return str(thread_id)


async def running(client: Client, thread_id: str, site: Site) -> None:
    """Until the turn is known to run."""

    async def runs() -> bool:
        async with asyncio.timeout(WITHIN):
            async for update in client.watch(thread_id):
                if isinstance(update, Looked):
                    return any(run.status == "running" for run in update.runs)
        return False

    await until(runs, site)


async def logged(site: Site, words: tuple[str, ...]) -> bool:
    return any(word in site.said for word in words)


async def told(client: Client, thread_id: str) -> list[str]:
    return [event.text for event in (await client.history(thread_id)).items]


async def answered(client: Client, user_id: str, site: Site, text: str) -> list[str]:
    """What somebody's thread holds, once this was said in it and nothing is under way."""
    thread_id = await thread_of(client, user_id, site)

    async def said() -> bool:
        return text in await told(client, thread_id)

    await until(said, site)
    await site.settle()
    return await told(client, await thread_of(client, user_id, site))


# ---------------------------------------------------------------- the two queues


@contextmanager
def served(program: str, home: Path, environment: dict[str, str]) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        shutil.copytree(ROOT / "examples", home / "examples", ignore=shutil.ignore_patterns("*.db*", "__pycache__"))
        paths = [str(home), str(ROOT / "tests"), str(ROOT), str(ROOT / "contrib"), os.environ.get("PYTHONPATH", "")]
        for name, value in {**environment, "PYTHONPATH": os.pathsep.join(paths)}.items():
            patch.setenv(name, value)
        with dooers_run(f"services.{program}:app", home) as web:
            yield web
            assert web.stop() == 0
            assert "Traceback" not in web.said


@pytest.fixture(scope="module")
def on_postgres(postgres: Address, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    database = f"t{uuid4().hex}"
    home = tmp_path_factory.mktemp("procrastinate")
    environment = {
        "WORKER_DATABASE_HOST": postgres.host,
        "WORKER_DATABASE_PORT": str(postgres.port),
        "WORKER_DATABASE_USER": postgres.user,
        "WORKER_DATABASE_PASSWORD": postgres.password,
        "WORKER_DATABASE_NAME": database,
    }

    async def execute(sql: str) -> None:
        async with postgres.session() as admin:
            await admin.execute(sql)

    async def settle() -> None:
        async with asyncio.timeout(WITHIN), postgres.session(database) as session:
            unfinished = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
            while await session.fetchval(unfinished):
                await asyncio.sleep(0.05)

    async def bury() -> None:
        async with postgres.session(database) as session:
            await session.execute("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'")

    asyncio.run(execute(f"CREATE DATABASE {database} TEMPLATE template0"))
    command = ["procrastinate", "--app=services.queued_postgres.jobs"]
    try:
        with served("queued_postgres", home, environment) as web:
            subprocess.run([sys.executable, "-m", *command, "schema", "--apply"], cwd=home, check=True, timeout=WITHIN)
            yield Site([*command, "worker", "--concurrency=10"], home, web, settle, bury)
    finally:
        asyncio.run(execute(f"DROP DATABASE {database} WITH (FORCE)"))


@pytest.fixture(scope="module")
def on_redis(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from redis.asyncio import Redis

    home = tmp_path_factory.mktemp("streaq")

    async def settle() -> None:
        async with asyncio.timeout(WITHIN), Redis.from_url(redis_url) as redis:
            [stream] = [key async for key in redis.scan_iter("streaq:*", _type="stream")]
            [delayed] = [key async for key in redis.scan_iter("streaq:*", _type="zset") if b"queue" in key]
            soon = (time.time() + 60) * 1000  # what is to come later is cron's
            while await redis.xlen(stream) or await redis.zcount(delayed, 0, soon):
                await asyncio.sleep(0.05)

    async def bury() -> None:
        """After `idle_timeout`, one second here, nobody is at it any more."""

    async def clean() -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.delete(*[key async for key in redis.scan_iter("streaq:*")], "none")

    asyncio.run(clean())
    try:
        with served("queued_redis", home, {"REDIS_URL": redis_url}) as web:
            yield Site(["streaq", "run", "services.queued_redis:jobs"], home, web, settle, bury)
    finally:
        asyncio.run(clean())


@pytest.fixture(params=["on_postgres", "on_redis"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    site: Site = request.getfixturevalue(request.param)
    try:
        yield site
    finally:
        site.end()


# ---------------------------------------------------------------- what holds for both


async def test_whatever_happens_to_a_job_it_is_answered_once(site: Site) -> None:
    process = site.start()
    async with site.person() as person:
        for _ in range(3):
            await site.post("hello", "once", "the same")
        await site.post("fails 2", "failing")
        hopeless = await site.post("fails 9", "hopeless")
        stopped = await site.post("waits", "stopper")

        waiting = await thread_of(person, "stopper", site)
        await running(person, waiting, site)
        await person.cancel(thread_id=waiting)

        assert await answered(person, "once", site, "re: hello") == ["hello", "re: hello"]
        notice = "Something went wrong."
        failing = await answered(person, "failing", site, "re: fails 2")
        assert [text.split(" If")[0] for text in failing] == ["fails 2", notice] * 2 + ["fails 2", "re: fails 2"]
        given_up = await told(person, await thread_of(person, "hopeless", site))
        assert [text.split(" If")[0] for text in given_up] == ["fails 9", notice] * 3
        assert f"{hopeless}: failed 3 times" in site.said

        # They come again when they are over, and with the last one the process is asked to end.
        await site.post("hello", "once", "the same")
        await site.post("waits", "stopper", stopped)
        await site.settle()
        await site.post("slow", "patient")
        await running(person, await thread_of(person, "patient", site), site)
        process.send_signal(signal.SIGTERM)
        await until(lambda: logged(site, ("shutting down", "Stop requested")), site)
        (site.home / "go").touch()
        assert await answered(person, "patient", site, "re: slow") == ["slow", "re: slow"]
        assert await asyncio.to_thread(process.wait, WITHIN) == 0

        assert await told(person, await thread_of(person, "once", site)) == ["hello", "re: hello"]
        assert await told(person, waiting) == ["waits"]
        assert f"{stopped}: was stopped" in site.said
        asked = {question: site.asked(question) for question in ("hello", "fails 2", "fails 9", "waits", "slow")}
        assert asked == {"hello": 1, "fails 2": 3, "fails 9": 3, "waits": 1, "slow": 1}


async def test_a_turn_whose_process_is_killed_is_answered_by_another_process(site: Site) -> None:
    first = site.start()
    async with site.person() as person:
        await site.post("hangs", "killed")
        await running(person, await thread_of(person, "killed", site), site)
        first.send_signal(signal.SIGKILL)
        first.wait(WITHIN)
        await site.bury()
        site.start()
        after = await answered(person, "killed", site, "re: hangs")
    assert [text.split(".")[0] for text in after] == ["hangs", "The answer broke off", "hangs", "re: hangs"]
    assert site.asked("hangs") == 2


async def test_a_job_is_stored_with_what_it_belongs_to_and_cron_has_one_message_a_tick(on_postgres: Site) -> None:
    # In a process of its own, as the example reads its database from the environment.
    program = """
import asyncio, psycopg
from examples.background_job import connection, every_morning, jobs, question

async def order(number, fails):
    async with await psycopg.AsyncConnection.connect(connection) as session:
        async with session.transaction():
            await session.execute("CREATE TABLE orders (number int)")
            queued = question.configure(connection=session)
            await queued.defer_async(key=f"order/{number}", user_id="customer", text=f"I ordered {number}.")
            if fails:
                raise psycopg.Rollback

async def main():
    async with jobs.open_async():
        await order(1, fails=True)
        await order(2, fails=False)
        for _ in range(2):
            await every_morning.defer_async(timestamp=1_795_417_200)

asyncio.run(main())
"""
    command = [sys.executable, "-c", program]
    await asyncio.to_thread(subprocess.run, command, cwd=on_postgres.home, check=True, timeout=WITHIN)
    on_postgres.start()
    try:
        async with on_postgres.person() as person:
            ordered = await answered(person, "customer", on_postgres, "re: I ordered 2.")
            morning = await answered(person, "ana", on_postgres, "re: What is new today?")
    finally:
        on_postgres.end()
    assert ordered == ["I ordered 2.", "re: I ordered 2."]
    assert morning == ["What is new today?", "re: What is new today?"]
