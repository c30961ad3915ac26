"""The examples with a queue, as the processes of tests run them: time goes faster, and the model fails or hangs as its question says.

`procrastinate --app=services.queued_postgres.jobs`, `streaq run services.queued_redis:jobs`. What happened is in files where they run.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import dooers

__all__ = ["hurried"]

for_good = ExitStack()


def hurried(example: str) -> Any:
    """An example, in which a process is soon taken for dead, and the model misbehaves."""
    dooers.WorkerConfig = partial(dooers.WorkerConfig, run_heartbeat=0.3, run_timeout=3)  # type: ignore[assignment, misc]
    module = import_module(f"examples.{example}")
    for_good.enter_context(module.worker.override(model=misbehaving))
    return module


async def misbehaving(question: str) -> str:
    """`fails 2`: so many times. `hangs`: the first time, `waits`: each time, until it is stopped. `slow`: until there is a file `go`.

    Each time it is asked leaves a line.
    """
    word, _, times = question.partition(" ")
    count = note(question)
    if word == "fails" and count <= int(times):
        raise RuntimeError("as you wish")
    if word == "waits" or (word == "hangs" and count == 1):
        await asyncio.Event().wait()
    if word == "slow":
        while not Path("go").exists():
            await asyncio.sleep(0.02)
    return f"re: {question}"


def note(question: str) -> int:
    """Leave a line; how many there are then."""
    path = Path(f"asked-{question}")
    with path.open("a") as lines:
        lines.write("asked\n")
    return len(path.read_text().splitlines())
