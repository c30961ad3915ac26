"""Where conversations are kept: the Store that the engine needs, and which one a config asks for. The SQL itself is in `sql.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar

from attrs import frozen

from dooers.config import WorkerConfig
from dooers.exceptions import ConfigError, DooersError, NotFoundError, StoreError
from dooers.history import Said
from dooers.models import Change, EventQuery, Run, RunQuery, Snapshot, StoredSettings, Thread, ThreadEvent, ThreadQuery
from dooers.stats import Tally

__all__ = [
    "COUNTED",
    "GAP",
    "IN_MEMORY",
    "PAGE",
    "STORES",
    "Page",
    "Reader",
    "Schema",
    "Store",
    "View",
    "answered",
    "applied",
    "at_once",
    "landed",
    "nowhere",
    "open_store",
    "outcome_of",
    "page_of",
    "running_in",
    "snapshot_of",
    "store_error",
]

T = TypeVar("T")

# How many events a snapshot holds: the newest page, or what closes a gap (the rest of a larger one follows in further frames).
PAGE = 100
GAP = 1000
# How far threads are counted: a count costs as much as there is to count.
COUNTED = 10_000


@frozen
class Schema:
    """How a database stands to this code, in words. `upgrade` gives the SQL that would bring it up to date; None: it is not done by SQL."""

    current: bool
    found: str
    needed: str = ""
    upgrade: Callable[[], list[str]] | None = None


IN_MEMORY = Schema(True, "the conversations are kept in memory: there is no schema")


class Store(Protocol):
    """One database of conversations. Every implementation passes the same contract suite, `tests/stores/contract.py`.

    Errors: StoreError when the database does not do it, NotFoundError when a Change needs a thread that is not there (or not
    in its guard's scope), or belongs to a run that is over. After the latter nothing of that Change is written. After a StoreError
    nothing is half written; where the database went away before it answered, all of it may be there.

    Every call ends by itself in bounded time, whatever the database does: `database_timeout`, and what it takes to say that it is over.
    It raises CancelledError only where its caller was cancelled. The engine survives a store that does neither: what it hurts then is
    who waits for that call.
    """

    # What it has written since it was made.
    tally: Tally

    async def open(self) -> None:
        """Connect; with `database_auto_migrate`, bring the schema up to date. After a failure nothing is left open."""
        ...

    async def close(self) -> None:
        """Write what is waiting and let go of everything."""
        ...

    async def migrate(self) -> str:
        """Bring the schema up to date; what was done, in a sentence. Safe to call from several processes at once, and on a store that
        is not open."""
        ...

    async def schema(self) -> Schema:
        """What the database holds and what this code needs; nothing is changed or made. StoreError for what cannot be migrated. The
        store need not be open."""
        ...

    async def ping(self) -> None:
        """Return when the database answers; StoreError when it does not."""
        ...

    def apply(self, change: Change) -> asyncio.Future[Change]:
        """Store a Change in one transaction. Within a thread the order of calls is the order of writing and the order in which
        futures end; Changes of different threads may overtake each other.

        The future's result is the Change as stored: its thread as it is now, its events numbered. Cancelling the future does
        not cancel the write.
        """
        ...

    async def thread(self, thread_id: str) -> Thread | None:
        """One thread."""
        ...

    async def threads(self, query: ThreadQuery) -> list[Thread]:
        """A page of threads, the most recently active first, ties by id."""
        ...

    async def count_threads(
        self, equal: Mapping[str, str], at_most: int = COUNTED, containing: str | None = None
    ) -> int:
        """How many threads have these columns, or `at_most` if they are more. Of those whose title is `containing` a text, as in a
        ThreadQuery: how many the latest `at_most` hold; a store whose index has the titles may count among all."""
        ...

    async def reach(self, query: ThreadQuery, rows: int) -> tuple[datetime, str] | None:
        """The place of that thread of a list, counted from 1, whatever its title: as `until` it keeps a search from walking on for ever.

        None where the list is shorter, or where a search does not walk: by an index that has the titles.
        """
        ...

    async def event(self, event_id: str) -> ThreadEvent | None:
        """One event."""
        ...

    async def events(self, query: EventQuery) -> list[ThreadEvent]:
        """Events of one thread in order of `seq`; the newest `limit` of them unless `oldest_first`."""
        ...

    async def said(self, query: EventQuery) -> list[Said]:
        """What models read of these events, in the same order."""
        ...

    async def page(self, thread_id: str, *, before_event_id: str | None = None, limit: int) -> Page:
        """A thread and the newest `limit` of its events, in order of `seq`; of those before one of them, if that is named. No events where
        that is no event of this thread, nothing at all where there is no such thread."""
        ...

    async def remove_event(self, event_id: str) -> None:
        """Delete one event. Its number is not given out again."""
        ...

    async def snapshot(
        self, thread_id: str, *, after_event_id: str | None = None, at_least_page: bool = False
    ) -> Snapshot | None:
        """A thread as of one instant, or None. See `snapshot_of` for which events it holds."""
        ...

    async def run(self, run_id: str) -> Run | None:
        """One run."""
        ...

    async def runs(self, query: RunQuery) -> list[Run]:
        """Runs, the latest first, ties by id."""
        ...

    async def beat(self, process_id: str, at: datetime) -> None:
        """Say of all running runs of a process that it lives."""
        ...

    async def silent(self, before: datetime, at: datetime) -> list[Run]:
        """The running runs that, as it is `at` now, have given no sign of life since `before`. One that is just being written to may
        be left for the next time.

        Nothing is changed: they are closed by a Change `during` the run, which is written while it is running and not after.
        """
        ...

    async def settings(self, worker_id: str) -> StoredSettings:
        """What has been set for a worker."""
        ...

    async def set_settings(self, worker_id: str, values: Mapping[str, Any], at: datetime) -> None:
        """Set these fields and leave the others alone, however many writers there are."""
        ...

    async def configured(self) -> list[str]:
        """The worker ids that have settings, sorted."""
        ...

    async def swap_setting(self, worker_id: str, field_id: str, was: Any, value: Any) -> bool:
        """Replace a setting's stored value, only while it still is `was` as `settings` gave it; whether that was so.

        `updated_at` stays: this is for a value that is stored otherwise, not changed.
        """
        ...


# What `Store.page` gives.
Page: TypeAlias = tuple[Thread, list[ThreadEvent] | None] | tuple[None, None]
# A thread, events of it, and its running runs if they are asked for.
View: TypeAlias = tuple[Thread, list[ThreadEvent], list[Run]]


class Reader(Protocol):
    """The reads that snapshots and pages are made of. Only a `view` has to be of one instant: what has a number never gets another one."""

    async def view(self, query: EventQuery, *, runs: bool = True) -> View | None: ...
    async def events(self, query: EventQuery) -> list[ThreadEvent]: ...
    async def seq_of(self, thread_id: str, event_id: str) -> int | None: ...


def running_in(thread_id: str) -> RunQuery:
    """The runs that a view holds."""
    return RunQuery(equal={"thread_id": thread_id, "status": "running"}, limit=100, oldest_first=True)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits: for readers whose data is at hand, in memory or on the driver's thread."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    work.close()
    raise RuntimeError("expected a coroutine that never waits, this one does; await it instead")


async def snapshot_of(
    reader: Reader, thread_id: str, *, after_event_id: str | None, at_least_page: bool
) -> Snapshot | None:
    """The rule of what a snapshot holds.

    Without `after_event_id`, or with one this thread does not know: the newest page. With one: the first page of what follows
    it (whoever asks pages on from there). `at_least_page` is for clients that replace their view with each snapshot: they
    get the newest page or everything after the event, whichever is more.
    """
    after = await reader.seq_of(thread_id, after_event_id) if after_event_id is not None else None
    paged = after is None or at_least_page
    asked = EventQuery(thread_id=thread_id, limit=PAGE + 1)  # one more, to know whether there is more
    if not paged:
        asked = EventQuery(thread_id=thread_id, after_seq=after, limit=GAP, oldest_first=True)
    view = await reader.view(asked)
    if view is None:
        return None
    thread, events, runs = view
    more = not paged or len(events) > PAGE
    if paged:
        events = events[-PAGE:]
    if paged and after is not None and events and events[0].seq > after + 1:
        gap = EventQuery(thread_id=thread_id, after_seq=after, before_seq=events[0].seq)
        events, more = [*await reader.events(gap), *events], True
    return Snapshot(thread=thread, events=events, runs=runs, has_more=more)


async def page_of(reader: Reader, thread_id: str, *, before_event_id: str | None, limit: int) -> Page:
    """The rule of what a page holds."""
    before = await reader.seq_of(thread_id, before_event_id) if before_event_id is not None else None
    view = await reader.view(EventQuery(thread_id=thread_id, before_seq=before, limit=limit), runs=False)
    if view is None:
        return None, None
    thread, events, _ = view
    return thread, None if before is None and before_event_id is not None else events


class answered:
    """Around a call of the store or of the broker: a cancellation that nobody here was asked for is an error like any other.

    Else it would look like the end of whoever waits for it, a session or the heartbeat for one.
    """

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise StoreError("the call was cancelled on its way") from error


def outcome_of(future: asyncio.Future[T]) -> T:
    """The result of a future that is done; StoreError where it was cancelled."""
    if future.cancelled():
        raise StoreError("the call was cancelled on its way")
    return future.result()


def applied(store: Store, change: Change) -> asyncio.Future[Change]:
    """`store.apply`, which says in one way only what went wrong: by its future."""
    try:
        return store.apply(change)
    except Exception as error:
        failed: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed


async def landed(future: asyncio.Future[T]) -> T:
    """The result of a future, whoever waits for it: being cancelled here does not cancel it."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if future.cancelled():  # that one, and not who waits here
            return outcome_of(future)
        raise


def nowhere(change: Change) -> NotFoundError:
    """Why a Change is not written that finds no place."""
    other = "" if change.during is None else ", or the run that this belongs to is over"
    return NotFoundError(f"there is no such thread{other}")


def store_error(error: BaseException) -> DooersError:
    """What a caller is told. The driver's exception is the cause; its class says what kind of failure it was."""
    if isinstance(error, NotFoundError):
        return NotFoundError(*error.args)  # one each: several futures may get it
    if isinstance(error, DooersError):
        return error
    wrapped = StoreError(f"the database did not do it ({type(error).__name__})")
    wrapped.__cause__ = error
    return wrapped


# Which class serves which `database_type`, imported when it is asked for: a driver that is not used is not needed.
STORES: dict[str, tuple[str, str]] = {
    "postgres": ("dooers.stores.postgres", "PostgresStore"),
    "sqlite": ("dooers.stores.sqlite", "SqliteStore"),
    "cosmos": ("dooers.stores.cosmos", "CosmosStore"),
    "memory": ("dooers.stores.memory", "MemoryStore"),
}


def open_store(config: WorkerConfig, beside: Any = None) -> Store:
    """The store a config asks for, not yet opened. ConfigError for one this version does not have.

    `beside` is for a database that tells other processes of a Change as it is written; see `sql_postgres.Beside`.
    """
    where = STORES.get(config.database_type)
    if where is None:
        raise ConfigError(
            f"WorkerConfig.database_type: {config.database_type!r} is not available in this version; "
            f"available: {', '.join(STORES)}"
        )
    module, name = where
    make: Callable[..., Store] = getattr(import_module(module), name)
    return make(config) if beside is None else make(config, beside=beside)
