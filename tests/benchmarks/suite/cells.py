"""What is measured: a row for each thing, with what stands beside it. How rounds are interleaved is in `runner.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from attrs import frozen

from benchmarks.suite import loads
from benchmarks.suite.databases import Database, Databases
from benchmarks.suite.processes import run_inside, served

from plenty import LONG  # isort: skip  (databases.py has made it known)

__all__ = ["AREAS", "BOTH", "CELLS", "Area", "Cell", "Figure", "Side", "Sizes"]

Figures: TypeAlias = dict[str, float]
BOTH = ("sqlite", "postgres")


@frozen
class Sizes:
    """How much of everything: what `--quick` and the test have less of."""

    seconds: float = 3.0
    rounds: int = 5
    large: int = 1_000_000
    small: int = 1_000
    people: int = 1_000
    crowd: tuple[int, int, int] = (1, 32, 200)
    readers: tuple[int, int, int] = (10, 100, 500)
    pieces: int = 2_000


Run: TypeAlias = Callable[[Databases, str, Sizes], Awaitable[Figures]]


@frozen
class Side:
    """One of those that are compared."""

    name: str
    run: Run


@frozen
class Figure:
    """A number of an area: its key, and the head of its column."""

    key: str
    head: str


@frozen
class Area:
    """Cells that stand in one table. `main` is what ratios are made of; `third` says what stands beside, where there is something."""

    name: str
    title: str
    main: Figure
    limit: str
    more: tuple[Figure, ...] = ()
    third: str = ""


@frozen
class Cell:
    """One row. The first side is dooers, the second its limit, a third, if any, stands beside."""

    name: str
    title: str
    sides: tuple[Side, ...]
    databases: tuple[str, ...] = BOTH

    @property
    def area(self) -> str:
        return self.name.partition("/")[0]


async def _outside(
    program: tuple[str, ...], load: Any, words: Callable[[Sizes], tuple[Any, ...]], filled: Callable[[Sizes], int] | None,
    databases: Databases, kind: str, sizes: Sizes,
) -> Figures:  # fmt: skip
    """A load on a server, on a new database or on one that was filled."""

    async def run(database: Database) -> Figures:
        async with served(program[0], database, *program[1:]) as server:
            figures: Figures = await load(server, database, sizes.seconds, *words(sizes))
            return figures

    if filled is not None:
        return await run(await databases.filled(kind, filled(sizes)))
    async with databases.new(kind) as database:
        return await run(database)


async def _inside(
    name: str, words: tuple[Any, ...], filled: Callable[[Sizes], int] | None,
    databases: Databases, kind: str, sizes: Sizes,
) -> Figures:  # fmt: skip
    if filled is not None:
        database = await databases.filled(kind, filled(sizes))
        return await run_inside("inside", name, database.options, sizes.seconds, *words)
    async with databases.new(kind) as database:
        return await run_inside("inside", name, database.options, sizes.seconds, *words)


async def _start(program: tuple[str, ...], databases: Databases, kind: str, sizes: Sizes) -> Figures:
    async with databases.new(kind) as database, served(program[0], database, *program[1:]) as server:
        return {"millis": server.took * 1e3}


def large(sizes: Sizes) -> int:
    return sizes.large


def small(sizes: Sizes) -> int:
    return sizes.small


OURS, TURNS, ECHO, LOOP = ("worker",), ("limit", "turns"), ("limit", "echo"), ("limit", "loop")


def outside(program: tuple[str, ...], load: Any, words: Any, filled: Any = None) -> Run:
    return partial(_outside, program, load, words, filled)


def inside(name: str, *words: Any, filled: Any = None) -> Run:
    return partial(_inside, name, words, filled)


def _crowd(n: int) -> Cell:
    def words(sizes: Sizes) -> tuple[int]:
        return (sizes.crowd[n],)

    size = Sizes().crowd[n]
    sides = (outside(OURS, loads.turns, words), outside(TURNS, loads.turns, words), outside(ECHO, loads.echoes, words))
    return Cell(f"turns/{size}", f"{size} connection{'s' * (size > 1)}", _sides(*sides, third="echo"))


def _fan(n: int) -> Cell:
    def words(sizes: Sizes) -> tuple[int]:
        return (sizes.readers[n],)

    sides = (
        outside(OURS, loads.fanned, words),
        outside(TURNS, loads.fanned, words),
        outside(LOOP, loads.looped, words),
    )
    return Cell(f"fanout/{Sizes().readers[n]}", f"{Sizes().readers[n]} readers", _sides(*sides, third="loop"))


def _page(name: str, title: str, kind: str, payload: dict[str, Any]) -> Cell:
    def words(sizes: Sizes) -> tuple[Any, ...]:
        return kind, payload

    sides = (outside(OURS, loads.listed, words, at) for at in (large, small))
    first, few = sides
    return Cell(f"reads/{name}", title, _sides(first, inside("read_bare", name, filled=large), few, third="small"))


def _sides(ours: Run, limit: Run, other: Run | None = None, *, third: str = "") -> tuple[Side, ...]:
    return (Side("dooers", ours), Side("limit", limit), *([Side(third, other)] if other else []))


WORDS = "What is there to say about it? It is a question of ordinary length."
CELLS: tuple[Cell, ...] = (
    *(_crowd(n) for n in range(3)),
    Cell(
        "stream/200",
        "turns of 200 texts",
        _sides(*(outside(one, loads.stream, lambda sizes: (200,)) for one in (OURS, TURNS))),
    ),
    Cell(
        "deltas/2000",
        "answers in 2,000 pieces",
        _sides(*(outside(one, loads.deltas, lambda sizes: (sizes.pieces,)) for one in (OURS, TURNS))),
    ),
    *(
        Cell(f"dispatch/{n}", title, _sides(inside("dispatch", n, WORDS), inside("ceiling", n, WORDS)))
        for n, title in ((1, "one after the other"), (50, "50 at once"))
    ),
    Cell(
        "dispatch/overhead",
        "four yields, kept in memory; beside the handler alone",
        _sides(inside("dispatch", 1, "four"), inside("handler", 1, "four")),
        ("memory",),
    ),
    Cell("store/turn", "a turn of four yields", _sides(inside("store_turn", 150), inside("store_bare", 150))),
    Cell("statements/turn", "a turn of four yields", _sides(inside("round_trips", 20), inside("by_hand", 20))),
    *(_fan(n) for n in range(3)),
    Cell(
        "reads/history",
        "history of 20",
        _sides(
            inside("history", filled=large),
            inside("read_bare", "history", filled=large),
            inside("history", filled=small),
            third="small",
        ),
    ),
    _page("list", "a list of 30 threads", "thread.list", {"limit": 30}),
    _page("snapshot", "a snapshot", "thread.subscribe", {"thread_id": LONG}),
    _page("events", "a page of 50 events", "event.list", {"thread_id": LONG, "limit": 50}),
    Cell(
        "growth/32",
        "turns of 32 connections",
        _sides(
            outside(OURS, loads.turns, lambda sizes: (sizes.crowd[1],), large),
            outside(OURS, loads.turns, lambda sizes: (sizes.crowd[1],)),
        ),
    ),
    Cell(
        "memory/idle",
        "an idle connection",
        _sides(
            outside(OURS, loads.connections, lambda sizes: (sizes.people, True)),
            outside(ECHO, loads.connections, lambda sizes: (sizes.people, False)),
        ),
    ),
    Cell(
        "memory/running",
        "a running turn",
        _sides(*(outside(one, loads.running, lambda sizes: (sizes.people // 2,)) for one in (OURS, TURNS))),
    ),
    Cell("start/new", "on a new database", _sides(*(partial(_start, one) for one in (OURS, ECHO)))),
    Cell(
        "start/import", "`import dooers`", _sides(inside("imports", "dooers"), inside("imports", "floor")), ("memory",)
    ),
)

CPU = Figure("cpu", "µs CPU, server")
DB = Figure("db", "µs CPU, database")
CALLED = Figure("called", "µs, `sqlite3` without a thread")
CLIENT = Figure("client", "µs CPU, client")
LATE = (Figure("p50", "ms, median"), Figure("p99", "ms, p99"))
AREAS: tuple[Area, ...] = (
    Area("turns", "Turns over WebSockets", Figure("rate", "turns a second"), "ceiling", (*LATE, CPU, DB, CLIENT), "raw echo"),
    Area("stream", "A stream of events", Figure("rate", "events a second"), "ceiling", (CPU, DB, Figure("lost", "lost by kill -9"))),
    Area("deltas", "A stream of deltas", Figure("rate", "pieces a second"), "a frame a piece", (CPU, Figure("frames", "frames a turn"))),
    Area("dispatch", "Dispatch", Figure("rate", "turns a second"), "by hand", (Figure("cpu", "µs CPU, process"),)),
    Area("store", "The store", Figure("micros", "µs a turn"), "bare driver", (Figure("cpu", "µs CPU, process"),)),
    Area("statements", "Statements", Figure("statements", "statements a turn"), "ceiling"),
    Area("fanout", "Fan-out", Figure("rate", "frames a second"), "ceiling", (Figure("p50", "ms to the last reader"), CPU), "bare loop"),
    Area("reads", "Reads, in a large database", Figure("micros", "µs"), "bare driver", (CPU, CALLED), "in a small one"),
    Area("growth", "Growth", Figure("rate", "turns a second"), "empty", (CPU, DB)),
    Area("memory", "Memory", Figure("size", "KB each"), "bare"),
    Area("start", "Starting", Figure("millis", "ms"), "bare"),
)  # fmt: skip
