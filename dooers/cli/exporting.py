"""`dooers export`: the threads of a database as JSON lines, a page at a time. Nothing in the database is changed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated

import typer
from attrs import evolve

from dooers.cli.archive import End, Head, write
from dooers.cli.target import TargetError, worker_of
from dooers.cli.terminal import KEEP, WorkerTarget, app, counted, fail, notes
from dooers.exceptions import DooersError
from dooers.models import EventQuery, Run, RunQuery, Thread, ThreadEvent, ThreadQuery
from dooers.stores import Store, open_store

__all__ = ["export", "lines", "threads"]

# How many rows are asked for at once; no more of a thread is ever held.
PAGE = 500
# How far the clocks of the processes that write may be apart.
APART = timedelta(minutes=1)
# Counted for the progress bar only.
COUNTED = 1_000_000


@app.command(
    rich_help_panel=KEEP,
    epilog="Examples: `dooers export app:worker --out threads.jsonl`, `dooers export app:worker --user ana | gzip > ana.jsonl.gz`",
)
def export(
    target: WorkerTarget = None,
    out: Annotated[str, typer.Option(help="The file to write; - is standard output.")] = "-",
    organization: Annotated[str | None, typer.Option(help="Only threads of this organization.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Only threads of this workspace.")] = None,
    user: Annotated[str | None, typer.Option(help="Only threads that this user began.")] = None,
    thread: Annotated[str | None, typer.Option(help="Only this thread.")] = None,
    worker_id: Annotated[str | None, typer.Option(help="Only threads of this worker id.")] = None,
) -> None:
    """Write the threads of a worker's database as JSON lines, for `dooers import` and for whatever else reads JSON.

    Everything of a thread is in it, ids and order too; settings are not, as there are passwords among them. It may be run while the worker
    serves: each thread is as it was in one moment. A file is there when it is whole, not before.
    """
    given = {
        "organization_id": organization,
        "workspace_id": workspace,
        "user_id": user,
        "id": thread,
        "worker_id": worker_id,
    }
    equal = {name: value for name, value in given.items() if value is not None}
    try:
        config = worker_of(target).config
        if config.database_type == "memory" or config.database_name == ":memory:":
            raise TargetError(
                "its conversations are in the memory of the process that serves it: nobody else can read them"
            )
        with _file(out) as file:
            done = asyncio.run(_export(open_store(config), equal, file))
    except TargetError as error:
        fail(str(error), 2)
    except DooersError as error:
        fail(f"{error} ({error.code})", 1)
    except BrokenPipeError:
        # Whoever read it has had enough. What Python would still write at its end has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        fail(f"cannot write {out}: {error.strerror}", 1)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written" if out != "-" else "interrupted", 1)
    if thread is not None and not done.threads:
        fail(f"there is no thread {thread!r}", 1)
    where = "standard output" if out == "-" else out
    what = f"{counted(done.threads, 'thread')}, {counted(done.events, 'event')}, {counted(done.runs, 'run')}"
    notes().print(f"exported {what} to {where}", markup=False, soft_wrap=True)


async def _export(store: Store, equal: dict[str, str], file: IO[bytes]) -> End:
    schema = await store.schema()
    if not schema.current:
        raise TargetError(f"found {schema.found}, needed {schema.needed}; see `dooers migrate --help`")
    await store.open()
    try:
        return await _write(store, equal, file)
    finally:
        await store.close()


@contextmanager
def _file(out: str) -> Iterator[IO[bytes]]:
    """What is written to. A file gets its name when all of it is there, and is its owner's only: what is in it is private."""
    if out == "-":
        yield sys.stdout.buffer
        return
    part = Path(f"{out}.part")
    try:
        with open(part, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            yield file
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


async def _write(store: Store, equal: dict[str, str], file: IO[bytes]) -> End:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = notes()
    columns = (TextColumn("threads"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[events]} events"))
    total = await store.count_threads(equal, COUNTED) if console.is_terminal else None
    done = End(0, 0, 0)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, events=0)
        file.write(write(Head(datetime.now(UTC))))
        async for line in lines(store, equal):
            file.write(write(line))
            match line:
                case Thread():
                    progress.update(task, completed=done.threads, events=done.events)
                    done = evolve(done, threads=done.threads + 1)
                case Run():
                    done = evolve(done, runs=done.runs + 1)
                case ThreadEvent():
                    done = evolve(done, events=done.events + 1)
        progress.update(task, completed=done.threads, events=done.events)
        file.write(write(done))
        file.flush()
    return done


async def lines(store: Store, equal: dict[str, str]) -> AsyncIterator[Thread | Run | ThreadEvent]:
    """Each thread, followed by its runs and its events in order, up to the last one that it had when it was come to."""
    async for listed in threads(store, equal):
        thread = await store.thread(listed.id)
        if thread is None:
            continue  # removed meanwhile
        yield thread
        runs = RunQuery(equal={"thread_id": thread.id}, limit=PAGE)
        more = True
        while more:
            found = await store.runs(runs)
            for run in found:
                yield run
            more = len(found) == PAGE
            runs = evolve(runs, before=(found[-1].started_at, found[-1].id) if found else None)
        after = 0
        while after < thread.last_seq:
            query = EventQuery(thread_id=thread.id, after_seq=after, limit=PAGE, oldest_first=True)
            events = [event for event in await store.events(query) if event.seq <= thread.last_seq]
            for event in events:
                yield event
            after = events[-1].seq if events else thread.last_seq


async def threads(store: Store, equal: dict[str, str]) -> AsyncIterator[Thread]:
    """Every thread once. One that is written to moves to the front of the list, past whoever goes through it; so the front is looked at
    again until nothing new is there."""
    seen: set[str] = set()
    since: datetime | None = None
    while True:
        newest: datetime | None = None
        found = 0
        query = ThreadQuery(equal=equal, limit=PAGE)
        while page := await store.threads(query):
            newest = newest or page[0].last_event_at
            for thread in page:
                if thread.id not in seen:
                    seen.add(thread.id)
                    found += 1
                    yield thread
            last = page[-1]
            if since is not None and last.last_event_at < since:
                break
            query = evolve(query, before=(last.last_event_at, last.id))
        if newest is None or not found:
            return
        since = newest - APART
