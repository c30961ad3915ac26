"""A worker under a crowd for minutes: do memory, tasks, files and objects stay as they are?

Run it by hand: `python tests/benchmarks/soak.py [--minutes 5] [--people 200] [--turns 50] [--database sqlite|postgres]`. It prints a
line every few seconds, then how much each grows in a minute (after the first quarter, in which caches fill), what is left when
everybody has gone, and what the log has complained of. Not a test; `tests/test_soak.py` has a short one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from services.postgres import own_postgres
from services.soaking import Crowd, Served, Vitals, served, slope, watched

EVERY = 5.0
SEEN: dict[str, Callable[[Vitals], float]] = {
    "resident MB": lambda vitals: vitals.resident / 1e6,
    "files": lambda vitals: vitals.files,
    "threads": lambda vitals: vitals.threads,
    "tasks": lambda vitals: vitals.tasks,
}


@contextmanager
def database(kind: str, home: Path) -> Iterator[dict[str, Any]]:
    if kind == "sqlite":
        yield {"database_type": "sqlite", "database_name": str(home / "worker.db")}
        return
    with own_postgres() as server:
        name = asyncio.run(_new_database(server))
        yield {
            "database_type": "postgres",
            "database_host": server.address.host,
            "database_port": server.address.port,
            "database_user": "postgres",
            "database_name": name,
        }


async def _new_database(server: Any) -> str:
    async with server.address.session() as admin:
        await admin.execute("CREATE DATABASE soak TEMPLATE template0")
    return "soak"


async def soak(server: Served, asked: argparse.Namespace) -> None:
    await _crowd(server, asked).during(5)  # whatever is loaded on first use is there
    before = await server.at_rest(look=True)
    crowd, samples = _crowd(server, asked), list[Vitals]()
    began = time.monotonic()
    async for vitals in watched(server, crowd, asked.minutes * 60, EVERY):
        samples.append(vitals)
        said = "  ".join(f"{name} {of(vitals):.0f}" for name, of in SEEN.items())
        print(
            f"{vitals.at - began:5.0f} s  {said}  {vitals.stats['sessions']} connections  {crowd.done['turns']} turns",
            flush=True,
        )
    seconds = time.monotonic() - began
    after = await server.at_rest(look=True)
    print(f"\n{crowd.done['turns'] / seconds:.0f} turns/s, {crowd.done['visits']} visits: {dict(crowd.done)}")
    there = [vitals for vitals in samples if vitals.stats["sessions"] >= 0.9 * asked.people]
    late = there[len(there) // 4 :]
    for name, of in SEEN.items():
        print(f"{name:12} {of(before):8.1f} before {of(after):8.1f} after  {slope(late, of):+8.2f} a minute")
    grown = {name: count - before.objects.get(name, 0) for name, count in after.objects.items()}
    for name, count in sorted(grown.items(), key=lambda item: -item[1])[:15]:
        print(f"  {count:+7} {name}")
    print("statistics afterwards:", {name: value for name, value in after.stats.items() if value})
    print(
        f"failures: {crowd.failures[:5]} ({len(crowd.failures)}); complaints: {server.complaints[:5]} ({len(server.complaints)})"
    )


def _crowd(server: Served, asked: argparse.Namespace) -> Crowd:
    # A deed takes a fifth of a second or so; nine in ten of them are turns.
    return Crowd(server.address, asked.people, pause=max(0.01, 0.9 * asked.people / asked.turns - 0.2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--turns", type=float, default=50)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        database(asked.database, Path(home)) as options,
        served(Path(home), **options) as server,
    ):
        asyncio.run(soak(server, asked))


if __name__ == "__main__":
    main()
