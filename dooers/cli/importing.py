"""`dooers import`: the options of an import, and what is said of it. How threads get in is `intake.py`'s business."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO, Annotated

import typer

from dooers.cli.intake import Intake, Outcome
from dooers.cli.target import TargetError, worker_of
from dooers.cli.terminal import KEEP, app, counted, fail, notes
from dooers.exceptions import DooersError, InvalidValueError
from dooers.models import check_id
from dooers.stores import Store, open_store

__all__ = ["import_"]

# How many faults are told; there may be one a line.
TOLD = 20


@app.command(
    "import",
    rich_help_panel=KEEP,
    epilog="Examples: `dooers import app:worker threads.jsonl`, `gunzip -c ana.jsonl.gz | dooers import app:worker -`",
)
def import_(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODULE:NAME] FILE",
            help="Where the worker is, by default what `pyproject.toml` names; and what `dooers export` wrote, - for standard input.",
            show_default=False,
        ),
    ],
    worker_id: Annotated[
        str | None, typer.Option(help="Put all threads under this worker id, instead of the one each of them has.")
    ] = None,
) -> None:
    """Read threads that `dooers export` wrote into a worker's database.

    Importing twice is importing once, and one that was interrupted goes on when it is repeated. A thread that is there already gets the
    events that it lacks, and nothing else of it changes. A thread with a bad line is left out, and told with its line; then it ends with 1.
    """
    *where, path = words
    try:
        if len(where) > 1:
            raise TargetError(
                f"expected [MODULE:NAME] FILE, got {len(words)} words; files may be put one behind another: cat *.jsonl"
            )
        if worker_id is not None and not check_id(worker_id, "--worker-id"):
            raise TargetError("--worker-id: expected a text that is not empty")
        config = worker_of(next(iter(where), None)).config
        if config.database_type == "memory" or config.database_name == ":memory:":
            raise TargetError(
                "its conversations are in the memory of the process that serves it: what is imported would be gone"
            )
        with _opened(path) as source:
            outcome = asyncio.run(_import(open_store(config), source, worker_id))
    except (TargetError, InvalidValueError) as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", 2)
    except DooersError as error:
        fail(f"{error} ({error.code})", 1)
    except KeyboardInterrupt:
        fail("interrupted; what was imported stays, and the same command goes on from there", 1)
    _tell(outcome, path)
    if outcome.faults:
        raise typer.Exit(1)


def _opened(path: str) -> IO[bytes]:
    """The file, to be read forth and back."""
    if path != "-":
        return Path(path).open("rb")
    spool = tempfile.TemporaryFile()  # noqa: SIM115  # closed by whoever asked
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.seek(0)
    return spool


def _tell(outcome: Outcome, path: str) -> None:
    from dooers.chat import printable

    console = notes()
    for fault in outcome.faults[:TOLD]:
        console.print(printable(f"dooers: {path}: {fault}"), style="red", markup=False, soft_wrap=True)
    if len(outcome.faults) > TOLD:
        console.print(f"dooers: and {len(outcome.faults) - TOLD} more", style="red", soft_wrap=True)
    what = f"{counted(outcome.threads, 'thread')}, {counted(outcome.events, 'event')}, {counted(outcome.runs, 'run')}"
    also = f"{counted(outcome.known, 'thread')} there already, {counted(len(outcome.faults), 'fault')}"
    console.print(f"imported {what}; {also}", soft_wrap=True)


async def _import(store: Store, source: IO[bytes], worker_id: str | None) -> Outcome:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = notes()
    size = source.seek(0, 2)
    source.seek(0)
    columns = (TextColumn("importing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=size)
        intake = Intake(store, source, worker_id, lambda at: progress.update(task, completed=at))
        intake.begin()
        await store.open()
        try:
            return await intake.run()
        finally:
            await store.close()
