"""What was measured, as docs/benchmarks.md shows it: tables between two marks, and pictures beside the page. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.suite.cells import AREAS, CELLS, Area, Cell
from benchmarks.suite.goals import goals
from benchmarks.suite.plot import Bar, picture
from benchmarks.suite.results import Results

__all__ = ["BEGIN", "END", "RESULTS", "files", "write"]

RESULTS = Path(__file__).with_name("results.jsonl")
DOCS = Path(__file__).parents[3] / "docs"
BEGIN, END = "<!-- python -m benchmarks.suite report writes this: begin -->", "<!-- end -->"
NAMES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "memory": "either"}


def files(path: Path) -> dict[Path, str]:
    """What the page and its pictures ought to be."""
    results = Results.read(path)
    page = DOCS / "benchmarks.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.partition(END)[2]
    told = "\n".join(text(results))
    made = {page: f"{before}{BEGIN}\n\n{told}\n\n{END}{after}"}
    for area in AREAS:
        if rows := list(measured(area, results)):
            made[DOCS / f"benchmark-{area.name}.svg"] = drawn(area, rows, results)
    return made


def write(path: Path) -> None:
    for file, text_of_it in files(path).items():
        file.write_text(text_of_it, encoding="utf-8")


def number(value: float) -> str:
    """With as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def measured(area: Area, results: Results) -> Iterator[tuple[Cell, str]]:
    for cell in CELLS:
        if cell.area == area.name:
            yield from ((cell, kind) for kind in cell.databases if (cell.name, kind) in results.rounds)


def text(results: Results) -> Iterator[str]:
    one = results.machine
    libraries = ", ".join(f"{name} {version}" for name, version in one["libraries"].items())
    yield (
        f"Commit `{one['commit']}`, {one['cores']} cores, {one['system']}, Python {one['python']}, SQLite {one['sqlite']}, "
        f"PostgreSQL {one['postgres']}, {libraries}. {one['rounds']} rounds of {one['seconds']:g} s a side; medians; in brackets the "
        f"least and the greatest ratio of a round. Large is {one['large']:,} events, small {one['small']:,}."
    )
    yield from goals_table(results)
    for area in AREAS:
        if rows := list(measured(area, results)):
            yield from table(area, rows, results)
    yield from budget(results)


def goals_table(results: Results) -> Iterator[str]:
    yield "\n### Goals\n\n| goal | database | bound | measured | met |\n|---|---|--:|--:|---|"
    for goal in goals():
        try:
            figure = goal.find(results)
        except KeyError:
            continue
        bound = f"{'≥' if goal.least else '≤'} {number(goal.bound)}{goal.unit}"
        met = "yes" if goal.met(figure) else "**no**"
        yield f"| {goal.text} | {NAMES[goal.database]} | {bound} | {number(figure)}{goal.unit} | {met} |"


def table(area: Area, rows: list[tuple[Cell, str]], results: Results) -> Iterator[str]:
    yield f"\n### {area.title}\n\n![{area.title}, dooers and its limit](benchmark-{area.name}.svg)\n"
    heads = ["what", "database", f"dooers, {area.main.head}", area.limit, "ratio"]
    heads += [area.third] * bool(area.third) + [f"{one.head}: dooers / {area.limit}" for one in area.more]
    yield f"| {' | '.join(heads)} |\n|---|---|{'--:|' * (len(heads) - 2)}"
    for cell, kind in rows:
        key = area.main.key
        middle, least, most = results.ratios(cell.name, kind, key)
        cells = [
            cell.title,
            NAMES[kind],
            *(number(results.median(cell.name, kind, side, key)) for side in ("dooers", "limit")),
        ]
        cells.append(f"{middle:.2f} ({least:.2f}-{most:.2f})")
        if area.third:
            cells.append(number(results.median(cell.name, kind, cell.sides[2].name, key)))
        cells += [both(results, cell, kind, one.key) for one in area.more]
        yield f"| {' | '.join(cells)} |"


def both(results: Results, cell: Cell, kind: str, key: str) -> str:
    """A figure of both sides, as far as each has it."""
    told = []
    for side in ("dooers", "limit"):
        try:
            told.append(number(results.median(cell.name, kind, side, key)))
        except KeyError:
            told.append("-")
    return " / ".join(told)


def budget(results: Results) -> Iterator[str]:
    """The stages of a turn."""
    if not results.budgets:
        return
    kinds = list(results.budgets)
    yield "\n### Where a turn's CPU goes\n"
    yield f"| stage | {' | '.join(f'{NAMES[kind]}, µs: dooers / limit' for kind in kinds)} | what the limit is |"
    yield f"|---|{'--:|' * len(kinds)}---|"
    for stage in results.budgets[kinds[0]]["stages"]:
        figures = [staged(results.budgets[kind], stage) for kind in kinds]
        yield f"| {stage} | {' | '.join(figures)} | {LIMITS.get(stage, '-')} |"
    sums = [
        " / ".join(number(sum(results.budgets[kind][side].values())) for side in ("stages", "limits")) for kind in kinds
    ]
    yield f"| all of it | {' | '.join(sums)} | |"


def staged(budget: Mapping[str, Mapping[str, float]], stage: str) -> str:
    """What a stage takes, and its limit where it has one."""
    limit = number(budget["limits"][stage]) if stage in budget["limits"] else "-"
    return f"{number(budget['stages'][stage])} / {limit}"


LIMITS = {
    "parse": "`orjson.loads` of the message's frame",
    "access": "one comparison of the ids of a place; checks of quotas, and the message's place in its queue, have none",
    "injection": "nothing: a call with the same arguments",
    "handler": "the handler, called with nothing around it",
    "turn": "a task, a generator, and for each thing stored a future and a callback, with nothing in them",
    "store": "the ceiling's own, which writes its rows and reads, checks, numbers and recognises nothing",
    "serialise": "`orjson.dumps` of the turn's frames",
    "fan-out": "a queue, and a task that empties it",
    "event loop": "is in the limits of the others",
    "other threads": "the ceiling's thread that writes",
}


def drawn(area: Area, rows: list[tuple[Cell, str]], results: Results) -> str:
    def bar(cell: Cell, kind: str, side: str) -> Bar:
        values = [one[side][area.main.key] for one in results.rounds[cell.name, kind]]
        return Bar(results.median(cell.name, kind, side, area.main.key), min(values), max(values))

    def name(cell: Cell, kind: str) -> str:
        return cell.title.replace("`", "") if kind == "memory" else f"{cell.title}, {NAMES[kind]}"

    pairs = [(name(cell, kind)[:36], bar(cell, kind, "dooers"), bar(cell, kind, "limit")) for cell, kind in rows]
    return picture(f"{area.title}: {area.main.head}", area.limit, pairs)
