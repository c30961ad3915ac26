"""The arrows of the house: which module may import which. The rings are those of docs/architecture.md."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dooers"

RINGS: list[set[str]] = [
    {"models", "exceptions", "schema", "config"},
    {"access", "codec", "content", "dialects", "news", "protocol", "send", "settings", "stats", "turn"} | {"history"},
    {"brokers", "clock", "courier", "stores", "vault", "webhook"},
    {
        "lanes",
        "locks",
        "broadcast",
        "quota",
        "totals",
        "analytics",
        "context",
        "steps",
        "openturn",
        "elsewhere",
        "deadline",
    }
    | {"catchup", "relay", "stage", "deaf", "admission", "runner", "pulse", "repository"},
    {"injector", "scope", "inject", "container", "lifecycle", "session", "registration", "resume", "routes"}
    | {"routing", "dispatch"},
    {"asgi", "playground", "predecessor", "server", "client", "chat", "cli", "testing", "__init__", "__main__"},
]
RING = {name: number for number, ring in enumerate(RINGS) for name in ring}

# Who may know which library; everybody else goes through them.
ONLY_IN = {
    "starlette": {"asgi", "server"},
    "dependency_injector": {"injector"},
    "databases": {"stores"},
    "aiosqlite": {"stores"},
    "asyncpg": {"brokers", "stores"},
    "sqlalchemy": {"stores"},
    "alembic": {"stores"},
    "azure": {"stores"},
    "aiohttp": {"stores"},
    "sqlite3": {"stores"},
    "httpx": {"courier"},
    "websockets": {"client"},
    "uvicorn": {"cli"},
    "typer": {"cli", "chat"},
    "rich": {"cli", "chat"},
    "orjson": {"codec"},
    "cryptography": {"vault"},
}
PURE = {"attrs", "cattrs", "orjson", "dooers"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).parts[0].removesuffix(".py")
        yield name, path, ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, also those in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", node.lineno


def own(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name, _ in imported(tree) if name.startswith("dooers.")}


def test_every_module_has_a_ring() -> None:
    assert {name for name, _, _ in modules()} == set(RING)


def test_arrows_point_to_the_same_ring_or_a_lower_one() -> None:
    upward = [
        f"{path.relative_to(ROOT)} (ring {RING[name]}) imports {other} (ring {RING[other]})"
        for name, path, tree in modules()
        for other in own(tree)
        if RING[other] > RING[name]
    ]
    assert upward == []


def test_there_is_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for name, _, tree in modules():
        graph.setdefault(name, set()).update(own(tree) - {name})
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_known_only_where_it_belongs(library: str) -> None:
    strangers = [
        f"{path.relative_to(ROOT)}:{line}"
        for name, path, tree in modules()
        for other, line in imported(tree)
        if other.split(".")[0] == library and name not in ONLY_IN[library]
    ]
    assert strangers == []


def test_words_and_rules_are_pure() -> None:
    for name, path, tree in modules():
        if RING[name] > 1:
            continue
        asynchronous = [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor)]
        assert asynchronous == [], f"{path.name} waits"
        tops = {other.split(".")[0] for other, _ in imported(tree)}
        assert tops - PURE <= sys.stdlib_module_names, f"{path.name} imports {tops}"
        assert not tops & {"random", "secrets", "time", "socket", "asyncio"}, f"{path.name} is not pure"


def test_nothing_is_imported_for_the_type_checker_only() -> None:
    for _, path, tree in modules():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "TYPE_CHECKING" not in names, f"{path.name} has arrows that exist for the type checker only"


# What may be imported inside a function: optional or heavy libraries, only when they are needed.
LAZY = {"cryptography", "httpx", "alembic", "sqlalchemy", "typer", "rich", "uvicorn", "websockets"}


def test_imports_inside_functions_are_of_optional_libraries_only() -> None:
    for name, path, tree in modules():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found = {other.split(".")[0] for other, _ in imported(function)}
                assert found <= LAZY | {"dooers"} if name in ("cli", "__main__") else found <= LAZY, path.name


def test_functions_and_modules_fit_a_screen() -> None:
    too_long: list[str] = []
    for _, path, tree in modules():
        lines = path.read_text().count("\n")
        if lines > 450:
            too_long.append(f"{path.name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                doc = ast.get_docstring(node, clean=False)
                size -= doc.count("\n") + 1 if doc else 0
                if size > 60:
                    too_long.append(f"{path.name}:{node.lineno} {node.name}: {size} lines")
    assert too_long == []


# A broker of contrib has the waiters of its own process stand in the line that all brokers have.
PUBLIC = ("dooers", "dooers.testing", "dooers.client", "dooers.brokers.keylocks")


@pytest.mark.parametrize("folder", ["contrib", "examples"])
def test_contrib_and_examples_use_public_names_only(folder: str) -> None:
    for path in (ROOT.parent / folder).rglob("*.py"):
        for name, line in imported(ast.parse(path.read_text())):
            assert name in PUBLIC or not name.startswith("dooers."), f"{path.name}:{line} imports {name}"
