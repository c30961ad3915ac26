"""The turn: durable before visible, in order, closed on every way out, through both doors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dooers import HandlerError, NotFoundError, StoreError, WorkerConfig, WorkerServer
from dooers.models import Change
from dooers.testing import WorkerClient

WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    made = WorkerServer(worker_config)
    yield made
    await made.close()


async def runs_of(worker: WorkerServer, thread_id: str) -> list[str]:
    return [run.status for run in await (await worker.repository()).list_runs({"thread_id": thread_id})]


async def texts_of(worker: WorkerServer, thread_id: str) -> list[str]:
    events = await (await worker.repository()).list_events({"thread_id": thread_id}, {"direction": "asc"})
    return [event.text for event in events]


# ---------------------------------------------------------------- durable before visible


async def test_what_is_shown_is_stored(worker: WorkerServer) -> None:
    """Whoever sees an event, at either door, finds it in the database at that moment."""

    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        for number in range(20):
            yield send.text(str(number))

    repository = await worker.repository()
    async with WorkerClient(worker, handler=handler) as client:
        client.post("event.create", {"event": {"content": [{"type": "text", "text": "go"}]}})
        for _ in range(21):
            frame = await client.expect("event.append")
            assert await repository.get_event(frame["payload"]["events"][0]["id"]) is not None
    stream = await worker.dispatch(handler, **WHO, message="go")
    async for event in stream:
        if event.event is not None:
            assert await repository.get_event(event.event.id) == event.event


async def test_the_handler_runs_ahead_of_the_disk_only_so_far(worker_config: WorkerConfig) -> None:
    config = WorkerConfig(database_type="sqlite", database_name=worker_config.database_name, pipeline_depth=4)
    worker = WorkerServer(config)
    ahead: list[int] = []
    stored = 0

    async def handler(send: Any) -> AsyncIterator[Any]:
        for number in range(50):
            ahead.append(number - stored)
            yield send.text(str(number))

    await worker.ensure_initialized()
    store: Any = worker._parts.store()
    real = store.apply

    def counted(change: Change) -> asyncio.Future[Change]:
        def landed(_: object) -> None:
            nonlocal stored
            stored += 1

        future: asyncio.Future[Change] = real(change)
        if change.events and change.events[0].actor == "assistant":
            future.add_done_callback(landed)
        return future

    store.apply = counted
    stream = await worker.dispatch(handler, **WHO, message="go")
    events = await stream.collect()
    assert [event.data["text"] for event in events] == [str(number) for number in range(50)]
    assert 1 < max(ahead) <= 4 + 1
    await worker.close()


async def test_a_handler_reads_what_it_has_yielded(worker: WorkerServer) -> None:
    async def handler(send: Any, memory: Any) -> AsyncIterator[Any]:
        yield send.text("first")
        yield str(await memory.get_history())

    stream = await worker.dispatch(handler, **WHO, message="hi")
    assert (await stream.collect())[1].data["text"] == str(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "first"}]
    )


async def test_a_write_that_fails_stops_the_turn_and_is_reported(worker: WorkerServer) -> None:
    await worker.ensure_initialized()
    store: Any = worker._parts.store()
    real = store.apply

    def failing(change: Change) -> asyncio.Future[Change]:
        if change.events and change.events[0].text == "2":
            future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
            future.set_exception(StoreError("disk full"))
            return future
        stored: asyncio.Future[Change] = real(change)
        return stored

    store.apply = failing
    yielded: list[int] = []

    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        for number in range(100):
            yielded.append(number)
            yield send.text(str(number))
            await asyncio.sleep(0.001)

    stream = await worker.dispatch(handler, **WHO, message="go")
    with pytest.raises(HandlerError) as caught:
        await stream.collect()
    assert isinstance(caught.value.original, StoreError)
    assert len(yielded) < 40
    assert await runs_of(worker, stream.thread_id) == ["failed"]
    assert (await texts_of(worker, stream.thread_id))[:3] == ["go", "0", "1"]
    store.apply = real
    assert await (await worker.dispatch(handler, **WHO, message="again")).collect()


async def test_a_failing_end_of_a_turn_does_not_block_its_thread(worker: WorkerServer) -> None:
    await worker.ensure_initialized()
    store: Any = worker._parts.store()
    real = store.apply

    def failing(change: Change) -> asyncio.Future[Change]:
        future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        future.set_exception(StoreError("gone"))
        return future

    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        store.apply = failing
        raise RuntimeError("boom")

    async def answer() -> str:
        return "works again"

    stream = await worker.dispatch(handler, **WHO, message="go")
    with pytest.raises(HandlerError):
        await stream.collect()
    store.apply = real
    again = await worker.dispatch(answer, **WHO, message="go", thread_id=stream.thread_id)
    assert (await again.collect())[0].data["text"] == "works again"


# ---------------------------------------------------------------- every way out closes the run


async def ending_well(send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text("x")


async def ending_twice(send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.run_end()
    yield send.run_end()


async def starting_twice(send: Any) -> AsyncIterator[Any]:
    yield send.run_start("one")
    yield send.run_start("two")


async def raising(send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    raise RuntimeError("postgres://user:password@host is down")


async def raising_without_a_run(send: Any) -> AsyncIterator[Any]:
    yield send.text("x")
    raise RuntimeError("boom")


async def raising_cancelled(send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    raise asyncio.CancelledError


async def yielding_nonsense(send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield 5


async def failing_by_its_own_word(send: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.run_end("failed", "no credit left")


@pytest.mark.parametrize(
    ("handler", "fails", "statuses"),
    [
        (ending_well, False, ["succeeded"]),
        (ending_twice, False, ["succeeded"]),
        (starting_twice, False, ["succeeded", "succeeded"]),
        (raising, True, ["failed"]),
        (raising_without_a_run, True, ["failed"]),
        (raising_cancelled, True, ["failed"]),
        (yielding_nonsense, True, ["failed"]),
        (failing_by_its_own_word, False, ["failed"]),
    ],
)
@pytest.mark.parametrize("door", ["dispatch", "socket"])
async def test_no_run_stays_open(
    worker: WorkerServer, handler: Any, fails: bool, statuses: list[str], door: str
) -> None:
    if door == "dispatch":
        stream = await worker.dispatch(handler, **WHO, message="go")
        if fails:
            with pytest.raises(HandlerError):
                await stream.collect()
        else:
            await stream.collect()
        thread_id = stream.thread_id
    else:
        async with WorkerClient(worker, handler=handler) as client:
            thread_id = (await client.say("go")).thread_id
    assert await runs_of(worker, thread_id) == statuses


async def test_a_failure_is_told_as_a_safe_text_and_logged_under_the_same_number(
    worker: WorkerServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with WorkerClient(worker, handler=raising) as client:
        reply = await client.say("go")
    kinds = [frame["type"] for frame in reply.frames]
    assert kinds == ["run.upsert", "run.upsert", "event.append"]
    failed, told = reply.frames[1]["payload"]["run"], reply.events[0]
    assert failed["status"] == "failed"
    assert told.actor == "system"
    assert told.text == failed["error"] == reply.error
    assert "password" not in str(reply.frames)
    number = failed["error"].split()[-1]
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert number in logged[0].getMessage()
    assert "password" in str(logged[0].exc_info)
    memory = await worker.memory(reply.thread_id)
    assert await memory.get_history() == [{"role": "user", "content": "go"}]


async def test_started_at_and_agent_survive_the_end_of_a_run(worker: WorkerServer) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.run_start("researcher")
        await asyncio.sleep(0.01)
        yield send.run_end()

    stream = await worker.dispatch(handler, **WHO, message="go")
    await stream.collect()
    (run,) = await (await worker.repository()).list_runs({"thread_id": stream.thread_id})
    assert run.agent_id == "researcher"
    assert run.ended_at is not None
    assert run.ended_at > run.started_at


@pytest.mark.parametrize("where", ["before the first yield", "inside an await", "after a yield", "while queued"])
async def test_a_cancelled_turn_leaves_a_clean_thread(worker: WorkerServer, where: str) -> None:
    log: list[str] = []
    reached = asyncio.Event()

    async def handler(send: Any) -> AsyncIterator[Any]:
        try:
            if where == "before the first yield":
                reached.set()
                await asyncio.sleep(60)
            yield send.run_start()
            yield send.text("partial")
            reached.set()
            if where == "inside an await":
                await asyncio.sleep(60)
            while True:
                yield send.text("more")
                await asyncio.sleep(0)
        finally:
            log.append("finally")

    async def quick() -> str:
        return "next"

    blocker = await worker.dispatch(handler, **WHO, message="one")
    blocker.detach()
    stream = blocker
    if where == "while queued":
        stream = await worker.dispatch(handler, **WHO, message="two", thread_id=blocker.thread_id)
        stream.detach()
    await reached.wait()
    await stream.cancel()
    assert stream.status == "canceled"
    if where == "while queued":
        assert log == []
        await blocker.cancel()
    assert log == ["finally"]
    assert "running" not in await runs_of(worker, blocker.thread_id)
    following = await worker.dispatch(quick, **WHO, message="three", thread_id=blocker.thread_id)
    assert [event.data["text"] for event in await following.collect()] == ["next"]


async def test_deleting_a_thread_stops_its_turn_quietly(worker: WorkerServer, caplog: pytest.LogCaptureFixture) -> None:
    stopped = asyncio.Event()

    async def handler(send: Any) -> AsyncIterator[Any]:
        try:
            yield send.run_start()
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async with (
        WorkerClient(worker, handler=handler) as client,
        WorkerClient(worker, handler=handler, user_id="other") as other,
    ):
        client.post("event.create", {"event": {"content": [{"type": "text", "text": "go"}]}})
        thread_id = (await client.expect("run.upsert"))["payload"]["run"]["thread_id"]
        assert (await client.ask("thread.delete", {"thread_id": thread_id}))["payload"]["ok"]
        assert (await other.expect("thread.deleted"))["payload"] == {"thread_id": thread_id}
        async with asyncio.timeout(5):
            await stopped.wait()
        while worker.is_answering(thread_id):
            await asyncio.sleep(0.001)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# ---------------------------------------------------------------- order


async def test_turns_of_one_thread_run_one_at_a_time_in_order_of_arrival_through_both_doors(
    worker: WorkerServer,
) -> None:
    log: list[str] = []

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        log.append(f"+{incoming.message}")
        yield send.text(incoming.message)
        await asyncio.sleep(0.005)
        log.append(f"-{incoming.message}")

    async with WorkerClient(worker, handler=handler) as client:
        thread_id = (await client.say("0")).thread_id
        log.clear()
        expected = []
        for number in range(1, 11):
            if number % 2:
                payload = {"thread_id": thread_id, "event": {"content": [{"type": "text", "text": str(number)}]}}
                await client.ask("event.create", payload)
            else:
                stream = await worker.dispatch(handler, **WHO, message=str(number), thread_id=thread_id)
                stream.detach()
            expected += [f"+{number}", f"-{number}"]
        while worker.is_answering(thread_id):
            await asyncio.sleep(0.001)
    assert log == expected


async def test_turns_of_different_threads_run_side_by_side(worker: WorkerServer) -> None:
    meeting = asyncio.Barrier(5)

    async def handler() -> str:
        async with asyncio.timeout(5):
            await meeting.wait()
        return "met"

    async def one() -> str:
        stream = await worker.dispatch(handler, **WHO, message="go")
        return str((await stream.collect())[0].data["text"])

    assert await asyncio.gather(*(one() for _ in range(5))) == ["met"] * 5


async def test_a_message_that_waits_for_its_turn_is_not_in_an_earlier_turns_history(worker: WorkerServer) -> None:
    arrived = asyncio.Event()
    histories: list[Any] = []

    async def handler(incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
        await arrived.wait()
        histories.append([message["content"] for message in await memory.get_history()])
        yield send.text(f"answer to {incoming.message}")

    first = await worker.dispatch(handler, **WHO, message="one")
    first.detach()
    second = await worker.dispatch(handler, **WHO, message="two", thread_id=first.thread_id)
    arrived.set()
    await second.collect()
    assert histories == [["one"], ["one", "answer to one", "two"]]


async def test_a_full_queue_refuses_and_stores_nothing(worker_config: WorkerConfig) -> None:
    config = WorkerConfig(database_type="sqlite", database_name=worker_config.database_name, thread_queue_limit=3)
    worker = WorkerServer(config)
    go = asyncio.Event()

    async def handler() -> str:
        await go.wait()
        return "done"

    async with WorkerClient(worker, handler=handler) as client:
        message = {"event": {"content": [{"type": "text", "text": "go"}]}}
        first = await client.ask("event.create", message)
        assert first["payload"]["ok"]
        thread_id = (await client.expect("event.append"))["payload"]["thread_id"]
        answers = [await client.ask("event.create", {**message, "thread_id": thread_id}) for _ in range(4)]
        assert [answer["payload"]["ok"] for answer in answers] == [True, True, False, False]
        assert answers[-1]["payload"]["error"]["code"] == "THREAD_BUSY"
        go.set()
        while worker.is_answering(thread_id):
            await asyncio.sleep(0.001)
    assert len(await texts_of(worker, thread_id)) == 6
    await worker.close()


async def test_a_stranger_cannot_stand_in_the_queue_of_a_thread(worker: WorkerServer) -> None:
    order: list[str] = []

    async def handler(incoming: Any) -> str:
        order.append(incoming.message)
        return "ok"

    mine = await worker.dispatch(handler, **WHO, message="one")
    await mine.collect()
    message = {"thread_id": mine.thread_id, "event": {"content": [{"type": "text", "text": "intruder"}]}}
    async with WorkerClient(worker, handler=handler, organization_id="other") as stranger:
        for _ in range(20):
            answer = await stranger.ask("event.create", message)
            assert answer["payload"]["error"]["code"] == "NOT_FOUND"
    await (await worker.dispatch(handler, **WHO, message="two", thread_id=mine.thread_id)).collect()
    assert order == ["one", "two"]


# ---------------------------------------------------------------- the worker closes


async def test_closing_lets_turns_finish_and_then_cancels_the_rest(worker_config: WorkerConfig) -> None:
    config = WorkerConfig(database_type="sqlite", database_name=worker_config.database_name, shutdown_grace=0.2)
    worker = WorkerServer(config)
    log: list[str] = []

    async def quick(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        await asyncio.sleep(0.05)
        log.append("quick")

    async def endless(send: Any) -> AsyncIterator[Any]:
        try:
            yield send.run_start()
            yield send.text("partial")
            await asyncio.sleep(60)
        finally:
            log.append("cancelled")

    streams = [await worker.dispatch(handler, **WHO, message="go") for handler in (quick, endless)]
    for stream in streams:
        stream.detach()
    await asyncio.sleep(0.02)
    began = time.monotonic()
    await worker.close()
    assert time.monotonic() - began < 5
    assert log == ["quick", "cancelled"]
    again = WorkerServer(config)
    assert [await runs_of(again, stream.thread_id) for stream in streams] == [["succeeded"], ["canceled"]]
    assert await texts_of(again, streams[1].thread_id) == ["go", "partial"]
    await again.close()


async def test_a_change_to_a_thread_that_is_gone_is_told(worker: WorkerServer) -> None:
    repository = await worker.repository()
    with pytest.raises(NotFoundError):
        await repository.create_event("no such thread", content=["x"])


async def test_a_thread_made_again_under_its_id_gets_nothing_of_the_turns_that_were_deleted(
    worker: WorkerServer,
) -> None:
    going = asyncio.Event()

    async def handler(send: Any) -> AsyncIterator[Any]:
        async def pieces() -> AsyncIterator[str]:
            yield "partial"
            going.set()
            await asyncio.sleep(60)

        yield send.run_start()
        yield send.stream(pieces())

    async def quick() -> str:
        return "new"

    first = await worker.dispatch(handler, **WHO, message="old", thread_id="phone")
    first.detach()
    await going.wait()
    repository = await worker.repository()
    await asyncio.gather(
        repository.remove_thread("phone"),
        _collected(await worker.dispatch(quick, **WHO, message="new", thread_id="phone")),
        return_exceptions=True,
    )
    again = await worker.dispatch(quick, **WHO, message="newer", thread_id="phone")
    await again.collect()
    while worker._parts.runner().running:
        await asyncio.sleep(0.001)
    assert "partial" not in await texts_of(worker, "phone")
    assert await runs_of(worker, "phone") == []


async def _collected(stream: Any) -> None:
    await stream.collect()
