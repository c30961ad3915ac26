"""The test kit: what a worker's author writes tests with."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dooers import (
    AuthRequest,
    ClosingError,
    DisconnectedError,
    Identity,
    ImagePart,
    NotFoundError,
    SettingsField,
    SettingsFieldType,
    SettingsSchema,
    ThreadBusyError,
    UnauthenticatedError,
    WorkerConfig,
    WorkerServer,
)
from dooers.testing import (
    Appended,
    Closed,
    Delta,
    ExpectationError,
    FakeModel,
    Gate,
    Looked,
    Reconnected,
    Reply,
    RunChanged,
    ToolUse,
    WorkerClient,
    assert_events,
    assert_succeeded,
    image,
    isolated,
    notice,
    text,
    tool_call,
    tool_result,
)


def make_worker(**config: Any) -> WorkerServer:
    worker = WorkerServer(WorkerConfig(**{"database_type": "memory", **config}))

    @worker.provide
    def model() -> FakeModel:
        return FakeModel(otherwise="no script")

    @worker.handler
    async def agent(incoming: Any, send: Any, model: FakeModel) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.stream(model.stream(incoming.message))

    @worker.handler("plain")
    async def plain(incoming: Any) -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(0.05)
        yield "two"

    @worker.handler("tools")
    async def tools(send: Any, model: FakeModel) -> AsyncIterator[Any]:
        answer = await model("find cats")
        for tool in answer.tools:
            yield send.tool_call(tool.name, dict(tool.args), id=tool.id)
            yield send.tool_result(tool.name, {"found": 3, "of": [1, 2]}, id=tool.id)
        yield f"{answer}I found 3."

    @worker.handler("picture")
    async def picture(send: Any) -> AsyncIterator[Any]:
        yield send.image("https://example.org/cat.png", alt="a cat")

    @worker.handler("silent")
    async def silent() -> AsyncIterator[Any]:
        return
        yield

    return worker


@pytest.fixture
async def worker() -> AsyncIterator[WorkerServer]:
    made = make_worker()
    yield made
    await made.close()


# ---------------------------------------------------------------- a reply


async def test_a_reply_has_what_the_turn_has_shown(worker: WorkerServer) -> None:
    with worker.override(model=FakeModel([FakeModel.tool("search", q="cats", limit=3), "Well. "])):
        async with WorkerClient(worker, handler="tools") as client:
            reply = await client.say("find cats")
    assert reply.tools == [
        ToolUse("search", {"q": "cats", "limit": 3}, {"found": 3, "of": [1, 2]}, True, "call-1-1"),
    ]
    assert (reply.text, reply.texts, reply.status, reply.error, reply.run) == (
        "Well. I found 3.",
        ["Well. I found 3."],
        "succeeded",
        None,
        None,
    )
    assert repr(reply) == (
        "<Reply succeeded; text 'Well. I found 3.'; tool search(q='cats', limit=3) -> {'found': 3, 'of': [1, 2]}>"
    )


async def test_a_reply_ends_with_its_turn_also_where_the_handler_opens_no_run(worker: WorkerServer) -> None:
    async with WorkerClient(worker, handler="plain") as client:
        async with asyncio.timeout(0.9):  # well below the second of silence that a socket has to go by
            reply = await client.say("hi")
            assert reply.texts == ["one", "two"]
            updates = [update async for update in client.stream("hi", reply.thread_id)]
        assert [update.event.text for update in updates if isinstance(update, Appended)] == ["hi", "one", "two"]


async def test_a_handler_that_shows_nothing_has_a_reply_all_the_same(worker: WorkerServer) -> None:
    async with WorkerClient(worker, handler="silent") as client:
        reply = await client.say("hi")
    assert (reply.text, reply.status, reply.run is not None) == ("", "succeeded", True)


async def test_a_failed_turn_is_a_reply_with_its_error(worker: WorkerServer) -> None:
    with worker.override(model=FakeModel(["Half an ", RuntimeError("not for people")])):
        async with WorkerClient(worker) as client:
            reply = await client.say("hi")
    assert reply.status == "failed"
    assert reply.error is not None
    assert reply.error.startswith("Something went wrong")
    assert "not for people" not in repr(reply)
    assert_events(reply, [text("Half an ", data={"incomplete": True}), notice(re.compile("went wrong"))])
    with pytest.raises(AssertionError, match="the turn failed: Something went wrong"):
        assert_succeeded(reply)


async def test_two_turns_in_one_thread_have_each_their_own_reply() -> None:
    worker = make_worker(turn_order="parallel")
    gate = Gate()
    script: dict[str, Any] = {"slow": ["slow ", gate, "answer"], "fast": "fast answer"}
    with worker.override(model=FakeModel(otherwise=lambda said: script[said])):
        async with WorkerClient(worker) as ana, ana.as_(user_id="bob") as bob:
            slow = asyncio.create_task(ana.say("slow", None))
            await gate.reached()
            thread_id = (await bob.threads()).items[0].id
            fast = await bob.say("fast", thread_id)
            gate.open()
            assert (fast.text, (await slow).text) == ("fast answer", "slow answer")
    await worker.close()


async def test_a_refused_message_raises_the_error_of_its_code() -> None:
    worker = make_worker(turn_order="reject")
    gate = Gate()
    with worker.override(model=FakeModel([gate, "done"])):
        async with WorkerClient(worker) as client:
            first = asyncio.create_task(client.say("hi"))
            await gate.reached()
            with pytest.raises(ThreadBusyError):
                await client.say("again", (await client.threads()).items[0].id)
            with pytest.raises(NotFoundError):
                await client.say("hi", "no-such-thread")
            gate.open()
            assert (await first).text == "done"
    await worker.close()


async def test_content_goes_with_the_text(worker: WorkerServer) -> None:
    async with WorkerClient(worker, handler="picture") as client:
        reply = await client.say("look", content=[ImagePart("https://example.org/a.png")], data={"from": "test"})
        mine = (await client.history(reply.thread_id)).items[0]
        assert [part.type for part in mine.content] == ["text", "image"]
        assert mine.data == {"from": "test"}
        assert_events(reply, [image("https://example.org/cat.png", alt="a cat")])


async def test_a_repeat_gets_the_first_answer_and_runs_nothing(worker: WorkerServer) -> None:
    model = FakeModel("once")
    with worker.override(model=model):
        async with WorkerClient(worker) as client:
            first = await client.say("hi", client_event_id="key-1")
            again = await client.say("hi", client_event_id="key-1")
    assert (again.thread_id, again.event_id) == (first.thread_id, first.event_id)
    model.assert_done()


# ---------------------------------------------------------------- as it happens


async def test_pieces_come_as_the_model_says_them(worker: WorkerServer) -> None:
    gate = Gate()
    with worker.override(model=FakeModel(["Once ", gate, "upon a time"])):
        async with WorkerClient(worker, deltas=True) as client:
            answer = client.stream("tell")
            async for update in answer:
                if isinstance(update, Delta):
                    assert (update.text, update.whole) == ("Once ", "Once ")
                    break
            gate.open()
            rest = [update async for update in answer]
    assert [update.text for update in rest if isinstance(update, Delta)] == ["upon a time"]
    assert [update.run.status for update in rest if isinstance(update, RunChanged)] == ["succeeded"]


async def test_an_answer_is_stopped_and_keeps_what_was_said(worker: WorkerServer) -> None:
    gate = Gate()
    with worker.override(model=FakeModel(["Once ", gate, "never"])):
        async with WorkerClient(worker) as client:
            saying = asyncio.create_task(client.say("tell"))
            await gate.reached()
            await client.cancel(thread_id=(await client.threads()).items[0].id)
            reply = await saying
    assert (reply.text, reply.status) == ("Once ", "canceled")


async def test_a_client_that_comes_back_sees_the_rest(worker: WorkerServer) -> None:
    gate = Gate()
    with worker.override(model=FakeModel(["Once ", gate, "upon a time"])):
        async with WorkerClient(worker, deltas=True) as client:
            answer = client.stream("tell")
            pieces = ""
            async for update in answer:
                if isinstance(update, Delta):
                    pieces += update.text
                    break
            await client.reconnect()
            gate.open()
            rest = [update async for update in answer]
            pieces += "".join(update.text for update in rest if isinstance(update, Delta))
    assert pieces == "Once upon a time"
    assert [type(update) for update in rest].count(Reconnected) == 1


async def test_another_process_of_the_same_client_watches(worker: WorkerServer) -> None:
    gate = Gate()
    with worker.override(model=FakeModel(["Once ", gate, "upon a time"])):
        async with WorkerClient(worker, deltas=True) as ana, ana.as_() as window:
            saying = asyncio.create_task(ana.say("tell"))
            await gate.reached()
            watching = window.watch((await window.threads()).items[0].id)
            assert isinstance(await anext(watching), Looked)
            gate.open()
            seen = [update async for update in watching]
            assert "".join(update.text for update in seen if isinstance(update, Delta)) == "Once upon a time"
            await saying


# ---------------------------------------------------------------- several people, and who they are


async def test_a_second_client_is_somebody_else_of_the_same_worker() -> None:
    worker = make_worker(private_threads=True)
    async with WorkerClient(worker, user_id="ana", deltas=True) as ana, ana.as_(user_id="bob") as bob:
        reply = await ana.say("hi")
        assert (await bob.threads()).items == []
        with pytest.raises(NotFoundError):
            await bob.history(reply.thread_id)
        assert [thread.id for thread in (await ana.threads()).items] == [reply.thread_id]
    await worker.close()


async def test_who_is_refused_hears_it_as_everywhere(worker: WorkerServer) -> None:
    @worker.authenticate
    async def authenticate(request: AuthRequest) -> Identity | None:
        return request.claims if request.auth_token == "right" else None

    async with WorkerClient(worker, auth_token="right") as client:
        assert_succeeded(await client.say("hi"))
        with pytest.raises(UnauthenticatedError):
            await client.as_(auth_token="wrong").__aenter__()


async def test_threads_history_feedback_and_settings_are_typed() -> None:
    schema = SettingsSchema(
        fields=[SettingsField(id="model", type=SettingsFieldType.TEXT, value="small", label="Model")]
    )
    worker = make_worker(settings_schema=schema)
    async with WorkerClient(worker) as client:
        replies = [await client.say(f"n{number}") for number in range(3)]
        page = await client.threads(limit=2)
        assert (len(page.items), page.total) == (2, 3)
        assert len((await client.threads(cursor=page.cursor)).items) == 1
        history = await client.history(replies[0].thread_id, limit=1)
        assert [event.text for event in history.items] == ["no script"]
        assert [e.text for e in (await client.history(replies[0].thread_id, before=history.cursor)).items] == ["n0"]
        await client.feedback(history.items[0].id, "like", reason="good")
        assert (await client.settings()).values == {"model": "small"}
        await client.patch("model", "large")
        assert (await client.settings()).values == {"model": "large"}
        await client.rename(replies[1].thread_id, "Cats and dogs")
        assert [thread.title for thread in (await client.threads("CATS")).items] == ["Cats and dogs"]
        await client.delete(replies[0].thread_id)
        assert (await client.threads()).total == 2
    await worker.close()


# ---------------------------------------------------------------- single frames


async def test_expect_shows_what_came_instead(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        client.post("event.create", {"event": {"content": [{"type": "text", "text": "hi"}]}})
        with pytest.raises(ExpectationError) as raised:
            await client.expect("run.upsert", run={"status": "failed"}, within=0.3)
    said = str(raised.value)
    assert said.startswith("expected run.upsert run={'status': 'failed'} within 0.3 s; what came:\n  thread.upsert {")
    assert "(run.status: expected 'failed', got 'running')" in said
    assert isinstance(raised.value, TimeoutError)


async def test_expect_takes_the_frame_whose_fields_fit(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        client.post("event.create", {"event": {"content": [{"type": "text", "text": "hi"}]}})
        frame = await client.expect("run.upsert", run={"status": "succeeded", "id": str})
        assert frame["payload"]["run"]["status"] == "succeeded"


async def test_frames_that_nobody_reads_stay_until_a_reply_has_them(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client, client.as_(user_id="bob") as bob:
        await bob.say("a thread of bob's")
        await client.ask("ping")
        assert [frame["type"] for frame in client.unread] == ["thread.upsert"]
        reply = await client.say("mine")
        assert client.unread == []
        assert reply.frames[0]["type"] == "run.upsert"


async def test_a_worker_that_closes_is_told_in_both_ways(worker: WorkerServer) -> None:
    async with WorkerClient(worker) as client:
        await worker.close()
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == 1012
        with pytest.raises((DisconnectedError, ClosingError)):
            await client.say("hi")


# ---------------------------------------------------------------- a database of its own


async def test_an_isolated_worker_leaves_its_database_alone(tmp_path: Path) -> None:
    real = tmp_path / "real.db"
    worker = make_worker(database_type="sqlite", database_name=str(real))
    async with WorkerClient(worker) as client:
        await client.say("real")
    for _ in range(2):
        async with isolated(worker), WorkerClient(worker) as client:
            assert (await client.threads()).items == []
            await client.say("of a test")
    assert worker.config.database_name == str(real)
    async with WorkerClient(worker) as client:
        [thread] = (await client.threads()).items
        assert (await client.history(thread.id)).items[0].text == "real"
    await worker.close()


async def test_an_isolated_worker_is_as_it_was_after_an_error(tmp_path: Path) -> None:
    worker = make_worker(database_type="sqlite", database_name=str(tmp_path / "real.db"))
    with pytest.raises(RuntimeError, match="of the test"):
        async with isolated(worker, max_content_parts=1):
            assert worker.config.max_content_parts == 1
            raise RuntimeError("of the test")
    assert worker.config.database_type == "sqlite"
    assert worker.config.max_content_parts > 1
    await worker.close()


# ---------------------------------------------------------------- the fake model


async def test_a_script_is_said_in_order_and_the_calls_are_kept() -> None:
    model = FakeModel("one", ["t", "wo"], lambda question: f"you asked {question}")
    assert [await model("a"), await model("b", temperature=0), await model("c")] == ["one", "two", "you asked c"]
    assert [call.args for call in model.calls] == [("a",), ("b",), ("c",)]
    assert model.calls[1].kwargs == {"temperature": 0}
    assert model.last.args == ("c",)
    model.assert_done()


async def test_beyond_its_script_a_model_fails_and_says_what_it_was_asked() -> None:
    model = FakeModel("one")
    with pytest.raises(AssertionError, match="1 of the 1 answers in the script were not asked for"):
        model.assert_done()
    await model("a")
    with pytest.raises(AssertionError, match=r"asked for answer 2; its script has 1. It was asked: \('b',\)"):
        await model("b")
    with pytest.raises(AssertionError, match="asked 2 times; its script has 1"):
        model.assert_done()


async def test_a_model_fails_where_its_script_says_so() -> None:
    model = FakeModel(["one ", ValueError("broken")], TimeoutError, 5)  # type: ignore[arg-type]
    pieces = []
    with pytest.raises(ValueError, match="broken"):
        async for piece in model.stream():
            pieces.append(piece)
    assert pieces == ["one "]
    with pytest.raises(TimeoutError):
        await model()
    with pytest.raises(TypeError, match="a script has texts, tools"):
        await model()


# ---------------------------------------------------------------- saying what is expected


async def shown(worker: WorkerServer) -> Reply:
    with worker.override(model=FakeModel([FakeModel.tool("search", q="dogs", limit=3)])):
        async with WorkerClient(worker, handler="tools") as client:
            return await client.say("find")


async def test_events_fit_by_what_is_named(worker: WorkerServer) -> None:
    reply = await shown(worker)
    assert_events(reply, [tool_call("search", q="dogs"), tool_result("search", {"found": int}), "I found 3."])
    assert_events(reply, [tool_call(), ..., text(re.compile("found \\d"))])
    assert_events(reply, [...])
    assert_events(reply, [..., tool_result(result={"of": [1, ...]}), ...])
    assert_events(reply.events[:1], [tool_call("search", limit=3, q=re.compile("^d"))])


async def test_a_difference_is_shown_line_by_line(worker: WorkerServer) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_events(
            await shown(worker),
            ["Hello", tool_call("search", q="cats"), tool_result("search"), text("I found 3.", author="Bot")],
        )
    assert str(raised.value) == (
        "the events are not as expected (- expected, + came):\n"
        "  - text 'Hello'\n"
        "  - tool_call 'search' args={'q': 'cats'}\n"
        "  + tool_call 'search' args={'q': 'dogs', 'limit': 3}    <- args.q: expected 'cats', got 'dogs'\n"
        "    tool_result 'search' result={'found': 3, 'of': [1, 2]}\n"
        "  - text 'I found 3.' author='Bot'\n"
        "  + text 'I found 3.' author='Assistant'    <- author: expected 'Bot', got 'Assistant'"
    )


async def test_what_is_no_expectation_is_told(worker: WorkerServer) -> None:
    with pytest.raises(TypeError, match=r"expected text\(...\), tool_call"):
        assert_events(await shown(worker), [5])


def test_the_web_socket_library_is_not_needed_for_tests() -> None:
    code = "import sys; sys.modules['websockets'] = None; import dooers.testing, dooers.client"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(__file__).parent.parent)})
