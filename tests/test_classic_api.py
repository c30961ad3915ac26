"""Every code block of docs/classic-api.md, run against a real worker on a SQLite file, and what the page says around them.

Complete programs run as they are. Fragments are made runnable by these rules, and by no others:

1. `name?` in a call says that this parameter may be left out. Such a block is run in three readings: "in order" (all given, by
   place), "left out" (none of the marked ones given) and "by name" (the bare names at the end of such a call given as keywords).
2. `[...]` becomes `[*given]` and `(...)` becomes `(**given)`. What is given, and what the names stand for that a fragment uses
   without defining them, is said by its test.
3. A line `some.attribute   # type — words` becomes a check that the attribute is of that type.
4. A fragment about what a handler is given runs inside a handler; one that yields is the handler's body.
5. The paragraphs of a listing stand by themselves: `thread_id` is a thread that is there, also after a line that removed it.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace, UnionType
from typing import Any, get_args, get_origin

import attrs
import httpx
import pytest
from fakes import Vendors, chat, serving, vendors
from fastapi import Request
from snippets import ROOT, blocks, run, run_each

import dooers
from dooers import (
    ContentPart,
    DispatchError,
    DocumentPart,
    HandlerError,
    ImagePart,
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    TextPart,
    Thread,
    ThreadEvent,
    WorkerConfig,
    WorkerServer,
)
from dooers.testing import WorkerClient

PAGE = {block.key: block for block in blocks("docs/classic-api.md")}
PROSE = (ROOT / "docs/classic-api.md").read_text(encoding="utf-8")
RUN: set[tuple[str, int]] = set()

PNG = "data:image/png;base64,iVBORw0KGgo="


def runs(heading: str, position: int = 0) -> pytest.MarkDecorator:
    """Give a test the text of a block of the page, and count the block as covered."""
    block = PAGE[heading, position]
    RUN.add(block.key)
    return pytest.mark.parametrize("code", [pytest.param(block.text, id=re.sub(r"\W+", "-", heading.lower()))])


in_every_reading = pytest.mark.parametrize("reading", ["in order", "left out", "by name"])


def test_every_block_of_the_page_is_run_by_a_test_here() -> None:
    assert set(PAGE) == RUN


# ---------------------------------------------------------------- the rules


_MARK = "__optional"


class _Reading(ast.NodeTransformer):
    """Rules 1 and 2."""

    def __init__(self, reading: str) -> None:
        self.reading = reading

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if [ast.dump(argument) for argument in node.args] == ["Constant(value=Ellipsis)"]:
            node.args, node.keywords = [], [ast.keyword(None, ast.Name("given"))]
        marked = {a.id for a in node.args if isinstance(a, ast.Name) and a.id.endswith(_MARK)}
        if not marked:
            return node
        if self.reading == "left out":
            node.args = [a for a in node.args if not (isinstance(a, ast.Name) and a.id in marked)]
        for argument in node.args:
            if isinstance(argument, ast.Name):
                argument.id = argument.id.removesuffix(_MARK)
        if self.reading == "by name":
            while node.args and isinstance(last := node.args[-1], ast.Name):
                node.args.pop()
                node.keywords.insert(0, ast.keyword(last.id, last))
        return node

    def visit_List(self, node: ast.List) -> ast.AST:
        self.generic_visit(node)
        if [ast.dump(item) for item in node.elts] == ["Constant(value=Ellipsis)"]:
            node.elts = [ast.Starred(ast.Name("given"))]
        return node


def program(code: str, reading: str = "in order") -> str:
    """A fragment as a program, by rules 1 to 3."""
    code = re.sub(r"(?m)^([a-z_]+(?:\.\w+)+) +# (.+?)(?: —.*)?$", r'expect(\1, "\2")', code)
    code = re.sub(r"(\w)\?(?=[,)])", rf"\1{_MARK}", code)
    return ast.unparse(ast.fix_missing_locations(_Reading(reading).visit(ast.parse(code))))


def handler_of(code: str, namespace: dict[str, Any]) -> Any:
    """A program as the body of a handler, by rule 4."""
    exec(f"async def handler(incoming, send, memory, analytics, settings):\n{indent(code, '    ')}", namespace)
    return namespace["handler"]


def expect(value: Any, expected: str) -> None:
    """Rule 3: the value is of the type that the page's comment says."""
    assert fits(value, eval(expected, {"datetime": datetime, "ContentPart": ContentPart})), (value, expected)


def fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType) or (get_origin(hint) is not list and get_args(hint)):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return type(value) is list and all(fits(item, get_args(hint)[0]) for item in value)
    return value is None if hint in (None, type(None)) else isinstance(value, hint)


def test_the_readings_of_a_marked_call_are_what_the_rules_say() -> None:
    code = "f(a, b?, c?)\ng('x', y, z?)\nh([...], k=...)\ni(...)\no.p   # str — words"
    tail = "\nh([*given], k=...)\ni(**given)\nexpect(o.p, 'str')"
    assert program(code) == "f(a, b, c)\ng('x', y, z)" + tail
    assert program(code, "left out") == "f(a)\ng('x', y)" + tail
    assert program(code, "by name") == "f(a=a, b=b, c=c)\ng('x', y=y, z=z)" + tail


# ---------------------------------------------------------------- what the tests stand on


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOST", "PORT", "USER", "NAME", "PASSWORD", "KEY", "SSL"):
        monkeypatch.delenv(f"WORKER_DATABASE_{name}", raising=False)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[WorkerServer]:
    config = {"database_type": "sqlite", "database_name": "test.db", "assistant_name": "My Assistant", **options}
    worker = WorkerServer(WorkerConfig(**config))
    async with worker.lifespan():
        yield worker


async def echo(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> AsyncIterator[Any]:
    yield send.run_start()
    yield send.text(f"You said: {incoming.message}")
    yield send.run_end()


WHO: dict[str, Any] = {"worker_id": "w1", "organization_id": "org1", "workspace_id": "ws1", "user_id": "u1"}


async def stored(worker: WorkerServer, thread_id: str, limit: int = 50) -> list[ThreadEvent]:
    repository = await worker.repository()
    return await repository.list_events(filter={"thread_id": thread_id}, order={"direction": "asc"}, limit=limit)


# ---------------------------------------------------------------- install, how it works


@runs("Install")
def test_the_install_line_names_this_distribution(code: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert code.split() == ["pip", "install", "dooers-workers-server"]
    assert 'name = "dooers-workers-server"' in project
    # "Requires the cosmos extra: `pip install dooers-workers-server[cosmos]`"
    assert re.findall(r"pip install (\S+)\[(\w+)\]`", PROSE) == [("dooers-workers-server", "cosmos")]
    assert re.search(r"(?m)^cosmos = \[", project)


@runs("How It Works")
async def test_the_handler_gets_the_same_parameters_through_both_doors(code: str) -> None:
    for method in re.findall(r"worker_server\.(\w+)\(\)", code):
        assert inspect.iscoroutinefunction(getattr(WorkerServer, method))
    (names,) = re.findall(r"handler\((.+?)\)", code)
    seen: list[dict[str, Any]] = []
    namespace: dict[str, Any] = {"seen": seen}
    exec(f"async def handler({names}):\n    seen.append(dict(locals()))\n    yield send.text('same')", namespace)
    async with opened() as worker:
        async with WorkerClient(worker, handler=namespace["handler"], **WHO) as client:
            assert (await client.say("hi")).texts == ["same"]
        stream = await worker.dispatch(handler=namespace["handler"], message="hi", **WHO)
        events = await stream.collect()
    assert [(event.send_type, event.data["text"]) for event in events] == [("text", "same")]
    live, dispatched = seen
    assert list(live) == list(dispatched) == names.split(", ")
    assert [type(value) for value in live.values()] == [type(value) for value in dispatched.values()]
    assert live["incoming"].content == dispatched["incoming"].content
    assert live["incoming"].context.identity == dispatched["incoming"].context.identity


# ---------------------------------------------------------------- the quick starts


@asynccontextmanager
async def quick_start(monkeypatch: pytest.MonkeyPatch, *program: str) -> AsyncIterator[tuple[str, Vendors, Any]]:
    """The quick start, served: its address, the vendor that it talks to, and its names."""
    async with vendors(monkeypatch) as fake:
        namespace: dict[str, Any] = {"Request": Request}
        for text in program:
            await run(text, namespace)
        try:
            async with serving(namespace["app"]) as address:
                yield address, fake, SimpleNamespace(**namespace)
        finally:
            await namespace["worker_server"].close()
            await namespace["openai"].close()


@runs("Quick Start — WebSocket")
async def test_the_quick_start_answers_a_browser_with_what_the_model_says(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with quick_start(monkeypatch, code) as (address, fake, names), chat(f"ws://{address}/ws", **WHO) as browser:
        frames = await browser.say("What is the capital of Portugal? " + "x" * 60)
        thread_id = next(frame["payload"]["thread"]["id"] for frame in frames if frame["type"] == "thread.upsert")
        question = "What is the capital of Portugal? " + "x" * 60

        # The fake got the system message and the history, through the real library.
        assert fake.last.path == "/v1/chat/completions"
        assert fake.last.body["model"] == "gpt-4o-mini"
        assert fake.last.body["messages"] == [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
        ]
        # The browser got the turn.
        assert [frame["type"] for frame in frames] == [
            "thread.upsert",
            "event.append",
            "ack",
            "run.upsert",
            "event.append",
            "thread.upsert",
            "run.upsert",
        ]
        answer = frames[4]["payload"]["events"][0]
        assert answer["content"] == [{"type": "text", "text": fake.reply}]
        assert (answer["actor"], answer["author"]) == ("assistant", "My Assistant")
        assert frames[5]["payload"]["thread"]["title"] == question[:60]

        # The next message brings the whole conversation along, cut to twenty messages.
        await browser.say("And of Spain?", thread_id)
        assert fake.last.body["messages"] == [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": fake.reply},
            {"role": "user", "content": "And of Spain?"},
        ]
        for number in range(10):
            await browser.say(f"More {number}", thread_id)
        roles = [message["role"] for message in fake.last.body["messages"]]
        assert roles == ["system", *["assistant", "user"] * 10]
        assert fake.last.body["messages"][-1] == {"role": "user", "content": "More 9"}

        events = await stored(names.worker_server, thread_id)
        assert [event.actor for event in events] == ["user", "assistant"] * 12
    assert (tmp_path / "worker.db").is_file()


@runs("Quick Start — Dispatch")
async def test_the_webhook_of_the_quick_start_answers_over_http_with_the_same_handler(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app_above = PAGE["Quick Start — WebSocket", 0].text
    async with quick_start(monkeypatch, app_above, code) as (address, fake, names):
        browser_of = {"worker_id": "worker-1", "organization_id": "org-1", "workspace_id": "ws-1", "user_id": "u2"}
        async with chat(f"ws://{address}/ws", **browser_of) as browser, httpx.AsyncClient(trust_env=False) as http:

            async def post(**body: Any) -> Any:
                response = await http.post(f"http://{address}/api/webhook", json=body)
                assert response.status_code == 200
                return response.json()

            first = await post(text="Where is my parcel?", user_id="alice")
            assert first["is_new"] is True
            assert fake.last.body["messages"][1:] == [{"role": "user", "content": "Where is my parcel?"}]
            assert capsys.readouterr().out == f"{fake.reply}\n"
            # Whoever sits in front of a browser sees the thread come, under the title it was given.
            thread = (await browser.until("thread.upsert"))["thread"]
            assert (thread["id"], thread["title"]) == (first["thread_id"], "Webhook conversation")
            assert (thread["user_id"], thread["owner"]["user_name"]) == ("alice", "Alice")

            second = await post(text="And now?", user_id="alice", thread_id=first["thread_id"])
            assert second == {"thread_id": first["thread_id"], "is_new": False}
            assert [message["role"] for message in fake.last.body["messages"]] == [
                "system",
                "user",
                "assistant",
                "user",
            ]
        events = await stored(names.worker_server, first["thread_id"])
        assert [event.text for event in events] == ["Where is my parcel?", fake.reply, "And now?", fake.reply]


# ---------------------------------------------------------------- the handler


@runs("Handler")
async def test_a_handler_is_a_function_of_the_five_whatever_stands_for_its_dots(code: str) -> None:
    async with opened() as worker:
        silent: dict[str, Any] = {}
        await run(code, silent)
        speaking: dict[str, Any] = {}
        await run(code.replace("...", "yield send.text(incoming.message.upper())"), speaking)
        for namespace, expected in ((silent, []), (speaking, ["HI"])):
            stream = await worker.dispatch(handler=namespace["agent_handler"], message="hi", **WHO)
            assert [event.data["text"] for event in await stream.collect()] == expected
            async with WorkerClient(worker, handler=namespace["agent_handler"], **WHO) as client:
                assert (await client.say("hi")).texts == expected


@runs("incoming")
async def test_incoming_has_every_attribute_of_the_page_in_the_type_of_the_page(code: str) -> None:
    namespace: dict[str, Any] = {"expect": expect}
    checks = program(code)
    assert checks.count("expect(") == len(code.split("\n\n")[0].splitlines()) + len(code.split("\n\n")[1].splitlines())
    seen: list[Any] = []
    inner = handler_of(checks, namespace)

    async def handler(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> None:
        await inner(incoming, send, memory, analytics, settings)
        seen.append(incoming)

    who: dict[str, Any] = {"user_name": "Alice", "user_email": "alice@example.com", "user_role": "member"}
    content: list[Any] = [
        TextPart("Look: "),
        {"type": "image", "url": PNG, "mime_type": "image/png"},
        TextPart("what is it?"),
    ]
    async with opened() as worker:
        stream = await worker.dispatch(handler=handler, content=content, thread_title="Title", **WHO, **who)
        await stream.collect()
        full = seen[-1]
        async with WorkerClient(worker, handler=handler, **WHO) as client:
            reply = await client.say("hi")
        bare = seen[-1]
        thread = await (await worker.repository()).get_thread(stream.thread_id)

    assert thread is not None
    assert full.message == "Look: \nwhat is it?"  # the extracted text; the image is in the content only
    assert full.content == [TextPart("Look: "), ImagePart(PNG, "image/png"), TextPart("what is it?")]
    context = full.context
    assert (context.thread_id, context.event_id) == (stream.thread_id, stream.event_id)
    assert (context.organization_id, context.workspace_id, context.user_id) == ("org1", "ws1", "u1")
    assert (context.user_name, context.user_email, context.user_role) == ("Alice", "alice@example.com", "member")
    assert (context.thread_title, context.thread_created_at) == ("Title", thread.created_at)
    # Nothing is known of this one but the ids: `str` is still `str`.
    assert (bare.message, bare.content) == ("hi", [TextPart("hi")])
    assert (bare.context.thread_id, bare.context.event_id) == (reply.thread_id, reply.event_id)
    assert (bare.context.user_name, bare.context.user_email, bare.context.user_role) == ("", "", "")
    assert bare.context.thread_title is None


@runs("send")
@in_every_reading
async def test_what_is_yielded_by_send_is_stored_and_reaches_the_client(code: str, reading: str) -> None:
    names: dict[str, Any] = {
        "url": "https://example.com/cat.png",
        "mime_type": "image/png",
        "alt": "A cat",
        "author": "Camera",
        "filename": "cat.png",
        "name": "lookup",
        "args": {"city": "Lisbon"},
        "display_name": "Look up",
        "id": "call-1",
        "result": {"degrees": 21},
        "agent_id": "agent-7",
        "status": "failed",
        "error": "Not today",
    }
    handler = handler_of(program(code, reading), names)
    async with opened() as worker:
        async with WorkerClient(worker, handler=handler, **WHO) as client:
            reply = await client.say("hi")
        _question, *events = await stored(worker, reply.thread_id)
        repository = await worker.repository()
        thread = await repository.get_thread(reply.thread_id)
        (ended,) = await repository.list_runs(filter={"thread_id": reply.thread_id})

    given = reading != "left out"
    author = "Camera" if given else "My Assistant"
    assert [(event.type, event.actor, event.author) for event in events] == [
        ("message", "assistant", "My Assistant"),
        ("message", "assistant", "Support Bot"),
        ("message", "assistant", author),
        ("message", "assistant", author),
        ("tool.call", "assistant", None),
        ("tool.result", "assistant", None),
    ]
    hello, _again, image, document, call, result = events
    assert hello.content == [TextPart("Hello!")]
    assert image.content == [ImagePart(names["url"], *(("image/png", None, None, "A cat") if given else ()))]
    assert document.content == [DocumentPart(names["url"], "cat.png", "image/png")]
    assert call.data is not None
    assert result.data is not None
    about = {"display_name": "Look up", "id": "call-1"} if given else {"id": call.data["id"]}
    assert call.data == {"name": "lookup", "args": {"city": "Lisbon"}, **about}
    if given:
        assert result.data == {"name": "lookup", "result": {"degrees": 21}, "args": {"city": "Lisbon"}, **about}
    else:
        assert result.data == {"name": "lookup", "result": {"degrees": 21}, "id": result.data["id"]}
    assert thread is not None
    assert thread.title == "New title"
    outcome = ("agent-7", "failed", "Not today") if given else (None, "succeeded", None)
    assert (ended.agent_id, ended.status, ended.error) == outcome

    # What is stored is what was sent.
    assert [event.id for event in reply.events] == [event.id for event in events]
    assert [event.author for event in reply.events[:4]] == ["My Assistant", "Support Bot", author, author]
    runs_told = [frame["payload"]["run"]["status"] for frame in reply.frames if frame["type"] == "run.upsert"]
    assert runs_told == ["running", outcome[1]]
    titles = [frame["payload"]["thread"]["title"] for frame in reply.frames if frame["type"] == "thread.upsert"]
    assert titles == ["New title"]


@runs("memory")
async def test_memory_gives_the_thread_in_every_format_order_and_filter(code: str) -> None:
    results: list[Any] = []

    async def reading(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> None:
        results.extend(await run_each(program(code), {"memory": memory}))

    async def failing(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> None:
        raise ValueError("an error notice is for people, not for models")

    async with opened() as worker:
        repository = await worker.repository()
        thread = await repository.create_thread("w1", "org1", "ws1", "u1")
        with pytest.raises(HandlerError):
            await (await worker.dispatch(handler=failing, message="-1", thread_id=thread.id, **WHO)).collect()
        for number in range(30):
            await repository.create_event(thread.id, actor="user", content=[f"question {number}"])
            await repository.create_event(thread.id, type="tool.call", data={"name": "look", "args": {}})
            await repository.create_event(thread.id, actor="assistant", content=[f"answer {number}"])
        stream = await worker.dispatch(handler=reading, message="now", thread_id=thread.id, **WHO)
        await stream.collect()
        everything = await stored(worker, thread.id, limit=1000)

    openai, anthropic, google, cohere, ascending, of_user, raw, raw_messages = results
    messages = [event for event in everything if event.type == "message" and not event.notice]
    texts = [event.text for event in messages]
    roles = [event.actor for event in messages]
    assert texts[-3:] == ["question 29", "answer 29", "now"]
    assert len(texts) == 62

    def expected(count: int) -> list[tuple[str, str]]:
        return list(zip(roles[-count:], texts[-count:], strict=True))

    assert [(message["role"], message["content"]) for message in openai] == expected(20)
    # A limit that begins in the middle leaves an answer without its question; anthropic begins with the user.
    assert expected(50)[0] == ("assistant", "answer 5")
    assert [(message["role"], message["content"]) for message in anthropic] == expected(49)
    of_google = {"user": "user", "model": "assistant"}
    assert [(of_google[message["role"]], message["parts"][0]["text"]) for message in google] == expected(50)
    of_cohere = {"USER": "user", "CHATBOT": "assistant"}
    assert [(of_cohere[message["role"]], message["message"]) for message in cohere] == expected(50)
    assert [(message["role"], message["content"]) for message in ascending] == expected(50)
    assert [message["content"] for message in of_user] == ["-1", *[f"question {n}" for n in range(30)], "now"]
    assert {message["role"] for message in of_user} == {"user"}
    assert raw == everything[-50:]
    assert all(type(event) is ThreadEvent for event in raw)
    assert raw_messages == [event for event in everything if event.type == "message"][-50:]


@runs("analytics")
@in_every_reading
async def test_analytics_of_a_handler_reach_a_subscriber(code: str, reading: str) -> None:
    async def handler(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> None:
        names = {"analytics": analytics, "target_id": incoming.context.event_id, "reason": "Well said"}
        results = await run_each(program(code, reading), names)
        assert results == [None, None, None]

    async with opened() as worker, WorkerClient(worker, handler=handler, **WHO) as client:
        assert (await client.ask("analytics.subscribe", {"worker_id": "w1"}))["payload"]["ok"]
        reply = await client.say("hi")
        told = [frame["payload"] for frame in reply.frames if frame["type"] == "analytics.event"]
    ours = [event for event in told if event["event"] in ("event.name", "feedback.like", "feedback.dislike")]
    reason = None if reading == "left out" else "Well said"
    about = {"target_type": "event", "target_id": reply.event_id, "reason": reason}
    assert [(event["event"], event["data"]) for event in ours] == [
        ("event.name", {"key": "value"}),
        ("feedback.like", about),
        ("feedback.dislike", about),
    ]
    assert {(event["worker_id"], event["thread_id"], event["user_id"]) for event in ours} == {
        ("w1", reply.thread_id, "u1")
    }


@runs("settings")
@pytest.mark.parametrize("with_schema", [True, False])
async def test_settings_of_a_handler_are_read_set_stored_and_told(code: str, with_schema: bool) -> None:
    results: list[Any] = []

    async def handler(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> None:
        results.extend(await run_each(program(code), {"settings": settings, "new_value": "new"}))
        results.append(await settings.get("field_id"))

    schema = SettingsSchema(
        fields=[
            SettingsField(id="field_id", type=SettingsFieldType.TEXT, label="Field", value="default"),
            SettingsField(id="avatar_base64", type=SettingsFieldType.TEXT, label="Avatar", value="AAAA"),
        ]
    )
    async with opened(settings_schema=schema if with_schema else None) as worker:
        repository = await worker.repository()
        if not with_schema:
            await repository.update_settings("w1", {"field_id": "default", "avatar_base64": "AAAA"})
        async with WorkerClient(worker, handler=handler, **WHO) as client:
            if with_schema:
                await client.ask("settings.subscribe", {"worker_id": "w1"})
            reply = await client.say("hi")
        kept = await repository.get_settings("w1")
    value, everything, without_avatar, _, afterwards = results
    assert (value, afterwards) == ("default", "new")
    assert everything == {"field_id": "default", "avatar_base64": "AAAA"}
    assert without_avatar == {"field_id": "default"}
    assert kept["field_id"] == "new"
    patches = [frame["payload"] for frame in reply.frames if frame["type"] == "settings.patch"]
    assert [(patch["field_id"], patch["value"]) for patch in patches] == ([("field_id", "new")] if with_schema else [])


# ---------------------------------------------------------------- dispatch


@runs("Dispatch API")
@pytest.mark.parametrize("optional", ["given", "left out"])
async def test_dispatch_takes_its_full_signature_and_its_stream_is_as_described(
    code: str, optional: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if optional == "left out":  # those that the page's comments call optional, or give a default by `None`
        code = "\n".join(line for line in code.splitlines() if not re.search(r"=None,|# optional", line))
    seen: list[Any] = []

    async def my_handler(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> AsyncIterator[Any]:
        seen.append(incoming)
        yield send.run_start()
        yield send.text("first")
        yield send.text("second")

    async with opened() as worker:
        names: dict[str, Any] = {"worker_server": worker, "my_handler": my_handler, "expect": expect}
        before_iterating = program(code).partition("async for")[0]
        await run(before_iterating, names)
        stream = names["stream"]
        assert before_iterating.count("expect(") == 3
        assert seen == []  # available immediately: nothing has run
        assert [event.id for event in await stored(worker, stream.thread_id)] == [stream.event_id]

        await run("async for" + program(code).partition("async for")[2], names)
        thread = await (await worker.repository()).get_thread(stream.thread_id)
        events = await stored(worker, stream.thread_id)

    assert capsys.readouterr().out == "first\nsecond\n"
    assert [event.send_type for event in names["events"]] == ["run_start", "text", "text"]
    assert [event.text for event in events] == ["Hello from webhook", "first", "second"]
    assert stream.is_new_thread is True
    assert thread is not None
    assert (thread.worker_id, thread.title, thread.user_id) == ("worker-1", "Webhook", "user-1")
    (incoming,) = seen
    who = (incoming.context.user_name, incoming.context.user_email, incoming.context.user_role)
    assert who == (("Alice", "alice@example.com", "member") if optional == "given" else ("", "", ""))


async def test_collect_instead_of_iterating_runs_the_handler_too_and_content_takes_parts() -> None:
    async with opened() as worker:
        content: list[ContentPart] = [TextPart("see"), ImagePart(PNG)]
        stream = await worker.dispatch(handler=echo, message="see", content=content, **WHO)
        events = await stream.collect()
        assert [event.send_type for event in events] == ["run_start", "text", "run_end"]
        assert (await stored(worker, stream.thread_id))[0].content == content


@runs("Error Handling")
async def test_a_handler_that_raises_is_a_handler_error_after_the_pipeline_has_cleaned_up(
    code: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.text("so far, so good")
        raise ValueError("boom")

    async with opened() as worker:
        names: dict[str, Any] = {"worker_server": worker, "given": {"handler": failing, "message": "hi", **WHO}}
        async with WorkerClient(worker, handler=echo, **WHO) as client:
            await run(program(code), names)
            thread_id = names["stream"].thread_id
            snapshot = await client.ask("thread.subscribe", {"thread_id": thread_id})
        (failed,) = await (await worker.repository()).list_runs(filter={"thread_id": thread_id})
        events = await stored(worker, thread_id)
    assert capsys.readouterr().out == "boom\n"
    # "logged, run marked failed, error event created"
    assert "boom" in caplog.text
    assert failed.status == "failed"
    assert [(event.actor, event.notice) for event in events] == [
        ("user", False),
        ("assistant", False),
        ("system", True),
    ]
    assert "boom" not in str(snapshot)  # people see a safe text


@runs("Error Handling")
@pytest.mark.parametrize(
    "wrong",
    [
        {"user_id": None},
        {"organization_id": 7},
        {"message": b"bytes"},
        {"thread_id": ""},
        {"thread_id": "of-another-organization"},
        {"content": [{"type": "sound"}]},
        {"handler": lambda: None},
        {"handler": None},
        {"handler": "unknown"},
    ],
    ids=lambda wrong: "-".join(f"{name}-{value!r:.24}" for name, value in wrong.items()),
)
async def test_bad_parameters_are_a_dispatch_error_and_store_nothing(code: str, wrong: dict[str, Any]) -> None:
    setting_up, _running = program(code).split("try:")[1:]
    imports = program(code).split("try:")[0]
    async with opened() as worker:
        elsewhere = {**WHO, "organization_id": "org2"}
        await (await worker.dispatch(handler=echo, thread_id="of-another-organization", **elsewhere)).collect()
        given = {"handler": echo, "message": "hi", **WHO, **wrong}
        names: dict[str, Any] = {"worker_server": worker, "given": given}
        await run(f"{imports}try:{setting_up}", names)  # what the page's `except DispatchError` takes
        assert "stream" not in names
        with pytest.raises(DispatchError):
            await worker.dispatch(**given)
        threads = await (await worker.repository()).list_threads()
        assert [thread.organization_id for thread in threads] == ["org2"]
        assert len(await stored(worker, "of-another-organization")) == 2


async def test_a_database_that_cannot_be_used_is_a_dispatch_error() -> None:
    without_tables = WorkerConfig(database_type="sqlite", database_name="empty.db", database_auto_migrate=False)
    worker = WorkerServer(without_tables)
    with pytest.raises(DispatchError, match="schema version"):
        await worker.dispatch(handler=echo, message="hi", **WHO)
    await worker.close()


# ---------------------------------------------------------------- outside of handlers


@runs("Repository")
@in_every_reading
async def test_the_repository_does_what_the_listing_says_and_clients_hear_of_it(code: str, reading: str) -> None:
    opening, threads, events, runs_, settings = program_paragraphs(code, reading)
    async with opened() as worker:
        for number in range(2):
            await (await worker.dispatch(handler=echo, thread_id=f"t{number}", message=f"m{number}", **WHO)).collect()
        other = {**WHO, "organization_id": "org2"}
        await (await worker.dispatch(handler=echo, thread_id="foreign", message="m", **other)).collect()

        names: dict[str, Any] = {"worker_server": worker}
        (repo,) = await run_each(opening, names)

        # Threads. The last statement removes what the others are about.
        names = {"repo": repo, "thread_id": "t0", "title": "Made", **WHO}
        async with WorkerClient(worker, handler=echo, **WHO) as client:
            listed, got, created, updated, removed = await run_each(threads, names)
            frames = [await client.receive() for _ in range(3)]
        assert [thread.id for thread in listed] == ["t1", "t0"]
        assert all(type(thread) is Thread for thread in (*listed, got, created, updated))
        assert got.id == "t0"
        assert got.title is None
        owner = (created.worker_id, created.organization_id, created.workspace_id, created.user_id)
        assert owner == ("w1", "org1", "ws1", "u1")
        assert created.title == (None if reading == "left out" else "Made")
        assert await repo.get_thread(created.id) == created
        assert (updated.id, updated.title) == ("t0", "New title")
        assert removed is None
        assert await repo.get_thread("t0") is None
        assert [(frame["type"], (frame["payload"].get("thread") or {}).get("title")) for frame in frames] == [
            ("thread.upsert", created.title),
            ("thread.upsert", "New title"),
            ("thread.deleted", None),
        ]

        # Events.
        question, answer = await stored(worker, "t1")
        names = {"repo": repo, "thread_id": "t1", "event_id": question.id}
        names["given"] = ["text", TextPart("part"), {"type": "image", "url": PNG}]
        async with WorkerClient(worker, handler=echo, **WHO) as client:
            await client.ask("thread.subscribe", {"thread_id": "t1"})
            listed, got, created, removed = await run_each(events, names)
            told = (await client.expect("event.append"))["payload"]["events"]
        assert listed == [question, answer]
        assert got == question
        assert (created.type, created.actor, created.thread_id) == ("message", "user", "t1")
        assert created.content == [TextPart("text"), TextPart("part"), ImagePart(PNG)]
        assert [event["id"] for event in told] == [created.id]
        assert removed is None
        assert await stored(worker, "t1") == [answer, created]

        # Runs, settings.
        (of_t1,) = await repo.list_runs(filter={"thread_id": "t1"})
        assert await run_each(runs_, {"repo": repo, "run_id": of_t1.id}) == [[of_t1], of_t1]
        assert (of_t1.status, of_t1.thread_id) == ("succeeded", "t1")
        await repo.update_settings("w1", {"other": 1})
        assert await run_each(settings, {"repo": repo, "worker_id": "w1"}) == [{"other": 1}, None]
        assert await repo.get_settings("w1") == {"other": 1, "key": "value"}


def program_paragraphs(code: str, reading: str) -> list[str]:
    """Rule 5."""
    return [program(paragraph, reading) for paragraph in code.split("\n\n")]


@runs("Standalone Utilities")
async def test_memory_settings_and_analytics_work_outside_of_handlers(code: str) -> None:
    schema = SettingsSchema(fields=[SettingsField(id="model", type=SettingsFieldType.TEXT, label="M", value="small")])
    async with opened(settings_schema=schema) as worker:
        await (await worker.dispatch(handler=echo, thread_id="t1", message="hi", **WHO)).collect()
        async with WorkerClient(worker, handler=echo, **WHO) as client:
            await client.ask("analytics.subscribe", {"worker_id": "w1"})
            names: dict[str, Any] = {"worker_server": worker, "thread_id": "t1", "worker_id": "w1"}
            await run(program(code), names)
            told = (await client.expect("analytics.event"))["payload"]
        assert names["history"] == [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "You said: hi"},
        ]
        assert names["value"] == "small"
        await names["settings"].set("model", "large")
        await run(program(code), names)
        assert names["value"] == "large"
    assert (told["event"], told["worker_id"], told["thread_id"]) == ("custom.event", "w1", "t1")


async def test_the_parameters_of_the_standalone_utilities_have_the_names_of_the_page() -> None:
    async with opened() as worker:
        assert await (await worker.memory(thread_id="t1")).get_history() == []
        assert await (await worker.settings(worker_id="w1")).get_all() == {}
        await (await worker.analytics(worker_id="w1", thread_id="t1")).track("custom.event")


# ---------------------------------------------------------------- settings schema


@runs("Settings Schema")
async def test_the_settings_schema_of_the_page_is_what_clients_are_shown(code: str) -> None:
    names: dict[str, Any] = {}
    await run(code, names)
    worker = names["worker_server"]
    async with worker.lifespan(), WorkerClient(worker, handler=echo, **WHO) as client:
        client.post("settings.subscribe", {"worker_id": "w1"})
        model, advanced = (await client.expect("settings.snapshot"))["payload"]["fields"]
        await client.expect("ack")
        assert (model["id"], model["type"], model["label"], model["value"]) == (
            "model",
            "select",
            "Model",
            "gpt-4o-mini",
        )
        assert model["options"] == [
            {"value": "gpt-4o-mini", "label": "GPT-4o Mini"},
            {"value": "gpt-4o", "label": "GPT-4o"},
        ]
        assert (advanced["id"], advanced["label"], advanced["collapsible"]) == (
            "advanced",
            "Advanced Settings",
            "closed",
        )
        (temperature,) = advanced["fields"]
        numbers = (temperature["type"], temperature["value"], temperature["min"], temperature["max"])
        assert numbers == ("number", 0.7, 0, 2)

        # "Rejected if a WebSocket client attempts to patch them"
        refused = await client.ask("settings.patch", {"field_id": "api_key", "value": "stolen"})
        assert (refused["payload"]["ok"], refused["payload"]["error"]["code"]) == (False, "INTERNAL")
        # "Suppressed from broadcast patch notifications", "Accessible normally via `settings.get()` and `settings.get_all()`"
        settings = await worker.settings("w1")
        await settings.set("api_key", "sk-secret")
        await settings.set("temperature", 1)
        patch = (await client.expect("settings.patch"))["payload"]
        assert (patch["field_id"], patch["value"]) == ("temperature", 1)

        async def reading(incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any) -> AsyncIterator[Any]:
            assert await settings.get("api_key") == "sk-secret"
            yield send.text(json.dumps(await settings.get_all()))

        (event,) = await (await worker.dispatch(handler=reading, **WHO)).collect()
        everything = {"model": "gpt-4o-mini", "temperature": 1, "api_key": "sk-secret"}
        assert json.loads(event.data["text"]) == everything


@runs("Field Groups")
async def test_a_field_group_holds_fields_folds_and_hides_as_the_page_says(code: str) -> None:
    field = SettingsField(id="name", type=SettingsFieldType.TEXT, label="Name")
    names: dict[str, Any] = {"SettingsFieldGroup": SettingsFieldGroup, "given": [field]}

    async def shown(text: str) -> list[dict[str, Any]]:
        (group,) = await run_each(program(text), dict(names))
        async with opened(settings_schema=SettingsSchema(fields=[group])) as worker:
            async with WorkerClient(worker, handler=echo, **WHO) as client:
                client.post("settings.subscribe", {"worker_id": "w1"})
                return list((await client.expect("settings.snapshot"))["payload"]["fields"])

    (group,) = await shown(code)
    assert (group["id"], group["label"], group["collapsible"]) == ("group_id", "Group Label", "open")
    assert [inner["id"] for inner in group["fields"]] == ["name"]
    (choices,) = re.findall(r'# ((?:".+?" \| )+None)', code)
    for choice in choices.split(" | "):
        (group,) = await shown(code.replace('"open",', f"{choice},", 1))
        assert group["collapsible"] == ast.literal_eval(choice)
    assert await shown(code.replace("is_internal=False", "is_internal=True")) == []


def test_every_field_type_of_the_page_exists_and_no_other() -> None:
    listed = re.findall(r"(?m)^- `([A-Z]+)` — ", PROSE)
    assert listed == [member.name for member in SettingsFieldType]


# ---------------------------------------------------------------- databases


async def config_of(code: str, **more: Any) -> WorkerConfig:
    names: dict[str, Any] = {"WorkerConfig": WorkerConfig, "WorkerServer": WorkerServer, **more}
    await run(code, names)
    config = names["worker_server"].config
    assert isinstance(config, WorkerConfig)
    return config


@runs("PostgreSQL (default)")
async def test_a_worker_for_postgres_is_made_without_a_server(code: str) -> None:
    config = await config_of(code)
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in config_call(code).keywords}
    assert {name: getattr(config, str(name)) for name in given} == given
    assert WorkerConfig(database_name="mydb").database_type == "postgres"  # "(default)"


@runs("SQLite")
async def test_a_worker_on_sqlite_makes_its_file_and_tables_under_the_prefix(code: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {"WorkerConfig": WorkerConfig, "WorkerServer": WorkerServer}
    await run(code, names)
    assert not (tmp_path / "worker.db").exists()  # made, not opened
    worker = names["worker_server"]
    async with worker.lifespan():
        stream = await worker.dispatch(handler=echo, message="hi", **WHO)
        await stream.collect()
    with closing(sqlite3.connect(tmp_path / "worker.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"worker_threads", "worker_events", "worker_runs", "worker_settings"} <= tables
    assert {name for name in tables if not name.startswith(("worker_", "sqlite_"))} == set()
    async with opened(database_name="worker.db") as again:
        assert [event.text for event in await stored(again, stream.thread_id)] == ["hi", "You said: hi"]


@runs("Azure Cosmos DB")
async def test_a_worker_for_cosmos_is_made_without_a_server(code: str) -> None:
    config = await config_of(code)
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in config_call(code).keywords}
    assert {name: getattr(config, str(name)) for name in given} == given
    assert "your-cosmos-key" not in repr(config)


def config_call(code: str) -> ast.Call:
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "WorkerConfig")


ENVIRONMENT = re.findall(r"(?m)^\| `(\w+)` \| `(\w+)` \|$", PROSE)
VALUES: dict[str, Callable[[str], Any]] = {"database_port": int, "database_ssl": lambda text: text == "true"}


def test_the_page_lists_seven_environment_variables() -> None:
    assert len(ENVIRONMENT) == 7


@pytest.mark.parametrize(("option", "variable"), ENVIRONMENT)
def test_an_environment_variable_stands_in_for_an_option_that_is_not_passed(
    option: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"database_port": "6543", "database_ssl": "true"}.get(option, "from-environment")
    monkeypatch.setenv("WORKER_DATABASE_NAME", "some-name")
    monkeypatch.setenv(variable, text)
    value = VALUES.get(option, str)(text)
    assert getattr(WorkerConfig(), option) == value
    passed: dict[str, Any] = {option: {"database_port": 1, "database_ssl": False}.get(option, "passed")}
    assert getattr(WorkerConfig(**passed), option) == passed[option]


@runs("Thread Privacy")
async def test_with_private_threads_each_user_sees_the_threads_they_created_and_no_others(code: str) -> None:
    config = await config_of(code)
    assert config.private_threads is True
    # The same configuration on the database that this test has.
    worker = WorkerServer(attrs.evolve(config, database_type="sqlite", database_name="private.db"))
    async with worker.lifespan():
        threads = {}
        for user in ("alice", "bob"):
            async with WorkerClient(worker, handler=echo, **{**WHO, "user_id": user}) as client:
                threads[user] = (await client.say(f"I am {user}")).thread_id
        for user, other in (("alice", "bob"), ("bob", "alice")):
            async with WorkerClient(worker, handler=echo, **{**WHO, "user_id": user}) as client:
                listed = (await client.ask("thread.list"))["payload"]["threads"]
                assert [thread["id"] for thread in listed] == [threads[user]]
                refused = await client.ask("event.list", {"thread_id": threads[other]})
                assert refused["payload"]["error"]["code"] == "NOT_FOUND"


def test_everything_the_page_imports_is_public() -> None:
    for block in PAGE.values():
        if block.language == "python":
            for node in ast.walk(ast.parse(program(block.text))):
                if isinstance(node, ast.ImportFrom) and node.module == "dooers":
                    assert {alias.name for alias in node.names} <= set(dooers.__all__)
