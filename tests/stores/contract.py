"""What every store does, whatever is under it. A store's own test module subclasses `StoreContract` and gives it a `store` fixture.

Nothing in here may know which database it is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from attrs import evolve

from dooers.codec import clean, plain
from dooers.exceptions import InvalidValueError, NotFoundError, StoreError
from dooers.history import Said
from dooers.models import (
    Change,
    ContentPart,
    DocumentPart,
    EventQuery,
    ImagePart,
    Run,
    RunQuery,
    Scope,
    StoredSettings,
    TextPart,
    Thread,
    ThreadEvent,
    ThreadQuery,
    User,
)
from dooers.stores import GAP, PAGE, Store

T0 = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
OWNER = User("user-1", "Ada", "ada@example.com", "member", ("i-1", "i-2"), "admin", "owner", "guest")
SCOPE = Scope("worker-1", "org-1", "ws-1", "user-1")

OTHERS = {
    "worker": evolve(SCOPE, worker_id="worker-2"),
    "organization": evolve(SCOPE, organization_id="org-2"),
    "workspace": evolve(SCOPE, workspace_id="ws-2"),
    "user": evolve(SCOPE, user_id="user-2"),
    "nobody": evolve(SCOPE, user_id=""),
}


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def a_thread(thread_id: str | None = None, *, at: datetime = T0, **more: Any) -> Thread:
    fields: dict[str, Any] = {
        "id": thread_id if thread_id is not None else str(uuid4()),
        "worker_id": "worker-1",
        "organization_id": "org-1",
        "workspace_id": "ws-1",
        "user_id": "user-1",
        "owner": OWNER,
        "created_at": at,
        "updated_at": at,
        "last_event_at": at,
        **more,
    }
    return Thread(**fields)


def an_event(thread: Thread, text: str = "hi", *, at: datetime = T0, **more: Any) -> ThreadEvent:
    fields: dict[str, Any] = {
        "id": str(uuid4()),
        "thread_id": thread.id,
        "type": "message",
        "actor": "user",
        "created_at": at,
        "content": [TextPart(text)],
        **more,
    }
    return ThreadEvent(**fields)


def a_run(thread: Thread, *, at: datetime = T0, **more: Any) -> Run:
    fields: dict[str, Any] = {"id": str(uuid4()), "thread_id": thread.id, "started_at": at, **more}
    return Run(**fields)


def opening(thread: Thread, *events: ThreadEvent, **more: Any) -> Change:
    return Change(thread=thread, opens=True, events=events, **more)


def texts(events: Sequence[ThreadEvent]) -> list[str]:
    return [event.text for event in events]


def seqs(events: Sequence[ThreadEvent]) -> list[int]:
    return [event.seq for event in events]


async def opened(store: Store, *events: str, **more: Any) -> Thread:
    """A thread with these messages in it, as it is stored."""
    thread = a_thread(**more)
    change = opening(thread, *(an_event(thread, text, at=thread.created_at) for text in events))
    return (await store.apply(change)).thread


async def bury(store: Store, before: datetime, at: datetime, error: str) -> list[Run]:
    """Close the runs that have been silent since then; which they were."""
    buried = []
    for run in await store.silent(before, at):
        thread, over = await store.thread(run.thread_id), evolve(run, status="failed", ended_at=at, error=error)
        assert thread is not None
        with suppress(NotFoundError):  # somebody else was faster
            await store.apply(Change(thread=thread, during=run.id, runs=(over,)))
            buried.append(over)
    return buried


async def filled(store: Store, count: int, **more: Any) -> tuple[Thread, list[ThreadEvent]]:
    """A thread with `count` messages, all of the same instant."""
    thread = a_thread(**more)
    first = await store.apply(opening(thread, *(an_event(thread, f"m{n}") for n in range(1, count + 1))))
    return first.thread, list(first.events)


async def refused(future: asyncio.Future[Change]) -> None:
    with pytest.raises(NotFoundError):
        await future


class StoreContract:
    """One behaviour a test. Subclasses give the fixture `store`: an open, empty store, closed after the test."""

    # ------------------------------------------------------------ lifecycle

    async def test_an_open_store_answers_a_ping_and_a_closed_one_does_not(self, store: Store) -> None:
        await store.ping()
        await store.close()
        with pytest.raises(StoreError):
            await store.ping()
        await store.open()
        await store.ping()

    async def test_what_was_stored_is_there_after_reopening(self, store: Store) -> None:
        thread = await opened(store, "one", "two")
        await store.set_settings("worker-1", {"a": 1}, T0)
        await store.close()
        await store.open()
        assert await store.thread(thread.id) == thread
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one", "two"]
        assert (await store.settings("worker-1")).values == {"a": 1}

    async def test_a_store_may_be_closed_twice(self, store: Store) -> None:
        await store.close()
        await store.close()
        await store.open()

    async def test_migrating_again_changes_nothing(self, store: Store) -> None:
        thread = await opened(store, "one")
        await store.migrate()
        assert await store.thread(thread.id) == thread

    async def test_a_change_given_to_a_closed_store_fails(self, store: Store) -> None:
        await store.close()
        with pytest.raises(StoreError):
            await store.apply(opening(a_thread()))
        await store.open()

    async def test_closing_waits_for_the_changes_under_way(self, store: Store) -> None:
        thread = await opened(store)
        futures = [store.apply(Change(thread=thread, events=(an_event(thread),))) for _ in range(50)]
        await store.close()
        assert [(await future).events[0].seq for future in futures] == list(range(1, 51))
        await store.open()
        assert len(await store.events(EventQuery(thread_id=thread.id))) == 50

    # ------------------------------------------------------------ opening and appending

    async def test_an_opening_change_creates_the_thread_and_numbers_its_events_from_1(self, store: Store) -> None:
        thread = a_thread(title="Hello", metadata={"k": [1]})
        stored = await store.apply(
            opening(thread, an_event(thread, "a", at=later(1)), an_event(thread, "b", at=later(2)))
        )
        assert stored.created
        assert not stored.repeated
        assert seqs(stored.events) == [1, 2]
        assert stored.thread == evolve(thread, last_seq=2, last_event_at=later(2), updated_at=later(2))
        assert await store.thread(thread.id) == stored.thread
        assert await store.events(EventQuery(thread_id=thread.id)) == list(stored.events)

    async def test_a_thread_may_be_opened_without_events(self, store: Store) -> None:
        thread = a_thread()
        stored = await store.apply(opening(thread))
        assert stored.created
        assert stored.thread == thread
        assert await store.thread(thread.id) == thread
        assert await store.events(EventQuery(thread_id=thread.id)) == []

    async def test_appending_moves_the_threads_times_and_last_seq_but_not_when_it_was_created(
        self, store: Store
    ) -> None:
        thread = await opened(store, "one")
        stored = await store.apply(
            Change(thread=thread, events=(an_event(thread, at=later(5)), an_event(thread, at=later(9))))
        )
        assert not stored.created
        assert seqs(stored.events) == [2, 3]
        assert stored.thread == evolve(thread, last_seq=3, last_event_at=later(9), updated_at=later(9))
        assert await store.thread(thread.id) == stored.thread

    async def test_the_threads_row_is_not_overwritten_by_an_outdated_copy_in_a_change(self, store: Store) -> None:
        thread = await opened(store, "one")
        outdated = evolve(thread, title="outdated", metadata={"x": 1}, user_id="else", last_seq=77)
        stored = await store.apply(Change(thread=outdated, events=(an_event(thread),)))
        assert (stored.thread.title, stored.thread.metadata, stored.thread.user_id) == (None, None, "user-1")
        again = await store.apply(opening(outdated, an_event(thread)))
        assert (again.thread.title, again.thread.user_id, again.created, again.events[0].seq) == (
            None,
            "user-1",
            False,
            3,
        )

    async def test_opening_a_thread_that_is_there_appends_to_it(self, store: Store) -> None:
        thread = await opened(store, "one")
        stored = await store.apply(opening(a_thread(thread.id, at=later(3)), an_event(thread, "two", at=later(4))))
        assert not stored.created
        assert stored.thread == evolve(thread, last_seq=2, last_event_at=later(4), updated_at=later(4))

    async def test_opening_a_thread_that_is_there_without_events_leaves_it_alone(self, store: Store) -> None:
        thread = await opened(store, "one")
        stored = await store.apply(opening(a_thread(thread.id, at=later(3), title="other")))
        assert not stored.created
        assert stored.thread == thread
        assert await store.thread(thread.id) == thread

    async def test_a_change_may_do_everything_at_once(self, store: Store) -> None:
        thread = a_thread()
        run = a_run(thread, agent_id="agent")
        stored = await store.apply(
            opening(
                thread,
                an_event(thread, run_id=run.id),
                patch={"title": "T", "metadata": {"m": 1}},
                runs=(run,),
                guard=SCOPE,
            )
        )
        assert stored.created
        assert (stored.thread.title, stored.thread.metadata, stored.thread.last_seq) == ("T", {"m": 1}, 1)
        assert await store.thread(thread.id) == stored.thread
        assert await store.run(run.id) == run
        assert await store.event(stored.events[0].id) == stored.events[0]

    async def test_an_event_belongs_to_the_turn_it_names_and_else_opens_its_own(self, store: Store) -> None:
        thread = await opened(store, "question", "another")
        answer = an_event(thread, "answer", actor="assistant", turn_seq=1)
        stored = await store.apply(Change(thread=thread, events=(answer, an_event(thread, "third"))))
        assert [(event.seq, event.turn_seq) for event in stored.events] == [(3, 1), (4, 4)]
        kept = await store.events(EventQuery(thread_id=thread.id))
        assert [event.turn_seq for event in kept] == [1, 2, 1, 4]

    async def test_every_field_of_an_event_comes_back(self, store: Store) -> None:
        thread = await opened(store)
        event = an_event(
            thread,
            author="Support Bot",
            user=OWNER,
            content=[
                TextPart("text"),
                ImagePart("https://e.org/i.png", mime_type="image/png", width=3, height=4, alt="alt"),
                ImagePart("https://e.org/j.png"),
                DocumentPart("https://e.org/d.pdf", "d.pdf", "application/pdf", size_bytes=7),
            ],
            data={"id": "call-1", "name": "search", "result": None},
            run_id="run-1",
            client_event_id="client-1",
            notice=True,
            type="tool.transaction",
            actor="tool",
            turn_seq=1,
        )
        stored = (await store.apply(Change(thread=thread, events=(event,)))).events[0]
        assert stored == evolve(event, seq=1)
        assert await store.event(event.id) == stored
        assert await store.events(EventQuery(thread_id=thread.id)) == [stored]

    async def test_times_come_back_as_the_same_instant(self, store: Store) -> None:
        kathmandu = timezone(timedelta(hours=5, minutes=45))
        at = T0.astimezone(kathmandu)
        thread = await opened(store, "one", at=at)
        found = await store.thread(thread.id)
        assert found is not None
        assert found.created_at == found.last_event_at == T0
        earlier = await opened(store, "two", at=later(-1))
        assert [one.id for one in await store.threads(ThreadQuery())] == [thread.id, earlier.id]

    # ------------------------------------------------------------ many at once

    async def test_futures_of_a_thread_end_in_the_order_of_the_calls(self, store: Store) -> None:
        threads = [await opened(store) for _ in range(3)]
        ended: list[int] = []
        futures = []

        def note(n: int, future: asyncio.Future[Change]) -> None:
            future.exception()
            ended.append(n)

        for n in range(100):
            guard = OTHERS["user"] if n % 10 in (3, 4, 5) else SCOPE  # some fail, in between
            one = threads[n % 3]
            future = store.apply(Change(thread=one, guard=guard, events=(an_event(one),)))
            future.add_done_callback(partial(note, n))
            futures.append(future)
        await asyncio.gather(*futures, return_exceptions=True)
        await asyncio.sleep(0)
        assert sorted(ended) == list(range(100))
        for number in range(3):
            assert [n for n in ended if n % 3 == number] == list(range(number, 100, 3))

    async def test_200_concurrent_changes_of_one_thread_are_numbered_in_order_without_gaps(self, store: Store) -> None:
        thread = await opened(store)
        changes = [Change(thread=thread, events=(an_event(thread, f"m{n}"),)) for n in range(1, 201)]
        stored = await asyncio.gather(*(store.apply(change) for change in changes))
        assert [change.events[0].seq for change in stored] == list(range(1, 201))
        kept = await store.events(EventQuery(thread_id=thread.id))
        assert seqs(kept) == list(range(1, 201))
        assert texts(kept) == [f"m{n}" for n in range(1, 201)]
        found = await store.thread(thread.id)
        assert found is not None
        assert found.last_seq == 200

    async def test_200_concurrent_changes_of_many_threads_are_numbered_without_gaps_in_each(self, store: Store) -> None:
        threads = [await opened(store) for _ in range(20)]
        changes = [Change(thread=one, events=(an_event(one, f"m{n}"),)) for n in range(10) for one in threads]
        await asyncio.gather(*(store.apply(change) for change in changes))
        for one in threads:
            kept = await store.events(EventQuery(thread_id=one.id))
            assert seqs(kept) == list(range(1, 11))
            assert texts(kept) == [f"m{n}" for n in range(10)]

    @pytest.mark.parametrize("with_event", [True, False])
    async def test_a_given_thread_id_is_created_exactly_once(self, store: Store, with_event: bool) -> None:
        thread = a_thread()
        changes = [opening(thread, *([an_event(thread)] if with_event else [])) for _ in range(20)]
        stored = await asyncio.gather(*(store.apply(change) for change in changes))
        assert [change.created for change in stored] == [True] + [False] * 19
        found = await store.thread(thread.id)
        assert found is not None
        assert found.last_seq == (20 if with_event else 0)

    async def test_the_first_message_in_an_empty_thread_does_not_create_it_again(self, store: Store) -> None:
        thread = await opened(store)
        stored = await store.apply(opening(thread, an_event(thread)))
        assert not stored.created

    async def test_cancelling_the_future_does_not_cancel_the_write(self, store: Store) -> None:
        thread = await opened(store)
        cancelled = store.apply(Change(thread=thread, events=(an_event(thread, "one"),)))
        cancelled.cancel()
        await store.apply(Change(thread=thread, events=(an_event(thread, "two"),)))
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one", "two"]

    async def test_a_change_that_fails_writes_nothing_and_leaves_its_neighbours_alone(self, store: Store) -> None:
        thread = await opened(store, "one")
        event = (await store.events(EventQuery(thread_id=thread.id)))[0]
        run = a_run(thread)
        bad = Change(thread=thread, patch={"title": "never"}, runs=(run,), events=(an_event(thread, "new"), event))
        results = await asyncio.gather(
            store.apply(Change(thread=thread, events=(an_event(thread, "before"),))),
            store.apply(bad),
            store.apply(Change(thread=thread, events=(an_event(thread, "after"),))),
            return_exceptions=True,
        )
        assert isinstance(results[1], StoreError)
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one", "before", "after"]
        assert seqs(await store.events(EventQuery(thread_id=thread.id))) == [1, 2, 3]
        found = await store.thread(thread.id)
        assert found is not None
        assert found.title is None
        assert await store.run(run.id) is None

    # ------------------------------------------------------------ the guard

    @pytest.mark.parametrize("other", OTHERS)
    @pytest.mark.parametrize("kind", ["events", "opens", "patch", "runs", "removes", "nothing"])
    async def test_a_change_outside_its_guard_is_not_found_and_writes_nothing(
        self, store: Store, other: str, kind: str
    ) -> None:
        thread = await opened(store, "one")
        run = a_run(thread)
        await store.apply(Change(thread=thread, runs=(run,)))
        event, closed = an_event(thread, "intruder"), evolve(run, status="failed", ended_at=later(1))
        changes = {
            "events": Change(thread=thread, guard=OTHERS[other], events=(event,)),
            "opens": opening(thread, event, guard=OTHERS[other]),
            "patch": Change(thread=thread, guard=OTHERS[other], patch={"title": "mine now"}),
            "runs": Change(thread=thread, guard=OTHERS[other], runs=(closed, a_run(thread))),
            "removes": Change(thread=thread, guard=OTHERS[other], removes=True),
            "nothing": Change(thread=thread, guard=OTHERS[other]),
        }
        neighbour = await opened(store)
        before = store.apply(Change(thread=neighbour, events=(an_event(neighbour, "before"),)))
        intruding = store.apply(changes[kind])
        after = store.apply(Change(thread=neighbour, events=(an_event(neighbour, "after"),)))
        assert (await before).events[0].seq == 1
        await refused(intruding)
        assert (await after).events[0].seq == 2
        assert texts(await store.events(EventQuery(thread_id=neighbour.id))) == ["before", "after"]
        assert await store.thread(thread.id) == thread
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one"]
        assert await store.runs(RunQuery(equal={"thread_id": thread.id})) == [run]

    @pytest.mark.parametrize("other", OTHERS)
    async def test_a_thread_is_not_created_outside_the_changes_own_guard(self, store: Store, other: str) -> None:
        thread = a_thread()
        await refused(store.apply(opening(thread, an_event(thread), guard=OTHERS[other])))
        assert await store.thread(thread.id) is None
        assert await store.events(EventQuery(thread_id=thread.id)) == []

    async def test_an_empty_private_user_id_does_not_even_match_a_thread_of_nobody(self, store: Store) -> None:
        nobody = evolve(SCOPE, user_id="")
        thread = await opened(store, "one", user_id="", owner=User())
        await refused(store.apply(Change(thread=thread, guard=nobody, events=(an_event(thread),))))
        new = a_thread(user_id="", owner=User())
        await refused(store.apply(opening(new, guard=nobody)))
        assert await store.thread(new.id) is None

    async def test_a_guard_without_a_user_lets_the_whole_workspace_in(self, store: Store) -> None:
        thread = await opened(store, "one")
        stored = await store.apply(Change(thread=thread, guard=evolve(SCOPE, user_id=None), events=(an_event(thread),)))
        assert stored.events[0].seq == 2
        stored = await store.apply(Change(thread=thread, guard=SCOPE, events=(an_event(thread),)))
        assert stored.events[0].seq == 3

    async def test_a_thread_that_is_not_there_is_not_found(self, store: Store) -> None:
        thread = a_thread()
        await refused(store.apply(Change(thread=thread, events=(an_event(thread),))))
        await refused(store.apply(Change(thread=thread, patch={"title": "t"})))
        await refused(store.apply(Change(thread=thread, runs=(a_run(thread),))))
        await refused(store.apply(Change(thread=thread, removes=True)))
        await refused(store.apply(Change(thread=thread)))

    # ------------------------------------------------------------ patches

    async def test_a_patch_touches_only_its_columns(self, store: Store) -> None:
        thread = await opened(store, "one", title="old", metadata={"a": 1})
        stored = await store.apply(Change(thread=evolve(thread, metadata={"stale": 1}), patch={"title": "new"}))
        assert stored.thread == evolve(thread, title="new")
        stored = await store.apply(Change(thread=thread, patch={"metadata": {"b": 2}, "updated_at": later(8)}))
        assert stored.thread == evolve(thread, title="new", metadata={"b": 2}, updated_at=later(8))
        stored = await store.apply(Change(thread=thread, patch={"metadata": None, "title": None}))
        assert (stored.thread.title, stored.thread.metadata) == (None, None)
        assert await store.thread(thread.id) == stored.thread

    async def test_concurrent_patches_of_different_columns_both_survive(self, store: Store) -> None:
        thread = await opened(store)
        for n in range(20):
            await asyncio.gather(
                store.apply(Change(thread=thread, patch={"title": f"t{n}"})),
                store.apply(Change(thread=thread, patch={"metadata": {"n": n}})),
                store.apply(Change(thread=thread, events=(an_event(thread),))),
            )
            found = await store.thread(thread.id)
            assert found is not None
            assert (found.title, found.metadata, found.last_seq) == (f"t{n}", {"n": n}, n + 1)

    # ------------------------------------------------------------ repeats

    async def test_a_repeat_writes_nothing_and_comes_back_with_the_first_ids(self, store: Store) -> None:
        thread = a_thread()
        first = await store.apply(opening(thread, an_event(thread, "one"), an_event(thread, "more"), repeat_key="k"))
        other = a_thread()
        again = await store.apply(opening(other, an_event(other, "two"), repeat_key="k"))
        assert again.repeated
        assert not again.created
        assert again.thread == first.thread
        assert again.events == first.events[:1]
        assert await store.thread(other.id) is None
        assert len(await store.events(EventQuery(thread_id=thread.id))) == 2

    async def test_a_repeat_is_known_after_reopening(self, store: Store) -> None:
        thread = a_thread()
        first = await store.apply(opening(thread, an_event(thread), repeat_key="k"))
        await store.close()
        await store.open()
        again = await store.apply(opening(a_thread(), an_event(thread), repeat_key="k"))
        assert (again.repeated, again.events[0].id) == (True, first.events[0].id)

    async def test_of_concurrent_repeats_exactly_one_is_written(self, store: Store) -> None:
        threads = [a_thread() for _ in range(30)]
        stored = await asyncio.gather(*(store.apply(opening(one, an_event(one), repeat_key="same")) for one in threads))
        assert sum(not change.repeated for change in stored) == 1
        assert len({change.thread.id for change in stored}) == 1
        assert len({change.events[0].id for change in stored}) == 1
        assert await store.count_threads({}) == 1

    async def test_a_repeat_into_a_thread_that_is_there_is_written_once(self, store: Store) -> None:
        thread = await opened(store)
        changes = [Change(thread=thread, events=(an_event(thread),), repeat_key=f"k{n % 3}") for n in range(12)]
        stored = await asyncio.gather(*(store.apply(change) for change in changes))
        assert sum(not change.repeated for change in stored) == 3
        assert seqs(await store.events(EventQuery(thread_id=thread.id))) == [1, 2, 3]

    async def test_a_refused_change_does_not_use_up_its_repeat_key(self, store: Store) -> None:
        thread = await opened(store)
        await refused(
            store.apply(Change(thread=thread, guard=OTHERS["user"], events=(an_event(thread),), repeat_key="k"))
        )
        stored = await store.apply(Change(thread=thread, guard=SCOPE, events=(an_event(thread),), repeat_key="k"))
        assert not stored.repeated

    # ------------------------------------------------------------ removing

    async def test_removing_a_thread_takes_everything_in_it(self, store: Store) -> None:
        thread, kept = await opened(store), await opened(store, "stays")
        run, event = a_run(thread), an_event(thread)
        await store.apply(Change(thread=thread, events=(event,), runs=(run,), repeat_key="k"))
        now = await store.thread(thread.id)
        gone = await store.apply(Change(thread=thread, removes=True, guard=SCOPE))
        assert gone.thread == now
        assert await store.thread(thread.id) is None
        assert await store.event(event.id) is None
        assert await store.run(run.id) is None
        assert await store.events(EventQuery(thread_id=thread.id)) == []
        assert await store.runs(RunQuery()) == []
        assert await store.snapshot(thread.id) is None
        assert [one.id for one in await store.threads(ThreadQuery())] == [kept.id]
        assert texts(await store.events(EventQuery(thread_id=kept.id))) == ["stays"]

    async def test_a_change_for_a_removed_thread_is_not_found(self, store: Store) -> None:
        thread = await opened(store, "one")
        run = a_run(thread)
        await store.apply(Change(thread=thread, runs=(run,)))
        removed = store.apply(Change(thread=thread, removes=True))
        changes = [
            Change(thread=thread, events=(an_event(thread),)),
            Change(thread=thread, runs=(evolve(run, status="canceled"),)),
            Change(thread=thread, runs=(a_run(thread),)),
            Change(thread=thread, patch={"title": "late"}),
            Change(thread=thread, removes=True),
        ]
        late = [store.apply(change) for change in changes]
        await removed
        for future in late:
            await refused(future)
        for change in changes:
            await refused(store.apply(change))
        assert await store.thread(thread.id) is None
        assert await store.runs(RunQuery()) == []

    async def test_a_removed_threads_id_and_repeat_keys_may_be_used_again(self, store: Store) -> None:
        thread = a_thread()
        await store.apply(opening(thread, an_event(thread), repeat_key="k"))
        await store.apply(Change(thread=thread, removes=True))
        again = await store.apply(opening(thread, an_event(thread), repeat_key="k"))
        assert (again.created, again.repeated, again.events[0].seq) == (True, False, 1)

    async def test_a_change_for_a_thread_that_was_made_again_under_its_id_is_not_found(self, store: Store) -> None:
        thread = await opened(store, "one")
        await store.apply(Change(thread=thread, removes=True))
        again = evolve(thread, created_at=later(5), last_seq=0)
        made = await store.apply(opening(again, an_event(again)))
        assert made.created
        for late in (
            Change(thread=thread, events=(an_event(thread),)),
            Change(thread=thread, runs=(a_run(thread),)),
            Change(thread=thread, patch={"title": "late"}),
            Change(thread=thread, removes=True),
        ):
            await refused(store.apply(late))
        assert await store.thread(thread.id) == made.thread
        assert await store.runs(RunQuery()) == []
        anyway = await store.apply(Change(thread=thread, events=(an_event(thread),), exact=False))
        assert anyway.events[0].seq == 2
        patched = await store.apply(Change(thread=thread, patch={"title": "anyway"}, exact=False))
        assert patched.thread == evolve(anyway.thread, title="anyway")

    async def test_a_removed_events_number_is_not_given_out_again(self, store: Store) -> None:
        thread, events = await filled(store, 3)
        await store.remove_event(events[2].id)
        await store.remove_event(events[0].id)
        await store.remove_event("no such event")
        assert await store.event(events[0].id) is None
        assert seqs(await store.events(EventQuery(thread_id=thread.id))) == [2]
        stored = await store.apply(Change(thread=thread, events=(an_event(thread),)))
        assert stored.events[0].seq == 4

    async def test_numbers_may_be_left_out_before_events_so_that_imported_ones_keep_theirs(self, store: Store) -> None:
        thread = a_thread()
        texts = {3: "a", 4: "b", 9: "c", 10: "d", 12: "e"}
        made = {seq: an_event(thread, text, turn_seq=3 if seq == 9 else 0) for seq, text in texts.items()}
        first = await store.apply(Change(thread=thread, opens=True, events=(made[3], made[4]), skips=2))
        assert (first.created, first.thread.last_seq, seqs(first.events)) == (True, 4, [3, 4])
        # Side by side, so that a store which writes several at once does it here.
        second, third, fourth = await asyncio.gather(
            store.apply(Change(thread=thread, events=(made[9], made[10]), skips=4)),
            store.apply(Change(thread=thread, patch={"title": "t"}, skips=7)),
            store.apply(Change(thread=thread, events=(made[12],), skips=1)),
        )
        assert (seqs(second.events), seqs(fourth.events)) == ([9, 10], [12])
        assert (second.thread.last_seq, third.thread.last_seq, fourth.thread.last_seq) == (10, 10, 12)
        kept = await store.events(EventQuery(thread_id=thread.id))
        assert {event.seq: event.text for event in kept} == texts
        assert [event.turn_seq for event in kept] == [3, 4, 3, 10, 12]
        assert await store.thread(thread.id) == fourth.thread

    async def test_a_threads_times_may_be_set_beside_its_last_event(self, store: Store) -> None:
        thread = a_thread()
        times: dict[str, Any] = {"updated_at": later(20), "last_event_at": later(10)}
        stored = await store.apply(Change(thread=thread, opens=True, events=(an_event(thread),), patch=times))
        assert stored.thread == evolve(thread, last_seq=1, **times)
        times = {"updated_at": later(40), "last_event_at": later(30)}
        await store.apply(Change(thread=thread, patch=times))
        assert await store.thread(thread.id) == evolve(thread, last_seq=1, **times)

    async def test_a_removed_events_repeat_key_is_forgotten(self, store: Store) -> None:
        thread = await opened(store)
        first = await store.apply(Change(thread=thread, events=(an_event(thread),), repeat_key="k"))
        await store.remove_event(first.events[0].id)
        again = await store.apply(Change(thread=thread, events=(an_event(thread),), repeat_key="k"))
        assert not again.repeated

    # ------------------------------------------------------------ runs

    async def test_the_end_of_a_run_keeps_when_it_started_and_its_agent(self, store: Store) -> None:
        thread = await opened(store)
        run = a_run(thread, agent_id="planner")
        await store.apply(Change(thread=thread, runs=(run,)))
        assert await store.run(run.id) == run
        end = evolve(run, agent_id=None, started_at=later(50), status="failed", ended_at=later(60), error="why")
        await store.apply(Change(thread=thread, runs=(end,)))
        assert await store.run(run.id) == evolve(end, agent_id="planner", started_at=T0)

    async def test_a_run_that_ended_stays_ended(self, store: Store) -> None:
        thread = await opened(store)
        run = a_run(thread)
        ended = evolve(run, status="succeeded", ended_at=later(1))
        await store.apply(Change(thread=thread, runs=(run,)))
        await store.apply(Change(thread=thread, runs=(ended,)))
        for late in (run, evolve(run, status="canceled", ended_at=later(2)), evolve(run, status="failed", error="x")):
            await store.apply(Change(thread=thread, runs=(late,)))
            assert await store.run(run.id) == ended

    async def test_a_run_may_begin_and_end_in_one_change(self, store: Store) -> None:
        thread = await opened(store)
        first, second = a_run(thread), a_run(thread, at=later(1), status="failed", ended_at=later(2), error="e")
        ended = evolve(first, status="succeeded", ended_at=later(1))
        stored = await store.apply(Change(thread=thread, runs=(first, ended, second)))
        assert stored.thread == thread
        assert await store.runs(RunQuery()) == [second, ended]

    async def test_runs_are_listed_by_start_and_id_with_every_filter(self, store: Store) -> None:
        here, there = await opened(store), await opened(store, worker_id="worker-2")
        tied = sorted((a_run(here, agent_id="a"), a_run(here, agent_id="b"), a_run(here)), key=lambda run: run.id)
        last = a_run(there, at=later(1), agent_id="a", status="succeeded", ended_at=later(2))
        await store.apply(Change(thread=here, runs=tuple(tied)))
        await store.apply(Change(thread=there, runs=(last,)))
        assert await store.runs(RunQuery()) == [last, *reversed(tied)]
        assert await store.runs(RunQuery(oldest_first=True)) == [*tied, last]
        assert await store.runs(RunQuery(limit=2)) == [last, tied[2]]
        assert await store.runs(RunQuery(oldest_first=True, limit=2)) == tied[:2]
        assert await store.runs(RunQuery(equal={"thread_id": here.id}, oldest_first=True)) == tied
        assert await store.runs(RunQuery(equal={"status": "succeeded"})) == [last]
        assert await store.runs(RunQuery(equal={"worker_id": "worker-2"})) == [last]
        assert await store.runs(RunQuery(equal={"worker_id": "worker-1", "agent_id": "a"})) == [
            run for run in tied if run.agent_id == "a"
        ]
        assert await store.runs(RunQuery(equal={"id": last.id, "worker_id": "worker-1"})) == []
        assert await store.run("no such run") is None

    async def test_pages_of_runs_of_one_instant_skip_and_repeat_nothing(self, store: Store) -> None:
        here, there = await opened(store), await opened(store)
        runs = [a_run(here, at=later(number // 3)) for number in range(7)]
        await store.apply(Change(thread=here, runs=tuple(runs)))
        await store.apply(Change(thread=there, runs=(a_run(there),)))
        found: list[Run] = []
        query = RunQuery(equal={"thread_id": here.id}, limit=2)
        while page := await store.runs(query):
            found += page
            query = evolve(query, before=(page[-1].started_at, page[-1].id))
        assert found == sorted(runs, key=lambda run: (run.started_at, run.id), reverse=True)

    # ------------------------------------------------------------ reading events

    async def test_events_answer_every_combination_of_options(self, store: Store) -> None:
        thread = await opened(store)
        noise = await opened(store, "elsewhere")
        for n in range(1, 25):
            first = 1 + (n - 1) // 5 * 5
            event = an_event(
                thread,
                f"m{n}",
                type="message" if n % 3 else "tool.call",
                actor="user" if n % 5 == 1 else "assistant",
                notice=n % 7 == 0,
                author=f"author-{n % 2}",
                user=User(f"user-{n % 2}") if n % 5 == 1 else None,
                run_id=f"run-{first}",
                client_event_id=f"c{n}" if n % 5 == 1 else None,
                turn_seq=first,
            )
            await store.apply(Change(thread=thread, events=(event,)))
        everything = await store.events(EventQuery(thread_id=thread.id))
        await store.remove_event(everything[10].id)
        del everything[10]
        assert len(everything) == 23
        equals: list[dict[str, str]] = [
            {},
            {"actor": "user"},
            {"type": "message", "author": "author-1"},
            {"user_id": "user-0"},
            {"run_id": "run-6"},
            {"client_event_id": "c16"},
            {"id": everything[3].id, "actor": "assistant"},
            {"actor": "system"},
        ]
        for limit, after, before, oldest, model, until, turn, equal in itertools.product(
            (None, 1, 4), (None, 6), (None, 20), (False, True), (False, True), (None, 11), (None, 6), equals
        ):
            query = EventQuery(
                thread_id=thread.id,
                limit=limit,
                after_seq=after,
                before_seq=before,
                oldest_first=oldest,
                for_model=model,
                until_turn=until,
                turn=turn,
                equal=equal,
            )
            fit = [
                event
                for event in everything
                if (after is None or event.seq > after)
                and (before is None or event.seq < before)
                and (not model or (event.type == "message" and not event.notice))
                and (until is None or event.turn_seq <= until)
                and (turn is None or event.turn_seq == turn)
                and all(getattr(event, name) == value for name, value in equal.items())
            ]
            wanted = fit if limit is None else fit[:limit] if oldest else fit[-limit:]
            assert await store.events(query) == wanted, query
            assert await store.said(query) == [Said.of(event) for event in wanted], query
        assert texts(await store.events(EventQuery(thread_id=noise.id))) == ["elsewhere"]

    @pytest.mark.parametrize("page", [1, 7, 100, 150])
    async def test_pages_of_events_of_one_instant_skip_and_repeat_nothing(self, store: Store, page: int) -> None:
        thread, events = await filled(store, 300 if page > 1 else 30)
        backward: list[ThreadEvent] = []
        before: int | None = None
        while got := await store.events(EventQuery(thread_id=thread.id, before_seq=before, limit=page)):
            assert len(got) <= page
            backward = got + backward
            before = got[0].seq
        assert backward == events
        forward: list[ThreadEvent] = []
        while got := await store.events(
            EventQuery(thread_id=thread.id, after_seq=len(forward), limit=page, oldest_first=True)
        ):
            forward += got
        assert forward == events

    async def test_an_unknown_id_is_none(self, store: Store) -> None:
        await opened(store, "one")
        assert await store.thread("nothing") is None
        assert await store.event("nothing") is None
        assert await store.run("nothing") is None
        assert await store.snapshot("nothing") is None
        assert await store.events(EventQuery(thread_id="nothing")) == []

    # ------------------------------------------------------------ reading threads

    async def test_pages_of_threads_of_one_instant_skip_and_repeat_nothing(self, store: Store) -> None:
        same = [await opened(store, "x") for _ in range(23)]
        newer, older = await opened(store, at=later(1)), await opened(store, at=later(-1))
        wanted = [newer.id, *sorted((one.id for one in same), reverse=True), older.id]
        for limit in (1, 4, 5, 23, 24, 25, 50):
            seen: list[str] = []
            before: tuple[datetime, str] | None = None
            while page := await store.threads(ThreadQuery(limit=limit, before=before)):
                assert len(page) <= limit
                seen += [one.id for one in page]
                before = (page[-1].last_event_at, page[-1].id)
            assert seen == wanted
        oldest = await store.threads(ThreadQuery(oldest_first=True))
        assert [one.id for one in oldest] == wanted[::-1]

    async def test_among_equal_times_ids_decide_by_their_bytes_and_not_by_a_language(self, store: Store) -> None:
        names = ["b", "_c", "B", "a1", "Z", "é", "-1", "a-2", "A3"]
        for name in names:
            thread = await opened(store, thread_id=name)
            await store.apply(Change(thread=thread, runs=(a_run(thread, id=f"{name}r"),)))
        found, cursor = [], None
        while page := await store.threads(ThreadQuery(limit=2, before=cursor)):
            found += [one.id for one in page]
            cursor = (page[-1].last_event_at, page[-1].id)
        assert found == sorted(names, reverse=True)
        assert [one.id for one in await store.threads(ThreadQuery(oldest_first=True))] == sorted(names)
        runs = [f"{name}r" for name in names]
        assert [one.id for one in await store.runs(RunQuery())] == sorted(runs, reverse=True)

    async def test_the_thread_with_the_latest_event_comes_first(self, store: Store) -> None:
        first, second = await opened(store, "a"), await opened(store, "b", at=later(1))
        await store.apply(Change(thread=first, events=(an_event(first, at=later(2)),)))
        assert [one.id for one in await store.threads(ThreadQuery())] == [first.id, second.id]

    async def test_a_patch_does_not_move_a_thread_in_the_list(self, store: Store) -> None:
        first, second = await opened(store, "a"), await opened(store, "b", at=later(1))
        await store.apply(Change(thread=first, patch={"title": "t", "updated_at": later(5)}))
        assert [one.id for one in await store.threads(ThreadQuery())] == [second.id, first.id]

    async def test_threads_are_listed_and_counted_by_every_filter(self, store: Store) -> None:
        base = await opened(store, title="A")
        others = [
            await opened(store, worker_id="worker-2"),
            await opened(store, organization_id="org-2"),
            await opened(store, workspace_id="ws-2"),
            await opened(store, user_id="user-2"),
            await opened(store, user_id=""),
        ]
        names = ("worker_id", "organization_id", "workspace_id", "user_id")
        place = {name: getattr(base, name) for name in names}
        assert [one.id for one in await store.threads(ThreadQuery(equal=place))] == [base.id]
        assert await store.count_threads(place) == 1
        assert await store.count_threads({}) == 6
        assert [await store.count_threads({}, at_most) for at_most in (5, 6, 7)] == [5, 6, 6]
        for name, one in zip(names, others, strict=False):
            assert [found.id for found in await store.threads(ThreadQuery(equal={name: getattr(one, name)}))] == [
                one.id
            ]
            assert await store.count_threads({name: getattr(base, name)}) == (5 if name != "user_id" else 4)
        assert [one.id for one in await store.threads(ThreadQuery(equal={"user_id": ""}))] == [others[4].id]
        assert [one.id for one in await store.threads(ThreadQuery(equal={"title": "A"}))] == [base.id]
        assert [one.id for one in await store.threads(ThreadQuery(equal={"id": base.id}))] == [base.id]
        assert await store.count_threads({"title": "B"}) == 0

    @pytest.mark.parametrize("name", ["owner", "seq", "last_seq", "1=1 --", "", "created_at", "thread"])
    async def test_a_filter_on_something_else_is_an_invalid_value(self, store: Store, name: str) -> None:
        thread = await opened(store, "one")
        with pytest.raises(InvalidValueError):
            await store.threads(ThreadQuery(equal={name: "x"}))
        with pytest.raises(InvalidValueError):
            await store.count_threads({name: "x"})
        with pytest.raises(InvalidValueError):
            await store.events(EventQuery(thread_id=thread.id, equal={name: "x"}))
        with pytest.raises(InvalidValueError):
            await store.runs(RunQuery(equal={name: "x"}))

    async def test_a_filter_value_that_is_no_text_is_an_invalid_value(self, store: Store) -> None:
        thread = await opened(store, "one")
        wrong: list[Any] = [None, 1, ["user"], {"$ne": ""}]
        for value in wrong:
            with pytest.raises(InvalidValueError):
                await store.threads(ThreadQuery(equal={"user_id": value}))
            with pytest.raises(InvalidValueError):
                await store.count_threads({"user_id": value})
            with pytest.raises(InvalidValueError):
                await store.events(EventQuery(thread_id=thread.id, equal={"actor": value}))
            with pytest.raises(InvalidValueError):
                await store.runs(RunQuery(equal={"worker_id": value}))

    # ------------------------------------------------------------ looking for titles

    async def test_titles_are_found_by_what_they_contain_in_whatever_case(self, store: Store) -> None:
        titles = [
            "Grüne Äpfel",
            "ПРИВЕТ, мир",
            "naïve CAFÉ",
            "Οδός",
            "Straße 7",
            "plain",
            "日本の本",
            "\U0001f680 launch",
            None,
            "",
        ]
        ids = {(await opened(store, "x", title=title, at=later(n))).id: title for n, title in enumerate(titles)}
        wanted = {
            "grün": ["Grüne Äpfel"],
            "ÄPFEL": ["Grüne Äpfel"],
            "e ä": ["Grüne Äpfel"],
            "привет": ["ПРИВЕТ, мир"],
            "МИР": ["ПРИВЕТ, мир"],
            "café": ["naïve CAFÉ"],
            "ΟΔΌΣ": ["Οδός"],
            "STRAßE": ["Straße 7"],
            "STRA\u1e9eE": ["Straße 7"],
            "本": ["日本の本"],
            "\U0001f680": ["\U0001f680 launch"],
            "LA": ["\U0001f680 launch", "plain"],
            "apfel": [],  # another letter is another letter
            "nowhere": [],
        }
        for text, found in wanted.items():
            listed = await store.threads(ThreadQuery(containing=text))
            assert [ids[one.id] for one in listed] == found, text
            assert await store.count_threads({}, containing=text) == len(found), text

    @pytest.mark.parametrize("nothing", [None, ""])
    async def test_no_text_to_look_for_keeps_threads_without_a_title_too(
        self, store: Store, nothing: str | None
    ) -> None:
        await opened(store, title="t")
        await opened(store)
        assert len(await store.threads(ThreadQuery(containing=nothing))) == 2
        assert await store.count_threads({}, containing=nothing) == 2

    async def test_what_is_looked_for_is_plain_text_and_no_pattern(self, store: Store) -> None:
        signs = [chr(code) for code in range(0x20, 0x7F) if not chr(code).isalnum()]
        for sign in signs:
            await opened(store, title=f"<a{sign}b>", thread_id=f"sign {ord(sign)}")
        await opened(store, title="aXb aXXb a\nb ab")
        for sign in signs:
            found = [one.id for one in await store.threads(ThreadQuery(containing=f"A{sign}B"))]
            assert found == [f"sign {ord(sign)}"], sign
        everything = "".join(signs)
        for text in (
            everything,
            "***=" + everything,
            "(?i)x",
            "[[:alpha:]]",
            "\\m",
            "\\1",
            "%",
            "_" * 200,
            "' OR 1=1 --",
        ):
            title = f"before {text} after"
            thread = await opened(store, title=title)
            found = [one.id for one in await store.threads(ThreadQuery(containing=text))]
            assert thread.id in found, text
            await store.apply(Change(thread=thread, removes=True))
            assert text == "%" or not await store.threads(ThreadQuery(containing=text + "!")), text

    async def test_a_search_keeps_to_the_filter_and_its_pages_skip_and_repeat_nothing(self, store: Store) -> None:
        made = [await opened(store, title=f"{'Ü' if n % 3 else 'u'} {n}", at=later(n // 4)) for n in range(40)]
        await opened(store, title="Ü of another", workspace_id="ws-2")
        place = {"worker_id": "worker-1", "organization_id": "org-1", "workspace_id": "ws-1"}
        ordered = sorted(made, key=lambda one: (one.last_event_at, one.id), reverse=True)
        wanted = [one.id for one in ordered if (one.title or "").startswith("Ü")]
        for limit in (1, 4, 7, 50):
            seen: list[str] = []
            before: tuple[datetime, str] | None = None
            query = ThreadQuery(equal=place, limit=limit, containing="ü ")
            while page := await store.threads(evolve(query, before=before)):
                seen += [one.id for one in page]
                before = (page[-1].last_event_at, page[-1].id)
            assert seen == wanted
        oldest = await store.threads(ThreadQuery(equal=place, containing="ü ", oldest_first=True))
        assert [one.id for one in oldest] == wanted[::-1]
        assert await store.count_threads(place, containing="ü ") == len(wanted)

    async def test_a_list_ends_at_the_place_it_is_to_be_looked_at_until(self, store: Store) -> None:
        made = [await opened(store, title="t", at=later(n // 3)) for n in range(12)]
        ordered = sorted(made, key=lambda one: (one.last_event_at, one.id), reverse=True)
        places = [(one.last_event_at, one.id) for one in ordered]
        for first, last in ((None, 4), (2, 7), (0, 0), (4, 3), (10, 11)):
            before = None if first is None else places[first]
            query = ThreadQuery(before=before, until=places[last], containing="T")
            begin = 0 if first is None else first + 1
            assert await store.threads(query) == ordered[begin : last + 1], (first, last)

    async def test_how_far_some_rows_reach_is_the_place_of_the_last_of_them_whatever_its_title(
        self, store: Store
    ) -> None:
        made = [await opened(store, title=str(n), at=later(n // 2)) for n in range(9)]
        ordered = sorted(made, key=lambda one: (one.last_event_at, one.id), reverse=True)
        places = [(one.last_event_at, one.id) for one in ordered]
        query = ThreadQuery(equal={"workspace_id": "ws-1"}, limit=2, containing="7")
        walks = await store.reach(query, 1) is not None  # else it looks by an index, and needs no end
        for before in (None, 0, 3, 7):
            begin = 0 if before is None else before + 1
            asked = evolve(query, before=None if before is None else places[before])
            for rows in (1, 2, 5, 9):
                last = begin + rows - 1
                assert await store.reach(asked, rows) == (places[last] if walks and last < 9 else None)
        with pytest.raises(InvalidValueError):
            await store.reach(ThreadQuery(equal={"owner": "x"}), 1)
        counted = await store.count_threads({}, 3, containing="")
        assert counted == 3
        assert await store.count_threads({}, 3, containing="0") == (0 if walks else 1)

    async def test_a_title_is_found_as_soon_as_it_is_stored_and_the_former_no_more(self, store: Store) -> None:
        thread = await opened(store, "x", title="Former")
        await store.apply(Change(thread=thread, patch={"title": "Later"}))
        assert [one.id for one in await store.threads(ThreadQuery(containing="later"))] == [thread.id]
        await store.apply(Change(thread=thread, patch={"title": None}))
        for text in ("former", "later"):
            assert await store.threads(ThreadQuery(containing=text)) == []

    async def test_a_page_is_of_the_newest_events_or_of_those_before_one(self, store: Store) -> None:
        thread, events = await filled(store, 7)
        run = a_run(thread)
        thread = (await store.apply(Change(thread=thread, runs=(run,), during=run.id))).thread
        _, elsewhere = await filled(store, 1)
        assert await store.page(thread.id, limit=3) == (thread, events[-3:])
        assert await store.page(thread.id, limit=50) == (thread, events)
        assert await store.page(thread.id, before_event_id=events[4].id, limit=3) == (thread, events[1:4])
        assert await store.page(thread.id, before_event_id=events[0].id, limit=3) == (thread, [])
        for unknown in ("unknown", elsewhere[0].id):
            assert await store.page(thread.id, before_event_id=unknown, limit=3) == (thread, None)
        for before in (None, events[4].id, "unknown"):
            assert await store.page("nothing", before_event_id=before, limit=3) == (None, None)

    # ------------------------------------------------------------ snapshots

    async def test_a_turn_is_found_whole_however_far_its_answers_are_from_its_message(self, store: Store) -> None:
        thread, events = await filled(store, 1)
        # As many numbers as a turn is looked for in the order of its thread, and some on both sides of that.
        for turn in [*[1, 0] * 60, 1]:
            stored = await store.apply(Change(thread=thread, events=(an_event(thread, turn_seq=turn),), exact=False))
            events.append(stored.events[0])
        whole = [event for event in events if event.turn_seq == 1]
        assert whole[-1].seq == len(events) == 122
        query = EventQuery(thread_id=thread.id, turn=1)
        assert await store.events(query) == whole
        assert await store.events(evolve(query, limit=2, oldest_first=True)) == whole[:2]
        assert await store.events(evolve(query, limit=2)) == whole[-2:]
        assert await store.events(evolve(query, limit=9, after_seq=97, before_seq=107)) == [
            event for event in whole if 97 < event.seq < 107
        ]

    async def test_a_snapshot_of_a_short_thread_is_all_of_it(self, store: Store) -> None:
        thread, events = await filled(store, 3)
        snapshot = await store.snapshot(thread.id)
        assert snapshot is not None
        assert (snapshot.thread, snapshot.events, snapshot.runs, snapshot.has_more) == (thread, events, [], False)

    async def test_a_snapshot_of_an_empty_thread_is_empty(self, store: Store) -> None:
        thread = await opened(store)
        for after, whole in itertools.product((None, "unknown"), (False, True)):
            snapshot = await store.snapshot(thread.id, after_event_id=after, at_least_page=whole)
            assert snapshot is not None
            assert (snapshot.thread, snapshot.events, snapshot.has_more) == (thread, [], False)

    async def test_a_snapshot_of_a_long_thread_is_its_newest_page(self, store: Store) -> None:
        thread, events = await filled(store, PAGE + 20)
        snapshot = await store.snapshot(thread.id)
        assert snapshot is not None
        assert snapshot.events == events[-PAGE:]
        assert snapshot.has_more

    async def test_a_snapshot_of_exactly_a_page_has_no_more(self, store: Store) -> None:
        thread, events = await filled(store, PAGE)
        snapshot = await store.snapshot(thread.id)
        assert snapshot is not None
        assert (snapshot.events, snapshot.has_more) == (events, False)

    async def test_a_snapshot_holds_the_active_runs_only(self, store: Store) -> None:
        thread, other = await opened(store), await opened(store)
        first, second = a_run(thread), a_run(thread, at=later(1))
        done = a_run(thread, status="succeeded", ended_at=T0)
        await store.apply(Change(thread=thread, runs=(second, done, first)))
        await store.apply(Change(thread=other, runs=(a_run(other),)))
        snapshot = await store.snapshot(thread.id)
        assert snapshot is not None
        assert snapshot.runs == [first, second]

    @pytest.mark.parametrize("whole", [False, True])
    async def test_after_an_unknown_or_foreign_event_a_snapshot_is_the_newest_page(
        self, store: Store, whole: bool
    ) -> None:
        thread, events = await filled(store, PAGE + 5)
        _, foreign = await filled(store, 2)
        await store.remove_event(events[50].id)
        del events[50]
        for after in ("unknown", "", foreign[0].id, "removed"):
            snapshot = await store.snapshot(thread.id, after_event_id=after, at_least_page=whole)
            assert snapshot is not None
            assert snapshot.events == events[-PAGE:]
            assert snapshot.has_more

    async def test_after_an_event_a_snapshot_is_what_follows_it(self, store: Store) -> None:
        thread, events = await filled(store, PAGE + 50)
        for index in (0, 10, 100, 148):
            snapshot = await store.snapshot(thread.id, after_event_id=events[index].id)
            assert snapshot is not None
            assert snapshot.events == events[index + 1 :]
            assert snapshot.has_more  # the event itself, at least

    async def test_after_the_last_event_a_snapshot_has_no_events(self, store: Store) -> None:
        thread, events = await filled(store, 5)
        snapshot = await store.snapshot(thread.id, after_event_id=events[-1].id)
        assert snapshot is not None
        assert (snapshot.events, snapshot.has_more) == ([], True)

    async def test_a_gap_larger_than_a_frame_begins_with_its_first_events(self, store: Store) -> None:
        thread, events = await filled(store, GAP + 30)
        snapshot = await store.snapshot(thread.id, after_event_id=events[4].id)
        assert snapshot is not None
        assert snapshot.events == events[5 : 5 + GAP]
        rest = await store.events(
            EventQuery(thread_id=thread.id, after_seq=snapshot.events[-1].seq, limit=GAP, oldest_first=True)
        )
        assert rest == events[5 + GAP :]

    async def test_a_client_that_replaces_its_view_gets_the_newest_page_or_the_whole_gap(self, store: Store) -> None:
        thread, events = await filled(store, GAP + 150)
        for index in (len(events) - 1, len(events) - 10, len(events) - PAGE, len(events) - PAGE - 1):
            snapshot = await store.snapshot(thread.id, after_event_id=events[index].id, at_least_page=True)
            assert snapshot is not None
            assert snapshot.events == events[-PAGE:]
        for index in (len(events) - PAGE - 2, 300, 3):
            snapshot = await store.snapshot(thread.id, after_event_id=events[index].id, at_least_page=True)
            assert snapshot is not None
            assert snapshot.events == events[index + 1 :]
            assert snapshot.has_more

    async def test_a_snapshot_is_of_one_instant(self, store: Store) -> None:
        thread = await opened(store)

        async def write() -> None:
            for _ in range(60):
                run = a_run(thread)
                await store.apply(Change(thread=thread, runs=(run,), events=(an_event(thread, run_id=run.id),)))

        writing = asyncio.create_task(write())
        while not writing.done():
            snapshot = await store.snapshot(thread.id)
            assert snapshot is not None
            assert len(snapshot.events) == len(snapshot.runs) == snapshot.thread.last_seq
            await asyncio.sleep(0)
        await writing

    # ------------------------------------------------------------ runs of processes, living and dead

    async def _running(self, store: Store, process_id: str | None, *, at: datetime = T0, **more: Any) -> Run:
        thread = await opened(store)
        run = a_run(thread, at=at, process_id=process_id, **more)
        await store.apply(Change(thread=thread, runs=(run,)))
        return run

    async def _thread_of(self, store: Store, run: Run) -> Thread:
        thread = await store.thread(run.thread_id)
        assert thread is not None
        return thread

    async def test_a_run_comes_back_with_the_process_that_is_at_it(self, store: Store) -> None:
        run = await self._running(store, "process-1")
        assert await store.run(run.id) == run
        ended = evolve(run, status="succeeded", ended_at=later(1), process_id="process-2")
        thread = await store.thread(run.thread_id)
        assert thread is not None
        await store.apply(Change(thread=thread, runs=(ended,)))
        assert await store.run(run.id) == evolve(ended, process_id="process-1")

    async def test_a_run_that_was_silent_for_too_long_is_buried_once(self, store: Store) -> None:
        run = await self._running(store, "dead")
        assert await bury(store, T0, later(60), "lost") == []  # it was heard of at that very instant
        buried = evolve(run, status="failed", ended_at=later(60), error="lost")
        assert await bury(store, later(1), later(60), "lost") == [buried]
        assert await store.run(run.id) == buried
        assert await bury(store, later(100), later(120), "again") == []
        assert await store.run(run.id) == buried

    async def test_a_heartbeat_keeps_all_runs_of_its_process_and_no_others(self, store: Store) -> None:
        alive = [await self._running(store, "alive") for _ in range(3)]
        dead = [await self._running(store, "dead") for _ in range(2)]
        await store.beat("alive", later(50))
        await store.beat("nobody", later(50))
        buried = await bury(store, later(40), later(60), "lost")
        assert {run.id for run in buried} == {run.id for run in dead}
        kept = [await store.run(run.id) for run in alive]
        assert kept == alive
        assert {run.id for run in await bury(store, later(51), later(60), "lost")} == {run.id for run in alive}

    async def test_a_run_that_has_begun_counts_as_heard_of_when_it_began(self, store: Store) -> None:
        run = await self._running(store, "p", at=later(30))
        assert await bury(store, later(30), later(60), "lost") == []
        assert [one.id for one in await bury(store, later(30.000001), later(60), "lost")] == [run.id]

    async def test_a_run_of_nobody_is_buried_like_any(self, store: Store) -> None:
        run = await self._running(store, None)
        await store.beat("p", later(50))
        assert [one.id for one in await bury(store, later(40), later(60), "lost")] == [run.id]

    async def test_runs_that_have_ended_are_left_alone(self, store: Store) -> None:
        runs = [
            await self._running(store, "p", status=status, ended_at=later(1))
            for status in ("succeeded", "failed", "canceled")
        ]
        assert await bury(store, later(100), later(100), "lost") == []
        await store.beat("p", later(200))
        assert [await store.run(run.id) for run in runs] == runs

    async def test_what_its_process_says_of_a_buried_run_comes_too_late(self, store: Store) -> None:
        run = await self._running(store, "slow")
        (buried,) = await bury(store, later(1), later(60), "lost")
        thread = await store.thread(run.thread_id)
        assert thread is not None
        await store.beat("slow", later(61))
        await store.apply(Change(thread=thread, runs=(evolve(run, status="succeeded", ended_at=later(62)),)))
        assert await store.run(run.id) == buried

    async def test_a_change_of_a_running_run_is_written(self, store: Store) -> None:
        run = await self._running(store, "p")
        thread = await self._thread_of(store, run)
        event, end = an_event(thread, "one", run_id=run.id), evolve(run, status="succeeded", ended_at=later(1))
        for change in (
            Change(thread=thread, during=run.id, events=(event,)),
            Change(thread=thread, during=run.id, patch={"title": "T"}),
            Change(thread=thread, during=run.id, runs=(end,), events=(an_event(thread, "two"),)),
        ):
            stored = await store.apply(change)
            assert (stored.during, stored.runs) == (run.id, change.runs)
        assert await store.run(run.id) == end
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one", "two"]
        assert (await self._thread_of(store, run)).title == "T"

    @pytest.mark.parametrize("buried", [True, False], ids=["buried", "ended"])
    async def test_a_change_of_a_run_that_is_over_is_not_found_and_writes_nothing(
        self, store: Store, buried: bool
    ) -> None:
        run = await self._running(store, "slow")
        thread = await self._thread_of(store, run)
        if buried:
            await bury(store, later(1), later(60), "lost")
        else:
            await store.apply(Change(thread=thread, runs=(evolve(run, status="succeeded", ended_at=later(1)),)))
        over, next_run = await store.run(run.id), a_run(thread, at=later(2))
        end = evolve(run, status="failed", ended_at=later(62), error="why")
        for change in (
            Change(thread=thread, during=run.id, events=(an_event(thread, run_id=run.id),)),
            Change(thread=thread, during=run.id, patch={"title": "T", "updated_at": later(61)}),
            Change(thread=thread, during=run.id, runs=(end,)),
            Change(thread=thread, during=run.id, runs=(end,), events=(an_event(thread, "notice", run_id=run.id),)),
            Change(thread=thread, during=run.id, runs=(end, next_run)),
        ):
            await refused(store.apply(change))
        assert await store.run(run.id) == over
        assert await store.run(next_run.id) is None
        assert await store.thread(thread.id) == thread
        assert await store.events(EventQuery(thread_id=thread.id)) == []
        # What belongs to none is unaffected, and so is what tells of the end.
        for change in (
            Change(thread=thread, events=(an_event(thread, "after"),)),
            Change(thread=thread, runs=(end,), events=(an_event(thread, "notice", run_id=run.id),)),
        ):
            await store.apply(change)
        assert seqs(await store.events(EventQuery(thread_id=thread.id))) == [1, 2]
        assert await store.run(run.id) == over

    async def test_a_change_may_begin_or_end_its_own_run_and_nothing_else_of_an_unknown_one(self, store: Store) -> None:
        thread = await opened(store)
        begun, ended = a_run(thread), a_run(thread, at=later(1), status="failed", ended_at=later(1), error="e")
        await refused(store.apply(Change(thread=thread, during=begun.id, events=(an_event(thread, "early"),))))
        await refused(store.apply(Change(thread=thread, during=ended.id, runs=(begun,))))
        both = Change(thread=thread, during=begun.id, runs=(begun,), events=(an_event(thread, "first"),))
        await store.apply(both)
        await store.apply(Change(thread=thread, during=ended.id, runs=(ended,), events=(an_event(thread, "last"),)))
        assert await store.runs(RunQuery()) == [ended, begun]
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["first", "last"]

    async def test_a_turns_changes_given_at_once_are_written_up_to_the_end_of_their_run(self, store: Store) -> None:
        thread = await opened(store)
        first, second = a_run(thread), a_run(thread, at=later(1))
        ended = [evolve(run, status="succeeded", ended_at=later(2)) for run in (first, second)]

        def said(text: str, during: str | None, *runs: Run) -> Change:
            return Change(thread=thread, during=during, runs=runs, events=(an_event(thread, text),) if text else ())

        changes = [
            said("", None),
            said("before", None),
            said("", first.id, first),
            said("in the first", first.id),
            said("", first.id, ended[0], second),
            said("in the second", second.id),
            said("", second.id, ended[1]),
            said("late", second.id),
            said("later", second.id),
            said("after", None),
        ]
        results = await asyncio.gather(*map(store.apply, changes), return_exceptions=True)
        late = [
            change.events[0].text
            for change, got in zip(changes, results, strict=True)
            if isinstance(got, NotFoundError)
        ]
        assert late == ["late", "later"]
        events = await store.events(EventQuery(thread_id=thread.id))
        assert texts(events) == ["before", "in the first", "in the second", "after"]
        assert seqs(events) == [1, 2, 3, 4]
        assert await store.runs(RunQuery()) == ended[::-1]

    async def test_a_change_of_a_run_that_is_over_spoils_nothing_that_is_given_with_it(self, store: Store) -> None:
        dead = await self._running(store, "dead")
        thread = await self._thread_of(store, dead)
        await bury(store, later(1), later(60), "lost")
        alive = a_run(thread, at=later(61))
        await store.apply(Change(thread=thread, runs=(alive,)))
        changes = [
            Change(thread=thread, during=during, events=(an_event(thread, f"{n}"),))
            for n, during in enumerate([dead.id, alive.id, None, dead.id, dead.id, alive.id, alive.id, None, None] * 4)
        ]
        results = await asyncio.gather(*map(store.apply, changes), return_exceptions=True)
        for change, result in zip(changes, results, strict=True):
            assert isinstance(result, NotFoundError) == (change.during == dead.id), result
        events = await store.events(EventQuery(thread_id=thread.id))
        assert texts(events) == [change.events[0].text for change in changes if change.during != dead.id]
        assert seqs(events) == list(range(1, len(events) + 1))

    async def test_a_repeat_is_known_also_when_its_run_is_over(self, store: Store) -> None:
        run = await self._running(store, "p")
        thread = await self._thread_of(store, run)
        change = Change(thread=thread, during=run.id, events=(an_event(thread, "once"),), repeat_key="k")
        first = await store.apply(change)
        await bury(store, later(1), later(60), "lost")
        again = await store.apply(evolve(change, events=(an_event(thread, "twice"),)))
        assert again.repeated
        assert again.events == first.events
        await refused(store.apply(evolve(change, events=(an_event(thread, "new"),), repeat_key="other")))

    async def test_once_a_burial_is_told_in_its_thread_nothing_of_the_run_follows(self, store: Store) -> None:
        for _ in range(10):
            run = await self._running(store, "slow")
            thread = await self._thread_of(store, run)

            async def tell(thread: Thread = thread) -> None:
                while not (dead := await bury(store, later(1), later(60), "lost")):
                    await asyncio.sleep(0)  # one that is being written to may be left for the next time
                for buried in dead:
                    await store.apply(Change(thread=thread, runs=(buried,), events=(an_event(thread, "notice"),)))

            burying = asyncio.create_task(tell())
            while not burying.done():
                with suppress(NotFoundError):
                    await store.apply(Change(thread=thread, during=run.id, events=(an_event(thread, "tick"),)))
                await asyncio.sleep(0)
            await burying
            await refused(store.apply(Change(thread=thread, during=run.id, events=(an_event(thread),))))
            assert texts(await store.events(EventQuery(thread_id=thread.id)))[-1] == "notice"

    async def test_a_buried_run_is_no_active_one_of_a_snapshot(self, store: Store) -> None:
        run = await self._running(store, "dead")
        await bury(store, later(1), later(60), "lost")
        snapshot = await store.snapshot(run.thread_id)
        assert snapshot is not None
        assert snapshot.runs == []

    async def test_runs_of_a_deleted_thread_are_not_buried(self, store: Store) -> None:
        run = await self._running(store, "dead")
        thread = await store.thread(run.thread_id)
        assert thread is not None
        await store.apply(Change(thread=thread, removes=True))
        await store.beat("dead", later(1))
        assert await bury(store, later(100), later(100), "lost") == []

    async def test_of_many_who_bury_at_once_each_dead_run_is_given_to_one(self, store: Store) -> None:
        dead = {(await self._running(store, f"dead-{number % 3}")).id for number in range(20)}
        shares = await asyncio.gather(*(bury(store, later(1), later(60), f"by {n}") for n in range(10)))
        assert sorted(run.id for share in shares for run in share) == sorted(dead)
        for number, share in enumerate(shares):
            assert {run.error for run in share} <= {f"by {number}"}

    # ------------------------------------------------------------ settings

    async def test_nothing_set_is_empty_settings(self, store: Store) -> None:
        assert await store.settings("worker-1") == StoredSettings({}, None)
        await store.set_settings("worker-1", {}, T0)
        assert await store.settings("worker-1") == StoredSettings({}, None)

    async def test_setting_a_field_leaves_the_others_and_other_workers_alone(self, store: Store) -> None:
        await store.set_settings("worker-1", {"a": 1, "b": 2}, T0)
        await store.set_settings("worker-1", {"b": 3}, later(1))
        await store.set_settings("worker-2", {"a": 9}, later(2))
        assert await store.settings("worker-1") == StoredSettings({"a": 1, "b": 3}, later(1))
        assert await store.settings("worker-2") == StoredSettings({"a": 9}, later(2))

    async def test_20_concurrent_writers_of_different_fields_all_survive(self, store: Store) -> None:
        await asyncio.gather(
            *(store.set_settings("worker-1", {f"field-{n}": n}, later(n)) for n in range(20)),
        )
        stored = await store.settings("worker-1")
        assert stored.values == {f"field-{n}": n for n in range(20)}
        assert stored.updated_at == later(19)

    async def test_the_worker_ids_that_have_settings_come_sorted(self, store: Store) -> None:
        assert await store.configured() == []
        names = ["worker-2", "worker-10", "b", "B", "ä", "", "a b"]
        for name in names:
            await store.set_settings(name, {"a": 1, "b": None}, T0)
        await store.set_settings("empty", {}, T0)
        assert await store.configured() == sorted(names)

    async def test_a_setting_is_swapped_while_it_is_what_it_was(self, store: Store) -> None:
        await store.set_settings("worker-1", {"a": {"k": ["clear", 1]}, "b": 2}, T0)
        await store.set_settings("worker-2", {"a": {"k": ["clear", 1]}}, T0)
        was = (await store.settings("worker-1")).values["a"]
        assert await store.swap_setting("worker-1", "a", was, {"sealed": "x"}) is True
        assert await store.swap_setting("worker-1", "a", was, "too late") is False
        # `updated_at` stays: nobody has changed anything.
        assert await store.settings("worker-1") == StoredSettings({"a": {"sealed": "x"}, "b": 2}, T0)
        assert await store.settings("worker-2") == StoredSettings({"a": {"k": ["clear", 1]}}, T0)

    @pytest.mark.parametrize(
        ("stored", "was"), [(1, True), (True, 1), (0, False), ("", None), (None, ""), ("1", 1), ({}, []), ("a", "A")]
    )
    async def test_a_setting_that_is_another_is_not_swapped(self, store: Store, stored: Any, was: Any) -> None:
        await store.set_settings("worker-1", {"a": stored}, T0)
        assert await store.swap_setting("worker-1", "a", was, "new") is False
        assert (await store.settings("worker-1")).values == {"a": stored}
        assert await store.swap_setting("worker-1", "a", stored, "new") is True
        assert (await store.settings("worker-1")).values == {"a": "new"}

    async def test_a_setting_that_is_not_there_is_not_swapped_in(self, store: Store) -> None:
        await store.set_settings("worker-1", {"a": 1}, T0)
        assert await store.swap_setting("worker-1", "b", None, "new") is False
        assert await store.swap_setting("worker-2", "a", 1, "new") is False
        assert await store.configured() == ["worker-1"]
        assert (await store.settings("worker-1")).values == {"a": 1}

    async def test_of_20_concurrent_swaps_of_one_setting_one_wins(self, store: Store) -> None:
        await store.set_settings("worker-1", {"a": "was"}, T0)
        won = await asyncio.gather(*(store.swap_setting("worker-1", "a", "was", n) for n in range(20)))
        assert won.count(True) == 1
        assert (await store.settings("worker-1")).values == {"a": won.index(True)}

    # ------------------------------------------------------------ values

    async def test_json_values_of_every_kind_come_back(self, store: Store) -> None:
        value: dict[str, Any] = {
            "null": None,
            "true": True,
            "false": False,
            "zero": 0,
            "one": 1,
            "negative": -17,
            "large": 2**53,
            "float": 0.1,
            "tiny": 1e-7,
            "empty": "",
            "text": 'quotes " and \\ and \n and \t',
            "list": [1, [2, [3, []]], {}],
            "object": {"": {"nested": {"deep": [None, {"a": "b"}]}}},
            "key with spaces, 'quotes', $, . and ü": 1,
            "percent % colon :name ? question": "100%",
        }
        thread = await opened(store, metadata=value)
        event = an_event(thread, data=value)
        await store.apply(Change(thread=thread, events=(event,)))
        await store.set_settings("worker-1", value, T0)
        found, back = await store.thread(thread.id), await store.event(event.id)
        assert found is not None
        assert back is not None
        for one in (found.metadata, back.data, (await store.settings("worker-1")).values):
            assert one == value
            assert one is not None
            assert {name: type(part) for name, part in one.items()} == {
                name: type(part) for name, part in value.items()
            }

    async def test_empty_objects_and_nothing_are_told_apart(self, store: Store) -> None:
        thread = await opened(store, metadata={})
        none, empty = an_event(thread, data=None), an_event(thread, data={})
        await store.apply(Change(thread=thread, events=(none, empty)))
        found = await store.thread(thread.id)
        assert found is not None
        assert found.metadata == {}
        assert [event.data for event in await store.events(EventQuery(thread_id=thread.id))] == [None, {}]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "zażółć gęślą jaźń",
            "日本語 العربية עברית",
            "👩‍👩‍👧‍👦 e\u0301 \u202e \ufeff \uffff",
            "'; DROP TABLE threads; --",
            "line\r\nline\u2028line",
            "\x01\x02\x1f\x7f",
            "nul\x00nul",
            "half an emoji \ud83d",
        ],
    )
    async def test_cleaned_text_comes_back_as_it_is(self, store: Store, text: str) -> None:
        text = clean(text)
        thread = await opened(store, text, title=text, metadata={"k": text})
        data = plain({"k": text, text: 1})
        event = an_event(thread, text, data=data, author=text, user=User(text, text), client_event_id=text)
        stored = await store.apply(Change(thread=thread, events=(event,), patch={"title": text}))
        back = await store.event(event.id)
        assert back == stored.events[0]
        assert back is not None
        assert (back.text, back.author, back.user_name, back.data) == (text, text, text, data)
        found = await store.thread(thread.id)
        assert found is not None
        assert (found.title, found.metadata) == (text, {"k": text})
        assert [one.id for one in await store.threads(ThreadQuery(equal={"title": text}))] == [thread.id]

    async def test_a_text_of_a_megabyte_comes_back(self, store: Store) -> None:
        text = "0123456789abcdeé" * 65536
        thread = await opened(store, text)
        assert (await store.events(EventQuery(thread_id=thread.id)))[0].text == text

    async def test_empty_content_comes_back_empty(self, store: Store) -> None:
        thread = await opened(store)
        nothing: list[ContentPart] = []
        event = an_event(thread, content=nothing, data={"only": "data"})
        await store.apply(Change(thread=thread, events=(event,)))
        back = await store.event(event.id)
        assert back is not None
        assert (back.content, back.text) == ([], "")
