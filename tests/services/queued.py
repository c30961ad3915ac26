"""The examples with a queue, as the processes of tests run them: time goes faster, and the model fails or hangs as its question says.

`procrastinate --app=services.queued.jobs`; the same for streaq with `services.queued_redis`. What happened is in files of the current directory.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import dooers

dooers.WorkerConfig = partial(dooers.WorkerConfig, run_heartbeat=0.2, run_timeout=0.8)  # type: ignore[assignment, misc]

__all__ = ["misbehaving"]


async def misbehaving(question: str) -> str:
    """`fails 2`: so many times. `hangs`: the first time, until its process is killed; `waits`: each time. `slow`: until there is a file `go`.

    Each time it is asked leaves a line.
    """
    word, _, times = question.partition(" ")
    asked = Path(f"asked-{question}")
    with asked.open("a") as lines:
        lines.write("asked\n")
    count = len(asked.read_text().splitlines())
    if word == "fails" and count <= int(times):
        raise RuntimeError("as you wish")
    if word == "waits" or (word == "hangs" and count == 1):
        await asyncio.Event().wait()
    if word == "slow":
        while not Path("go").exists():
            await asyncio.sleep(0.02)
    return f"re: {question}"
