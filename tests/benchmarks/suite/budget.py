"""Where the CPU of a turn goes, by stage: `python -m benchmarks.suite.budget turns OPTIONS SECONDS`. Called by the suite.

Real turns over a socket in this process. A timer of CPU time interrupts; what the main thread has used since the last time is charged to
the stage whose module is innermost on its stack. So what a library does is its caller's; what other threads use is told apart. It is a
sample, good to some percent; the limits beside it are timed in loops over the very frames of these turns. Not a profile of lines.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import orjson

from benchmarks.suite import handler as handler_module
from benchmarks.suite.inside import MESSAGE, handler
from benchmarks.suite.worker import worker_on

__all__ = ["STAGES", "turns"]

# The modules of each stage. A function before a module: frames are read and written by the same ones.
STAGES: dict[str, set[str]] = {
    "parse": {"protocol.parse", "dialects", "content"},
    "access": {"access", "quota", "admission"},
    "injection": {"inject", "injector", "container", "registration", "context"},
    "handler": {"send", "(handler)"},
    "turn": {"turn", "steps", "stage", "runner", "openturn", "lanes", "locks", "models", "routing", "routes", "clock"},
    "store": {"stores"},
    "serialise": {"protocol", "codec", "news"},
    "fan-out": {"broadcast", "relay", "session", "elsewhere", "catchup"},
}
_STAGE = {module: stage for stage, modules in STAGES.items() for module in modules}
_LIBRARIES = {"asyncpg": "store", "aiosqlite": "store", "sqlite3": "store", "databases": "store"}
EVERY = 0.001


def stage_of(frame: FrameType | None) -> str:
    """Whose time it is: that of the innermost frame that belongs to a stage."""
    found = ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        parts = path.parts
        if "dooers" in parts[:-1] and "site-packages" not in parts:
            inner = parts[len(parts) - parts[::-1].index("dooers") :]
            module = inner[0].removesuffix(".py")
            if f"{module}.{frame.f_code.co_name}" in _STAGE:
                return _STAGE[f"{module}.{frame.f_code.co_name}"]
            # Whoever reads calls the codec too: that is known only further out.
            found = found or _STAGE.get(module, "turn")
            if found != "serialise":
                return found
        elif frame.f_code.co_filename == handler_module.__file__:
            return found or "handler"
        elif not found and (library := next((one for one in _LIBRARIES if one in parts), None)):
            return _LIBRARIES[library]
        frame = frame.f_back
    return found or "event loop"


class Socket:
    """Both ends of a connection."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {"type": "websocket", "headers": [], "query_string": b"", "client": ("here", 1)}
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.texts: list[str] = []
        self.until, self.came = "", asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        return await self.asked.get()

    async def send(self, message: dict[str, Any]) -> None:
        text = message.get("text", "")
        self.texts.append(text)
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
    worker, socket = worker_on(options), Socket()
    serving = asyncio.create_task(worker.handle(socket))
    who = {"worker_id": "worker", "organization_id": "o", "workspace_id": "w", "user_id": "u"}
    await socket.ask("connect", who, '"ack"')

    async def turn() -> str:
        payload = {"event": {"content": [{"type": "text", "text": MESSAGE}]}, "client_event_id": uuid4().hex}
        return await socket.ask("event.create", payload, '"succeeded"')

    for _ in range(50):
        asked = await turn()
    socket.texts.clear()
    await turn()
    frames = [orjson.loads(text) for text in socket.texts]
    charged, count = Counter[str](), 0
    last = time.thread_time()

    def sample(_: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.thread_time()
        charged[stage_of(frame)] += now - last  # type: ignore[assignment]
        last = time.thread_time()  # looking is nobody's

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
    until, main, everything = time.perf_counter() + seconds, time.thread_time(), time.process_time()
    while time.perf_counter() < until:
        await turn()
        count += 1
        socket.texts.clear()
    signal.setitimer(signal.ITIMER_PROF, 0)
    main, everything = time.thread_time() - main, time.process_time() - everything
    stages = {stage: charged[stage] / count * 1e6 for stage in (*STAGES, "event loop")}
    stages["other threads"] = max(0.0, everything - main) / count * 1e6
    socket.asked.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await serving
    await worker.close()
    bare = await handler({}, 0.3, 1, MESSAGE)
    limits = {
        "parse": timed(lambda: orjson.loads(asked)),
        "serialise": timed(lambda: [orjson.dumps(frame) for frame in frames]),
        "handler": bare["cpu"],
    }
    return {"stages": stages, "limits": limits}


def timed(work: Callable[[], Any], times: int = 3000) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e6


if __name__ == "__main__":
    _, _, told, seconds_told = sys.argv
    print(json.dumps(asyncio.run(turns(json.loads(told), float(seconds_told)))))
