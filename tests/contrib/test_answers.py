"""What the page about model vendors says of the adapters is so."""

from __future__ import annotations

import ast
import io
import re
import tokenize

from snippets import ROOT

VENDORS = ("openai", "anthropic", "google", "answers")
FRAMEWORKS = ("langchain", "langgraph", "openai_agents", "pydantic_ai", "progress")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(text: str) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    told = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            told.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - told)


def test_the_page_tells_how_many_lines_the_adapters_have() -> None:
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `dooers_contrib\.(\w+)` \| .*? \| (\d+) \|", page, re.MULTILINE)
    assert {name: int(lines) for name, lines in rows} == {
        name: lines_of_code((ROOT / f"contrib/dooers_contrib/{name}.py").read_text(encoding="utf-8"))
        for name in VENDORS + FRAMEWORKS
    }
