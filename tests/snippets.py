"""The code blocks of a Markdown page, and how they are run.

A block is told by the heading above it and its place under that heading. `run` runs a text as the reader's interpreter would,
with `await` allowed at the top; `run_each` does the same statement by statement and gives what each one gave.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from attrs import frozen

__all__ = ["ROOT", "Block", "blocks", "run", "run_each"]

ROOT = Path(__file__).parent.parent

_FENCE = re.compile(r"(`{3,}|~{3,})\s*(.*)")
_HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*\s*")


@frozen
class Block:
    """A fenced block. `info` is what follows the fence, `position` counts the blocks under one heading from 0."""

    page: str
    heading: str
    position: int
    info: str
    text: str
    line: int

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the other blocks of its page."""
        return self.heading, self.position

    @property
    def language(self) -> str:
        """The first word after the fence."""
        return self.info.split(" ")[0]

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order. `page` is a path from the root of the repository."""
    found: list[Block] = []
    heading, counts = "", dict[str, int]()
    fence, info, start = "", "", 0
    inside: list[str] = []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if fence:
            if line.startswith(fence) and not line.strip("`~ "):
                position = counts.get(heading, 0)
                counts[heading] = position + 1
                found.append(Block(page, heading, position, info, "\n".join(inside) + "\n", start))
                fence, inside = "", []
            else:
                inside.append(line)
        elif opened := _FENCE.fullmatch(line):
            fence, info, start = opened[1], opened[2].strip(), number + 1
        elif title := _HEADING.fullmatch(line):
            heading = title[1]
    assert not fence, f"{page}: the block that begins in line {start} has no end"
    return found


async def run(text: str, namespace: dict[str, Any], name: str = "<snippet>") -> None:
    """Run a text to its end; what it defines is in the namespace then."""
    code = compile(text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    await _evaluate(code, namespace)


async def run_each(text: str, namespace: dict[str, Any], name: str = "<snippet>") -> list[Any]:
    """Run a text statement by statement: the value of each expression and of each assignment, None for anything else."""
    results: list[Any] = []
    for statement in ast.parse(text, name).body:
        if isinstance(statement, ast.Expr):
            tree: ast.Module | ast.Expression = ast.Expression(statement.value)
        else:
            tree = ast.Module([statement], type_ignores=[])
        mode = "eval" if isinstance(tree, ast.Expression) else "exec"
        code = compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        value = await _evaluate(code, namespace)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value = namespace[statement.targets[0].id]
        results.append(value)
    return results


async def _evaluate(code: Any, namespace: dict[str, Any]) -> Any:
    # A module that does not say its name confuses dataclasses and everything else that looks a class's module up.
    namespace.setdefault("__name__", "snippet")
    value = eval(code, namespace)
    return await value if code.co_flags & inspect.CO_COROUTINE else value
