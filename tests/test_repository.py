"""Direct reads and writes, through a real worker with a SQLite file: every call of the classic README, and what they promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from attrs import evolve
from cryptography.fernet import Fernet

from dooers import SettingsField, SettingsFieldType, SettingsSchema, WorkerConfig, WorkerServer
from dooers.exceptions import DooersError, InvalidValueError, NotFoundError, StoreError
from dooers.models import ImagePart, TextPart, Thread, User
from dooers.repository import Repository
from dooers.testing import WorkerClient

SCHEMA = SettingsSchema(
    fields=[
        SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model", value="small"),
        SettingsField(id="count", type=SettingsFieldType.NUMBER, label="Count", value=3, max=10),
    ]
)


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    worker = WorkerServer(evolve(worker_config, settings_schema=SCHEMA))

    @worker.handler
    async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start("answerer")
        yield send.text(f"you said {incoming.message}")
        yield send.run_end()

    async with worker.lifespan():
        yield worker


@pytest.fixture
async def repo(worker: WorkerServer) -> Repository:
    return await worker.repository()


async def a_thread(repo: Repository, title: str | None = None, user_id: str = "user-1") -> Thread:
    return await repo.create_thread("worker", "org-1", "ws-1", user_id, title)


# ---------------------------------------------------------------- threads


async def test_a_created_thread_can_be_read_listed_renamed_and_removed(repo: Repository) -> None:
    thread = await a_thread(repo, "Hello")
    assert await repo.get_thread(thread.id) == thread
    assert (thread.title, thread.owner.user_id, thread.last_seq) == ("Hello", "user-1", 0)
    assert await repo.list_threads(filter={"worker_id": "worker", "organization_id": "org-1"}) == [thread]
    renamed = await repo.update_thread(thread.id, title="New title")
    assert renamed is not None
    assert renamed.title == "New title"
    assert renamed.updated_at >= thread.updated_at
    assert await repo.get_thread(thread.id) == renamed
    await repo.remove_thread(thread.id)
    await repo.remove_thread(thread.id)
    assert await repo.get_thread(thread.id) is None
    assert await repo.list_threads() == []


async def test_an_update_sets_what_is_given_and_leaves_the_rest(repo: Repository) -> None:
    thread = await repo.create_thread("worker", title="T", metadata={"a": 1})
    updated = await repo.update_thread(thread.id, metadata={"b": [2]})
    assert updated is not None
    assert (updated.title, updated.metadata) == ("T", {"b": [2]})
    updated = await repo.update_thread(thread.id, title=None)
    assert updated is not None
    assert (updated.title, updated.metadata) == (None, {"b": [2]})
    updated = await repo.update_thread(thread.id, metadata=None)
    assert updated is not None
    assert updated.metadata is None
    assert await repo.update_thread(thread.id) == updated
    assert await repo.update_thread("nothing", title="x") is None


async def test_concurrent_updates_of_title_and_metadata_both_survive(repo: Repository) -> None:
    thread = await a_thread(repo)
    await asyncio.gather(repo.update_thread(thread.id, title="T"), repo.update_thread(thread.id, metadata={"m": 1}))
    found = await repo.get_thread(thread.id)
    assert found is not None
    assert (found.title, found.metadata) == ("T", {"m": 1})


async def test_threads_are_listed_by_filter_order_and_limit(repo: Repository) -> None:
    threads = [await a_thread(repo, f"t{n}", f"user-{n % 2}") for n in range(6)]
    ids = [thread.id for thread in threads]
    assert [thread.id for thread in await repo.list_threads()] == ids[::-1]
    assert [thread.id for thread in await repo.list_threads(order={"direction": "asc"})] == ids
    assert [thread.id for thread in await repo.list_threads(order={"direction": "desc"}, limit=2)] == ids[:3:-1]
    assert [thread.id for thread in await repo.list_threads({"user_id": "user-1"})] == ids[5::-2]
    assert [thread.id for thread in await repo.list_threads({"title": "t3"})] == [ids[3]]
    assert await repo.list_threads({"user_id": ""}) == []


async def test_threads_are_found_by_what_their_title_contains(repo: Repository) -> None:
    first, second, _ = [await a_thread(repo, title, "user-1") for title in ("Äpfel 100%", "ÄPFEL", "Birnen")]
    assert await repo.list_threads(query="äpfel") == [second, first]
    assert await repo.list_threads({"user_id": "user-1"}, {"direction": "asc"}, 1, query="äpfel") == [first]
    assert await repo.list_threads(query="0%") == [first]
    assert await repo.list_threads({"user_id": "user-2"}, query="äpfel") == []
    assert len(await repo.list_threads(query="  ")) == 3
    wrong: list[Any] = ["x" * 201, 5, ["x"]]
    for query in wrong:
        with pytest.raises(DooersError):
            await repo.list_threads(query=query)


async def test_connected_clients_are_told_of_what_the_repository_does(worker: WorkerServer, repo: Repository) -> None:
    async with WorkerClient(worker) as client:
        thread = await a_thread(repo, "T")
        assert (await client.expect("thread.upsert"))["payload"]["thread"]["id"] == thread.id
        await client.ask("thread.subscribe", {"thread_id": thread.id})
        event = await repo.create_event(thread.id, content=["hi"])
        assert (await client.expect("event.append"))["payload"]["events"][0]["id"] == event.id
        await repo.update_thread(thread.id, title="T2")
        assert (await client.expect("thread.upsert"))["payload"]["thread"]["title"] == "T2"
        await repo.remove_thread(thread.id)
        assert (await client.expect("thread.deleted"))["payload"] == {"thread_id": thread.id}


# ---------------------------------------------------------------- events


async def test_a_created_event_can_be_read_listed_and_removed(repo: Repository) -> None:
    thread = await a_thread(repo)
    event = await repo.create_event(
        thread.id, type="message", actor="user", content=["hi", {"type": "image", "url": "https://e.org/i.png"}]
    )
    assert event.content == [TextPart("hi"), ImagePart("https://e.org/i.png")]
    assert (event.seq, event.thread_id, event.actor) == (1, thread.id, "user")
    assert await repo.get_event(event.id) == event
    assert await repo.list_events(filter={"thread_id": thread.id}, order={"direction": "asc"}) == [event]
    await repo.remove_event(event.id)
    await repo.remove_event(event.id)
    assert await repo.get_event(event.id) is None


async def test_every_field_of_an_event_may_be_given(repo: Repository) -> None:
    thread = await a_thread(repo)
    event = await repo.create_event(
        thread.id,
        "tool.result",
        "tool",
        [TextPart("x")],
        data={"name": "search", "tags": {"one"}},
        author="Search",
        user=User("u", "U"),
        run_id="run-1",
    )
    assert await repo.get_event(event.id) == event
    assert (event.data, event.author, event.user_name, event.run_id) == (
        {"name": "search", "tags": ["one"]},
        "Search",
        "U",
        "run-1",
    )


async def test_a_single_text_or_part_is_the_content_and_not_its_letters(repo: Repository) -> None:
    thread = await a_thread(repo)
    assert (await repo.create_event(thread.id, content="hello")).content == [TextPart("hello")]
    assert (await repo.create_event(thread.id, content=TextPart("hello"))).content == [TextPart("hello")]
    one: Any = {"type": "text", "text": "hello"}
    assert (await repo.create_event(thread.id, content=one)).content == [TextPart("hello")]
    assert (await repo.create_event(thread.id)).content == []


async def test_events_are_listed_by_filter_order_and_limit(repo: Repository) -> None:
    thread, other = await a_thread(repo), await a_thread(repo)
    await repo.create_event(other.id, content=["elsewhere"])
    events = [
        await repo.create_event(thread.id, actor="user" if n % 2 else "assistant", content=[f"m{n}"]) for n in range(6)
    ]
    assert await repo.list_events({"thread_id": thread.id}) == events[::-1]
    assert await repo.list_events({"thread_id": thread.id}, limit=2) == events[:3:-1]
    assert await repo.list_events({"thread_id": thread.id}, {"direction": "asc"}, 2) == events[:2]
    assert await repo.list_events({"thread_id": thread.id, "actor": "user"}, {"direction": "asc"}) == events[1::2]
    assert await repo.list_events({"thread_id": "nothing"}) == []


async def test_an_event_for_a_thread_that_is_not_there_is_not_found(repo: Repository) -> None:
    with pytest.raises(NotFoundError):
        await repo.create_event("nothing", content=["x"])


# ---------------------------------------------------------------- runs


async def test_the_runs_of_turns_can_be_read_and_listed(worker: WorkerServer, repo: Repository) -> None:
    streams = [
        await worker.dispatch(organization_id="o", workspace_id="w", user_id="u", message=f"m{n}") for n in range(3)
    ]
    for stream in streams:
        await stream.collect()
    runs = await repo.list_runs()
    assert [run.thread_id for run in runs] == [stream.thread_id for stream in streams[::-1]]
    assert {(run.status, run.agent_id) for run in runs} == {("succeeded", "answerer")}
    assert await repo.list_runs({"thread_id": streams[0].thread_id}) == [runs[2]]
    assert await repo.list_runs({"worker_id": "worker", "status": "succeeded"}, {"direction": "asc"}, 2) == runs[:0:-1]
    assert await repo.list_runs({"worker_id": "other"}) == []
    assert await repo.get_run(runs[0].id) == runs[0]
    assert await repo.get_run("nothing") is None


# ---------------------------------------------------------------- settings


async def test_settings_are_those_set_without_defaults(worker: WorkerServer, repo: Repository) -> None:
    assert await repo.get_settings("worker") == {}
    await repo.update_settings("worker", {"model": "large", "key": {"not": "in the schema"}})
    await repo.update_settings("worker", {"count": 5})
    assert await repo.get_settings("worker") == {"model": "large", "count": 5, "key": {"not": "in the schema"}}
    assert await repo.get_settings("other") == {}
    assert await (await worker.settings("worker")).get("model") == "large"
    with pytest.raises(InvalidValueError):
        await repo.update_settings("worker", {"model": "huge", "count": 11})
    assert (await repo.get_settings("worker"))["model"] == "large"


async def test_passwords_are_kept_sealed_and_read_in_clear(worker_config: WorkerConfig) -> None:
    key = SettingsField(id="key", type=SettingsFieldType.PASSWORD, label="Key", value="sk-default")
    config = evolve(worker_config, settings_schema=SettingsSchema(fields=[key]))
    first, second = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    locked, lost = (WorkerServer(evolve(config, settings_encryption_key=one)) for one in (first, second))
    async with locked.lifespan(), lost.lifespan():
        repo, stranger = await locked.repository(), await lost.repository()
        assert await repo.get_settings("worker") == {}
        await repo.update_settings("worker", {"key": "sk-1", "more": [1]})
        assert await repo.get_settings("worker") == {"key": "sk-1", "more": [1]}
        with pytest.raises(StoreError, match="setting 'key' of worker 'worker' is sealed, and no key of"):
            await stranger.get_settings("worker")
        await stranger.update_settings("worker", {"key": "sk-2"})
        assert await stranger.get_settings("worker") == {"key": "sk-2", "more": [1]}


async def test_changing_what_was_read_changes_nothing_that_is_stored(repo: Repository) -> None:
    await repo.update_settings("worker", {"list": [1]})
    values = await repo.get_settings("worker")
    values["list"].append(2)
    assert await repo.get_settings("worker") == {"list": [1]}


# ---------------------------------------------------------------- what does not fit


async def test_what_does_not_fit_is_an_invalid_value_and_changes_nothing(repo: Repository) -> None:
    thread = await a_thread(repo)
    wrong: Any
    for wrong in ({"nothing": "x"}, {"user_id": None}, {"last_seq": "1"}):
        with pytest.raises(InvalidValueError):
            await repo.list_threads(wrong)
        with pytest.raises(InvalidValueError):
            await repo.list_runs(wrong)
        with pytest.raises(InvalidValueError):
            await repo.list_events({"thread_id": thread.id, **wrong})
    with pytest.raises(InvalidValueError, match="thread_id"):
        await repo.list_events({"actor": "user"})
    for wrong in (0, -1, True, None, "5"):
        with pytest.raises(InvalidValueError, match="limit"):
            await repo.list_threads(limit=wrong)
        with pytest.raises(InvalidValueError, match="limit"):
            await repo.list_events({"thread_id": thread.id}, limit=wrong)
        with pytest.raises(InvalidValueError, match="limit"):
            await repo.list_runs(limit=wrong)
    with pytest.raises(InvalidValueError, match="order"):
        await repo.list_threads(order={"direction": "newest"})
    for wrong in ({"title": 5}, {"metadata": [1]}, {"metadata": {"no": object()}}):
        with pytest.raises(InvalidValueError):
            await repo.update_thread(thread.id, **wrong)
        with pytest.raises(InvalidValueError):
            await repo.create_thread("worker", **wrong)
    for wrong in ({"type": "note"}, {"actor": "robot"}, {"content": [5]}, {"content": 5}, {"data": [1]}, {"author": 5}):
        with pytest.raises(InvalidValueError):
            await repo.create_event(thread.id, **wrong)
    wrong = None
    for ids in (
        (wrong, "o", "w", "u"),
        ("worker", "o", "w", wrong),
        ("worker", "o", 5, "u"),
        ("nul\x00", "o", "w", "u"),
    ):
        with pytest.raises(InvalidValueError):
            await repo.create_thread(*ids)
    for wrong in ("", "nul\x00", "\ud800", "x" * 257, 5):
        with pytest.raises(InvalidValueError, match="id: "):
            await repo.create_thread("worker", id=wrong)
    assert await repo.list_threads() == [thread]
    assert await repo.list_events({"thread_id": thread.id}) == []


async def test_texts_are_cleaned_of_what_no_database_can_hold(repo: Repository) -> None:
    thread = await repo.create_thread("worker", title="a\x00b \ud83d", metadata={"k": "\x00"})
    assert (thread.title, thread.metadata) == ("ab \ufffd", {"k": ""})
    event = await repo.create_event(thread.id, content=["a\x00b"], author="\ud83d", data={"k\x00": "\ud83d"})
    assert (event.text, event.author, event.data) == ("ab", "\ufffd", {"k": "\ufffd"})
    assert await repo.get_event(event.id) == event
