"""A worker that gets killed, once a life: `python -m services.crashing`. Not a test, and `crowd.py` is who talks to it.

Started is a process that has imported everything and serves nothing. For each life it forks one that serves, with uvicorn, on a port of
its own; that one is killed. So a life costs some milliseconds and not the start of an interpreter. What it is told and says is lines of
JSON: `{"ready": true}`; `{"life": 3, "death": ["commit.after", 7]}` and `{"up": PORT}`, `"kill"`, `{"ended": SIGNAL}`.

What the worker is comes in the environment: DOOERS_TEST_WORKER, its config as JSON; DOOERS_TEST_RAN, the file in which handlers write
down that they ran; DOOERS_TEST_FAULT, one of `FAULTS`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from typing import Any, TypeAlias

import uvicorn
from attrs import evolve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from dooers import DooersError, HandlerError, WorkerConfig, WorkerServer, admission, steps, turn
from dooers.pulse import Pulse
from dooers.schema import SettingsField, SettingsFieldType, SettingsSchema
from dooers.stores import sqlite, sqlite_writers
from dooers.stores.ledger import Ledger
from dooers.stores.postgres_connection import Line
from dooers.stores.sqlite import SqliteStore
from dooers.stores.sqlite_connection import TunedConnection, hop

__all__ = ["FAULTS", "FIELDS", "Answer", "answers"]

FIELDS = [f"field-{n}" for n in range(8)]
PACE = 0.004

# What a handler gives: "text", "tool.call", "tool.result" or "title", and which.
Answer: TypeAlias = tuple[str, str]


def answers(said: str) -> list[Answer]:
    """Everything that the handler gives when it is left alone, in order. `WORD NUMBER KEY` is what somebody says."""
    word, number, *_ = said.split(" ")
    last = ("text", f"re: {said}")
    match word:
        case "steps":
            return [*(("text", f"{n} of {said}") for n in range(int(number))), last]
        case "tools":
            kinds = ("tool.call", "tool.result")
            return [*((kind, f"{n} of {said}") for n in range(int(number)) for kind in kinds), last]
        case "title":
            return [("title", said), last]
        case "stream":
            return [("text", f"re: {said}" + "".join(f" {n}" for n in range(int(number))))]
        case "fail":
            return [("text", f"0 of {said}")]
    return [last]


def make_app(life: int) -> ASGIApp:
    """The worker, and a way into its other door."""
    fields = [SettingsField(id=name, type=SettingsFieldType.TEXT, label=name, value="0") for name in FIELDS]
    config = json.loads(os.environ["DOOERS_TEST_WORKER"])
    worker = WorkerServer(WorkerConfig(settings_schema=SettingsSchema(fields=fields), **config))
    ran = os.open(os.environ["DOOERS_TEST_RAN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @worker.handler
    async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
        said, context = incoming.message, incoming.context
        word, number, key, *_ = said.split(" ")
        # What is written is the kernel's, and outlives the process.
        os.write(ran, f"{key} {context.thread_id} {context.event_id} {life}\n".encode())
        if word != "bare":
            yield send.run_start()
        if word == "stream":
            yield send.stream(pieces(said, int(number)))
            return
        for kind, text in answers(said):
            if word in ("steps", "tools", "fail"):
                await asyncio.sleep(PACE)
            if kind == "title":
                yield send.update_thread(title=text)
            elif kind == "text":
                yield send.text(text)
            else:
                yield (send.tool_call("look", id=text) if kind == "tool.call" else send.tool_result("look", 1, id=text))
        if word == "fail":
            raise RuntimeError("as it was told to")

    async def pieces(said: str, count: int) -> AsyncIterator[str]:
        yield f"re: {said}"
        for n in range(count):
            await asyncio.sleep(PACE)
            yield f" {n}"

    async def dispatch(request: Request) -> JSONResponse:
        """Say something in a thread, and what came of it; with `detach`, that it is stored."""
        asked = await request.json()
        detach, told = asked.pop("detach"), dict[str, Any]()
        try:
            stream = await worker.dispatch(organization_id="org-1", workspace_id="ws-1", **asked)
            told = {"thread_id": stream.thread_id, "event_id": stream.event_id, "repeat": stream.is_repeat}
            if detach:
                stream.detach()
            else:
                given = [event.event for event in await stream.collect() if event.event is not None]
                told["events"] = [[event.id, event.seq, event.text] for event in given]
        except HandlerError:
            told["failed"] = True
        except DooersError as error:
            return JSONResponse({"code": error.code}, 503)
        return JSONResponse(told)

    routes = [Route("/dispatch", dispatch, methods=["POST"]), Mount("/", worker.asgi_app())]
    return Starlette(routes=routes, lifespan=worker.lifespan)


# ---------------------------------------------------------------- how it dies by itself


class Countdown:
    """Ends the process, as SIGKILL does, when it has been called so often."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # not another step


def die_at(kind: str, count: int, app: ASGIApp) -> ASGIApp:
    """See to it that the process dies at the so-manieth time of something."""
    what, _, when = kind.partition(".")
    strike = Countdown(count)
    if what == "frame":
        return _dying_after_frames(app, strike)
    _die_in_sqlite(when, strike)
    _die_in_postgres(when, strike)
    return app


def _dying_after_frames(app: ASGIApp, strike: Countdown) -> ASGIApp:
    async def dying(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            await send(message)
            if message["type"] == "websocket.send":
                strike()

        await app(scope, receive, sent)

    return dying


def _die_in_sqlite(when: str, strike: Countdown) -> None:
    execute: Any = TunedConnection.execute

    def dying(self: Any, sql: Any, parameters: Any = (), /) -> Any:
        counts = sql == "COMMIT" and self.total_changes > getattr(self, "changes_seen", 0)
        if counts:
            self.changes_seen = self.total_changes
        if counts and when != "after":
            strike()
        result = execute(self, sql, parameters)
        if counts and when == "after":
            strike()
        return result

    TunedConnection.execute = dying  # type: ignore[method-assign]


def _die_in_postgres(when: str, strike: Countdown) -> None:
    fetch: Any = Line.fetch

    async def dying(self: Any, statement: Any, timeout: float | None = None) -> Any:
        counts = not statement[0].startswith("SELECT")
        if counts and when == "before":
            strike()
        if counts and when == "during":
            under_way = asyncio.ensure_future(fetch(self, statement, timeout))
            await asyncio.sleep(0)  # it is on its way to the server, and nobody will hear what became of it
            strike()
            return await under_way
        result = await fetch(self, statement, timeout)
        if counts and when == "after":
            strike()
        return result

    Line.fetch = dying  # type: ignore[method-assign]


# ---------------------------------------------------------------- what it may do wrong


def acknowledge_early() -> None:
    """Say that a Change is stored a moment before it is. Only a crash in that moment shows it: whoever reads waits for it."""

    def hasty(self: Any, loop: asyncio.AbstractEventLoop, connection: Any) -> None:
        group = self._group()
        connection.execute("BEGIN IMMEDIATE")
        stored = sqlite_writers.write(connection, self._sql, Ledger(), [change for change, _ in group])
        loop.call_soon_threadsafe(sqlite._settle, group, stored)
        time.sleep(0.005)
        connection.execute("COMMIT")

    async def read(self: Any, work: Any) -> Any:
        return await hop(self._writer, work)

    SqliteStore._write_waiting = hasty  # type: ignore[method-assign]
    SqliteStore._read = read  # type: ignore[method-assign]


def tear_changes() -> None:
    """Commit half of a Change: the thread has counted an event that is not there yet."""
    execute: Any = TunedConnection.execute

    def tearing(self: Any, sql: Any, parameters: Any = (), /) -> Any:
        if isinstance(sql, str) and sql.startswith('INSERT OR ROLLBACK INTO "worker_events"'):
            execute(self, "COMMIT")
            execute(self, "BEGIN IMMEDIATE")
        return execute(self, sql, parameters)

    TunedConnection.execute = tearing  # type: ignore[method-assign]


def forget_keys() -> None:
    """Know no repeats."""
    opening = turn.opening
    admission.opening = lambda *given, **more: opening(*given, **{**more, "repeat_key": None})  # type: ignore[attr-defined]


def run_repeats() -> None:
    """Answer a message again when it comes again."""
    opened: Any = admission.Admission._opened

    def again(self: Any, message: Any, stored: Any, *more: Any) -> Any:
        return opened(self, message, evolve(stored, repeated=False), *more)

    admission.Admission._opened = again  # type: ignore[assignment, method-assign]


def bury_nobody() -> None:
    """Leave the runs of the dead as they are."""

    async def nothing(self: Any) -> None: ...

    Pulse._bury = nothing  # type: ignore[method-assign]


def call_pieces_whole() -> None:
    """Store what there is of a message that was cut off as if it were all of it."""
    grown = turn.grown
    steps.grown = lambda *given, incomplete: grown(*given, incomplete=False)  # type: ignore[attr-defined]


FAULTS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (acknowledge_early, tear_changes, forget_keys, run_repeats, bury_nobody, call_pieces_whole)
}


# ---------------------------------------------------------------- one life


class _Server(uvicorn.Server):
    """Says where it is when it serves."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._tell()


def serve(order: dict[str, Any], out: int) -> None:
    """Be the process that serves, until it is killed."""
    logging.basicConfig(format=f"%(levelname)s life {order['life']}: %(message)s", level=logging.WARNING)
    fault = os.environ.get("DOOERS_TEST_FAULT")
    if fault:
        FAULTS[fault]()
    app = make_app(order["life"])
    if order["death"] is not None:
        kind, count = order["death"]
        app = die_at(kind, count, app)
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    up = json.dumps({"up": listener.getsockname()[1]}).encode() + b"\n"
    config = uvicorn.Config(app, ws="websockets-sansio", lifespan="on", log_config=None)
    server = _Server(config, lambda: (os.write(out, up), None)[1])
    asyncio.run(server.serve(sockets=[listener]))


def live(order: dict[str, Any]) -> None:
    """Let one live, and say when it serves and when it is dead."""
    inside, out = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(inside)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)
            serve(order, out)
        finally:
            os._exit(3)
    os.close(out)
    while True:
        ready, _, _ = select.select([inside, 0], [], [])
        if 0 in ready:
            os.read(0, 100)  # "kill", or whoever drives this is gone
            os.kill(child, signal.SIGKILL)
            break
        said = os.read(inside, 1000)
        if not said:
            break  # it has died by itself
        os.write(1, said)
    os.close(inside)
    _, status = os.waitpid(child, 0)
    how = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
    os.write(1, json.dumps({"ended": how}).encode() + b"\n")


# What is imported when it is needed. Here before it is, and once for all lives.
NEEDED = (
    "aiosqlite",
    "databases.backends.postgres",
    "databases.backends.sqlite",
    "dooers.brokers.postgres",
    "dooers.stores.postgres",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
)


def main() -> None:
    """Take orders until there are no more."""
    for name in NEEDED:
        import_module(name)
    os.write(1, b'{"ready": true}\n')
    orders = open(0, "rb", buffering=0)  # noqa: SIM115 - line by line, and not a byte more: `live` reads there too
    while line := orders.readline():
        order = json.loads(line)
        if order != "kill":  # for one that had died by itself already
            live(order)


if __name__ == "__main__":
    main()
