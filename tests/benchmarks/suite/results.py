"""What was measured, read back from its lines: medians, ratios and how far rounds lie apart. Ratios are made within a round."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from attrs import Factory, frozen

__all__ = ["Results"]


@frozen
class Results:
    """Rounds by cell and database; a round has figures by side."""

    machine: dict[str, Any]
    rounds: dict[tuple[str, str], list[dict[str, dict[str, float]]]] = Factory(dict)
    budgets: dict[str, dict[str, dict[str, float]]] = Factory(dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        results = cls({})
        for line in path.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            results.machine.update(told.get("machine", {}))
            if "cell" in told:
                results.rounds[told["cell"], told["database"]] = told["rounds"]
            if "budget" in told:
                results.budgets[told["database"]] = told["budget"]
        return results

    def median(self, cell: str, database: str, side: str, figure: str) -> float:
        """KeyError where it was not measured."""
        return statistics.median(one[side][figure] for one in self.rounds[cell, database])

    def ratios(self, cell: str, database: str, figure: str, other: str = "limit") -> tuple[float, float, float]:
        """dooers to the other side: the median of the rounds, the least and the greatest."""
        found = [one["dooers"][figure] / (one[other][figure] or 1e-9) for one in self.rounds[cell, database]]
        return statistics.median(found), min(found), max(found)
