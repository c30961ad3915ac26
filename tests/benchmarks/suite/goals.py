"""What the figures ought to be, and whether they are. Nothing fails over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from benchmarks.suite.cells import BOTH
from benchmarks.suite.results import Results

__all__ = ["Goal", "goals"]


@frozen
class Goal:
    """A bound, and how its figure is found. `least`: the figure may not be below it; else not above."""

    text: str
    database: str
    bound: float
    find: Callable[[Results], float]
    least: bool = False
    unit: str = ""

    def met(self, figure: float) -> bool:
        return figure >= self.bound if self.least else figure <= self.bound


def _ratio(cell: str, kind: str, figure: str = "rate", other: str = "limit") -> Callable[[Results], float]:
    return lambda results: results.ratios(cell, kind, figure, other)[0]


def _median(cell: str, kind: str, figure: str) -> Callable[[Results], float]:
    return lambda results: results.median(cell, kind, "dooers", figure)


def _cpu(kind: str) -> Callable[[Results], float]:
    return lambda r: (_median("turns/32", kind, "cpu")(r) + _median("turns/32", kind, "db")(r)) / 1000


def _against_socket(at_once: int, people: int, kind: str) -> Callable[[Results], float]:
    return lambda r: _median(f"dispatch/{at_once}", kind, "rate")(r) / _median(f"turns/{people}", kind, "rate")(r)


def _stages(kind: str, *names: str) -> Callable[[Results], float]:
    return lambda results: sum(results.budgets[kind]["stages"][name] for name in names)


def _import(results: Results) -> float:
    found = (results.median("start/import", "memory", side, "millis") for side in ("dooers", "limit"))
    return next(found) - next(found)


def goals() -> Iterator[Goal]:
    for kind in BOTH:
        for people in (1, 32, 200):
            bound = 0.8 if kind == "postgres" else 1.0 if people == 1 else 0.9
            yield Goal(
                f"turns a second, {people} at once, of the ceiling", kind, bound, _ratio(f"turns/{people}", kind), True
            )
        yield Goal("CPU of 1,000 turns, 32 at once, server and database", kind, 0.5, _cpu(kind), unit=" s")
        yield Goal("events a second, turns of 200", kind, 10_000, _median("stream/200", kind, "rate"), True)
        yield Goal("shown events lost by kill -9", kind, 0, _median("stream/200", kind, "lost"))
        if kind == "postgres":
            yield Goal("the store's time, of the bare driver's", kind, 1.2, _ratio("store/turn", kind, "micros"))
        for readers in (10, 100, 500):
            yield Goal(
                f"frames a second to {readers}, of the ceiling", kind, 0.9, _ratio(f"fanout/{readers}", kind), True
            )
        yield Goal("dispatch, one after the other, of one WebSocket", kind, 1.0, _against_socket(1, 1, kind), True)
        yield Goal("dispatch, 50 at once, of 32 WebSockets", kind, 1.0, _against_socket(50, 32, kind), True)
        yield Goal(
            "history of 20, of its statement by the bare driver", kind, 2.0, _ratio("reads/history", kind, "micros")
        )
        for page in ("history", "list", "snapshot", "events"):
            find = _ratio(f"reads/{page}", kind, "micros", "small")
            yield Goal(f"{page} in a large database, of a small one", kind, 1.3, find)
        yield Goal("an idle connection", kind, 40, _median("memory/idle", kind, "size"), unit=" KB")
        yield Goal("injection", kind, 10, _stages(kind, "injection"), unit=" µs")
        yield Goal("parse and serialise", kind, 50, _stages(kind, "parse", "serialise"), unit=" µs")
    trips = _median("statements/turn", "postgres", "statements")
    yield Goal("round trips of a turn of four yields", "postgres", 3, trips)
    yield Goal("CPU of a turn of four yields", "memory", 150, _median("dispatch/overhead", "memory", "cpu"), unit=" µs")
    yield Goal("`import dooers`, beyond what it imports", "memory", 150, _import, unit=" ms")
