"""Threads are renamed by people, and found by their titles: what goes over the wire, and what it leaves alone."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from dependency_injector import providers
from samples import T0

from dooers import Identity, Operation, Thread, WorkerConfig, WorkerServer
from dooers.clock import SystemClock
from dooers.models import Change
from dooers.routes import threads as routes
from dooers.testing import WorkerClient


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    """A worker that answers with what it was told; "wait" when `worker.go` is set, with metadata of its own."""
    made = WorkerServer(worker_config)
    made.reached, made.go = asyncio.Event(), asyncio.Event()  # type: ignore[attr-defined]

    @made.handler
    async def agent(incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        if incoming.message == "wait":
            yield send.update_thread(title="by the handler")
            yield send.text("before")
            await memory.get_history()
            made.reached.set()  # type: ignore[attr-defined]
            await made.go.wait()  # type: ignore[attr-defined]
            yield send.update_thread(metadata={"by": "the handler"})
        yield send.text(incoming.message)
        yield send.run_end()

    yield made
    made.go.set()  # type: ignore[attr-defined]
    await made.close()


async def code_of(client: WorkerClient, kind: str, payload: dict[str, Any]) -> str:
    answer = await client.ask(kind, payload)
    if answer["type"] != "ack" or answer["payload"]["ok"]:
        return "ok"
    return str(answer["payload"]["error"]["code"])


async def rename(client: WorkerClient, thread_id: str, title: Any) -> dict[str, Any]:
    answer = await client.ask("thread.update", {"thread_id": thread_id, "title": title})
    assert answer["payload"]["ok"], answer
    return answer


async def kept(worker: WorkerServer, thread_id: str) -> Thread:
    found = await (await worker.repository()).get_thread(thread_id)
    assert found is not None
    return found


# ---------------------------------------------------------------- a new title


async def test_a_rename_is_told_to_all_who_may_see_the_thread_and_then_acknowledged(worker: WorkerServer) -> None:
    async with (
        WorkerClient(worker) as one,
        WorkerClient(worker, user_id="colleague") as two,
        WorkerClient(worker, workspace_id="elsewhere") as stranger,
    ):
        thread_id = (await one.say("hi")).thread_id
        before = await kept(worker, thread_id)
        await two.expect("thread.upsert")
        asked = one.post("thread.update", {"thread_id": thread_id, "title": "Ü"})
        told = await one.receive()
        assert (told["type"], told["payload"]["thread"]["title"]) == ("thread.upsert", "Ü")
        answer = await one.receive()
        assert (answer["type"], answer["payload"]) == ("ack", {"ack_id": asked, "ok": True})
        assert (await two.expect("thread.upsert"))["payload"] == told["payload"]
        await stranger.ask("ping")
        assert stranger.unread == []
        after = await kept(worker, thread_id)
        assert after == evolve(before, title="Ü", updated_at=after.updated_at)
        assert after.updated_at > before.updated_at


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("  two\r\n lines\tand\x7f\x85a bell\x07 ", "two  lines and a bell"),
        ("one\u2028two\u2029three", "one two three"),
        ("x" * 200, "x" * 200),
        (f" {'é' * 200}\n", "é" * 200),
        ("half \ud83d", "half \ufffd"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("", None),
        (" \n\x00", None),
        (None, None),
    ],
)
async def test_a_title_is_one_line_without_control_characters_and_nothing_is_no_title(
    worker: WorkerServer, said: str | None, title: str | None
) -> None:
    async with WorkerClient(worker) as client:
        thread_id = (await client.say("hi")).thread_id
        await rename(client, thread_id, "former")
        await rename(client, thread_id, said)
        assert (await kept(worker, thread_id)).title == title
        [listed] = (await client.ask("thread.list"))["payload"]["threads"]
        assert listed.get("title") == title
        assert ("title" in listed) is (title is not None)


async def test_a_title_that_is_too_long_or_was_forgotten_changes_nothing(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        thread_id = (await client.say("hi")).thread_id
        await rename(client, thread_id, "kept")
        refused = await client.ask("thread.update", {"thread_id": thread_id, "title": "x" * 201})
        error = refused["payload"]["error"]
        assert error == {"code": "TOO_LARGE", "message": "payload.title: at most 200 characters, got 201"}
        assert await code_of(client, "thread.update", {"thread_id": thread_id}) == "INVALID_FRAME"
        assert await code_of(client, "thread.update", {"thread_id": "none", "title": "x"}) == "NOT_FOUND"
        assert (await kept(worker, thread_id)).title == "kept"


async def test_a_rename_while_the_thread_is_answered_stays_and_touches_nothing_of_the_turn(
    worker: WorkerServer,
) -> None:
    async with WorkerClient(worker) as client, WorkerClient(worker) as other:
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": "wait"}]}
        thread_id = (await client.ask("event.create", {"event": event}))["payload"].get("thread_id")
        await worker.reached.wait()  # type: ignore[attr-defined]
        [listed] = (await other.ask("thread.list"))["payload"]["threads"]
        thread_id = listed["id"]
        assert listed["title"] == "by the handler"
        await rename(other, thread_id, "by a person")
        [now] = (await other.ask("thread.list"))["payload"]["threads"]
        assert {**now, "updated_at": ""} == {**listed, "title": "by a person", "updated_at": ""}
        worker.go.set()  # type: ignore[attr-defined]
        while (await client.expect("run.upsert"))["payload"]["run"]["status"] == "running":
            pass
        found = await kept(worker, thread_id)
        assert (found.title, found.metadata) == ("by a person", {"by": "the handler"})
        told = [one["payload"]["thread"].get("title") for one in other.unread if one["type"] == "thread.upsert"]
        assert told[-1] == "by a person"
        events = (await client.ask("event.list", {"thread_id": thread_id}))["payload"]["events"]
        texts = [one["content"][0]["text"] for one in events if one["type"] == "message"]
        assert texts == ["wait", "before", "wait"]


async def test_renames_and_metadata_at_once_all_arrive_and_the_last_title_stays(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as one, WorkerClient(worker) as two:
        thread_id = (await one.say("hi")).thread_id
        repository = await worker.repository()
        answers = await asyncio.gather(
            repository.update_thread(thread_id, metadata={"m": 1}),
            rename(one, thread_id, "of one"),
            rename(two, thread_id, "of two"),
            repository.create_event(thread_id, content="beside"),
        )
        assert len(answers) == 4
        found = await kept(worker, thread_id)
        assert found.metadata == {"m": 1}
        assert found.title in ("of one", "of two")
        for client in (one, two):
            await client.ask("ping")
        told = [one["payload"]["thread"].get("title") for one in two.unread if one["type"] == "thread.upsert"]
        assert told[-1] == found.title


async def test_a_thread_that_is_gone_by_then_is_not_made_again_by_a_rename(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        thread_id = (await client.say("hi")).thread_id
        store = worker._parts.store()
        thread = await kept(worker, thread_id)
        removed = store.apply(Change(thread=thread, removes=True))
        codes = await asyncio.gather(code_of(client, "thread.update", {"thread_id": thread_id, "title": "x"}), removed)
        assert codes[0] == "NOT_FOUND"
        assert await store.thread(thread_id) is None


async def test_the_worker_says_that_it_knows_both(worker: WorkerServer) -> None:
    client = WorkerClient(worker)
    await client.open()
    server = (await client.ask("connect", {"worker_id": "w", "user_id": "u"}))["payload"]["server"]
    assert {"thread.update", "thread.search"} <= set(server["capabilities"])
    await client.drop()


# ---------------------------------------------------------------- looking for titles


async def pages(client: WorkerClient, query: Any, limit: int) -> list[list[str]]:
    """The titles of all pages, following the cursors to their end."""
    found: list[list[str]] = []
    cursor = None
    for _ in range(1000):
        page = (await client.ask("thread.list", {"query": query, "limit": limit, "cursor": cursor}))["payload"]
        assert len(page["threads"]) <= limit
        found.append([thread.get("title") for thread in page["threads"]])
        cursor = page.get("cursor")
        if cursor is None:
            return found
    raise AssertionError("the list has no end")


class StoppedClock(SystemClock):
    """A clock that stands still until somebody sets it."""

    at = T0

    def now(self) -> Any:
        return self.at


@asynccontextmanager
async def titled(
    *titles: str | None, apart: float = 1.0, owner: str = "user-1", **config: Any
) -> AsyncIterator[WorkerServer]:
    """A worker with threads of these titles, the last one the latest."""
    worker = WorkerServer(WorkerConfig(**{"database_type": "memory", **config}))
    clock = StoppedClock()
    worker._parts.clock.override(providers.Object(clock))
    repository = await worker.repository()
    for title in titles:
        clock.at += timedelta(seconds=apart)
        await repository.create_thread("worker", "org-1", "ws-1", owner, title)
    try:
        yield worker
    finally:
        await worker.close()


async def test_a_list_holds_and_counts_the_threads_whose_title_has_the_text(worker_config: WorkerConfig) -> None:
    titles = ["Äpfel 100%", None, "Birnen", "ÄPFEL_2", "x" * 300 + "Äpfel"]
    where: Any = {"database_type": "sqlite", "database_name": worker_config.database_name}
    async with titled(*titles, **where) as worker, WorkerClient(worker) as client:
        for query in ("äpfel", " ÄPFEL ", "äpfel\n", "\x07Äpfel"):
            found = (await client.ask("thread.list", {"query": query}))["payload"]
            assert [thread["title"][-9:] for thread in found["threads"]] == ["xxxxÄpfel", "ÄPFEL_2", "pfel 100%"]
            assert (found["total_count"], "cursor" in found) == (3, False)
        for query, count in {"0%": 1, "_": 1, "%": 1, ".*": 0, "l 1": 1, "\\": 0, "q": 0}.items():
            assert (await client.ask("thread.list", {"query": query}))["payload"]["total_count"] == count, query
        for nothing in (None, "", "  ", "\x00"):
            assert (await client.ask("thread.list", {"query": nothing}))["payload"]["total_count"] == 5
        assert await code_of(client, "thread.list", {"query": "x" * 200}) == "ok"
        answer = await client.ask("thread.list", {"query": "x" * 201})
        assert answer["payload"]["error"]["code"] == "TOO_LARGE"
        assert answer["payload"]["error"]["message"].startswith("payload.query: ")


@pytest.mark.parametrize("apart", [0.0, 1.0])
async def test_pages_of_a_search_lose_and_repeat_nothing_wherever_a_walk_ends(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = [f"{'found' if n in (0, 3, 4, 20, 21, 22, 39) else 'other'} {n:02}" for n in range(40)]
    async with titled(*titles, apart=apart) as worker, WorkerClient(worker) as client:
        wanted = (await pages(client, "FOUND", 50))[0]
        assert sorted(wanted) == [title for title in titles if "found" in title]
        for walk in (1, 2, 3, 7, 20, 39, 40, 41):
            monkeypatch.setattr(routes, "WALK", walk)
            for limit in (1, 2, 3, 50):
                walked = await pages(client, "found", limit)
                assert [title for page in walked for title in page] == wanted, (walk, limit)
                assert len(walked) <= 40 / walk + 7 + 1
            assert await pages(client, "nowhere", 5) == [[]] * -(-40 // walk)


@pytest.mark.parametrize("walk", [3, 1000])
async def test_what_a_hook_hides_is_neither_found_nor_counted_nor_named_by_a_cursor(
    walk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "WALK", walk)
    async with titled(*["a secret", "shown a"] * 30, apart=0.0, owner="owner") as worker:

        @worker.authorize
        def may(identity: Identity, operation: Operation, thread: Thread | None) -> bool:
            return thread is None or "secret" not in (thread.title or "")

        async with WorkerClient(worker) as client:
            for limit in (1, 2, 100):
                assert not any(await pages(client, "secret", limit))
                assert [title for page in await pages(client, "A", limit) for title in page] == ["shown a"] * 30
            page = (await client.ask("thread.list", {"query": "secret", "limit": 1}))["payload"]
            assert "total_count" not in page


@pytest.mark.parametrize("walk", [3, 1000])
async def test_the_cursor_of_a_search_names_no_thread_that_is_hidden(
    walk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "WALK", walk)
    async with titled(*["a secret"] * 30, owner="owner") as worker:
        worker.authorize(lambda who, operation, thread: thread is None)
        hidden = [one.id for one in await (await worker.repository()).list_threads(limit=100)]
        async with WorkerClient(worker) as client:
            page = (await client.ask("thread.list", {"query": "secret", "limit": 1}))["payload"]
            assert page["threads"] == []
            told = base64.urlsafe_b64decode(page["cursor"]).decode()
            assert [thread_id for thread_id in hidden if thread_id in told] == []


async def test_a_search_does_not_tell_what_is_in_hidden_titles() -> None:
    async with titled(*["a secret"] * 70, *["shown"] * 5, *["b secret"] * 70, owner="owner") as worker:
        worker.authorize(lambda who, operation, thread: thread is None or thread.title == "shown")
        async with WorkerClient(worker) as client:
            for limit in (1, 2, 5, 50):
                answers: list[Any] = []
                for query in ("secret", "nowhere", "b s", "a"):
                    cursor = None
                    told: list[Any] = []
                    while not told or cursor is not None:
                        asked = {"query": query, "limit": limit, "cursor": cursor}
                        told.append((await client.ask("thread.list", asked))["payload"])
                        cursor = told[-1].get("cursor")
                    answers.append(told)
                assert all(told == answers[0] for told in answers), limit
                assert [title for page in await pages(client, "SHOWN", limit) for title in page] == ["shown"] * 5


@pytest.mark.parametrize("user", ["other", ""])
async def test_private_titles_are_found_by_their_user_alone(user: str) -> None:
    async with titled("mine", owner="user-1", private_threads=True) as worker:
        async with WorkerClient(worker, user_id=user) as other:
            assert (await other.ask("thread.list", {"query": "mine"}))["payload"] == {"threads": [], "total_count": 0}
        async with WorkerClient(worker) as owner:
            assert (await owner.ask("thread.list", {"query": "MINE"}))["payload"]["total_count"] == 1
