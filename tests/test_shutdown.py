"""Shutdown: a process that is asked to end does so in time, in whatever state it is, and what was acknowledged is there afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from services.exits import HOSTS, STATES, Ended, measure

# Small, so that these tests are quick; and what a busy machine takes beyond: an order of magnitude.
GRACE, TIMEOUT = 0.2, 2.0
SLOW = 20.0
# How the runs of each state end, by the message that opened them.
RUNS: dict[str, dict[str, str]] = {
    "idle": {},
    "mid-turn": {"wait": "canceled"},
    "mid-stream": {"stream": "canceled"},
    "queued turns": {"wait": "canceled"},
    "hung handler": {"wait": "canceled", "deaf": "canceled", "stream": "canceled"},
    "hung webhook": {"slow 0": "succeeded", "wait": "canceled"},
}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "database_type": "sqlite",
        "database_name": str(tmp_path / "worker.db"),
        "shutdown_grace": GRACE,
        "shutdown_timeout": TIMEOUT,
    }


def complaints(ended: Ended) -> list[str]:
    """Lines of the log that look as if something were wrong."""
    fine = ("no @worker.authenticate hook",)
    marks = ("ERROR", "WARNING", "Traceback", "Error", "destroyed", "never awaited")
    lines = [line for line in ended.output.splitlines() if any(mark in line for mark in marks)]
    return [line for line in lines if not any(words in line for words in fine)]


# ---------------------------------------------------------------- six states, two hosts


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("host", HOSTS)
async def test_it_ends_in_time_and_leaves_a_clean_database(
    host: str, state: str, options: dict[str, Any], tmp_path: Path
) -> None:
    ended = await measure(host, state, options, tmp_path)
    assert ended.code == HOSTS[host][1], ended.output
    assert ended.seconds < GRACE + TIMEOUT + SLOW
    assert ended.closed_with == 1012
    for text, thread_id in ended.said.items():
        assert text in ended.left.texts[thread_id]
    assert {text: ended.left.runs[ended.said[text]][0] for text in RUNS[state]} == RUNS[state]
    stored = [text for texts in ended.left.texts.values() for text in texts]
    assert all(any(text.startswith(told) for text in stored) for told in ended.told)
    assert sum(map(len, ended.left.runs.values())) == len(RUNS[state])
    if not state.startswith("hung"):
        assert complaints(ended) == []
    assert "Traceback" not in ended.output
