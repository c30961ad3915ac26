"""The benchmark suite runs, every cell of it, and the page says what it measured. How fast anything is is asserted nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve
from benchmarks.suite import report
from benchmarks.suite.cells import AREAS, BOTH, CELLS, Sizes
from benchmarks.suite.goals import goals
from benchmarks.suite.results import Results
from benchmarks.suite.runner import measure
from services.postgres import Address
from tables import WRITE

MOMENT = evolve(
    Sizes(), seconds=0.02, rounds=1, large=2_000, small=500, people=20, crowd=(1, 2, 3), readers=(2, 3, 4), pieces=50
)


async def test_every_cell_gives_the_figures_of_its_area_on_both_databases(tmp_path: Path, postgres: Address) -> None:
    out = tmp_path / "results.jsonl"
    await measure(MOMENT, out, (), BOTH, postgres)
    results = Results.read(out)
    assert set(results.rounds) == {(cell.name, kind) for cell in CELLS for kind in cell.databases}
    for area in AREAS:
        for cell in (cell for cell in CELLS if cell.area == area.name):
            for kind in cell.databases:
                for side in cell.sides[:2]:
                    figure = results.median(cell.name, kind, side.name, area.main.key)
                    # With so few people memory may well shrink meanwhile.
                    assert figure > 0 or area.name == "memory"
    assert set(results.budgets) == set(BOTH)
    assert all(isinstance(goal.find(results), float) for goal in goals())
    assert results.median("stream/200", "sqlite", "dooers", "lost") == 0
    assert results.median("stream/200", "postgres", "dooers", "lost") == 0


def test_the_page_and_its_pictures_are_those_of_the_recorded_figures() -> None:
    if WRITE:
        report.write(report.RESULTS)
    differ = [str(path.name) for path, text in report.files(report.RESULTS).items() if path.read_text("utf-8") != text]
    assert differ == [], "run `python -m benchmarks.suite report`"


def test_a_figure_that_was_not_measured_is_left_out(tmp_path: Path) -> None:
    lines = report.RESULTS.read_text("utf-8").splitlines()
    part = tmp_path / "part.jsonl"
    part.write_text(
        "\n".join(line for line in lines if "machine" in json.loads(line) or json.loads(line).get("cell") == "turns/1")
    )
    page = report.files(part)[report.DOCS / "benchmarks.md"]
    assert "### Turns over WebSockets" in page
    assert "### Memory" not in page
    with pytest.raises(KeyError):
        Results.read(part).median("memory/idle", "sqlite", "dooers", "size")
