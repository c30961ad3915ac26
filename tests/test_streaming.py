"""A message that is written while people watch: what each kind of client sees of it, what is stored, and every way it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from attrs import evolve

import dooers.steps
from dooers import HandlerError, InvalidValueError, WorkerConfig, WorkerServer
from dooers.stores import GAP
from dooers.testing import WorkerClient

WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}
DIALECTS: dict[str, dict[str, Any]] = {
    "flat": {"worker_id": "worker", **WHO},
    "metadata": {"worker_id": "worker", "metadata": WHO},
    "user": {
        "worker_id": "worker",
        "organization_id": "org-1",
        "workspace_id": "ws-1",
        "user": {"user_id": "user-1", "system_role": "r", "organization_role": "r", "workspace_role": "r"},
    },
    "agents": {
        "agent_id": "worker",
        "organization_id": "org-1",
        "workspace_id": "ws-1",
        "user": {"user_id": "user-1", "identity_ids": []},
    },
}
Frame = dict[str, Any]


class Model:
    """A model that says what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = asyncio.Event()

    def say(self, *pieces: Any) -> None:
        for piece in pieces:
            self.said.put_nowait(piece)

    def end(self) -> None:
        self.say(StopAsyncIteration())

    async def read(self) -> AsyncIterator[Any]:
        try:
            while not isinstance(piece := await self.said.get(), StopAsyncIteration):
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed.set()


class Bare:
    """An async iterator with nothing but what makes it one."""

    def __init__(self, model: Model) -> None:
        self._pieces = model.read()

    def __aiter__(self) -> Bare:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._pieces)


def client(worker: WorkerServer, dialect: str = "flat", *, deltas: bool = False) -> WorkerClient:
    capabilities = ["deltas"] if deltas else []
    return WorkerClient(worker, connect={**DIALECTS[dialect], "client": {"capabilities": capabilities}})


@asynccontextmanager
async def streaming(
    config: WorkerConfig, source: Callable[[], Any], *more: str, before: tuple[str, ...] = (), **changes: Any
) -> AsyncIterator[WorkerServer]:
    """A worker that answers with a stream, and then with `more`."""
    worker = WorkerServer(evolve(config, **{"teardown_timeout": 0.1, "shutdown_grace": 0, **changes}))

    @worker.handler
    async def answer(send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        for text in before:
            yield send.text(text)
        yield send.stream(source(), author="Bot")
        for text in more:
            yield send.text(text)

    async with worker.lifespan():
        yield worker


async def say(asking: WorkerClient, thread_id: str | None = None) -> str:
    """Send a message; the thread it is in."""
    payload: Frame = {"event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": "hi"}]}}
    if thread_id is not None:
        payload["thread_id"] = thread_id
    assert (await asking.ask("event.create", payload))["payload"]["ok"]
    return str((await asking.expect("event.append"))["payload"]["thread_id"])


async def until(reading: WorkerClient, wanted: Callable[[Frame], Any]) -> list[Frame]:
    """The frames up to one that is wanted."""
    frames = [await reading.receive()]
    while not wanted(frames[-1]):
        frames.append(await reading.receive())
    return frames


def is_over(frame: Frame) -> bool:
    return bool(frame["type"] == "run.upsert" and frame["payload"]["run"]["status"] != "running")


def is_delta(frame: Frame) -> bool:
    return bool(frame["type"] == "event.delta")


def written(frames: list[Frame]) -> str:
    return "".join(frame["payload"]["text"] for frame in frames if is_delta(frame))


def appended(frames: list[Frame]) -> list[Frame]:
    return [event for frame in frames if frame["type"] == "event.append" for event in frame["payload"]["events"]]


def text_of(event: Frame) -> str:
    return "".join(part["text"] for part in event["content"])


async def wait_for(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def answers(worker: WorkerServer, thread_id: str) -> list[tuple[str, str, Any]]:
    """What is stored after the first message: actor, text, data."""
    repository = await worker.repository()
    events = await repository.list_events({"thread_id": thread_id})
    assert not any(event.streaming for event in events)
    return [(event.actor, event.text, event.data) for event in reversed(events) if event.actor != "user"]


async def until_written(reading: WorkerClient, text: str) -> list[Frame]:
    """Frames until their deltas make a text."""
    frames: list[Frame] = []
    while written(frames) != text:
        frames += await until(reading, is_delta)
    return frames


# ---------------------------------------------------------------- what each kind of client sees


async def test_the_pieces_make_exactly_the_message_that_is_stored_once(worker_config: WorkerConfig) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, deltas=True) as asking:
        thread_id = await say(asking)
        frames = await until(asking, lambda frame: frame["type"] == "run.upsert")
        run_id = frames[-1]["payload"]["run"]["id"]
        said = ["Hel", None, "lo ", "", "wör", "ld 🙂"]
        for piece in said:
            model.say(piece)
            await asyncio.sleep(0.025)
        model.end()
        frames = await until(asking, is_over)
        assert written(frames) == "Hello wörld 🙂"
        assert len([frame for frame in frames if is_delta(frame)]) == 4
        (event,) = appended(frames)
        assert (text_of(event), event["streaming"], event["finalized"], event["author"]) == (
            "Hello wörld 🙂",
            False,
            True,
            "Bot",
        )
        assert "data" not in event
        of = {
            (f["payload"]["event_id"], f["payload"]["run_id"], f["payload"]["thread_id"]) for f in frames if is_delta(f)
        }
        assert of == {(event["id"], run_id, thread_id)}
        assert [frame["type"] for frame in frames[-2:]] == ["event.append", "run.upsert"]
        assert await answers(worker, thread_id) == [("assistant", "Hello wörld 🙂", None)]
        assert model.closed.is_set()


@pytest.mark.parametrize("dialect", ["flat", "metadata", "user"])
async def test_who_did_not_ask_for_pieces_sees_one_message(worker_config: WorkerConfig, dialect: str) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, dialect) as asking:
        await say(asking)
        model.say("Hello ")
        await asyncio.sleep(0.3)
        model.say("world")
        model.end()
        frames = await until(asking, is_over)
        assert [text_of(event) for event in appended(frames)] == ["Hello world"]
        assert not any(map(is_delta, frames))


async def test_an_agents_client_sees_a_message_that_grows_at_least_every_half_second(
    worker_config: WorkerConfig,
) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, "agents") as asking:
        await say(asking)
        await until(asking, lambda frame: frame["type"] == "run.upsert")

        async def speak() -> None:
            for number in range(24):
                model.say(f"{number} ")
                await asyncio.sleep(0.05)
            model.end()

        speaking = asyncio.create_task(speak())
        clock = asyncio.get_running_loop().time
        times = [clock()]
        seen: list[Frame] = []
        while not seen or seen[-1]["streaming"]:
            seen += appended([await asking.expect("event.append")])
            times.append(clock())
        await speaking
        texts = [text_of(event) for event in seen]
        assert len({event["id"] for event in seen}) == 1
        assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))
        assert texts[-1] == "".join(f"{number} " for number in range(24))
        assert 4 <= len(seen) <= 8, "every quarter of a second"
        assert max(later - sooner for sooner, later in pairwise(times)) < 0.5
        assert [event["finalized"] for event in seen] == [False] * (len(seen) - 1) + [True]


async def test_an_agents_client_sees_the_last_piece_in_time_also_when_the_next_is_long_in_coming(
    worker_config: WorkerConfig,
) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, "agents") as asking:
        await say(asking)
        model.say("a", "b", "c")
        async with asyncio.timeout(0.5):
            while text_of(appended([await asking.expect("event.append")])[0]) != "abc":
                pass
        model.end()
        await until(asking, is_over)


async def test_an_agents_client_that_asks_for_pieces_gets_pieces(worker_config: WorkerConfig) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, "agents", deltas=True) as asking:
        await say(asking)
        model.say("abc")
        model.end()
        frames = await until(asking, is_over)
        assert written(frames) == "abc"
        assert [event["finalized"] for event in appended(frames)] == [True]


async def test_what_was_yielded_before_a_stream_is_seen_before_its_first_piece(worker_config: WorkerConfig) -> None:
    model = Model()
    model.say("c")
    model.end()
    async with streaming(worker_config, model.read, "d", "e", before=("a", "b")) as worker:
        async with client(worker, deltas=True) as asking:
            thread_id = await say(asking)
            frames = await until(asking, is_over)
            kinds = [frame["type"] for frame in frames if frame["type"] != "ack"]
            assert kinds == ["run.upsert", *["event.append"] * 2, "event.delta", *["event.append"] * 3, "run.upsert"]
            assert [text_of(event) for event in appended(frames)] == list("abcde")
            assert [event["seq"] for event in appended(frames)] == [2, 3, 4, 5, 6]
            assert [text for _, text, _ in await answers(worker, thread_id)] == list("abcde")


@pytest.mark.parametrize("said", [(), (None, "", "\x00")])
async def test_a_stream_without_a_word_stores_nothing_and_is_seen_by_nobody(
    worker_config: WorkerConfig, said: tuple[Any, ...]
) -> None:
    model = Model()
    model.say(*said)
    model.end()
    async with streaming(worker_config, model.read, "after") as worker, client(worker, deltas=True) as asking:
        thread_id = await say(asking)
        frames = await until(asking, is_over)
        assert not any(map(is_delta, frames))
        assert await answers(worker, thread_id) == [("assistant", "after", None)]
        model.say(*said)
        model.end()
        dispatched = await worker.dispatch(message="again", thread_id=thread_id, **WHO)
        given = [event.data["text"] async for event in dispatched if event.send_type == "text"]
        assert given == ["after"]


async def test_two_threads_stream_side_by_side_and_each_piece_is_told_in_its_own(worker_config: WorkerConfig) -> None:
    models: list[Model] = []

    def source() -> AsyncIterator[Any]:
        models.append(Model())
        return models[-1].read()

    async with streaming(worker_config, source) as worker, client(worker, deltas=True) as asking:
        threads = [await say(asking), await say(asking)]
        await wait_for(lambda: len(models) == 2)
        for number in range(10):
            for model, name in zip(models, "ab", strict=True):
                model.say(f"{name}{number}")
            await asyncio.sleep(0)
        for model in models:
            model.end()
        frames: list[Frame] = []
        for _ in threads:
            frames += await until(asking, is_over)
        whole = {event["thread_id"]: text_of(event) for event in appended(frames) if event["actor"] == "assistant"}
        assert sorted(whole.values()) == ["".join(f"{name}{n}" for n in range(10)) for name in "ab"]
        for thread_id in threads:
            assert written([f for f in frames if f["payload"].get("thread_id") == thread_id]) == whole[thread_id]


# ---------------------------------------------------------------- who comes late


@pytest.mark.parametrize(("dialect", "deltas"), [("flat", True), ("agents", True), ("user", True), ("agents", False)])
async def test_who_comes_late_gets_the_text_so_far_and_goes_on_without_a_gap_or_a_repeat(
    worker_config: WorkerConfig, dialect: str, deltas: bool
) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, deltas=True) as asking:
        thread_id = await say(asking)
        expected = ""
        late: list[tuple[WorkerClient, str]] = []
        for number in range(20):
            model.say(f"{number}, ")  # some pieces are still untold when a client comes
            expected += f"{number}, "
            await asyncio.sleep(0.003)
            if number % 4 == 3:
                joining = client(worker, dialect, deltas=deltas)
                await joining.__aenter__()
                snapshot = await joining.ask("thread.subscribe", {"thread_id": thread_id})
                event = snapshot["payload"]["events"][-1]
                assert (event["streaming"], event["finalized"]) == (True, False)
                assert expected.startswith(text_of(event))
                late.append((joining, text_of(event)))
        model.end()
        for joining, begun in late:
            frames = await until(joining, is_over)
            final = appended(frames)[-1]
            assert (text_of(final), final["finalized"]) == (expected, True)
            if deltas:
                assert begun + written(frames) == expected
            else:
                assert all(text_of(event).startswith(begun) for event in appended(frames))
            await joining.drop()


async def test_who_comes_before_the_first_word_sees_no_empty_message(worker_config: WorkerConfig) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker) as asking:
        thread_id = await say(asking)
        await until(asking, lambda frame: frame["type"] == "run.upsert")
        async with client(worker, deltas=True) as late:
            snapshot = (await late.ask("thread.subscribe", {"thread_id": thread_id}))["payload"]
            assert [event["actor"] for event in snapshot["events"]] == ["user"]
            assert [run["status"] for run in snapshot["runs"]] == ["running"]
            model.say("abc")
            model.end()
            assert written(await until(late, is_over)) == "abc"


@pytest.mark.parametrize(("dialect", "shown"), [("flat", 1), ("agents", 2)])
async def test_after_a_large_gap_comes_the_text_so_far_and_then_the_rest(
    worker_config: WorkerConfig, dialect: str, shown: int
) -> None:
    model = Model()
    before = tuple(map(str, range(GAP + 50)))
    async with streaming(worker_config, model.read, before=before) as worker:
        async with client(worker, deltas=True) as asking, client(worker, deltas=True) as late:
            async with client(worker, dialect) as plain:
                thread_id = await say(asking)
                first = (await worker.repository(), await asking.expect("event.append"))[1]["payload"]["events"][0][
                    "id"
                ]
                model.say("Hel")
                await until_written(asking, "Hel")
                for reading in (late, plain):
                    await reading.ask("thread.subscribe", {"thread_id": thread_id, "after_event_id": first})
                    await reading.ask("ping")  # it has all of its gap
                model.say("lo")
                await until_written(asking, "lo")
                model.end()
                frames = await until(late, is_over)
                texts = [text_of(event) for event in appended(frames)]
                assert texts == [*before[GAP + 1 :], "Hel", "Hello"]
                assert written(frames) == "lo"
                mine = [text_of(event) for event in appended(await until(plain, is_over))]
                assert mine[: len(before) - GAP - 1] == list(before[GAP + 1 :])
                assert mine[-1] == "Hello"
                assert len(mine) - (len(before) - GAP - 1) >= shown
                assert dialect == "agents" or mine.count("Hello") + mine.count("Hel") == 1


@pytest.mark.parametrize("deltas", [True, False])
async def test_a_stream_that_ends_while_a_snapshot_is_read_is_neither_missed_nor_told_twice(
    worker_config: WorkerConfig, deltas: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, deltas=True) as asking:
        thread_id = await say(asking)
        model.say("Hello")
        await until_written(asking, "Hello")
        store = worker._parts.store()
        read = store.snapshot
        for ends_after_the_read in (True, False):

            async def snapshot(*args: Any, after: bool = ends_after_the_read, **named: Any) -> Any:
                result = await read(*args, **named) if after else None
                model.end()
                await until(asking, is_over)
                return result if after else await read(*args, **named)

            monkeypatch.setattr(store, "snapshot", snapshot)
            async with client(worker, deltas=deltas) as late:
                before = (await late.ask("thread.subscribe", {"thread_id": thread_id}))["payload"]["events"]
                await late.ask("ping")
                after = late.unread
                finals = [event for event in [*before, *appended(after)] if event["actor"] == "assistant"]
                assert len({event["id"] for event in finals}) == len(finals)
                assert all((text_of(event), event["streaming"]) == ("Hello", False) for event in finals)
                assert len(finals) == (1 if ends_after_the_read else 2)
                assert not any(map(is_delta, after))
            monkeypatch.setattr(store, "snapshot", read)
            if ends_after_the_read:
                await say(asking, thread_id)
                model.say("Hello")
                await until_written(asking, "Hello")


async def test_who_resumes_after_the_end_finds_the_stored_message(worker_config: WorkerConfig) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, deltas=True) as asking:
        payload = {"event": {"type": "message", "actor": "user", "content": [{"type": "text", "text": "hi"}]}}
        await asking.ask("event.create", payload)
        mine = appended([await asking.expect("event.append")])[0]
        model.say("Hel")
        await until_written(asking, "Hel")
        await asking.drop()
        model.say("lo")
        model.end()
        await wait_for(lambda: not worker.is_answering(mine["thread_id"]))
        async with client(worker, deltas=True) as again:
            asked = {"thread_id": mine["thread_id"], "after_event_id": mine["id"]}
            snapshot = (await again.ask("thread.subscribe", asked))["payload"]
            (event,) = snapshot["events"]
            assert (text_of(event), event["streaming"], snapshot["runs"]) == ("Hello", False, [])


async def test_who_joins_by_writing_gets_no_pieces_that_lack_their_beginning(worker_config: WorkerConfig) -> None:
    model = Model()
    async with streaming(worker_config, model.read) as worker, client(worker, deltas=True) as asking:
        thread_id = await say(asking)
        model.say("Hel")
        await until_written(asking, "Hel")
        async with client(worker, deltas=True) as other:
            await say(other, thread_id)
            model.say("lo")
            model.end()
            frames = await until(other, is_over)
            assert written(frames) == ""
            assert [text_of(event) for event in appended(frames)] == ["Hello"]
            model.say("second")
            model.end()
            assert written(await until(other, is_over)) == "second"


# ---------------------------------------------------------------- how it ends


async def begin(asking: WorkerClient, model: Model) -> str:
    """A stream of which "Hello" is written; the thread it is in."""
    thread_id = await say(asking)
    model.say("Hel", "lo")
    await until_written(asking, "Hello")
    return thread_id


@pytest.mark.parametrize("last", [5, b"bytes", ["text"], ValueError("the model broke")])
async def test_a_stream_that_breaks_keeps_its_text_then_fails_the_run_then_says_so(
    worker_config: WorkerConfig, last: Any
) -> None:
    model = Model()
    async with streaming(worker_config, model.read, "never") as worker, client(worker, deltas=True) as asking:
        thread_id = await begin(asking, model)
        model.say(last)
        frames = await until(asking, lambda frame: appended([frame]) and appended([frame])[0]["actor"] == "system")
        assert [frame["type"] for frame in frames] == ["event.append", "run.upsert", "event.append"]
        kept, notice = appended(frames)
        assert (text_of(kept), kept["data"], kept["streaming"]) == ("Hello", {"incomplete": True}, False)
        run = frames[1]["payload"]["run"]
        assert (run["status"], run["error"]) == ("failed", text_of(notice))
        assert "broke" not in text_of(notice)
        assert [text for _, text, _ in await answers(worker, thread_id)] == ["Hello", text_of(notice)]
        assert model.closed.is_set()


async def test_what_a_stream_raises_is_the_handlers_to_mend(worker_config: WorkerConfig) -> None:
    heard: list[BaseException] = []

    async def breaks(error: Exception) -> AsyncIterator[str]:
        yield "Hello"
        raise error

    async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        for error in (ConnectionError("the first model"), ValueError("the second model")):
            try:
                yield send.stream(breaks(error))
            except (ConnectionError, ValueError) as raised:
                heard.append(raised)
        if incoming.message == "give up":
            raise heard[-1]
        yield send.text("another model's answer")

    worker = WorkerServer(worker_config)
    async with worker.lifespan():
        stream = await worker.dispatch(handler, **WHO, message="go on")
        texts = [event.data["text"] async for event in stream if event.send_type == "text"]
        assert texts == ["Hello", "Hello", "another model's answer"]
        assert [type(error) for error in heard] == [ConnectionError, ValueError]
        assert stream.status == "succeeded"
        again = await worker.dispatch(handler, **WHO, message="give up")
        with pytest.raises(HandlerError) as raised:
            await again.collect()
        assert raised.value.original is heard[-1]
        repository = await worker.repository()
        [run] = await repository.list_runs({"thread_id": again.thread_id})
        assert run.status == "failed"


async def test_a_handler_hears_of_its_own_stop_and_not_of_what_its_stream_says_to_that(
    worker_config: WorkerConfig,
) -> None:
    heard: list[BaseException] = []
    begun = asyncio.Event()

    async def complains() -> AsyncIterator[str]:
        yield "Hello"
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("cut off") from None

    async def handler(send: Any) -> AsyncIterator[Any]:
        try:
            yield send.stream(complains())
        except Exception as error:
            heard.append(error)
        yield send.text("never said")

    worker = WorkerServer(worker_config)
    async with worker.lifespan():
        stream = await worker.dispatch(handler, **WHO, message="go")
        stream.detach()
        await begun.wait()
        assert await worker.cancel(thread_id=stream.thread_id) == 1
        assert [event.data["text"] for event in await stream.collect()] == ["Hello"]
        assert (stream.status, heard) == ("canceled", [])


Stop = Callable[[WorkerServer, WorkerClient, str], Awaitable[Any]]


async def by_frame(worker: WorkerServer, asking: WorkerClient, thread_id: str) -> None:
    assert (await asking.ask("run.cancel", {"thread_id": thread_id}))["payload"]["ok"]


async def by_worker(worker: WorkerServer, asking: WorkerClient, thread_id: str) -> None:
    assert await worker.cancel(thread_id=thread_id) == 1


async def by_close(worker: WorkerServer, asking: WorkerClient, thread_id: str) -> None:
    await worker.close()


@pytest.mark.parametrize("stop", [by_frame, by_worker, by_close])
@pytest.mark.parametrize("bare", [False, True])
async def test_a_stream_that_is_stopped_keeps_its_text_and_its_iterator_is_closed(
    worker_config: WorkerConfig, stop: Stop, bare: bool
) -> None:
    model = Model()
    source = (lambda: Bare(model)) if bare else model.read
    async with streaming(worker_config, source, "never") as worker, client(worker, deltas=True) as asking:
        thread_id = await begin(asking, model)
        await stop(worker, asking, thread_id)
        frames = await until(asking, is_over)
        (kept,) = appended(frames)
        assert (text_of(kept), kept["data"], kept["finalized"]) == ("Hello", {"incomplete": True}, True)
        assert frames[-1]["payload"]["run"]["status"] == "canceled"
        assert model.closed.is_set()
        await wait_for(lambda: not worker.is_answering(thread_id))
        assert await answers(worker, thread_id) == [("assistant", "Hello", {"incomplete": True})]


async def test_a_stream_in_a_thread_that_is_deleted_is_closed_and_tells_nothing_more(
    worker_config: WorkerConfig,
) -> None:
    model = Model()
    async with streaming(worker_config, model.read, "never") as worker, client(worker, deltas=True) as asking:
        thread_id = await begin(asking, model)
        await asking.ask("thread.delete", {"thread_id": thread_id})
        await wait_for(lambda: not worker.is_answering(thread_id))
        await asking.ask("ping")
        assert [frame["type"] for frame in asking.unread] == ["thread.deleted"]
        assert model.closed.is_set()


async def test_a_dispatched_stream_that_is_cancelled_keeps_its_text(worker_config: WorkerConfig) -> None:
    model = Model()
    async with streaming(worker_config, model.read, "never") as worker:
        stream = await worker.dispatch(**WHO, message="go")
        model.say("Hel", "lo")
        got = []
        async for event in stream.events(deltas=True):
            got.append(event.data.get("text"))
            if event.data.get("text") == "lo":
                await stream.cancel()
        assert got == [None, "Hel", "lo", "Hello"]
        assert stream.status == "canceled"
        assert await answers(worker, stream.thread_id) == [("assistant", "Hello", {"incomplete": True})]
        assert model.closed.is_set()


async def test_what_is_iterated_is_closed_and_not_only_what_was_given(worker_config: WorkerConfig) -> None:
    inner, outer = asyncio.Event(), asyncio.Event()

    class Response:
        """As the vendors' libraries have it: an iterable that makes a generator, and a close of its own."""

        async def __aiter__(self) -> AsyncIterator[Any]:
            try:
                yield "Hello"
                yield 5
            finally:
                inner.set()

        async def close(self) -> None:
            outer.set()

    async with streaming(worker_config, Response) as worker, client(worker) as asking:
        await say(asking)
        await until(asking, is_over)
        assert inner.is_set()
        assert outer.is_set()


async def test_a_response_that_was_read_to_its_end_is_closed_too(worker_config: WorkerConfig) -> None:
    closed: list[str] = []

    class Response(Bare):
        def close(self) -> None:
            closed.append("closed")
            raise OSError("the connection is gone")

    model = Model()
    model.say("Hello")
    model.end()
    async with streaming(worker_config, lambda: Response(model), "after") as worker, client(worker) as asking:
        thread_id = await say(asking)
        frames = await until(asking, is_over)
        assert frames[-1]["payload"]["run"]["status"] == "succeeded"
        assert closed == ["closed"]
        assert [text for _, text, _ in await answers(worker, thread_id)] == ["Hello", "after"]


async def hangs_when_closed() -> AsyncIterator[Any]:
    try:
        yield "Hello"
        yield 5
    finally:
        await asyncio.sleep(3600)


async def ignores_being_closed() -> AsyncIterator[Any]:
    try:
        yield "Hello"
        yield 5
    finally:
        yield "more"


async def hangs_when_cancelled() -> AsyncIterator[Any]:
    try:
        yield "Hello"
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(3600)


async def goes_on_when_cancelled() -> AsyncIterator[Any]:
    yield "Hello"
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        while True:
            yield "too late"


async def ends_when_cancelled() -> AsyncIterator[Any]:
    yield "Hello"
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        return


@pytest.mark.parametrize("source", [hangs_when_closed, ignores_being_closed])
async def test_an_iterator_that_does_not_let_itself_be_closed_holds_up_nobody(
    worker_config: WorkerConfig, source: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dooers.steps, "CLOSE_WITHIN", 0.05)
    async with streaming(worker_config, source) as worker, client(worker, deltas=True) as asking:
        thread_id = await say(asking)
        async with asyncio.timeout(1):
            frames = await until(asking, is_over)
        assert frames[-1]["payload"]["run"]["status"] == "failed"
        assert (await answers(worker, thread_id))[0] == ("assistant", "Hello", {"incomplete": True})


@pytest.mark.parametrize("source", [hangs_when_cancelled, goes_on_when_cancelled, ends_when_cancelled])
async def test_an_iterator_that_swallows_its_cancellation_is_ended_all_the_same(
    worker_config: WorkerConfig, source: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with streaming(worker_config, source, "never", teardown_timeout=0.01) as worker:
        async with client(worker, deltas=True) as asking:
            thread_id = await say(asking)
            await until_written(asking, "Hello")
            await asking.ask("run.cancel", {"thread_id": thread_id})
            async with asyncio.timeout(3):
                frames = await until(asking, is_over)
            assert frames[-1]["payload"]["run"]["status"] == "canceled"
            ((actor, text, data),) = await answers(worker, thread_id)
            assert (actor, data) == ("assistant", {"incomplete": True})
            assert text in ("Hello", "Hellotoo late")
            await wait_for(lambda: not worker.is_answering(thread_id))


async def test_of_a_stream_that_is_given_up_the_text_is_kept_and_nothing_comes_after_it(
    worker_config: WorkerConfig,
) -> None:
    released = asyncio.Event()

    async def swallows_everything() -> AsyncIterator[Any]:
        yield "Hello"
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        yield "too late"

    async with streaming(worker_config, swallows_everything, "never", teardown_timeout=0.01) as worker:
        async with client(worker, deltas=True) as asking:
            thread_id = await say(asking)
            await until_written(asking, "Hello")
            await asking.ask("run.cancel", {"thread_id": thread_id})
            async with asyncio.timeout(4):
                frames = await until(asking, is_over)
            assert [text_of(event) for event in appended(frames)] == ["Hello"]
            assert frames[-1]["payload"]["run"]["status"] == "canceled"
            released.set()
            await asyncio.sleep(0.05)
            await asking.ask("ping")
            assert asking.unread == []
            assert await answers(worker, thread_id) == [("assistant", "Hello", {"incomplete": True})]


# ---------------------------------------------------------------- many pieces, slow readers


async def test_an_iterator_that_never_waits_keeps_nobody_from_being_served(worker_config: WorkerConfig) -> None:
    async def endless() -> AsyncIterator[Any]:
        while True:
            yield None

    async with streaming(worker_config, endless) as worker, client(worker) as asking, client(worker) as other:
        thread_id = await say(asking)
        async with asyncio.timeout(1):
            assert (await other.ask("ping"))["type"] == "pong"
            assert await worker.cancel(thread_id=thread_id) == 1
            assert (await until(asking, is_over))[-1]["payload"]["run"]["status"] == "canceled"


async def test_many_pieces_are_gathered_into_few_frames_with_the_same_text(worker_config: WorkerConfig) -> None:
    async def many() -> AsyncIterator[Any]:
        for number in range(5000):
            yield f"{number} "

    async with streaming(worker_config, many) as worker, client(worker, deltas=True) as asking:
        thread_id = await say(asking)
        frames = await until(asking, is_over)
        text = "".join(f"{number} " for number in range(5000))
        assert written(frames) == text
        assert len([frame for frame in frames if is_delta(frame)]) < 500
        assert await answers(worker, thread_id) == [("assistant", text, None)]


@pytest.mark.parametrize("bound", ["frames", "bytes"])
@pytest.mark.parametrize(("dialect", "deltas"), [("flat", True), ("agents", False)])
async def test_a_slow_reader_does_without_pieces_and_gets_the_whole_while_others_notice_nothing(
    worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch, bound: str, dialect: str, deltas: bool
) -> None:
    monkeypatch.setattr(dooers.steps, "DELTA_EVERY", 0)
    monkeypatch.setattr(dooers.steps, "APPEND_EVERY", 0)
    limits: dict[str, Any] = {"outbox_frames": 16} if bound == "frames" else {"outbox_bytes": 65536}
    size = 1 if bound == "frames" else 200
    model = Model()
    async with streaming(worker_config, model.read, **limits) as worker:
        async with client(worker, deltas=True) as asking, client(worker, dialect, deltas=deltas) as slow:
            thread_id = await say(asking)
            await slow.ask("thread.subscribe", {"thread_id": thread_id})
            slow.socket.reading.clear()
            said = [str(number % 10) * size for number in range(100)]
            frames: list[Frame] = []
            for piece in said:
                model.say(piece)
                frames += await until(asking, is_delta)
            model.end()
            frames += await until(asking, is_over)
            assert written(frames) == "".join(said)
            slow.socket.reading.set()
            late = await until(slow, is_over)
            final = appended(late)[-1]
            assert (text_of(final), final["finalized"]) == ("".join(said), True)
            assert len(late) < len(frames)
            assert "".join(said).startswith(written(late)), "what it got of the pieces has no hole"


# ---------------------------------------------------------------- the second door


async def test_a_dispatch_that_asks_for_no_pieces_gets_one_text(worker_config: WorkerConfig) -> None:
    model = Model()
    for _ in range(2):
        model.say("Hel", "lo")
        model.end()
    async with streaming(worker_config, model.read, "after", before=("before",)) as worker:
        expected = [("run_start", None), ("text", "before"), ("text", "Hello"), ("text", "after")]
        stream = await worker.dispatch(**WHO, message="go")
        assert [(event.send_type, event.data.get("text")) async for event in stream] == expected
        stream = await worker.dispatch(**WHO, message="go")
        events = await stream.collect()
        assert [(event.send_type, event.data.get("text")) for event in events] == expected
        assert [event.event.seq for event in events if event.event is not None] == [2, 3, 4]
        assert events[2].data == {"text": "Hello", "author": "Bot"}


async def test_a_dispatch_that_asks_for_pieces_gets_them_before_the_text(worker_config: WorkerConfig) -> None:
    model = Model()
    model.say("Hel", None, "l\x00o")
    model.end()
    async with streaming(worker_config, model.read, "after") as worker:
        stream = await worker.dispatch(**WHO, message="go")
        events = [event async for event in stream.events(deltas=True)]
        assert [(event.send_type, event.data.get("text")) for event in events] == [
            ("run_start", None),
            ("delta", "Hel"),
            ("delta", "lo"),
            ("text", "Hello"),
            ("text", "after"),
        ]
        whole = events[3].event
        assert whole is not None
        assert {event.data["event_id"] for event in events if event.send_type == "delta"} == {whole.id}
        assert [event.send_type for event in await stream.collect()] == ["run_start", "text", "text"]
        assert [event.send_type async for event in stream] == ["run_start", "text", "text"]


async def test_a_handler_goes_on_after_its_stream_only_when_the_caller_does(worker_config: WorkerConfig) -> None:
    done: list[str] = []

    async def model() -> AsyncIterator[str]:
        for piece in "abc":
            yield piece
        done.append("streamed")

    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.text("before")
        done.append("before")
        yield send.stream(model())
        done.append("after")
        yield send.text("after")

    worker = WorkerServer(worker_config)
    async with worker.lifespan():
        seen = []
        async for event in await worker.dispatch(handler, **WHO, message="go"):
            seen.append((event.data["text"], list(done)))
            await asyncio.sleep(0.01)
        assert seen == [("before", []), ("abc", ["before", "streamed"]), ("after", ["before", "streamed", "after"])]


async def test_the_history_has_a_streamed_message_as_soon_as_the_handler_goes_on(worker_config: WorkerConfig) -> None:
    async def model() -> AsyncIterator[str]:
        yield "Hel"
        yield "lo"

    async def handler(send: Any, memory: Any) -> AsyncIterator[Any]:
        yield send.stream(model())
        history = await memory.get_history()
        yield send.text(history[-1]["content"])

    worker = WorkerServer(worker_config)
    async with worker.lifespan():
        events = await (await worker.dispatch(handler, **WHO, message="go")).collect()
        assert [event.data["text"] for event in events] == ["Hello", "Hello"]


async def test_a_stream_of_a_list_fails_the_turn_and_says_what_to_use_instead(worker_config: WorkerConfig) -> None:
    async def handler(send: Any) -> AsyncIterator[Any]:
        yield send.stream(["a", "b"])

    worker = WorkerServer(worker_config)
    async with worker.lifespan():
        stream = await worker.dispatch(handler, **WHO, message="go")
        with pytest.raises(HandlerError, match=r"for a list use send\.text") as raised:
            await stream.collect()
        assert isinstance(raised.value.original, InvalidValueError)
        assert stream.status == "failed"
