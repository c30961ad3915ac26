"""Cells are run: sides in turns (A B, B A, ...), each time in new processes, and what came of it as lines of JSON. Not how it is shown."""

from __future__ import annotations

import json
import os
import platform
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from services.postgres import Address

from benchmarks.suite.cells import CELLS, Cell, Sizes
from benchmarks.suite.databases import Databases
from benchmarks.suite.processes import ROOT, run_inside

__all__ = ["machine", "measure"]

LIBRARIES = ("uvicorn", "uvloop", "websockets", "starlette", "orjson", "asyncpg")


def machine(sizes: Sizes, server: str) -> dict[str, Any]:
    """Where and of what figures are."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    base = {"commit": commit, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
    much = {"rounds": sizes.rounds, "seconds": sizes.seconds, "large": sizes.large, "small": sizes.small}
    return {**base, "sqlite": sqlite3.sqlite_version, "postgres": server, "libraries": found, **much}


async def measure(
    sizes: Sizes, out: Path, only: Sequence[str], kinds: Sequence[str], where: str | Address | None
) -> None:
    """Run the cells whose names begin with one of `only` (all of them), and append what came of each to `out` as soon as it is known."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with Databases.opened(where) as databases:
        async with databases.address.session() as session:
            server = (await session.fetchval("SHOW server_version")).split()[0]
        with out.open("w", encoding="utf-8") as lines:
            _line(lines, {"machine": machine(sizes, server)})
            for cell in CELLS:
                if not only or cell.name.startswith(tuple(only)):
                    for kind in cell.databases:
                        if kind in kinds or kind == "memory":
                            rounds = [await one_round(cell, kind, n, databases, sizes) for n in range(sizes.rounds)]
                            _line(lines, {"cell": cell.name, "database": kind, "rounds": rounds})
            if not only or "budget" in only:
                for kind in kinds:
                    async with databases.new(kind) as database:
                        budget = await run_inside("budget", "turns", database.options, sizes.seconds * 2)
                    _line(lines, {"budget": budget, "database": kind})


async def one_round(cell: Cell, kind: str, n: int, databases: Databases, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Every side once; the other way round in every second round."""
    found = {}
    for side in cell.sides if n % 2 == 0 else cell.sides[::-1]:
        found[side.name] = await side.run(databases, kind, sizes)
        main = ", ".join(f"{name} {value:.4g}" for name, value in found[side.name].items())
        print(f"{cell.name:20} {kind:9} {n + 1} {side.name:7} {main}", file=sys.stderr, flush=True)
    return found


def _line(lines: Any, told: dict[str, Any]) -> None:
    lines.write(json.dumps(told) + "\n")
    lines.flush()
