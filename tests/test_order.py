"""Order, repeats and time limits of turns: queue, parallel, reject, replace, by config and by decorator, at both doors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from dooers import ConfigError, DispatchError, HandlerError, SignatureError, WorkerConfig, WorkerServer
from dooers.testing import WorkerClient

WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
ORDERS = ["queue", "parallel", "reject", "replace"]


class Desk:
    """A worker whose handler says what it begins and ends, and stays until it is let go."""

    def __init__(self, order: Any, by: str = "config", **more: Any) -> None:
        chosen = {"turn_order": order} if by == "config" else {"turn_order": "queue"}
        self.worker = WorkerServer(WorkerConfig(database_type="memory", teardown_timeout=0.1, **chosen, **more))
        self.log: list[str] = []
        self.go = asyncio.Event()
        self.worker.handler(order=order if by == "decorator" else None)(self.handler)

    async def handler(self, incoming: Any, send: Any) -> AsyncIterator[Any]:
        try:
            yield send.run_start()
            self.log.append(f"+{incoming.message}")
            await self.go.wait()
            yield send.text(f"answer to {incoming.message}")
            self.log.append(f"={incoming.message}")
        finally:
            self.log.append(f"-{incoming.message}")

    async def say(self, door: str, text: str, thread_id: str, key: str | None = None) -> str | None:
        """A message at a door; the code it was refused with."""
        if door == "dispatch":
            try:
                stream = await self.worker.dispatch(**WHO, message=text, thread_id=thread_id, idempotency_key=key)
            except DispatchError as error:
                return error.code
            stream.detach()
            return None
        payload = {"thread_id": thread_id, "event": {"content": [{"type": "text", "text": text}]}}
        async with WorkerClient(self.worker) as client:
            answer = await client.ask("event.create", payload | ({} if key is None else {"client_event_id": key}))
        code: str | None = None if answer["payload"]["ok"] else answer["payload"]["error"]["code"]
        return code

    async def until(self, *entries: str) -> None:
        async with asyncio.timeout(5):
            while not set(entries) <= set(self.log):
                await asyncio.sleep(0.001)

    async def end(self, thread_id: str) -> list[str]:
        """Let everything go to its end; the texts of the thread."""
        self.go.set()
        async with asyncio.timeout(5):
            while self.worker.is_answering(thread_id):
                await asyncio.sleep(0.001)
        runner = self.worker._parts.runner()
        assert (runner.running, len(runner._lanes), len(runner._unrun)) == (0, 0, 0)
        repository = await self.worker.repository()
        events = await repository.list_events({"thread_id": thread_id}, {"direction": "asc"})
        assert "running" not in [run.status for run in await repository.list_runs({"thread_id": thread_id})]
        return [event.text for event in events]


async def first_thread(desk: Desk, key: str | None = None) -> str:
    """A thread whose first message is being answered."""
    stream = await desk.worker.dispatch(**WHO, message="a", idempotency_key=key)
    stream.detach()
    await desk.until("+a")
    return stream.thread_id


@pytest.mark.parametrize("door", ["dispatch", "socket"])
@pytest.mark.parametrize("by", ["config", "decorator"])
@pytest.mark.parametrize("order", ORDERS)
async def test_a_message_to_a_busy_thread_is_treated_as_the_policy_says(order: str, by: str, door: str) -> None:
    desk = Desk(order, by)
    thread_id = await first_thread(desk)
    codes = [await desk.say(door, text, thread_id) for text in ("b", "c")]
    if order == "queue":
        await asyncio.sleep(0.01)
        assert (codes, desk.log) == ([None, None], ["+a"])
        assert await desk.end(thread_id) == ["a", "b", "c", "answer to a", "answer to b", "answer to c"]
    elif order == "parallel":
        await desk.until("+a", "+b", "+c")
        assert codes == [None, None]
        assert sorted(await desk.end(thread_id)) == ["a", "answer to a", "answer to b", "answer to c", "b", "c"]
    elif order == "reject":
        assert codes == ["THREAD_BUSY", "THREAD_BUSY"]
        assert await desk.end(thread_id) == ["a", "answer to a"]
        assert await desk.say(door, "d", thread_id) is None
        assert (await desk.end(thread_id))[2:] == ["d", "answer to d"]
    else:
        await desk.until("+c")
        assert codes == [None, None]
        assert await desk.end(thread_id) == ["a", "b", "c", "answer to c"]
        assert [entry for entry in desk.log if entry in ("-a", "=a", "=b")] == ["-a"]
    await desk.worker.close()


async def test_replace_also_replaces_a_turn_that_nobody_has_run_yet() -> None:
    desk = Desk("replace")
    unrun = await desk.worker.dispatch(**WHO, message="a")
    desk.go.set()
    following = await desk.worker.dispatch(**WHO, message="b", thread_id=unrun.thread_id)
    async with asyncio.timeout(5):
        assert [event.data.get("text") for event in await following.collect()] == [None, "answer to b"]
    assert (unrun.status, await unrun.collect()) == ("canceled", [])
    await desk.worker.close()


async def test_handlers_of_one_thread_keep_to_their_own_policies() -> None:
    desk = Desk("queue")
    desk.worker.handler("aside", order="parallel")(desk.handler)
    desk.worker.handler("instead", order="replace")(desk.handler)

    async def refused() -> str:
        return "never"

    desk.worker.handler("refused", order="reject")(refused)
    thread_id = await first_thread(desk)
    for name, text in (("aside", "b"), (None, "c")):
        (await desk.worker.dispatch(name, **WHO, message=text, thread_id=thread_id)).detach()
    await desk.until("+b")
    with pytest.raises(DispatchError, match="being answered"):
        await desk.worker.dispatch("refused", **WHO, message="x", thread_id=thread_id)
    (await desk.worker.dispatch("instead", **WHO, message="d", thread_id=thread_id)).detach()
    await desk.until("-a", "-b", "+d")
    assert await desk.end(thread_id) == ["a", "b", "c", "d", "answer to d"]
    await desk.worker.close()


@pytest.mark.parametrize("order", ["", "fifo", "Queue", 1])
def test_a_wrong_policy_is_told_at_once(order: Any) -> None:
    with pytest.raises(ConfigError, match="turn_order"):
        WorkerConfig(database_type="memory", turn_order=order)
    worker = WorkerServer(WorkerConfig(database_type="memory"))

    async def handler() -> str:
        return ""

    with pytest.raises(SignatureError, match="order"):
        worker.handler(order=order)(handler)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), True, "5"])
def test_a_wrong_time_limit_is_told_at_once(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="handler_timeout"):
        WorkerConfig(database_type="memory", handler_timeout=seconds)
    worker = WorkerServer(WorkerConfig(database_type="memory"))

    async def handler() -> str:
        return ""

    with pytest.raises(SignatureError, match="timeout"):
        worker.handler(timeout=seconds)(handler)


# ---------------------------------------------------------------- repeats


@pytest.mark.parametrize("door", ["dispatch", "socket"])
@pytest.mark.parametrize("order", ORDERS)
async def test_a_repeat_alters_nothing_whatever_the_policy(order: str, door: str) -> None:
    """While the first one runs, it is neither refused nor does it replace, nor does it run."""
    desk = Desk(order)
    thread_id = await first_thread(desk)
    await desk.end(thread_id)
    desk.go.clear()
    assert await desk.say(door, "k", thread_id, "key") is None
    await desk.until("+k")
    codes = await asyncio.gather(*(desk.say(door, "k", thread_id, "key") for _ in range(5)))
    assert codes == [None] * 5
    assert await desk.end(thread_id) == ["a", "answer to a", "k", "answer to k"]
    assert desk.log.count("=k") == 1
    await desk.worker.close()


@pytest.mark.parametrize("door", ["dispatch", "socket"])
@pytest.mark.parametrize("order", ORDERS)
async def test_repeats_that_come_together_run_once(order: str, door: str) -> None:
    desk = Desk(order)
    thread_id = await first_thread(desk)
    await desk.end(thread_id)
    codes = await asyncio.gather(*(desk.say(door, "k", thread_id, "key") for _ in range(8)))
    assert codes == [None] * 8
    assert await desk.end(thread_id) == ["a", "answer to a", "k", "answer to k"]
    await desk.worker.close()


async def test_a_repeat_to_a_full_queue_is_a_repeat() -> None:
    desk = Desk("queue", thread_queue_limit=2)
    thread_id = await first_thread(desk, "first")
    assert await desk.say("dispatch", "b", thread_id, "second") is None
    assert await desk.say("dispatch", "c", thread_id, "third") == "THREAD_BUSY"
    assert await desk.say("dispatch", "b", thread_id, "second") is None
    repeated = await desk.worker.dispatch(**WHO, message="a", thread_id=thread_id, idempotency_key="first")
    assert (repeated.is_repeat, repeated.thread_id) == (True, thread_id)
    assert await desk.end(thread_id) == ["a", "b", "answer to a", "answer to b"]
    await desk.worker.close()


# ---------------------------------------------------------------- time limits


@pytest.mark.parametrize("by", ["config", "decorator"])
@pytest.mark.parametrize("swallows", [False, True])
async def test_a_handler_that_takes_too_long_fails_with_a_safe_text(by: str, swallows: bool) -> None:
    limit = 0.05
    worker = WorkerServer(
        WorkerConfig(database_type="memory", teardown_timeout=0.1, handler_timeout=limit if by == "config" else None)
    )
    log: list[str] = []

    @worker.provide
    async def resource() -> AsyncIterator[str]:
        try:
            yield "resource"
        finally:
            log.append("teardown")

    @worker.handler(timeout=limit if by == "decorator" else None)
    async def slow(send: Any, resource: str) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text("kept")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not swallows:
                raise
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        yield send.text("too late")

    @worker.handler("quick")
    async def quick() -> str:
        return "next"

    stream = await worker.dispatch(**WHO, message="go")
    with pytest.raises(HandlerError) as caught:
        async with asyncio.timeout(4):
            await stream.collect()
    assert isinstance(caught.value.original, TimeoutError)
    assert (stream.status, log) == ("failed", ["teardown"])
    repository = await worker.repository()
    (run,) = await repository.list_runs({"thread_id": stream.thread_id})
    assert run.status == "failed"
    assert "took too long" in str(run.error)
    events = await repository.list_events({"thread_id": stream.thread_id}, {"direction": "asc"})
    assert [event.text for event in events] == ["go", "kept", run.error]
    assert events[-1].notice
    following = await worker.dispatch("quick", **WHO, message="again", thread_id=stream.thread_id)
    assert [event.data["text"] for event in await following.collect()] == ["next"]
    await worker.close()


async def test_a_time_limit_of_a_handler_goes_before_the_workers() -> None:
    worker = WorkerServer(WorkerConfig(database_type="memory", handler_timeout=0.02))

    @worker.handler(timeout=30)
    async def patient() -> str:
        await asyncio.sleep(0.08)
        return "done"

    stream = await worker.dispatch(**WHO, message="go")
    assert [event.data["text"] for event in await stream.collect()] == ["done"]
    await worker.close()


async def test_a_turn_that_waits_in_the_queue_does_not_use_up_its_time() -> None:
    worker = WorkerServer(WorkerConfig(database_type="memory", handler_timeout=0.15))

    @worker.handler
    async def steady() -> str:
        await asyncio.sleep(0.1)
        return "done"

    first = await worker.dispatch(**WHO, message="one")
    first.detach()
    second = await worker.dispatch(**WHO, message="two", thread_id=first.thread_id)
    assert [event.data["text"] for event in await second.collect()] == ["done"]
    await worker.close()
