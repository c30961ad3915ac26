"""Tables of the pages, half of which the code knows: their last column is written by hand, the others are looked up.

A table is known by its heads, and may stand on any page and in several parts. Who adds an option or a frame adds its row, the rest is
filled in by `DOOERS_TEST_WRITE_TABLES=1 pytest tests/test_tables.py`. Tables of what was seen in trials are not meant here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from snippets import ROOT

__all__ = ["PAGES", "WRITE", "cells", "check", "rows"]

PAGES = sorted((ROOT / "docs").rglob("*.md"))
WRITE = bool(os.environ.get("DOOERS_TEST_WRITE_TABLES"))


def check(heads: str, facts: Mapping[str, tuple[str, ...]]) -> None:
    """Every row of the tables with these heads says what the code says, and there is one for each of the facts.

    `heads` is the first line of the table; a fact is what stands in the columns between the first one, its key, and the last one.
    """
    found: dict[str, str] = {}
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = _filled(old, heads, facts, found)
        if WRITE and new != old:
            page.write_text(new, encoding="utf-8")
        elif new != old:
            differ = [line for line in new.splitlines() if line not in old.splitlines()]
            where = page.relative_to(ROOT)
            raise AssertionError(
                f"{where} is not what the code says, run it with DOOERS_TEST_WRITE_TABLES=1:\n" + "\n".join(differ)
            )
    missing = [_row(key, fact, "?") for key, fact in facts.items() if key not in found]
    assert missing == [], f"no table `{heads}` in docs/ has a row for these; say in the last column what they are"
    assert [key for key, told in found.items() if not told.strip("? ")] == [], "say in the last column what these are"


def rows(heads: str, page: Path) -> list[list[str]]:
    """The cells of the tables with these heads on a page."""
    return [cells(line) for line, inside in _lines(page.read_text(encoding="utf-8"), heads) if inside]


def cells(line: str) -> list[str]:
    """The cells of a row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _lines(text: str, heads: str) -> list[tuple[str, bool]]:
    """Each line of a page, and whether it is a row of such a table."""
    lines: list[tuple[str, bool]] = []
    inside = False
    for line in text.splitlines():
        if line == heads:
            inside = True
            lines.append((line, False))
            continue
        inside = inside and line.startswith("|")
        lines.append((line, inside and not line.startswith("|--")))
    return lines


def _filled(text: str, heads: str, facts: Mapping[str, tuple[str, ...]], found: dict[str, str]) -> str:
    lines = []
    for line, is_row in _lines(text, heads):
        if is_row:
            key, *_, told = cells(line)
            assert key in facts, f"there is no {key} any more (`{heads}`)"
            assert key not in found, f"{key} is told twice (`{heads}`)"
            found[key] = told
            line = _row(key, facts[key], told)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _row(key: str, fact: tuple[str, ...], told: str) -> str:
    assert not any("|" in cell for cell in (key, *fact)), (key, fact)
    return f"| {' | '.join((key, *fact, told))} |".replace("|  |", "| |")
