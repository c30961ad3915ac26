"""Shutdown: a worker that is to close does so in time, whatever hangs, and what was acknowledged is there afterwards. In processes of
their own, as an operator ends them, and in the event loop of the test, for what hangs where.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from services.exits import (
    HOSTS,
    ROOT,
    STATES,
    WITHIN,
    Ended,
    Hosted,
    address,
    freezing,
    hosted,
    left_in,
    measure,
    mute,
    take,
)
from services.postgres import OwnPostgres, own_postgres

from dooers import ClosingError, DispatchError, Identity, WorkerConfig, WorkerServer
from dooers.deadline import Deadline, apart
from dooers.exceptions import DisconnectedError
from dooers.testing import Closed, WorkerClient

# Small, so that these tests are quick; and what a busy machine takes beyond: an order of magnitude.
GRACE, TIMEOUT = 0.2, 2.0
SLOW = 20.0
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
# How the runs of each state end, in some order; a turn that waited for its place was canceled too.
RUNS: dict[str, list[str]] = {
    "idle": [],
    "mid-turn": ["canceled"],
    "mid-stream": ["canceled"],
    "queued turns": ["canceled"] * 6,
    "hung handler": ["canceled"] * 3,
    "hung webhook": ["canceled", "succeeded"],
}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "database_type": "sqlite",
        "database_name": str(tmp_path / "worker.db"),
        "shutdown_grace": GRACE,
        "shutdown_timeout": TIMEOUT,
    }


def complaints(output: str) -> list[str]:
    """Lines of a log that look as if something were wrong."""
    marks = ("ERROR", "WARNING", "Traceback", "Error", "destroyed", "never awaited", "ignored")
    lines = [line for line in output.splitlines() if any(mark in line for mark in marks)]
    return [line for line in lines if "no @worker.authenticate hook" not in line]


# ---------------------------------------------------------------- six states, two hosts


def check(ended: Ended, state: str) -> None:
    for text, thread_id in ended.said.items():
        assert text in ended.left.texts[thread_id]
    assert sorted(status for statuses in ended.left.runs.values() for status in statuses) == RUNS[state]
    stored = [text for texts in ended.left.texts.values() for text in texts]
    assert all(any(text.startswith(told) for text in stored) for told in ended.told)


@pytest.mark.parametrize("state", STATES)
async def test_a_process_ends_in_time_and_leaves_a_clean_database(
    state: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async def ended(host: str) -> None:
        ended = await measure(host, state, {**options, "database_name": str(tmp_path / f"{host}.db")}, tmp_path)
        assert ended.code == HOSTS[host][1], ended.output
        assert ended.seconds < GRACE + TIMEOUT + SLOW
        assert ended.closed_with == 1012
        check(ended, state)
        if not state.startswith("hung"):
            assert complaints(ended.output) == []
        assert "Traceback" not in ended.output

    await asyncio.gather(*map(ended, HOSTS))


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    """A PostgreSQL server that may be frozen."""
    with own_postgres() as server:
        yield server


async def test_on_postgres_too(server: OwnPostgres, options: dict[str, Any], tmp_path: Path) -> None:
    async with server.address.database() as name:
        options |= address(server, name)
        ended = await measure("uvicorn", "mid-turn", options, tmp_path)
        check(ended, "mid-turn")
        assert complaints(ended.output) == []


async def test_a_database_that_stands_still_keeps_no_process_alive(
    server: OwnPostgres, options: dict[str, Any], tmp_path: Path
) -> None:
    async with server.address.database() as name:
        options |= address(server, name)
        ended = await measure("dooers run", "mid-turn", options, tmp_path, froze=freezing(server))
        assert ended.code == 0, ended.output
        assert ended.seconds < GRACE + TIMEOUT + SLOW
        assert ended.left.texts[ended.said["wait"]] == ["wait", "wait begins"]
        assert "Traceback" not in ended.output


async def test_a_locked_file_keeps_no_process_alive(options: dict[str, Any], tmp_path: Path) -> None:
    async with hosted(HOSTS["dooers run"][0], options, tmp_path) as serving, serving.client() as client:
        thread_id = await serving.say(client, "wait", until="wait begins")
        locked = sqlite3.connect(options["database_name"], isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        seconds, code = await serving.end()
        locked.close()
        assert (code, seconds < GRACE + TIMEOUT + SLOW) == (0, True), serving.output
        assert (await left_in(options)).texts[thread_id] == ["wait", "wait begins"]


# ---------------------------------------------------------------- what only the process can end


async def test_what_blocks_is_ended_with_the_process_and_named(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"shutdown_grace": 0, "shutdown_timeout": 0.2}

    async def blocked(word: str) -> str:
        mine = {**options, "database_name": str(tmp_path / f"{word}.db")}
        async with hosted(HOSTS["dooers run"][0], mine, tmp_path) as serving, serving.client() as client:
            await serving.block(client, word)
            seconds, code = await serving.end()
            assert (code, seconds < SLOW) == (1, True), serving.output
            return serving.output

    for output, place in zip(
        await asyncio.gather(blocked("block"), blocked("thread")), ("ending.py", "threading.py"), strict=True
    ):
        assert "dooers: did not end within 6.2 seconds" in output
        assert place in output


async def test_a_second_ctrl_c_ends_it_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"shutdown_grace": 600}
    async with hosted(HOSTS["dooers run"][0], options, tmp_path) as serving, serving.client() as client:
        await serving.say(client, "wait", until="wait begins")
        serving.process.send_signal(signal.SIGINT)
        await until_closing(serving)
        seconds, code = await serving.end(signal.SIGINT)
        assert code == 1
        assert seconds < SLOW
        assert "asked to a second time" in serving.output


async def until_closing(serving: Hosted) -> None:
    async with asyncio.timeout(WITHIN):
        while await status(serving, "ready") != 503:
            await asyncio.sleep(0.02)


async def status(serving: Hosted, path: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{serving.url.replace('ws:', 'http:').removesuffix('/ws')}/{path}")).status_code


# ---------------------------------------------------------------- what people see


async def test_while_it_ends_people_see_how_their_answers_end_and_nothing_new_is_taken(
    options: dict[str, Any], tmp_path: Path
) -> None:
    options |= {"shutdown_grace": 60}
    async with hosted(HOSTS["dooers run"][0], options, tmp_path) as serving:
        async with serving.client() as client, serving.client() as other:
            thread_id = await serving.say(client, "slow 1", until="slow begins")
            feed = client.frames()
            assert await status(serving, "ready") == 200
            ending = asyncio.create_task(serving.end())
            await until_closing(serving)
            assert await status(serving, "health") == 200
            with pytest.raises(ClosingError, match="try again"):
                await other.ask("event.create", {"event": {"content": [{"type": "text", "text": "new"}]}})
            with pytest.raises(DisconnectedError) as refused:
                async with serving.client():
                    pass
            assert refused.value.close_code == 1012
            seen = []
            with pytest.raises(DisconnectedError) as closed:
                async for frame in feed:
                    seen.append(take(frame, {}) or frame["payload"].get("run", {}).get("status"))
            assert closed.value.close_code == 1012
            assert "slow ends" in seen
            assert "succeeded" in seen
            _, code = await ending
        assert code == 0
        assert complaints(serving.output) == []
        left = await left_in(options)
        assert left.texts == {thread_id: ["slow 1", "slow begins", "slow ends"]}
        assert left.runs == {thread_id: ["succeeded"]}


async def test_who_comes_back_after_a_restart_gets_what_was_answered_meanwhile(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """uvicorn closes the sockets first: the turn goes on without them."""
    options |= {"shutdown_grace": 60}
    command, code = HOSTS["uvicorn"]
    async with hosted(command, options, tmp_path) as serving:
        async with serving.client() as client:
            thread_id = await serving.say(client, "slow 1", until="slow begins")
            last = (await client.ask("thread.subscribe", {"thread_id": thread_id}))["events"][-1]["id"]
            assert (await serving.end())[1] == code
            with pytest.raises(DisconnectedError) as closed:
                await client.ask("ping")
            assert closed.value.close_code == 1012
        assert complaints(serving.output) == []
    async with hosted(command, options, tmp_path) as again, again.client() as client:
        snapshot = await client.ask("thread.subscribe", {"thread_id": thread_id, "after_event_id": last})
        assert ["".join(part["text"] for part in event["content"]) for event in snapshot["events"]] == ["slow ends"]
        assert snapshot["runs"] == []


# ---------------------------------------------------------------- other hosts

RELOADED = "from services.ending import worker, app\n"
HOST = """
from fastapi import FastAPI
from services.ending import worker
{app}
"""


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "dooers", "run", "reloaded:worker", "--port", "0", "--reload"),
        (sys.executable, "-m", "uvicorn", "reloaded:app", "--port", "0", "--reload"),
    ],
    ids=["dooers run", "uvicorn"],
)
async def test_a_reload_while_a_turn_runs_loses_nothing(
    command: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / "reloaded.py"
    source.write_text(RELOADED)
    async with hosted(command, options, tmp_path) as serving:
        await serving_is_up(serving)
        async with serving.client() as client:
            feed, told = client.frames(), dict[str, str]()
            thread_id = await serving.say(client, "stream", until="0 1 2 3 ")
            later = source.stat().st_mtime + 2
            source.write_text(f"{RELOADED}\n\n@worker.handler('new')\nasync def new() -> str:\n    return 'new'\n")
            os.utime(source, (later, later))
            with pytest.raises(DisconnectedError):
                async for frame in feed:
                    take(frame, told)
        await serving_is_up(serving)
        async with serving.client() as client:
            snapshot = await client.ask("thread.subscribe", {"thread_id": thread_id})
            texts = ["".join(part["text"] for part in event["content"]) for event in snapshot["events"]]
            assert texts[:2] == ["stream", "stream begins"]
            assert texts[2].startswith(next(iter(told.values())))
            assert snapshot["runs"] == []
            await serving.say(client, "slow 0", thread_id, until="slow ends")
        _, code = await serving.end()
        assert code == 0
    assert (await left_in(options)).runs[thread_id] == ["canceled", "succeeded"]
    assert [line for line in complaints(serving.output) if "Reloading" not in line] == []


async def serving_is_up(serving: Hosted) -> None:
    async with asyncio.timeout(WITHIN):
        while True:
            with suppress(httpx.HTTPError):
                if await status(serving, "ready") == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("app", "sign", "runs"),
    [
        ("app = FastAPI(lifespan=worker.lifespan)\napp.mount('/', worker.asgi_app())", signal.SIGTERM, "canceled"),
        # Where no lifespan reaches the worker, the end of the loop closes it. On SIGTERM uvicorn ends the process before.
        ("app = FastAPI()\napp.mount('/', worker.asgi_app())", signal.SIGINT, "canceled"),
        ("app = FastAPI()\napp.mount('/', worker.asgi_app())", signal.SIGTERM, "running"),
    ],
    ids=["lifespan", "mounted, SIGINT", "mounted, SIGTERM"],
)
async def test_a_worker_in_a_host_closes_with_it(
    app: str, sign: signal.Signals, runs: str, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "host.py").write_text(HOST.format(app=app))
    command = (sys.executable, "-m", "uvicorn", "host:app", "--port", "0")
    async with hosted(command, options, tmp_path) as serving, serving.client() as client:
        thread_id = await serving.say(client, "wait", until="wait begins")
        seconds, _ = await serving.end(sign)
        assert seconds < GRACE + TIMEOUT + SLOW
        assert complaints(serving.output) == []
        left = await left_in(options)
        assert left.texts == {thread_id: ["wait", "wait begins"]}
        assert left.runs == {thread_id: [runs]}


# ---------------------------------------------------------------- scripts


LEFT_BEHIND = {
    "nothing": [],
    "handler": ["handler answer"],
    "dependency": ["the teardown of lasting"],
    "everything": ["handler answer", "the teardown of lasting"],
}


@pytest.mark.parametrize(
    ("hung", "ways"),
    [
        ("nothing", ["nothing", "close", "interrupt", "error"]),
        ("handler", ["nothing", "close"]),
        ("dependency", ["interrupt", "close"]),
        ("everything", ["nothing", "close"]),
    ],
)
async def test_a_script_ends_in_time_with_its_own_exit_code(
    hung: str, ways: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    async def ended(way: str) -> None:
        mine = {**options, "database_name": str(tmp_path / way), "shutdown_grace": 0, "shutdown_timeout": 0.5}
        done = await asyncio.to_thread(script, hung, way, mine)
        assert done.returncode == {"interrupt": -signal.SIGINT, "error": 1}.get(way, 0)
        left = await left_in(mine)
        assert list(left.texts.values()) == [["go", "begin"]]
        assert list(left.runs.values()) == [["canceled"]]
        if hung == "nothing" and way in ("nothing", "close"):
            assert complaints(done.stderr) == []
        said = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "WARNING", "Exception", "Task"))]
        assert all(" dooers: " in line for line in said), done.stderr
        assert [line.rpartition(": ")[2] for line in said if "left behind" in line] == LEFT_BEHIND[hung]

    await asyncio.gather(*map(ended, ways))


def script(hung: str, way: str, options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "services.script", hung, way],
        env={**os.environ, "DOOERS_TEST_WORKER": json.dumps(options), "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        encoding="utf-8",
        timeout=WITHIN,
        check=False,
    )


# ---------------------------------------------------------------- whatever hangs


class Hung:
    """A worker with a turn that waits, and one thing that hangs, deaf to being cancelled, until the test is over."""

    def __init__(self, options: dict[str, Any], **more: Any) -> None:
        self.over = asyncio.Event()
        self.worker = worker = WorkerServer(WorkerConfig(**{**options, "analytics_flush_interval": 0.01, **more}))
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.torn_down: list[str] = []
        self.deaf: set[str] = set()
        self.threads: dict[str, str] = {}
        worker.provide("first", scope="worker")(self._dependency("first"))
        worker.provide("second", scope="worker")(self._dependency("second"))
        worker.provide("third", scope="turn")(self._dependency("third"))
        worker.handler(self.handler)

    def _dependency(self, name: str) -> Callable[[], AsyncIterator[str]]:
        async def dependency() -> AsyncIterator[str]:
            try:
                yield name
            finally:
                await self.stay(name)
                self.torn_down.append(name)

        return dependency

    async def stay(self, what: str) -> None:
        while what in self.deaf and not self.over.is_set():
            with suppress(asyncio.CancelledError):
                await self.over.wait()

    async def handler(self, incoming: Any, send: Any, first: str, second: str, third: str) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text("begin")
        self.begun.put_nowait(str(incoming.message))
        await self.stay(str(incoming.message))
        if not self.over.is_set():
            await asyncio.Event().wait()

    async def say(self, text: str) -> None:
        turn = await self.worker.dispatch(**WHO, message=text)
        self.threads[text] = turn.thread_id
        turn.detach()
        assert await self.begun.get() == text

    async def close(self) -> float:
        began = asyncio.get_running_loop().time()
        await self.worker.close()
        return asyncio.get_running_loop().time() - began


@asynccontextmanager
async def hung(options: dict[str, Any], **more: Any) -> AsyncIterator[Hung]:
    made = Hung(options, **more)
    try:
        yield made
    finally:
        made.over.set()
        await made.worker.close()
        async with asyncio.timeout(WITHIN):  # what was left behind may end now
            while left := [task for task in asyncio.all_tasks() if task.get_name().startswith("dooers-")]:
                await asyncio.wait(left)


def hang(what: Any, name: str, here: Hung) -> None:
    """Let a method hang before it does what it does."""
    real = getattr(what, name)
    here.deaf.add(name)

    async def hanging(*args: Any) -> Any:
        await here.stay(name)
        return await real(*args)

    setattr(what, name, hanging)


@pytest.mark.parametrize("what", ["a handler", "first", "second", "third", "webhook", "broker", "store", "heartbeat"])
async def test_closing_ends_in_time_whatever_hangs_and_all_else_is_done(
    what: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    options |= {"shutdown_timeout": 1}
    with mute() as nobody:
        async with hung(options, **({"analytics_webhook_url": nobody} if what == "webhook" else {})) as here:
            await here.say("wait")
            if what == "a handler":
                here.deaf.add("a handler")
                await here.say("a handler")
            elif what in ("broker", "store"):
                hang(getattr(here.worker._parts, what)(), "close", here)
            elif what == "heartbeat":
                hang(here.worker._parts.pulse(), "stop", here)
            else:
                here.deaf.add(what)
            assert await here.close() < SLOW
            complaints = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
            assert bool(complaints) == (what != "webhook") or "the analytics" in complaints[0]
            left = await left_in(options)
            for text, thread_id in here.threads.items():
                assert (left.texts[thread_id], left.runs[thread_id]) == ([text, "begin"], ["canceled"])
            expected = {"first", "second", "third"} - {what}
            assert set(here.torn_down) == expected
            # And it is not spoilt by that.
            here.deaf.clear()
            await here.say("again")


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_hook_that_hangs_keeps_no_worker_open(deaf: bool, options: dict[str, Any]) -> None:
    async with hung({**options, "shutdown_timeout": 0.5}) as here:
        asked = asyncio.Event()

        @here.worker.authenticate
        async def who(request: Any) -> Identity:
            asked.set()
            if deaf:
                here.deaf.add("hook")
                await here.stay("hook")
            await here.over.wait()
            return request.claims  # type: ignore[no-any-return]

        client = WorkerClient(here.worker)
        entering = asyncio.create_task(client.__aenter__())
        await asked.wait()
        assert await here.close() < SLOW
        here.over.set()
        with pytest.raises(Closed) as closed:
            await entering
        assert closed.value.code == 1012


async def test_a_store_that_writes_no_more_costs_its_bound_and_no_other(options: dict[str, Any]) -> None:
    async with hung({**options, "shutdown_timeout": 0.5}) as here:
        await here.say("wait")
        store: Any = here.worker._parts.store()
        real, store.apply = store.apply, lambda change: asyncio.get_running_loop().create_future()
        assert await here.close() < SLOW
        store.apply = real
        assert set(here.torn_down) == {"first", "second", "third"}
        assert (await left_in(options)).runs[here.threads["wait"]] == ["running"]


async def test_a_handler_that_was_given_up_before_keeps_no_loop_alive(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with hung(options, teardown_timeout=0.01) as here:
        here.deaf.add("deaf")
        await here.say("deaf")
        assert await here.worker.cancel(thread_id=here.threads["deaf"]) == 1
        assert not here.worker.is_answering(here.threads["deaf"])
        (turn,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("dooers-turn-"))
        await here.close()
        assert "left behind: handler Hung.handler" in caplog.text
        assert turn not in asyncio.all_tasks()
        assert not turn.done()


# ---------------------------------------------------------------- who closes, and when


async def test_closing_twice_is_closing_once(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async with hung(options) as here:
        await here.say("wait")
        await asyncio.gather(here.close(), here.close(), here.close())
        await here.close()
        assert sorted(here.torn_down) == ["first", "second", "third"]
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_nobody_who_stops_waiting_stops_the_closing(options: dict[str, Any]) -> None:
    async with hung(options) as here:
        await here.say("wait")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(here.close(), GRACE / 10)
        await here.close()
        assert (await left_in(options)).runs[here.threads["wait"]] == ["canceled"]


@pytest.mark.parametrize("apart_from_it", [False, True])
async def test_a_handler_may_close_its_worker_and_finishes(apart_from_it: bool, options: dict[str, Any]) -> None:
    worker = WorkerServer(WorkerConfig(**{**options, "shutdown_grace": 60}))

    @worker.handler
    async def closer(memory: Any) -> AsyncIterator[str]:
        closing = worker.close()
        await (asyncio.create_task(closing) if apart_from_it else closing)
        yield "closed"
        # What is under way still has everything.
        await memory.get_history()
        await (await worker.repository()).list_threads()
        with pytest.raises(ClosingError):
            await worker.ensure_initialized()
        with pytest.raises(DispatchError) as refused:
            await worker.dispatch(**WHO, message="another")
        yield refused.value.code

    async with asyncio.timeout(SLOW):
        events = await (await worker.dispatch(**WHO, message="close")).collect()
        await worker.close()
    assert [event.data["text"] for event in events] == ["closed", "CLOSING"]


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_worker_is_closed_while_it_opens(deaf: bool, options: dict[str, Any]) -> None:
    async with hung({**options, "shutdown_timeout": 0.2}) as here:
        store: Any = here.worker._parts.store()
        real, waiting = store.open, asyncio.Event()
        here.deaf |= {"open"} if deaf else set()

        async def open() -> None:
            waiting.set()
            await here.stay("open")
            await here.over.wait()

        store.open = open
        opening = asyncio.create_task(here.worker.ensure_initialized())
        await waiting.wait()
        assert await here.close() < SLOW
        with pytest.raises(ClosingError):
            await opening
        here.over.set()  # where it was left behind, nobody opens it before it has ended
        store.open = real
        async with asyncio.timeout(WITHIN):
            while True:
                with suppress(ClosingError):
                    await here.worker.ensure_initialized()
                    break
                await asyncio.sleep(0.01)
        here.over.clear()
        await here.say("wait")


async def test_a_closed_worker_opens_again(options: dict[str, Any]) -> None:
    async with hung(options) as here:
        for text in ("one", "two", "three"):
            await here.say(text)
            await here.close()
        assert list((await left_in(options)).runs.values()) == [["canceled"]] * 3


async def test_a_turn_that_comes_to_its_place_within_the_grace_finishes(options: dict[str, Any]) -> None:
    worker = WorkerServer(WorkerConfig(**{**options, "shutdown_grace": 60}))
    go = asyncio.Event()

    @worker.handler
    async def handler(incoming: Any) -> str:
        await go.wait()
        return f"re: {incoming.message}"

    first = await worker.dispatch(**WHO, message="0")
    streams = [first, *[await worker.dispatch(**WHO, message=str(n), thread_id=first.thread_id) for n in (1, 2)]]
    for stream in streams:
        stream.detach()
    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert [stream.status for stream in streams] == ["succeeded"] * 3


def test_a_loop_that_ends_while_a_worker_closes_gives_nobody_more_time(options: dict[str, Any]) -> None:
    here: list[Hung] = []

    async def main() -> None:
        here.append(Hung({**options, "shutdown_grace": 600}))
        await here[0].say("wait")
        closing = asyncio.create_task(here[0].close())
        while not here[0].worker._life.closing:
            await asyncio.sleep(0)
        assert not closing.done()

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < SLOW
    assert asyncio.run(left_in(options)).runs[here[0].threads["wait"]] == ["canceled"]


# ---------------------------------------------------------------- the deadline


async def test_a_stage_gets_what_is_left_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    deadline, done = Deadline(0, 1.0), []
    await deadline.grace(list)

    async def quick(name: str) -> None:
        done.append(name)

    async def fails() -> None:
        raise ValueError("of its own")

    await deadline.stage(
        0.4, {"what hangs": asyncio.Event().wait(), "what is quick": quick("1"), "what fails": fails()}
    )
    assert deadline.left() > 0.3
    await deadline.stage(1.0, {"what comes later": quick("2")})
    assert done == ["1", "2"]
    assert [record.getMessage().rpartition(": ")[::2] for record in caplog.records] == [
        ("while the worker closed, something took too long and was cancelled", "what hangs"),
        ("while the worker closed, something failed", "what fails"),
    ]


async def test_a_grace_ends_when_nobody_needs_it_any_more() -> None:
    deadline, futures = Deadline(600, 1.0), [asyncio.get_running_loop().create_future() for _ in range(3)]
    waiting = apart(deadline.grace(lambda: [future for future in futures if not future.done()]))
    for future in futures:
        assert not waiting.done()
        future.set_result(None)
        await asyncio.sleep(0)
    async with asyncio.timeout(SLOW):
        await waiting
    assert 0 < deadline.left() <= 1.0


async def test_a_loop_that_ends_ends_the_grace() -> None:
    deadline, never = Deadline(600, 1.0), asyncio.get_running_loop().create_future()
    waiting = apart(deadline.grace(lambda: [never]))
    await asyncio.sleep(0)
    deadline.hurry()
    async with asyncio.timeout(SLOW):
        await waiting
