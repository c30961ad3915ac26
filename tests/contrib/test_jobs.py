"""What `answer` makes of each thing that a delivery can find. With real queues, and processes that die: tests/test_background.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dooers_contrib.jobs import GaveUpError, NotYetError, answer

from dooers import DispatchError, WorkerConfig, WorkerEvent, WorkerIncoming, WorkerSend, WorkerServer

WHO: dict[str, Any] = {"organization_id": "org", "workspace_id": "main", "user_id": "ana"}


class Stage:
    """A worker whose handler is told from outside what to do."""

    def __init__(self, config: WorkerConfig) -> None:
        self.worker = WorkerServer(config)
        self.fails = 0
        self.asked = 0
        self.at_it = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

        @self.worker.handler
        async def handler(incoming: WorkerIncoming, send: WorkerSend) -> AsyncIterator[WorkerEvent]:
            yield send.run_start()
            self.asked += 1
            self.at_it.set()
            await self.go.wait()
            if self.asked <= self.fails:
                raise ValueError("as you wish")
            yield send.text("done")

    async def texts(self, thread_id: str) -> list[str]:
        repository = await self.worker.repository()
        events = await repository.list_events({"thread_id": thread_id}, {"direction": "asc"})
        return [event.text.split(" ")[0] for event in events]


@pytest.fixture
async def stage(worker_config: WorkerConfig) -> AsyncIterator[Stage]:
    stage = Stage(worker_config)
    async with stage.worker.lifespan():
        yield stage


async def test_a_message_is_answered_once(stage: Stage) -> None:
    first = await answer(stage.worker, "key", **WHO, message="hi")
    again = await answer(stage.worker, "key", **WHO, message="hi")
    assert (first.thread_id, again.is_repeat, stage.asked) == (again.thread_id, True, 1)


async def test_a_message_that_is_being_answered_is_to_come_again_and_then_it_is_done(stage: Stage) -> None:
    stage.go.clear()
    first = asyncio.create_task(answer(stage.worker, "key", **WHO, message="hi"))
    await stage.at_it.wait()
    with pytest.raises(NotYetError, match="somebody is at it"):
        await answer(stage.worker, "key", **WHO, message="hi")
    stage.go.set()
    thread_id = (await first).thread_id
    assert (await answer(stage.worker, "key", **WHO, message="hi")).thread_id == thread_id
    assert (await stage.texts(thread_id), stage.asked) == (["hi", "done"], 1)


async def test_a_turn_that_failed_is_tried_again_in_its_thread_until_it_works(stage: Stage) -> None:
    stage.fails = 2
    for _ in range(2):
        with pytest.raises(NotYetError, match="as you wish"):
            await answer(stage.worker, "key", **WHO, message="hi")
    stream = await answer(stage.worker, "key", **WHO, message="hi")
    assert await stage.texts(stream.thread_id) == ["hi", "Something", "hi", "Something", "hi", "done"]


async def test_it_gives_up_once_and_for_all(stage: Stage) -> None:
    stage.fails = 9
    with pytest.raises(NotYetError):
        await answer(stage.worker, "key", tries=2, **WHO, message="hi")
    for _ in range(3):
        with pytest.raises(GaveUpError, match="key: failed 2 times"):
            await answer(stage.worker, "key", tries=2, **WHO, message="hi")
    assert stage.asked == 2


async def test_what_somebody_stopped_is_not_begun_again(stage: Stage) -> None:
    stage.go.clear()
    job = asyncio.create_task(answer(stage.worker, "key", **WHO, message="hi"))
    await stage.at_it.wait()
    repository = await stage.worker.repository()
    [thread] = await repository.list_threads()
    await stage.worker.cancel(thread_id=thread.id)
    assert (await job).status == "canceled"
    with pytest.raises(GaveUpError, match="was stopped"):
        await answer(stage.worker, "key", **WHO, message="hi")
    assert stage.asked == 1


async def test_a_job_that_is_aborted_stops_its_turn_and_a_later_delivery_says_so(stage: Stage) -> None:
    stage.go.clear()
    job = asyncio.create_task(answer(stage.worker, "key", **WHO, message="hi"))
    await stage.at_it.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert stage.worker.stats().turns_running == 0
    with pytest.raises(GaveUpError, match="or with its process"):
        await answer(stage.worker, "key", **WHO, message="hi")


async def test_only_what_may_be_otherwise_in_a_moment_is_to_come_again(stage: Stage) -> None:
    with pytest.raises(DispatchError, match="user_id"):
        await answer(stage.worker, "key", organization_id="org", workspace_id="main", user_id=None, message="hi")
    with pytest.raises(DispatchError, match="no handler named 'nobody'"):
        await answer(stage.worker, "key", handler="nobody", **WHO, message="hi")

    @stage.worker.handler("busy", order="reject")
    async def busy() -> str:
        await stage.go.wait()
        return "done"

    stage.go.clear()
    job = asyncio.create_task(answer(stage.worker, "one", handler="busy", thread_id="t", **WHO, message="hi"))
    while stage.worker.stats().turns_running == 0:
        await asyncio.sleep(0)
    with pytest.raises(NotYetError, match="two: dispatch: "):
        await answer(stage.worker, "two", handler="busy", thread_id="t", **WHO, message="hi")
    stage.go.set()
    await job
    await answer(stage.worker, "two", handler="busy", thread_id="t", **WHO, message="hi")
    assert await stage.texts("t") == ["hi", "done", "hi", "done"]


async def test_a_worker_that_closes_has_the_job_brought_to_another_one(stage: Stage) -> None:
    stage.go.clear()
    job = asyncio.create_task(answer(stage.worker, "key", **WHO, message="hi"))
    await stage.at_it.wait()
    closing = asyncio.create_task(stage.worker.close())
    while True:
        try:
            await stage.worker.ready()
        except Exception:
            break
        await asyncio.sleep(0)
    with pytest.raises(NotYetError, match="other: dispatch: "):
        await answer(stage.worker, "other", **WHO, message="hi")
    stage.go.set()
    await job
    await closing
    assert stage.asked == 1
