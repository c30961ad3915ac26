"""Stop: cancel and abandon in every state and at both doors. What was written is kept, everything ends once, the thread goes on."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest

from dooers import DispatchError, HandlerError, InvalidValueError, WorkerConfig, WorkerServer
from dooers.dispatch import DispatchStream
from dooers.models import Change
from dooers.stores.sqlite import SqliteStore
from dooers.testing import Closed, WorkerClient

WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
GO = {"event": {"content": [{"type": "text", "text": "go"}]}}
BOUND = 2 * 0.1 + 1 + 1 + 1  # a second cancellation, a second's patience, and what a busy machine takes


@pytest.fixture
def config() -> WorkerConfig:
    return WorkerConfig(database_type="memory", teardown_timeout=0.1, shutdown_grace=0)


@pytest.fixture
async def worker(config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    made = WorkerServer(config)
    yield made
    await made.close()


class Stage:
    """A handler that stays in one state until it is stopped, and writes down what happened to it."""

    def __init__(self, worker: WorkerServer, state: str) -> None:
        self.state = state
        self.log: list[str] = []
        self.reached = asyncio.Event()
        self.worker = worker
        self.unblock = asyncio.Event()
        worker.provide("resource")(self.resource)
        worker.handler(self.handler)
        worker.handler("quick")(self.quick)

    async def resource(self) -> AsyncIterator[str]:
        try:
            yield "resource"
        finally:
            await self._stay("in the teardown", 0.03)
            self.log.append("teardown")

    async def handler(self, send: Any, resource: str) -> AsyncIterator[Any]:
        try:
            await self._stay("before the first yield", 60)
            yield send.run_start()
            yield send.text("first")
            await self._stay("inside an await", 60)
            if self.state == "running ahead":
                self.reached.set()
                for _ in range(200):
                    yield send.text("more")
                    await asyncio.sleep(0)
                await asyncio.sleep(60)
            if self.state == "mid-stream":
                yield send.stream(self.pieces())
        finally:
            try:
                await self._stay("in the finally", 0.03)
            finally:
                self.log.append("finally")

    async def pieces(self) -> AsyncIterator[str]:
        try:
            yield "par"
            yield "tial"
            await self._stay("mid-stream", 60)
        finally:
            self.log.append("source")

    async def _stay(self, state: str, seconds: float) -> None:
        if state == self.state:
            self.reached.set()
            await asyncio.sleep(seconds)

    async def quick(self) -> str:
        return "next"


STATES = [
    "before the first yield",
    "inside an await",
    "running ahead",
    "mid-stream",
    "in the finally",
    "in the teardown",
    "queued",
    "just finished",
]
# In these the handler has nothing left to do that could be stopped: it keeps the outcome it has.
OVER = ("in the teardown", "just finished")


async def runs_of(worker: WorkerServer, thread_id: str) -> list[str]:
    runs = await (await worker.repository()).list_runs({"thread_id": thread_id})
    return [run.status for run in reversed(runs)]


async def texts_of(worker: WorkerServer, thread_id: str) -> list[str]:
    events = await (await worker.repository()).list_events({"thread_id": thread_id}, {"direction": "asc"})
    return [event.text for event in events]


async def until(true: Callable[[], bool], within: float = 2.5) -> None:
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(0.001)


def turn_tasks() -> list[str]:
    return [
        task.get_name()
        for task in asyncio.all_tasks()
        if task.get_name().startswith("dooers-") and task.get_name() not in ("dooers-worker", "dooers-pulse")
    ]


async def nothing_is_left(worker: WorkerServer) -> None:
    """No turn, no place in a queue, no task."""
    runner = worker._parts.runner()
    await until(lambda: runner.running == 0 and not turn_tasks() and not runner._admission.opening)
    assert len(runner._lanes) == 0
    assert not runner._unrun


async def watch(client: WorkerClient, thread_id: str) -> None:
    await client.ask("thread.subscribe", {"thread_id": thread_id})


async def statuses_told(client: WorkerClient) -> list[str]:
    """Every `run.upsert` that has come to a client so far."""
    pong = await client.ask("ping")
    assert pong["type"] == "pong"
    frames, client.unread = client.unread, []
    return [frame["payload"]["run"]["status"] for frame in frames if frame["type"] == "run.upsert"]


async def check(stage: Stage, thread_id: str, turns: list[str]) -> None:
    """What holds however a turn was stopped: each of `turns` is how its run ended."""
    worker, state = stage.worker, stage.state
    began = 0 if state == "queued" else 1
    await nothing_is_left(worker)
    assert stage.log.count("finally") == began
    assert stage.log.count("teardown") == began
    assert stage.log.count("source") == (state == "mid-stream")
    assert await runs_of(worker, thread_id) == turns
    if state == "mid-stream":
        events = await (await worker.repository()).list_events({"thread_id": thread_id}, {"direction": "asc"})
        (partial,) = [event for event in events if event.text == "partial"]
        assert partial.data == {"incomplete": True}
        assert not partial.streaming
    following = await worker.dispatch("quick", **WHO, message="again", thread_id=thread_id)
    assert [event.data["text"] for event in await following.collect()] == ["next"]
    await nothing_is_left(worker)


# Where no run was opened before the stop: who had begun gets one that is canceled, so that everybody sees it.
NO_RUN = ("before the first yield", "queued")


def expected(state: str, *, whole_thread: bool = False) -> list[str]:
    """The runs that a stopped turn leaves; with the whole thread stopped, that of the turn before a queued one too."""
    return ["succeeded" if state in OVER else "canceled"] * (2 if state == "queued" and whole_thread else 1)


# ---------------------------------------------------------------- through the socket


async def blocked(stage: Stage, thread_id: str | None = None) -> tuple[DispatchStream, asyncio.Event]:
    """A turn that holds a thread's queue until its event is set."""
    go = asyncio.Event()

    async def blocker() -> str:
        await go.wait()
        return "unblocked"

    stream = await stage.worker.dispatch(blocker, **WHO, message="first", thread_id=thread_id)
    stream.detach()
    return stream, go


async def begin(stage: Stage, client: WorkerClient) -> str:
    """A message through the socket, brought into the state; its thread."""
    go = None
    message: dict[str, Any] = dict(GO)
    if stage.state == "queued":
        first, go = await blocked(stage)
        message["thread_id"] = first.thread_id
        client.post("thread.subscribe", {"thread_id": first.thread_id})
    answer = await client.ask("event.create", message)
    assert answer["payload"]["ok"]
    thread_id: str = next(f["payload"]["thread_id"] for f in client.unread if f["type"] == "event.append")
    if go is not None:
        stage.unblock = go
    elif stage.state == "just finished":
        await until(lambda: not stage.worker.is_answering(thread_id))
    else:
        async with asyncio.timeout(2):
            await stage.reached.wait()
    return thread_id


async def run_id_of(worker: WorkerServer, thread_id: str) -> str | None:
    runs = await (await worker.repository()).list_runs({"thread_id": thread_id})
    return runs[0].id if runs else None


async def by_frame(stage: Stage, client: WorkerClient, thread_id: str) -> None:
    assert (await client.ask("run.cancel", {"thread_id": thread_id}))["payload"]["ok"]


async def by_run_frame(stage: Stage, client: WorkerClient, thread_id: str) -> None:
    run_id = await run_id_of(stage.worker, thread_id)
    if run_id is None:  # a turn without a run has none to be named by
        await by_frame(stage, client, thread_id)
    else:
        assert (await client.ask("run.cancel", {"run_id": run_id}))["payload"]["ok"]


async def by_worker(stage: Stage, client: WorkerClient, thread_id: str) -> None:
    stopped = await stage.worker.cancel(thread_id=thread_id)
    assert stopped == {"queued": 2, "just finished": 0}.get(stage.state, 1)
    assert not stage.worker.is_answering(thread_id)


async def by_worker_run(stage: Stage, client: WorkerClient, thread_id: str) -> None:
    run_id = await run_id_of(stage.worker, thread_id)
    if run_id is None:
        await by_worker(stage, client, thread_id)
    else:
        assert await stage.worker.cancel(run_id=run_id) == (stage.state != "just finished")


async def twice(stage: Stage, client: WorkerClient, thread_id: str) -> None:
    await by_frame(stage, client, thread_id)
    await by_frame(stage, client, thread_id)
    await stage.worker.cancel(thread_id=thread_id)


@pytest.mark.parametrize("way", [by_frame, by_run_frame, by_worker, by_worker_run, twice])
@pytest.mark.parametrize("state", STATES)
async def test_a_turn_from_the_socket_is_stopped_in_every_state(worker: WorkerServer, state: str, way: Any) -> None:
    stage = Stage(worker, state)
    async with WorkerClient(worker) as client, WorkerClient(worker, user_id="other") as other:
        thread_id = await begin(stage, client)
        await watch(other, thread_id)
        await way(stage, client, thread_id)
        await until(lambda: not worker.is_answering(thread_id))
        ended = [await statuses_told(one) for one in (client, other)]
        runs = expected(state, whole_thread=True)
        await check(stage, thread_id, runs)
        for told in ended:
            assert told.count("canceled") == runs.count("canceled")
        assert ended[0].count("running") == (0 if state in NO_RUN else len(runs))


@pytest.mark.parametrize("state", STATES)
async def test_a_deleted_thread_stops_its_turns(worker: WorkerServer, state: str) -> None:
    stage = Stage(worker, state)
    async with WorkerClient(worker) as client, WorkerClient(worker, user_id="other") as other:
        thread_id = await begin(stage, client)
        assert (await client.ask("thread.delete", {"thread_id": thread_id}))["payload"]["ok"]
        assert (await other.expect("thread.deleted"))["payload"] == {"thread_id": thread_id}
        await nothing_is_left(worker)
    began = 0 if state == "queued" else 1
    assert (stage.log.count("finally"), stage.log.count("teardown")) == (began, began)
    assert await runs_of(worker, thread_id) == []
    following = await worker.dispatch("quick", **WHO, message="again", thread_id=thread_id)
    assert following.is_new_thread
    assert [event.data["text"] for event in await following.collect()] == ["next"]


@pytest.mark.parametrize("state", STATES)
async def test_a_worker_that_closes_stops_its_turns(worker: WorkerServer, state: str) -> None:
    stage = Stage(worker, state)
    async with WorkerClient(worker) as client:
        await begin(stage, client)
        runner = worker._parts.runner()
        await worker.close()
        assert runner.running == 0
        assert turn_tasks() == []
        with pytest.raises((Closed, TimeoutError)):
            while True:
                await client.receive(within=0.5)
    began = 0 if state == "queued" else 1
    assert (stage.log.count("finally"), stage.log.count("teardown")) == (began, began)


@pytest.mark.parametrize("state", [state for state in STATES if state not in OVER])
async def test_a_closed_socket_stops_nothing(worker: WorkerServer, state: str) -> None:
    stage = Stage(worker, state)
    async with WorkerClient(worker) as client:
        thread_id = await begin(stage, client)
    await asyncio.sleep(0.01)
    if state != "in the finally":  # which ends by itself
        assert worker.is_answering(thread_id)
        assert "finally" not in stage.log
    async with WorkerClient(worker) as again:
        await by_frame(stage, again, thread_id)
        await until(lambda: not worker.is_answering(thread_id))
    assert set(await runs_of(worker, thread_id)) <= {"canceled", "succeeded"}
    await nothing_is_left(worker)


@pytest.mark.parametrize("lands", [True, False])
async def test_a_message_whose_socket_dies_while_it_is_stored_is_answered_all_the_same(
    worker: WorkerServer, lands: bool
) -> None:
    stage = Stage(worker, "none")
    await worker.ensure_initialized()
    store: Any = worker._parts.store()
    real, asked = store.apply, asyncio.Event()
    release: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
    held: list[Change] = []

    def slow(change: Change) -> asyncio.Future[Change]:
        held.append(change)
        asked.set()
        return release

    client = await WorkerClient(worker).__aenter__()
    store.apply = slow
    client.post("event.create", GO)
    await asked.wait()
    assert client._task is not None
    client._task.cancel()  # as a server does with a connection that is gone
    with suppress(asyncio.CancelledError):
        await client._task
    store.apply = real
    thread_id = held[0].thread.id
    if lands:
        release.set_result(await real(held[0]))
        await until(lambda: stage.log == ["finally", "teardown"])
        assert await texts_of(worker, thread_id) == ["go", "first"]
        assert await runs_of(worker, thread_id) == ["succeeded"]
    else:
        release.set_exception(OSError("disk full"))
        await asyncio.sleep(0)
        assert stage.log == []
    await nothing_is_left(worker)


# ---------------------------------------------------------------- through dispatch


async def cancelled(stream: DispatchStream, stage: Stage) -> None:
    stream.detach()
    await ready(stage, stream)
    await stream.cancel()


async def cancelled_twice(stream: DispatchStream, stage: Stage) -> None:
    stream.detach()
    await ready(stage, stream)
    await asyncio.gather(stream.cancel(), stream.cancel())
    await stream.cancel()


async def closed(stream: DispatchStream, stage: Stage) -> None:
    stream.detach()
    await ready(stage, stream)
    await stream.aclose()


async def left_early(stream: DispatchStream, stage: Stage) -> None:
    """An iteration that is closed half-way; it asks for one step more than it has got, so the handler is in its state."""

    async def follow() -> None:
        async with aclosing(aiter(stream)) as events:  # type: ignore[type-var]
            async for _ in events:
                pass

    await abandon(asyncio.create_task(follow()), stream, stage)


async def caller_cancelled(stream: DispatchStream, stage: Stage) -> None:
    await abandon(asyncio.create_task(stream.collect()), stream, stage)


async def abandon(following: asyncio.Task[Any], stream: DispatchStream, stage: Stage) -> None:
    await asyncio.sleep(0)
    await ready(stage, stream)
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


async def ready(stage: Stage, stream: DispatchStream) -> None:
    if stage.state == "just finished":
        await until(lambda: stream.status not in ("waiting", "running"))
    elif stage.state != "queued":
        async with asyncio.timeout(2):
            await stage.reached.wait()


@pytest.mark.parametrize("way", [cancelled, cancelled_twice, closed, left_early, caller_cancelled])
@pytest.mark.parametrize("state", STATES)
async def test_a_dispatched_turn_is_stopped_in_every_state(worker: WorkerServer, state: str, way: Any) -> None:
    stage = Stage(worker, state)
    first, go = (await blocked(stage)) if state == "queued" else (None, asyncio.Event())
    async with WorkerClient(worker, user_id="other") as other:
        thread_id = None if first is None else first.thread_id
        stream = await worker.dispatch(**WHO, message="go", thread_id=thread_id)
        await watch(other, stream.thread_id)
        await way(stream, stage)
        assert stream.status == ("succeeded" if state in OVER else "canceled")
        told = await statuses_told(other)
        # One that nobody ever ran leaves no run: a repeat of its message would be answered.
        runs = [] if state == "queued" and way in (cancelled, closed) else expected(state)
        assert told.count("canceled") == runs.count("canceled")
        assert "teardown" in stage.log or state == "queued"  # it returns when all is over
        go.set()
        if first is not None:
            await first.collect()
        await check(stage, stream.thread_id, runs)
        assert await stream.collect() is not None  # what it gave so far, again; nothing runs


async def test_leaving_the_loop_early_stops_the_turn(worker: WorkerServer) -> None:
    stage = Stage(worker, "inside an await")
    stream = await worker.dispatch(**WHO, message="go")
    async for event in stream:
        if event.send_type == "text":
            break
    del event
    gc.collect()
    await until(lambda: stream.status == "canceled")
    await check(stage, stream.thread_id, ["canceled"])


async def test_a_stream_that_nobody_ran_is_stopped_with_its_thread(worker: WorkerServer) -> None:
    """By `worker.cancel`, by a deleted thread, by a closing worker: whoever iterates it afterwards gets nothing, and nothing runs."""
    stage = Stage(worker, "none")
    stream = await worker.dispatch(**WHO, message="go")
    assert await worker.cancel(thread_id=stream.thread_id) == 1
    assert (stream.status, await stream.collect()) == ("canceled", [])
    await check_untouched(stage, stream.thread_id)
    stream = await worker.dispatch(**WHO, message="go")
    await (await worker.repository()).remove_thread(stream.thread_id)
    await asyncio.sleep(0)
    assert (stream.status, await stream.collect()) == ("canceled", [])
    await nothing_is_left(worker)
    stream = await worker.dispatch(**WHO, message="go")
    await worker.close()
    assert (stream.status, await stream.collect()) == ("canceled", [])
    assert stage.log == []


async def check_untouched(stage: Stage, thread_id: str) -> None:
    await nothing_is_left(stage.worker)
    assert stage.log == []
    following = await stage.worker.dispatch("quick", **WHO, message="again", thread_id=thread_id)
    assert [event.data["text"] for event in await following.collect()] == ["next"]


async def test_a_waiting_turn_goes_on_when_the_one_before_it_is_stopped(worker: WorkerServer) -> None:
    stage = Stage(worker, "inside an await")
    first = await worker.dispatch(**WHO, message="go")
    first.detach()
    second = await worker.dispatch("quick", **WHO, message="and?", thread_id=first.thread_id)
    collecting = asyncio.create_task(second.collect())
    await stage.reached.wait()
    await first.cancel()
    assert [event.data["text"] for event in await collecting] == ["next"]
    await nothing_is_left(worker)


async def test_a_dispatch_that_is_cancelled_while_its_message_is_stored_leaves_its_thread_free(
    worker: WorkerServer,
) -> None:
    stage = Stage(worker, "none")
    await worker.ensure_initialized()
    store: Any = worker._parts.store()
    real, release = store.apply, asyncio.Event()
    release_to: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
    held: list[Change] = []

    def slow(change: Change) -> asyncio.Future[Change]:
        held.append(change)
        release.set()
        return release_to

    store.apply = slow
    calling = asyncio.create_task(worker.dispatch(**WHO, message="go"))
    await release.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    store.apply = real
    release_to.set_result(await real(held[0]))
    await asyncio.sleep(0)
    await check_untouched(stage, held[0].thread.id)


async def test_a_worker_that_closes_waits_for_messages_that_are_being_stored(tmp_path: Any) -> None:
    path = str(tmp_path / "worker.db")
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=path, shutdown_grace=1))

    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text("answered")

    async with WorkerClient(worker, handler=handler) as client:
        store = worker._parts.store()
        assert isinstance(store, SqliteStore)
        handed, go_on, flush = asyncio.Event(), asyncio.Event(), store._flush

        async def late() -> None:
            handed.set()
            await go_on.wait()
            await flush()

        store._flush = late  # type: ignore[method-assign]
        client.post("event.create", GO)
        await handed.wait()
        closing = asyncio.create_task(worker.close())
        await until(lambda: worker._parts.runner()._admission.closing)
        go_on.set()
        await closing
    again = WorkerServer(WorkerConfig(database_type="sqlite", database_name=path))
    (thread,) = await (await again.repository()).list_threads()
    assert await texts_of(again, thread.id) == ["go", "answered"]
    assert await runs_of(again, thread.id) == ["succeeded"]
    await again.close()


# ---------------------------------------------------------------- handlers that do not want to stop

Stubborn = Callable[[Any, "Hold"], AsyncIterator[Any]]


class Hold:
    """Lets a test end what a stubborn handler would go on with for ever."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.done = False


async def once(send: Any, hold: Hold) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text("kept")
    hold.reached.set()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


async def once_and_finishing(send: Any, hold: Hold) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text("kept")
    hold.reached.set()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


async def for_ever(send: Any, hold: Hold) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text("kept")
    hold.reached.set()
    while not hold.done:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)


async def yielding_again(send: Any, hold: Hold) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text("kept")
    hold.reached.set()
    while not hold.done:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        yield send.text("too late")


async def hanging_in_its_finally(send: Any, hold: Hold) -> AsyncIterator[Any]:
    try:
        yield send.run_start()
        yield send.text("kept")
        hold.reached.set()
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(60)


async def yielding_in_its_finally(send: Any, hold: Hold) -> AsyncIterator[Any]:
    try:
        yield send.run_start()
        yield send.text("kept")
        hold.reached.set()
        await asyncio.sleep(60)
    finally:
        yield send.text("too late")


async def ignoring_the_generators_exit(send: Any, hold: Hold) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text("kept")
    hold.reached.set()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        try:
            yield send.text("too late")
        except GeneratorExit:
            yield send.text("much too late")


async def streaming_for_ever(send: Any, hold: Hold) -> AsyncIterator[Any]:
    async def pieces() -> AsyncIterator[str]:
        yield "ke"
        yield "pt"
        hold.reached.set()
        while not hold.done:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    yield send.run_start()
    yield send.stream(pieces())


async def streaming_on(send: Any, hold: Hold) -> AsyncIterator[Any]:
    async def pieces() -> AsyncIterator[str]:
        yield "kept"
        hold.reached.set()
        while not hold.done:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                yield "too late"
                while not hold.done:
                    yield "too late"

    yield send.run_start()
    yield send.stream(pieces())


STUBBORN: list[Any] = [
    once,
    once_and_finishing,
    for_ever,
    yielding_again,
    hanging_in_its_finally,
    yielding_in_its_finally,
    ignoring_the_generators_exit,
    streaming_for_ever,
    streaming_on,
]


@pytest.mark.parametrize("stubborn", STUBBORN)
async def test_a_handler_that_swallows_its_cancellation_is_ended_in_bounded_time_at_both_doors(
    worker: WorkerServer, stubborn: Stubborn
) -> None:
    torn_down: list[str] = []
    holds = [Hold(), Hold()]
    free = iter(holds)

    async def hold() -> AsyncIterator[Hold]:
        try:
            yield next(free)
        finally:
            torn_down.append("teardown")

    worker.provide("hold")(hold)
    async with WorkerClient(worker, handler=stubborn) as client, WorkerClient(worker, user_id="other") as other:
        answer = await client.ask("event.create", GO)
        assert answer["payload"]["ok"]
        thread_id = (await client.expect("event.append"))["payload"]["thread_id"]
        await holds[0].reached.wait()
        stream = await worker.dispatch(stubborn, **WHO, message="go")
        stream.detach()
        await holds[1].reached.wait()
        threads = [thread_id, stream.thread_id]
        for one in threads:
            await watch(other, one)
        waiting = [await worker.dispatch(quick, **WHO, message="and?", thread_id=one) for one in threads]
        began = time.monotonic()
        assert (await client.ask("run.cancel", {"run_id": await run_id_of(worker, thread_id)}))["payload"]["ok"]
        await stream.cancel()
        for following in waiting:
            assert [event.data["text"] for event in await following.collect()] == ["next"]
        assert time.monotonic() - began < BOUND
        assert stream.status == "canceled"
        assert await statuses_told(other) == ["canceled"] * 2
    for one in threads:
        assert await runs_of(worker, one) == ["canceled"]
        assert sorted(await texts_of(worker, one)) == ["and?", "go", "kept", "next"]
    for held in holds:
        held.done = True  # what was left to itself may end now: it alters nothing any more
    await until(lambda: torn_down == ["teardown"] * 2)
    await nothing_is_left(worker)
    for one in threads:
        assert sorted(await texts_of(worker, one)) == ["and?", "go", "kept", "next"]
        assert await runs_of(worker, one) == ["canceled"]


async def quick() -> str:
    return "next"


async def test_a_teardown_that_does_not_stop_is_ended_in_bounded_time(worker: WorkerServer) -> None:
    done = False
    reached = asyncio.Event()

    @worker.provide
    async def resource() -> AsyncIterator[str]:
        try:
            yield "resource"
        finally:
            reached.set()
        while not done:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def handler(send: Any, resource: str) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text("kept")

    stream = await worker.dispatch(handler, **WHO, message="go")
    stream.detach()
    await reached.wait()
    began = time.monotonic()
    await stream.cancel()
    assert time.monotonic() - began < BOUND
    with pytest.raises(HandlerError) as caught:
        await stream.collect()
    assert isinstance(caught.value.original, TimeoutError)
    assert await runs_of(worker, stream.thread_id) == ["failed"]
    done = True
    await nothing_is_left(worker)


async def test_a_slow_disk_at_the_end_of_a_stopped_turn_is_waited_for(
    worker: WorkerServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a handler that does not stop is given up; the end that is being stored is stored once."""
    stage = Stage(worker, "inside an await")
    await worker.ensure_initialized()
    store: Any = worker._parts.store()
    real = store.apply
    closings: list[Change] = []
    stream = await worker.dispatch(**WHO, message="go")
    stream.detach()
    await stage.reached.wait()

    def slow(change: Change) -> asyncio.Future[Change]:
        closings.append(change)
        future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(
            1.5, lambda: real(change).add_done_callback(lambda f: future.set_result(f.result()))
        )
        return future

    store.apply = slow
    await stream.cancel()
    store.apply = real
    assert stream.status == "canceled"
    assert len(closings) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    await check(stage, stream.thread_id, ["canceled"])


def test_a_loop_that_ends_while_a_turn_is_being_closed_leaves_no_run_open(tmp_path: Any) -> None:
    path = str(tmp_path / "worker.db")
    ids: list[str] = []

    async def main() -> None:
        worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=path))

        async def handler(send: Any) -> AsyncIterator[Any]:
            yield send.run_start()
            for _ in range(20):
                yield send.text("x")

        stream = await worker.dispatch(handler, **WHO, message="go")
        ids.append(stream.thread_id)
        stream.detach()
        runner = worker._parts.runner()
        while not any(opened.leaving for opened in runner._turns):
            await asyncio.sleep(0)

    async def look() -> list[str]:
        worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=path))
        try:
            return await runs_of(worker, ids[0])
        finally:
            await worker.close()

    asyncio.run(main())
    assert asyncio.run(look()) in (["succeeded"], ["canceled"])


# ---------------------------------------------------------------- what cannot be stopped


async def test_what_is_unknown_foreign_or_over(worker: WorkerServer) -> None:
    stage = Stage(worker, "just finished")
    payload: dict[str, Any]
    async with WorkerClient(worker) as client, WorkerClient(worker, organization_id="foreign") as stranger:
        thread_id = await begin(stage, client)
        run_id = await run_id_of(worker, thread_id)
        for payload in ({"run_id": "none"}, {"thread_id": "none"}):
            answer = await client.ask("run.cancel", payload)
            assert answer["payload"]["error"]["code"] == "NOT_FOUND"
        for payload in ({"run_id": run_id}, {"thread_id": thread_id}):
            answer = await stranger.ask("run.cancel", payload)
            assert answer["payload"]["error"]["code"] == "NOT_FOUND"
            assert (await client.ask("run.cancel", payload))["payload"]["ok"]
        assert await runs_of(worker, thread_id) == ["succeeded"]
        assert "canceled" not in await statuses_told(client)


async def test_a_stranger_stops_nothing(worker: WorkerServer) -> None:
    stage = Stage(worker, "inside an await")
    async with WorkerClient(worker) as client, WorkerClient(worker, organization_id="foreign") as stranger:
        thread_id = await begin(stage, client)
        for payload in ({"run_id": await run_id_of(worker, thread_id)}, {"thread_id": thread_id}):
            answer = await stranger.ask("run.cancel", payload)
            assert answer["payload"]["error"]["code"] == "NOT_FOUND"
        await asyncio.sleep(0.01)
        assert worker.is_answering(thread_id)
        await by_frame(stage, client, thread_id)
        await until(lambda: not worker.is_answering(thread_id))
    await check(stage, thread_id, ["canceled"])


@pytest.mark.parametrize("payload", [{}, {"run_id": "a", "thread_id": "b"}])
async def test_a_cancel_names_exactly_one_thing(worker: WorkerServer, payload: dict[str, str]) -> None:
    async with WorkerClient(worker) as client:
        answer = await client.ask("run.cancel", payload)
        assert answer["payload"]["error"]["code"] == "INVALID_VALUE"
    with pytest.raises(InvalidValueError):
        await worker.cancel(**payload)


async def test_cancelling_what_is_not_there_is_no_harm(worker: WorkerServer) -> None:
    assert await worker.cancel(thread_id="none") == 0
    assert await worker.cancel(run_id="none") == 0


async def test_a_handler_may_stop_its_own_turn(worker: WorkerServer) -> None:
    log: list[str] = []

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        try:
            yield send.run_start()
            log.append(str(await worker.cancel(thread_id=incoming.context.thread_id)))
            await asyncio.sleep(60)
        finally:
            log.append("finally")

    stream = await worker.dispatch(handler, **WHO, message="go")
    assert [event.send_type for event in await stream.collect()] == ["run_start"]
    assert (stream.status, log) == ("canceled", ["1", "finally"])
    await nothing_is_left(worker)


async def test_after_the_worker_has_closed_nothing_is_taken(worker: WorkerServer) -> None:
    runner = worker._parts.runner()
    await worker.ensure_initialized()
    runner._admission.closing = True
    with pytest.raises(DispatchError) as caught:
        await worker.dispatch(quick, **WHO, message="go")
    assert caught.value.code == "CLOSING"
