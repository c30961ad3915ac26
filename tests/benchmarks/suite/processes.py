"""Servers and programs in processes of their own, and what they use of the machine. Not what they do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from attrs import Factory, define, frozen

from benchmarks.suite.databases import Database

__all__ = ["Meter", "Served", "run_inside", "served"]

ROOT = Path(__file__).parents[3]
WITHIN = 60.0


def _environment() -> dict[str, str]:
    path = [str(ROOT), str(ROOT / "contrib"), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore"}


@frozen
class Served:
    """A server that listens. `took` is how long that took it, from its very beginning."""

    process: asyncio.subprocess.Process
    port: int
    took: float

    def memory(self) -> int:
        """Bytes that are its own."""
        return int(psutil.Process(self.process.pid).memory_full_info().uss)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def served(program: str, database: Database, *words: str) -> AsyncIterator[Served]:
    """`worker`, or `limit` of some kind, on a database; ended afterwards."""
    command = (sys.executable, "-m", f"benchmarks.suite.{program}", *words, json.dumps(database.options))
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=_environment(), cwd=ROOT
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(command)}: expected a port, it ended with {await process.wait()}")
        yield Served(process, int(line), time.perf_counter() - began)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run_inside(program: str, name: str, *words: Any) -> dict[str, float]:
    """Run a program of the suite, and take the figures that it prints."""
    command = (sys.executable, "-m", f"benchmarks.suite.{program}", name, *(json.dumps(word) for word in words))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=_environment(), cwd=ROOT
    )
    told, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
    figures: dict[str, float] = json.loads(told.splitlines()[-1])
    return figures


@define(eq=False)
class Meter:
    """CPU seconds since it was made, of other processes and of this one (`client`), and the time on the clock."""

    parts: Mapping[str, int | None]
    began: dict[str, float] = Factory(dict)
    wall: float = 0.0
    own: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.began = {name: used(pid) for name, pid in self.parts.items()}
        self.wall, self.own = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Of each part, and `wall`."""
        wall, own = time.perf_counter() - self.wall, time.process_time() - self.own
        return {"wall": wall, "client": own, **{name: used(pid) - self.began[name] for name, pid in self.parts.items()}}


def used(pid: int | None) -> float:
    """CPU seconds of a process, of those that it started and of those of them that have ended."""
    if pid is None:
        return 0.0
    process, total = psutil.Process(pid), 0.0
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:  # it has ended since; its parent has its time
            continue
        total += times.user + times.system
    return float(total)
