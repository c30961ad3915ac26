"""Where the CPU of a turn goes, by stage: `python -m benchmarks.suite.budget turns OPTIONS SECONDS`. Called by the suite.

Real turns over a socket in this process, once as they are and once under a deterministic profile of the main thread's CPU. Each function is
its module's stage; what belongs to none (a library, a builtin, the codec) is its callers', shared out as they called it. The shares of the
profile are then put onto the time that was used without it. Other threads are told apart. Limits are timed in loops over the very frames.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import uvloop

from benchmarks.suite import floor
from benchmarks.suite import handler as handler_module
from benchmarks.suite.inside import MESSAGE, handler
from benchmarks.suite.listening import spare_the_collector
from benchmarks.suite.worker import worker_on

__all__ = ["STAGES", "turns"]

# The modules of each stage, one function before its module. What is in none is charged to whoever calls it.
STAGES: dict[str, set[str]] = {
    "parse": {"protocol.parse", "dialects", "content"},
    "access": {"access", "quota", "admission"},
    "injection": {"inject", "scope", "injector", "container", "registration", "context"},
    "handler": {"send", "(handler)"},
    "turn": {"turn", "steps", "stage", "runner", "openturn", "lanes", "locks", "routing", "routes", "pulse"},
    "store": {"stores", "asyncpg", "aiosqlite", "sqlite3", "databases"},
    "serialise": {"protocol"},
    "fan-out": {"broadcast", "relay", "session", "elsewhere", "catchup"},
    "event loop": {"asyncio", "selectors", "(here)"},
}
_STAGE = {module: stage for stage, modules in STAGES.items() for module in modules}
DEEP = 30
# So many talk at once, in threads of their own: what one alone costs is mostly waking up.
PEOPLE = 32
# Seconds for each limit.
LONG = 0.5


def stage_of(code: Any) -> str | None:
    """The stage of a function, if it has one."""
    if isinstance(code, str):
        return None  # a builtin
    parts = Path(code.co_filename.removesuffix(".py")).parts
    if code.co_filename in (__file__, handler_module.__file__):
        return "event loop" if code.co_filename == __file__ else "handler"
    if "dooers" in parts and "site-packages" not in parts:
        module = parts[len(parts) - parts[::-1].index("dooers")]
        return _STAGE.get(f"{module}.{code.co_name}") or _STAGE.get(module)
    return next((_STAGE[part] for part in parts if part in _STAGE and part in _LIBRARIES), None)


_LIBRARIES = {"asyncpg", "aiosqlite", "sqlite3", "databases", "asyncio", "selectors"}


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Which part of the time is each stage's. What has no stage goes up to its callers, again and again."""
    entries: list[Any] = profile.getstats()
    callers = defaultdict[Any, dict[Any, float]](dict)
    for entry in entries:
        for called in entry.calls or ():
            callers[called.code][entry.code] = called.totaltime + 1e-9
    charged, loose = Counter[str](), {entry.code: entry.inlinetime for entry in entries}
    for _ in range(DEEP):
        risen = defaultdict[Any, float](float)
        for code, used in loose.items():
            stage, above = stage_of(code), callers[code]
            if stage is not None or not above:
                charged[stage or "event loop"] += used
            else:
                total = sum(above.values())
                for caller, weight in above.items():
                    risen[caller] += used * weight / total
        loose = risen
    total = sum(charged.values())
    return {stage: charged[stage] / total for stage in STAGES}


class Socket:
    """Both ends of a connection."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {"type": "websocket", "headers": [], "query_string": b"", "client": ("here", 1)}
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.texts: list[str] = []
        self.until, self.came = "", asyncio.Event()
        self.thread_id = ""

    async def receive(self) -> dict[str, Any]:
        return await self.asked.get()

    async def send(self, message: dict[str, Any]) -> None:
        text = message.get("text", "")
        self.texts.append(text)
        if not self.thread_id and '"event.append"' in text:
            self.thread_id = orjson.loads(text)["payload"]["thread_id"]
        if self.until in text:
            self.came.set()

    async def ask(self, kind: str, payload: dict[str, Any], until: str) -> str:
        self.until = until
        self.came.clear()
        text = json.dumps({"id": uuid4().hex, "type": kind, "payload": payload})
        self.asked.put_nowait({"type": "websocket.receive", "text": text})
        await self.came.wait()
        return text


async def turns(options: dict[str, Any], seconds: float) -> dict[str, dict[str, float]]:
    """Microseconds of a turn by stage, and of what each stage cannot do without."""
    worker, sockets = worker_on(options), [Socket() for _ in range(PEOPLE)]
    serving = [asyncio.create_task(worker.handle(socket)) for socket in sockets]
    for number, socket in enumerate(sockets):
        who = {"worker_id": "worker", "organization_id": f"o-{number}", "workspace_id": "w", "user_id": "u"}
        await socket.ask("connect", who, '"ack"')

    async def turn(socket: Socket) -> str:
        payload = {"event": {"content": [{"type": "text", "text": MESSAGE}]}, "client_event_id": uuid4().hex}
        if socket.thread_id:
            payload["thread_id"] = socket.thread_id
        socket.texts.clear()
        return await socket.ask("event.create", payload, '"succeeded"')

    for _ in range(5):
        await asyncio.gather(*map(turn, sockets))
    asked = await turn(sockets[0])
    frames = [orjson.loads(text) for text in sockets[0].texts]

    async def turns_of(person: int) -> None:
        await turn(sockets[person])

    main, others = await floor.used(turns_of, PEOPLE, seconds / 2)
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    await floor.used(turns_of, PEOPLE, seconds / 2)
    profile.disable()
    stages = {stage: share * main for stage, share in shares(profile).items()}
    stages["other threads"] = others
    for socket in sockets:
        socket.asked.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await asyncio.gather(*serving)
    await worker.close()
    return {"stages": stages, "limits": await limits_of(options, asked, frames)}


async def limits_of(options: dict[str, Any], asked: str, frames: list[Any]) -> dict[str, float]:
    """Microseconds of what the stages of a turn cannot do without."""
    store, others = await floor.keeping(options, PEOPLE, LONG)
    mine, its = (tuple(str(number) for number in range(4)) for _ in range(2))
    return {
        "parse": timed(lambda: orjson.loads(asked)),
        "access": timed(lambda: mine == its),
        "handler": (await handler({}, LONG, 1, MESSAGE))["cpu"],
        "turn": await floor.skeleton(PEOPLE, LONG),
        "store": store,
        "serialise": timed(lambda: [orjson.dumps(frame) for frame in frames]),
        "fan-out": await floor.frames(PEOPLE, LONG),
        "other threads": others,
    }


def timed(work: Callable[[], Any], times: int = 3000) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e6


if __name__ == "__main__":
    _, _, told, seconds_told = sys.argv
    spare_the_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as here:
        print(json.dumps(here.run(turns(json.loads(told), float(seconds_told)))))
