"""The second door: ids at once, the handler run by whoever iterates, once, and every failure before it told as one error."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dooers import DispatchError, HandlerError, ImagePart, NotFoundError, TextPart, WorkerConfig, WorkerServer

WHO: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u"}


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    made = WorkerServer(worker_config)
    made.handler(counting)
    ran.clear()
    yield made
    await made.close()


ran: list[str] = []


async def counting(incoming: Any, send: Any) -> AsyncIterator[Any]:
    ran.append(incoming.message)
    yield send.run_start()
    yield send.text("one")
    yield send.tool_call("search", {"q": "x"})
    yield send.text("two")
    yield send.run_end()


async def test_ids_are_known_before_anything_runs(worker: WorkerServer) -> None:
    stream = await worker.dispatch(**WHO, message="hi", thread_title="Title", user_name="Ann")
    assert ran == []
    repository = await worker.repository()
    thread = await repository.get_thread(stream.thread_id)
    event = await repository.get_event(stream.event_id)
    assert thread is not None
    assert event is not None
    assert (thread.title, thread.owner.user_name, event.text, stream.is_new_thread) == ("Title", "Ann", "hi", True)
    await stream.cancel()


async def test_iterating_runs_the_handler_step_by_step(worker: WorkerServer) -> None:
    log: list[str] = []

    async def handler(send: Any) -> AsyncIterator[Any]:
        for number in range(4):
            log.append(f"handler {number}")
            yield send.text(str(number))

    stream = await worker.dispatch(handler, **WHO, message="hi")
    async for event in stream:
        await asyncio.sleep(0.01)
        log.append(f"caller {event.data['text']}")
    assert log == [f"{who} {number}" for number in range(4) for who in ("handler", "caller")]


async def test_the_events_carry_what_was_sent_and_what_was_stored(worker: WorkerServer) -> None:
    stream = await worker.dispatch(**WHO, message="hi")
    events = await stream.collect()
    assert [event.send_type for event in events] == ["run_start", "text", "tool_call", "text", "run_end"]
    assert events[1].data["text"] == "one"
    assert events[1].event is not None
    assert events[1].event.seq == 2
    assert events[2].data["id"]
    assert stream.status == "succeeded"


async def test_a_second_collect_or_iteration_gives_the_same_and_runs_nothing(worker: WorkerServer) -> None:
    stream = await worker.dispatch(**WHO, message="hi")
    first = [event async for event in stream]
    assert await stream.collect() == first
    assert await stream.collect() == first
    assert [event async for event in stream] == first
    assert ran == ["hi"]


async def test_two_callers_may_follow_one_stream(worker: WorkerServer) -> None:
    stream = await worker.dispatch(**WHO, message="hi")

    async def follow() -> list[str]:
        return [event.send_type async for event in stream]

    one, two, three = await asyncio.gather(follow(), stream.collect(), follow())
    assert one == three == [event.send_type for event in two]
    assert ran == ["hi"]


async def test_leaving_the_iteration_early_cancels_the_turn(worker: WorkerServer) -> None:
    log: list[str] = []

    async def handler(send: Any) -> AsyncIterator[Any]:
        try:
            yield send.run_start()
            yield send.text("one")
            yield send.text("never")
        finally:
            log.append("finally")

    stream = await worker.dispatch(handler, **WHO, message="hi")
    async for event in stream:
        if event.send_type == "text":
            break
    async with asyncio.timeout(5):
        while stream.status != "canceled":
            await asyncio.sleep(0.001)
    assert log == ["finally"]
    repository = await worker.repository()
    assert [run.status for run in await repository.list_runs({"thread_id": stream.thread_id})] == ["canceled"]
    assert [e.text for e in await repository.list_events({"thread_id": stream.thread_id}, {"direction": "asc"})] == [
        "hi",
        "one",
    ]
    assert len(await stream.collect()) == 2


async def test_a_caller_that_is_cancelled_takes_its_turn_along(worker: WorkerServer) -> None:
    stopped = asyncio.Event()

    async def handler(send: Any) -> AsyncIterator[Any]:
        try:
            yield send.text("x")
            await asyncio.sleep(60)
        finally:
            stopped.set()

    for how in ("iterate", "collect"):
        stopped.clear()
        stream = await worker.dispatch(handler, **WHO, message="hi")

        async def follow(how: str = how, stream: Any = stream) -> None:
            if how == "collect":
                await stream.collect()
            async for _ in stream:
                pass

        task = asyncio.create_task(follow())
        while not await (await worker.repository()).list_events({"thread_id": stream.thread_id, "actor": "assistant"}):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await stopped.wait()


async def test_a_detached_stream_finishes_without_its_caller(worker: WorkerServer) -> None:
    stream = await worker.dispatch(**WHO, message="hi")
    stream.detach()
    thread_id = stream.thread_id
    del stream
    gc.collect()
    while worker.is_answering(thread_id):
        await asyncio.sleep(0.001)
    events = await (await worker.repository()).list_events({"thread_id": thread_id})
    assert len(events) == 4


async def test_a_stream_nobody_runs_holds_its_place_until_it_is_closed_or_forgotten(
    worker: WorkerServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = await worker.dispatch(**WHO, message="one")
    thread_id = first.thread_id
    second = await worker.dispatch(**WHO, message="two", thread_id=thread_id)
    third = await worker.dispatch(**WHO, message="three", thread_id=thread_id)
    third.detach()
    await asyncio.sleep(0.02)
    assert ran == []
    await first.aclose()
    await asyncio.sleep(0.02)
    assert ran == []
    with caplog.at_level(logging.WARNING):
        del second
        gc.collect()
        await third.collect()
    assert ran == ["three"]
    assert "dropped without being run" in caplog.text


async def test_a_handler_error_is_raised_once_recorded_each_time_it_is_asked_for(worker: WorkerServer) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.text("x")
        raise ValueError("boom")

    stream = await worker.dispatch(handler, **WHO, message="hi")
    seen = []
    with pytest.raises(HandlerError) as caught:
        async for event in stream:
            seen.append(event.data["text"])
    assert seen == ["x"]
    assert isinstance(caught.value.original, ValueError)
    with pytest.raises(HandlerError):
        await stream.collect()
    assert stream.status == "failed"


# ---------------------------------------------------------------- before the handler runs


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"handler": "unknown"}, "no handler named 'unknown'"),
        ({"handler": len}, "async def"),
        ({"organization_id": None}, "organization_id: expected a text"),
        ({"user_id": 5}, "user_id: expected a text, got 5"),
        ({"user_id": "u\x00"}, "user_id: holds characters that no id can have"),
        ({"workspace_id": "\ud800"}, "workspace_id: holds characters that no id can have"),
        ({"worker_id": 5}, "worker_id: expected a text"),
        ({"message": None}, "message: expected a text"),
        ({"content": [{"type": "video"}]}, "content[0].type: expected one of"),
        ({"content": [5]}, "content[0]: expected object"),
        ({"content": 5}, "int"),
        ({"thread_id": ""}, "thread_id: expected a text that is not empty"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"thread_title": 5}, "thread_title: expected a text"),
        ({"data": {"x": object()}}, "data.x"),
    ],
)
async def test_bad_parameters_are_a_dispatch_error_that_names_them(
    worker: WorkerServer, wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(DispatchError) as caught:
        await worker.dispatch(**{**WHO, "message": "hi", **wrong})
    assert told in str(caught.value)
    assert caught.value.__cause__ is not None
    assert await (await worker.repository()).list_threads() == []


async def test_a_worker_without_a_handler_says_so(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)
    with pytest.raises(DispatchError, match=r"no default handler; register one with @worker\.handler"):
        await worker.dispatch(**WHO, message="hi")
    await worker.close()


async def test_an_unreachable_database_is_a_dispatch_error(tmp_path: Any) -> None:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "missing" / "worker.db")))
    worker.handler(counting)
    with pytest.raises(DispatchError, match="cannot open the SQLite database"):
        await worker.dispatch(**WHO, message="hi")
    (tmp_path / "missing").mkdir()
    assert await (await worker.dispatch(**WHO, message="now it works")).collect()
    await worker.close()


@pytest.mark.parametrize("other", [{"organization_id": "x"}, {"workspace_id": "x"}, {"worker_id": "x"}])
async def test_a_thread_of_another_tenant_is_refused_and_untouched(worker: WorkerServer, other: dict[str, Any]) -> None:
    mine = await worker.dispatch(**WHO, message="hi")
    await mine.collect()
    repository = await worker.repository()
    before = await repository.get_thread(mine.thread_id)
    with pytest.raises(DispatchError) as caught:
        await worker.dispatch(**{**WHO, **other}, message="intruding", thread_id=mine.thread_id)
    assert isinstance(caught.value.__cause__, NotFoundError)
    assert caught.value.code == "NOT_FOUND"
    assert await repository.get_thread(mine.thread_id) == before


async def test_where_threads_are_private_another_users_thread_is_refused(worker_config: WorkerConfig) -> None:
    name = worker_config.database_name
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=name, private_threads=True))
    worker.handler(counting)
    mine = await worker.dispatch(**WHO, message="hi")
    await mine.collect()
    for user in ("other", ""):
        with pytest.raises(DispatchError):
            await worker.dispatch(**{**WHO, "user_id": user}, message="hi", thread_id=mine.thread_id)
    await worker.close()


async def test_a_thread_id_of_ones_own_is_created_once_under_concurrency(worker: WorkerServer) -> None:
    streams = await asyncio.gather(*(worker.dispatch(**WHO, message=str(n), thread_id="phone-123") for n in range(20)))
    assert [stream.is_new_thread for stream in streams].count(True) == 1
    await asyncio.gather(*(stream.collect() for stream in streams))
    assert sorted(ran, key=int) == [str(n) for n in range(20)]
    events = await (await worker.repository()).list_events({"thread_id": "phone-123"}, limit=200)
    assert len(events) == 20 * 4


# ---------------------------------------------------------------- repeats


async def test_an_idempotency_key_returns_the_first_ids_and_replays_what_was_stored(worker: WorkerServer) -> None:
    first = await worker.dispatch(**WHO, message="hi", idempotency_key="k")
    told = await first.collect()
    again = await worker.dispatch(**WHO, message="hi", idempotency_key="k")
    assert (again.thread_id, again.event_id) == (first.thread_id, first.event_id)
    assert (again.is_repeat, again.is_new_thread, first.is_repeat) == (True, False, False)
    replayed = await again.collect()
    assert [(e.send_type, e.event) for e in replayed] == [(e.send_type, e.event) for e in told if e.event is not None]
    assert [event.data.get("text") for event in replayed] == ["one", None, "two"]
    assert replayed[1].data.items() <= told[2].data.items()
    assert ran == ["hi"]
    another = await worker.dispatch(**{**WHO, "user_id": "other"}, message="hi", idempotency_key="k")
    assert not another.is_repeat
    await another.cancel()


async def test_concurrent_redeliveries_run_once_also_after_a_restart(worker_config: WorkerConfig) -> None:
    ran.clear()
    for _ in range(2):
        worker = WorkerServer(worker_config)
        worker.handler(counting)
        streams = await asyncio.gather(*(worker.dispatch(**WHO, message="hi", idempotency_key="k") for _ in range(10)))
        assert len({stream.event_id for stream in streams}) == 1
        await asyncio.gather(*(stream.collect() for stream in streams))
        await worker.close()
    assert ran == ["hi"]


# ---------------------------------------------------------------- content, nesting


async def test_content_may_be_parts_dicts_or_texts_and_the_message_comes_first(worker: WorkerServer) -> None:
    seen: list[Any] = []

    async def handler(incoming: Any) -> None:
        seen.append((incoming.message, incoming.content))

    image = ImagePart(url="https://x/y.png", alt="y")
    given: Any = [image, {"type": "document", "url": "https://x/z", "filename": "z", "mime_type": "text/plain"}]
    await (await worker.dispatch(handler, **WHO, message="look", content=given)).collect()
    await (await worker.dispatch(handler, **WHO, content=["only", "texts"])).collect()
    assert seen[0][0] == "look"
    assert seen[0][1][:2] == [TextPart("look"), image]
    assert seen[1] == ("only\ntexts", [TextPart("only"), TextPart("texts")])


async def test_a_handler_that_waits_for_its_own_thread_is_told_instead_of_hanging(worker: WorkerServer) -> None:
    async def nested(incoming: Any) -> AsyncIterator[Any]:
        stream = await worker.dispatch(**WHO, message="inner", thread_id=incoming.context.thread_id)
        try:
            await stream.collect()
        except DispatchError as error:
            yield f"{error.code}"
        stream.detach()

    async def through_another(incoming: Any) -> AsyncIterator[Any]:
        stream = await worker.dispatch(nested, **WHO, message="middle")
        yield str([event.data["text"] for event in await stream.collect()])

    async with asyncio.timeout(5):
        stream = await worker.dispatch(nested, **WHO, message="outer")
        assert [event.data["text"] for event in await stream.collect()] == ["THREAD_BUSY"]
        stream = await worker.dispatch(through_another, **WHO, message="outer")
        assert [event.data["text"] for event in await stream.collect()] == ["['THREAD_BUSY']"]
        while worker._parts.runner().running:
            await asyncio.sleep(0.001)
    assert ran == ["inner", "inner"]


async def test_a_handler_may_wait_for_a_turn_of_another_thread(worker: WorkerServer) -> None:
    async def outer() -> AsyncIterator[Any]:
        stream = await worker.dispatch(**WHO, message="inner")
        yield str([event.send_type for event in await stream.collect()])

    stream = await worker.dispatch(outer, **WHO, message="outer")
    assert "tool_call" in (await stream.collect())[0].data["text"]


async def test_a_repeat_that_is_quicker_in_another_process_is_the_only_one_that_runs(
    postgres_config: WorkerConfig,
) -> None:
    # The other takes it up before the first one has begun, and is done with it when that gets its turn.
    one, other = workers = [WorkerServer(postgres_config), WorkerServer(postgres_config)]
    for worker in workers:
        worker.handler(counting)
    await (await other.dispatch(**WHO, message="warm", thread_id="t")).collect()
    ran.clear()
    first = await one.dispatch(**WHO, message="hi", thread_id="t", idempotency_key="k")
    second = await other.dispatch(**WHO, message="hi", thread_id="t", idempotency_key="k")
    await second.collect()
    await first.collect()
    for worker in workers:
        await worker.close()
    assert ran == ["hi"]
