"""The command line: `python -m benchmarks.suite run` measures, `report` writes what came out into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import uvloop
from attrs import evolve

from benchmarks.suite import report
from benchmarks.suite.cells import BOTH, Sizes
from benchmarks.suite.runner import measure

QUICK = evolve(Sizes(), seconds=0.5, rounds=2, large=100_000, people=300)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.suite", description=__doc__)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("only", nargs="*", help="beginnings of the names of cells, e.g. turns/32; budget; nothing: all")
    parser.add_argument("--quick", action="store_true", help="minutes, for a first look")
    parser.add_argument("--seconds", type=float, help="how long each side is measured")
    parser.add_argument("--rounds", type=int, help="how often")
    parser.add_argument("--database", choices=BOTH, action="append", help="one of the two")
    parser.add_argument("--postgres", help="URL of a server on this machine; nothing: one of our own")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where the figures go, as lines of JSON")
    told = parser.parse_intermixed_args()
    if told.what == "run":
        sizes = QUICK if told.quick else Sizes()
        given = {name: value for name in ("seconds", "rounds") if (value := getattr(told, name)) is not None}
        # The loop that uvicorn takes: who measures is not to be slower than what is measured.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as here:
            here.run(measure(evolve(sizes, **given), told.out, told.only, told.database or BOTH, told.postgres))
    else:
        report.write(told.out)


if __name__ == "__main__":
    main()
