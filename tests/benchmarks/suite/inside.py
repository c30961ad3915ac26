"""What is measured without a socket, in a process of its own: `python -m benchmarks.suite.inside NAME WORDS`, the words in JSON.

Figures are printed as JSON. Called by the suite.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import uvloop
from attrs import evolve

from benchmarks.suite import databases
from benchmarks.suite.drivers import Said, bare, bare_awaited, heard
from benchmarks.suite.handler import REPLY, agent
from benchmarks.suite.limit import Ceiling
from benchmarks.suite.limit_stores import keeper_of
from benchmarks.suite.listening import spare_the_collector
from benchmarks.suite.worker import worker_on
from dooers.config import WorkerConfig
from dooers.models import Change, Thread
from dooers.send import WorkerSend
from dooers.stores import Store, open_store

from contract import a_run, a_thread, an_event, opening  # isort: skip  (`databases` has made it known)
from plenty import BIG, LONG  # isort: skip

__all__ = ["PROGRAMS", "databases"]

WHO: dict[str, Any] = {"organization_id": "org", "workspace_id": "ws", "user_id": "user"}
MESSAGE = "What is there to say about it? It is a question of ordinary length."


async def timed(work: Callable[[int], Awaitable[Any]], at_once: int, seconds: float) -> dict[str, float]:
    """So many lanes, each of which does it again when it is done. Of the CPU, `main` is what this thread used."""
    count = 0

    async def lane(number: int) -> None:
        nonlocal count
        while time.perf_counter() < until:
            await work(number)
            count += 1

    until = time.perf_counter() + seconds / 5
    await asyncio.gather(*map(lane, range(at_once)))
    count, began, cpu, main = 0, time.perf_counter(), time.process_time(), time.thread_time()
    until = began + seconds
    await asyncio.gather(*map(lane, range(at_once)))
    main, cpu, wall = time.thread_time() - main, time.process_time() - cpu, time.perf_counter() - began
    return {"rate": count / wall, "micros": wall / count * 1e6, "cpu": cpu / count * 1e6, "main": main / count * 1e6}


async def dispatch(options: dict[str, Any], seconds: float, at_once: int, message: str) -> dict[str, float]:
    """Turns by `worker.dispatch`, each lane in a thread of its own."""
    worker, threads = worker_on(options), dict[int, str]()

    async def turn(lane: int) -> None:
        stream = await worker.dispatch(message=message, thread_id=threads.get(lane), **WHO)
        threads[lane] = stream.thread_id
        await stream.collect()

    try:
        return await timed(turn, at_once, seconds)
    finally:
        await worker.close()


async def ceiling(options: dict[str, Any], seconds: float, at_once: int, message: str) -> dict[str, float]:
    """The same turns by hand."""
    threads = dict[int, str]()
    async with _ceiling(options) as limit:

        async def turn(lane: int) -> None:
            threads[lane] = await _turn_by_hand(limit, threads.get(lane), message)

        return await timed(turn, at_once, seconds)


@asynccontextmanager
async def _ceiling(options: dict[str, Any]) -> AsyncIterator[Ceiling]:
    limit = Ceiling(keeper_of(options))
    await limit.keeper.open()
    try:
        yield limit
    finally:
        await limit.keeper.close()


async def _turn_by_hand(limit: Ceiling, thread_id: str | None, message: str) -> str:
    async def nobody(text: str) -> None: ...

    event = {"content": [{"type": "text", "text": message}]}
    return await limit.message(nobody, WHO, {"id": "1", "payload": {"event": event, "thread_id": thread_id}})


async def handler(options: dict[str, Any], seconds: float, at_once: int, message: str) -> dict[str, float]:
    """Nothing but the handler."""
    send = WorkerSend()

    class Incoming:
        context = type("Context", (), {"thread_title": None})

    Incoming.message = message  # type: ignore[attr-defined]

    async def turn(_: int) -> None:
        async for _event in agent(Incoming, send, None, None, None):
            pass

    return await timed(turn, at_once, seconds)


# ---------------------------------------------------------------- the store


def turn_of(thread: Thread) -> list[Change]:
    """What a message and four yields become: the start of a run, a text, a title, its end."""
    run = a_run(thread)
    text = an_event(thread, REPLY, actor="assistant", turn_seq=1, run_id=run.id)
    ended = evolve(run, status="succeeded", ended_at=run.started_at + timedelta(seconds=1))
    return [
        opening(thread, an_event(thread, MESSAGE), repeat_key=thread.id, exact=False),
        Change(thread=thread, during=run.id, runs=(run,)),
        Change(thread=thread, during=run.id, events=(text,)),
        Change(thread=thread, during=run.id, patch={"title": "A title"}),
        Change(thread=thread, during=run.id, runs=(ended,)),
    ]


async def through(store: Store, turn: list[Change]) -> None:
    """As the runner has it: the message is waited for, and then whatever the handler has yielded."""
    first, *rest = turn
    await store.apply(first)
    for future in [store.apply(change) for change in rest]:
        await future


async def store_turn(options: dict[str, Any], seconds: float, turns: int) -> dict[str, float]:
    """Turns through the store, one after the other. To think them up is not the store's work."""
    store = open_store(WorkerConfig(**options))
    await store.open()
    walls, cpus = list[float](), list[float]()
    try:
        while not walls or sum(walls) < seconds:
            thought_up = [turn_of(a_thread()) for _ in range(turns)]
            began, cpu = time.perf_counter(), time.process_time()
            for turn in thought_up:
                await through(store, turn)
            walls.append(time.perf_counter() - began)
            cpus.append(time.process_time() - cpu)
    finally:
        await store.close()
    return a_turn(walls, cpus, turns)


def a_turn(walls: list[float], cpus: list[float], turns: int) -> dict[str, float]:
    """Microseconds, of rounds of so many turns."""
    micros, cpu = (statistics.median(all_of) / turns * 1e6 for all_of in (walls, cpus))
    return {"micros": micros, "cpu": cpu}


async def store_bare(options: dict[str, Any], seconds: float, turns: int) -> dict[str, float]:
    """The statements of so many turns are heard, their rows removed, and the same statements run by the bare driver."""
    said: list[Said] = []
    with heard(said.append):
        store = open_store(WorkerConfig(**options))
        await store.open()
        for _ in range(20):
            await through(store, turn_of(a_thread()))
        said.clear()
        for _ in range(turns):
            await through(store, turn_of(a_thread()))
        statements = list(said)
        await store.close()
    walls, cpus = list[float](), list[float]()
    async with bare(options) as run:
        while not walls or sum(walls) < seconds:
            await run([("DELETE FROM worker_threads", ())])
            began, cpu = time.perf_counter(), time.process_time()
            await run(statements)
            walls.append(time.perf_counter() - began)
            cpus.append(time.process_time() - cpu)
    return {**a_turn(walls, cpus, turns), "statements": len(statements) / turns}


async def round_trips(options: dict[str, Any], seconds: float, turns: int) -> dict[str, float]:
    """Statements of a whole turn of four yields through dispatch: in PostgreSQL each is a round trip."""
    said: list[Said] = []
    with heard(said.append):
        worker = worker_on({**options, "run_heartbeat": 60.0, "run_timeout": 180.0})
        for _ in range(12):
            await (await worker.dispatch(message="four", **WHO)).collect()
        said.clear()
        for _ in range(turns):
            await (await worker.dispatch(message="four", **WHO)).collect()
        count = len(said) / turns
        await worker.close()
    return {"statements": count}


async def by_hand(options: dict[str, Any], seconds: float, turns: int) -> dict[str, float]:
    """The statements of the same turn at the ceiling, which waits for each thing that it writes."""
    async with _ceiling(options) as limit:
        before = limit.keeper.statements
        for _ in range(turns):
            await _turn_by_hand(limit, None, "four")
        return {"statements": (limit.keeper.statements - before) / turns}


# ---------------------------------------------------------------- history, and the statements of the reads


async def history(options: dict[str, Any], seconds: float) -> dict[str, float]:
    """What a handler asks for most: `memory.get_history(20)` of the long thread."""
    worker = worker_on({**options, "worker_id": "worker-1"})
    memory = await worker.memory(LONG)

    async def page(_: int) -> None:
        assert len(await memory.get_history(limit=20)) == 20

    try:
        return await timed(page, 1, seconds)
    finally:
        await worker.close()


_PLACE = " AND ".join(f"{name} = '{value}'" for name, value in BIG.items())
_EVENTS = f"SELECT * FROM worker_events WHERE thread_id = '{LONG}' ORDER BY seq DESC LIMIT"
READS: dict[str, list[str]] = {
    "history": [
        f"SELECT actor, content, seq, turn_seq FROM worker_events WHERE thread_id = '{LONG}' "
        "AND type = 'message' AND notice = 0 ORDER BY seq DESC LIMIT 20"
    ],
    "events": [f"{_EVENTS} 51"],
    "list": [
        f"SELECT * FROM worker_threads WHERE {_PLACE} ORDER BY last_event_at DESC, id DESC LIMIT 31",
        f"SELECT count(*) FROM (SELECT 1 FROM worker_threads WHERE {_PLACE} LIMIT 10000) AS counted",
    ],
    "snapshot": [
        f"SELECT * FROM worker_threads WHERE id = '{LONG}'",
        f"{_EVENTS} 101",
        f"SELECT * FROM worker_runs WHERE thread_id = '{LONG}' AND status = 'running'",
    ],
}


async def read_bare(options: dict[str, Any], seconds: float, name: str) -> dict[str, float]:
    """The statements of such a page, by the bare driver; in SQLite also called where they stand, as no program with a loop may."""
    page: list[Said] = [(sql, ()) for sql in READS[name]]
    async with bare_awaited(options) as run:
        figures = await timed(lambda _: run(page), 1, seconds)
    if options["database_type"] == "sqlite":
        async with bare(options) as run:
            figures["called"] = (await timed(lambda _: run(page), 1, seconds))["micros"]
    return figures


# ---------------------------------------------------------------- imports


async def imports(options: dict[str, Any], seconds: float, what: str) -> dict[str, float]:
    """Milliseconds of CPU that a new interpreter needs to import dooers; or everything that dooers imports, and not dooers."""
    known = json.loads(python("import sys, json, dooers; print(json.dumps(list(sys.modules)))"))
    names = ["dooers"] if what == "dooers" else [name for name in known if name.split(".")[0] != "dooers"]
    program = (
        "import sys, time, importlib, contextlib\nbegan = time.process_time()\n"
        f"for name in {names!r}:\n    with contextlib.suppress(Exception): importlib.import_module(name)\n"
        "print((time.process_time() - began) * 1e3)"
    )
    return {"millis": statistics.median(float(python(program)) for _ in range(3))}


def python(program: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


PROGRAMS: dict[str, Callable[..., Coroutine[Any, Any, dict[str, float]]]] = {
    one.__name__: one
    for one in (dispatch, ceiling, handler, store_turn, store_bare, round_trips, by_hand, history, read_bare, imports)
}

if __name__ == "__main__":
    _, chosen, *words = sys.argv
    spare_the_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as here:
        print(json.dumps(here.run(PROGRAMS[chosen](*map(json.loads, words)))))
