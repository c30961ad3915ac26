"""How long a process takes to end on SIGTERM, in each state in which it may be, and with which exit code: one line each.

Run it by hand: `PYTHONPATH=.:tests python tests/benchmarks/exit.py [GRACE TIMEOUT]` (seconds; 10 10, the defaults, if none are given).
It starts a PostgreSQL of its own for the lines that say so. Not a test: nothing passes or fails.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.exits import HOSTS, STATES, Ended, address, freezing, hosted, measure
from services.postgres import own_postgres


async def main(grace: float, timeout: float) -> None:
    print(f"shutdown_grace={grace:g} shutdown_timeout={timeout:g}, seconds from SIGTERM to the end of the process\n")
    print("| database | host | state | seconds | exit code | runs | close code |")
    print("|---|---|---|--:|--:|---|--:|")
    base = {"shutdown_grace": grace, "shutdown_timeout": timeout}
    for host in HOSTS:
        for state in STATES:
            with tempfile.TemporaryDirectory() as home:
                options = {**base, "database_type": "sqlite", "database_name": f"{home}/worker.db"}
                line("sqlite", host, state, await measure(host, state, options, Path(home)))
    with own_postgres() as server, tempfile.TemporaryDirectory() as home:
        for host in HOSTS:
            for state in ("idle", "mid-turn"):
                async with server.address.database() as name:
                    options = {**base, **address(server, name)}
                    line("postgres", host, state, await measure(host, state, options, Path(home)))
            async with server.address.database() as name:
                options = {**base, **address(server, name)}
                froze = freezing(server)
                line(
                    "postgres, frozen",
                    host,
                    "mid-turn",
                    await measure(host, "mid-turn", options, Path(home), froze=froze),
                )
    for word, state in {"block": "a handler blocks the loop", "thread": "a thread never ends"}.items():
        with tempfile.TemporaryDirectory() as home:
            await blocked(word, state, {**base, "database_type": "sqlite", "database_name": f"{home}/worker.db"}, home)


def line(database: str, host: str, state: str, ended: Ended) -> None:
    runs = ", ".join(sorted(status for statuses in ended.left.runs.values() for status in statuses))
    print(
        f"| {database} | {host} | {state} | {ended.seconds:.2f} | {ended.code} | {runs} | {ended.closed_with} |",
        flush=True,
    )


async def blocked(word: str, state: str, options: Mapping[str, Any], home: str) -> None:
    async with hosted(HOSTS["dooers run"][0], options, Path(home)) as serving, serving.client() as client:
        await serving.block(client, word)
        seconds, code = await serving.end()
        print(f"| sqlite | dooers run | {state} | {seconds:.2f} | {code} | | |", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*map(float, sys.argv[1:3] or ("10", "10"))))
