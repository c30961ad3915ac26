"""`dooers rotate-keys`: the passwords in a worker's settings get its newest key."""

from __future__ import annotations

import asyncio

from dooers.cli.target import TargetError, worker_of
from dooers.cli.terminal import KEEP, WorkerTarget, app, fail, out
from dooers.exceptions import DooersError
from dooers.server import WorkerServer

__all__ = ["rotate_keys"]


@app.command("rotate-keys", rich_help_panel=KEEP, epilog="Example: `dooers rotate-keys app:worker`")
def rotate_keys(
    target: WorkerTarget = None,
) -> None:
    """Seal the passwords in a worker's settings with its newest key, those still in clear too.

    First give the new key to every process, before the old one: `WORKER_SETTINGS_ENCRYPTION_KEY=new,old`. Afterwards the old one
    may go.
    """
    try:
        count = asyncio.run(_rotated(worker_of(target)))
    except TargetError as error:
        fail(str(error), 2)
    except DooersError as error:
        fail(f"{error} ({error.code})", 1)
    out().print(f"sealed anew with the newest key: {count}")


async def _rotated(worker: WorkerServer) -> int:
    async with worker.lifespan():
        return await worker.rotate_settings()
