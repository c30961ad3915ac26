"""docs/examples.md has a row for each example, with what it was run against and by which test: one that there is, and that speaks of it."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from snippets import ROOT
from tables import rows

HEADS = "| example | shows | entry point | needs | run against | test |"
ROWS = {re.sub(r"\[`(.+)`\].*", r"\1", row[0]): row for row in rows(HEADS, ROOT / "docs" / "examples.md")}
EXTRAS = re.search(r"(?ms)^\[project.optional-dependencies\]$(.+?)^\[", (ROOT / "pyproject.toml").read_text())


def test_every_example_has_a_row() -> None:
    there = {path.name for path in (ROOT / "examples").glob("*.py") if path.name != "__init__.py"}
    assert there - set(ROWS) == set(), "docs/examples.md: add a row for these"
    assert set(ROWS) - there == set(), "docs/examples.md: there are no such examples"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_is_so(name: str) -> None:
    link, shows, entry, needs, against, test = ROWS[name]
    assert link == f"[`{name}`](../examples/{name})"
    assert shows
    assert against
    tree = ast.parse((ROOT / "examples" / name).read_text(encoding="utf-8"))
    if attribute := entry.strip("`"):  # tests and scripts have none
        assert attribute in {target.id for node in tree.body for target in targets(node)}, f"{name} has no {attribute}"
    assert EXTRAS is not None
    for extra in ",".join(re.findall(r"`\[(.+?)\]`", needs)).split(","):
        assert not extra or re.search(rf"(?m)^{extra} = ", EXTRAS[1]), f"pyproject.toml has no extra {extra!r}"
    path, _, function = test.strip("`").partition("::")
    assert speaks_of(name.removesuffix(".py"), path, function), f"{test} says nothing of {name}"


@pytest.mark.parametrize("name", ROWS)
def test_its_first_lines_install_what_it_needs(name: str) -> None:
    lines = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text(encoding="utf-8"))) or ""
    [line] = re.findall(r"(?m)^pip install (.+)$", lines)
    ours, *others = shlex.split(line)
    extras = re.findall(r"^dooers-workers-server\[(.+)\]$", ours)
    _, _, _, needs, _, _ = ROWS[name]
    assert extras == re.findall(r"`\[(.+?)\]`", needs)
    assert [re.sub(r"\[.+\]", "", other) for other in others] == re.findall(r"`([\w-]+)`", needs)


def targets(node: ast.stmt) -> list[ast.Name]:
    """The names that a statement at the top of a module gives a value to."""
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target for target in found if isinstance(target, ast.Name)]


def speaks_of(name: str, path: str, function: str) -> bool:
    """Whether the test, a fixture that it asks for, or what it is parametrized with names the example, be it without `fastapi_`."""
    text = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    defined = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert function in defined, f"{path} has no {function}"
    parts = [defined[function], *(defined[arg.arg] for arg in defined[function].args.args if arg.arg in defined)]
    named = {node.id for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)}
    parts += [node for node in tree.body for target in targets(node) if target.id in named]  # type: ignore[misc]
    said = [ast.get_source_segment(text, part) or "" for part in parts]
    said += [ast.get_source_segment(text, one) or "" for one in defined[function].decorator_list]
    if re.search(rf"examples\W{name}\b", "\n".join(said)):
        return True
    short = re.escape(name.removeprefix("fastapi_"))
    started_by_name = re.search(rf"examples\W(\w*\{{|{name}\b)", text)
    if started_by_name and re.search(rf"\b{short}\b", "\n".join(said)):
        return True
    # It may be started by a program of the tests' own.
    programs = [ROOT / "tests" / "services" / f"{one}.py" for one in re.findall(r"services\.(\w+)", text)]
    return any(re.search(rf"examples\W+(import )?{name}\b", one.read_text()) for one in programs if one.exists())
