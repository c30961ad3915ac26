"""The tables of options, frames, codes, kinds of settings, things to yield and adapters say what the code says; see tables.py."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import os
import re
import tokenize
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
import pytest
from snippets import ROOT
from tables import PAGES, check, rows

from dooers import (
    AnalyticsEvent,
    Identity,
    Operation,
    Run,
    Secret,
    SettingsField,
    SettingsFieldType,
    SettingsSchema,
    Text,
    Thread,
    ThreadEvent,
    User,
    WorkerConfig,
    WorkerSend,
    WorkerServer,
    exceptions,
)
from dooers.models import ContentPart
from dooers.protocol import CLIENT, Connect, event_out, run_out, thread_out
from dooers.routing import _BEFORE_CONNECT
from dooers.settings import typed_settings
from dooers.testing import WorkerClient

# ---------------------------------------------------------------- options


def words(hint: Any) -> str:
    """A type as people write it in a table."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value!r}`".replace("'", '"') for value in get_args(hint))
    if get_origin(hint) is Union or type(hint) is type(int | None):
        return " or ".join(words(one) for one in get_args(hint))
    return "`None`" if hint is type(None) else f"`{getattr(hint, '__name__', hint)}`"


def options(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    hints = get_type_hints(WorkerConfig)
    names = {"permissions": "mapping", "allowed_origins": "texts", "settings_encryption_key": "text or texts"}
    names["analytics_webhook_secret"] = "text or texts"
    found: dict[str, tuple[str, ...]] = {}
    for option in attrs.fields(WorkerConfig):
        asked: list[str] = []

        class Asked(dict[str, str]):
            def get(self, name: str, *_: Any) -> Any:
                asked.append(name)  # noqa: B023

        default: Any = option.default
        with monkeypatch.context() as patched:
            patched.setattr(os, "environ", Asked(os.environ))
            default = getattr(default, "factory", lambda kept=default: kept)()
        variable = f"`{asked[0]}`" if asked else ""
        shown = names.get(option.name) or words(hints[option.name])
        found[f"`{option.name}`"] = (shown, f"`{default!r}`".replace("'", '"'), variable)
    return found


def test_the_options_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    check("| option | type | default | environment | what it is |", options(monkeypatch))


# ---------------------------------------------------------------- frames of clients


def payload(shape: Any) -> str:
    """What a frame carries, as the wire's page writes it: `name?` may be left out."""
    if shape is Connect:
        return "see [connecting](#connecting)"
    hints = get_type_hints(shape)
    names = []
    for one in attrs.fields(shape):
        kind = hints[one.name]
        optional = one.default is not attrs.NOTHING
        if optional:
            kind = (
                next((arg for arg in get_args(kind) if arg is not type(None)), kind)
                if get_origin(kind) is not Literal
                else kind
            )
        names.append(f"{one.name}{'?' if optional else ''}: {json_type(kind)}")
    return f"`{{{', '.join(names)}}}`"


def json_type(hint: Any) -> str:
    """A type in the words of JSON."""
    if hint == ContentPart:
        return "part"
    if get_origin(hint) is Literal:
        return "/".join(f'"{value}"' for value in get_args(hint))
    if get_origin(hint) is list:
        return f"[{json_type(get_args(hint)[0])}]"
    if get_args(hint) and get_origin(hint) is not dict:
        return " or ".join(json_type(one) for one in get_args(hint))
    if attrs.has(hint):
        return payload(hint).strip("`")
    return {str: "str", int: "int", type(None): "null", Any: "any"}.get(hint, "object")


async def operations() -> dict[str, set[str]]:
    """Which operations a worker asks its hook about, for each frame."""
    worker = WorkerServer(
        WorkerConfig(
            database_type="memory",
            settings_schema=SettingsSchema([SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model")]),
        )
    )
    asked: set[str] = set()

    @worker.authorize
    def may(identity: Identity, operation: Operation, thread: Thread | None) -> bool:
        asked.add(operation)
        return True

    @worker.handler
    async def agent(send: WorkerSend) -> AsyncIterator[Any]:
        yield send.text("hello")

    found = {}
    async with WorkerClient(worker, organization_id="o", workspace_id="w", user_id="u") as client:
        thread_id = (await client.say("hello")).thread_id
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": "again"}]}
        payloads: dict[str, dict[str, Any]] = {
            "event.create": {"thread_id": thread_id, "event": event},
            "thread.update": {"thread_id": thread_id, "title": "A title"},
            "settings.patch": {"field_id": "model", "value": "large"},
            "feedback": {"target_type": "thread", "target_id": thread_id, "feedback": "like"},
        }
        for kind in (*(kind for kind in CLIENT if kind not in ("connect", "thread.delete")), "thread.delete"):
            asked.clear()
            sent = payloads.get(kind, {} if "settings" in kind or "analytics" in kind else {"thread_id": thread_id})
            answer = await client.ask(kind, sent)
            assert answer["payload"].get("ok", True), (kind, answer)
            found[kind] = set(asked)
    await worker.close()
    return found


async def test_the_frames_of_clients() -> None:
    asked = await operations()
    asked["connect"] = set()
    facts = {}
    for kind, shape in CLIENT.items():
        needs = ", ".join(f"`{one}`" for one in get_args(Operation) if one in asked[kind])
        facts[f"`{kind}`"] = (payload(shape), "anybody" if kind in _BEFORE_CONNECT else needs or "who is connected")
    check("| type | payload | who may | answer |", facts)


# ---------------------------------------------------------------- codes, settings, what is yielded


def test_the_codes() -> None:
    by_code: dict[str, list[str]] = {}
    for name in exceptions.__all__:
        error: Any = getattr(exceptions, name)
        if "code" in vars(error):
            by_code.setdefault(error.code, []).append(name)
    check(
        "| code | raised as | what it means |",
        {f"`{code}`": (", ".join(f"`{n}`" for n in names),) for code, names in by_code.items()},
    )


class Tone(Enum):
    CALM = "calm"


KINDS: dict[str, Any] = {
    "`str`": str,
    "`int`, `float`": float,
    '`Literal["a", "b"]`, an `Enum`': Tone,
    "`bool`": bool,
    "`Annotated[str, Text(multiline=True)]`": Annotated[str, Text(multiline=True)],
    "`Secret`": Secret,
    '`Annotated[str, Text(format="email")]`': Annotated[str, Text(format="email")],
    "`date`": date,
    '`Annotated[str, Text(format="image")]`': Annotated[str, Text(format="image")],
}


def test_the_kinds_of_settings() -> None:
    facts = {}
    for written, hint in KINDS.items():
        shape = attrs.make_class("Settings", {"one": attrs.field(type=hint | None, default=None)})
        (field,) = typed_settings(shape).schema.every_field()
        facts[f"`{field.type.name}`"] = (f"`{field.type.value!r}`".replace("'", '"'), written)
    assert len(facts) == len(SettingsFieldType)
    check("| kind | on the wire | in a settings class | its value |", facts)


def test_what_a_handler_yields() -> None:
    facts = {}
    for name, function in inspect.getmembers(WorkerSend, inspect.isfunction):
        if not name.startswith("_"):
            parameters = []
            for one in list(inspect.signature(function).parameters.values())[1:]:
                star = one.kind is one.KEYWORD_ONLY and "*" not in parameters
                parameters += ["*"] * star + [one.name + ("" if one.default is one.empty else "?")]
            facts[f"`send.{name}`"] = (f"`{', '.join(parameters)}`",)
    check("| yield | arguments | what comes of it |", facts)


def test_the_events_of_analytics() -> None:
    facts = {f"`{event.value}`": (f"`AnalyticsEvent.{event.name}`",) for event in AnalyticsEvent}
    check("| event | in code | when, and its `data` |", facts)


# ---------------------------------------------------------------- adapters


def lines_of_code(text: str) -> int:
    """How many lines have code in them: empty ones, comments and docstrings are none."""
    without = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in without:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            code.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(code)


def test_a_line_of_code_is_no_comment_no_docstring_and_not_empty() -> None:
    assert (
        lines_of_code('"""What it is.\n\nAnd more."""\n\n# why\na = """one\ntwo"""  # said\n\n\ndef b():\n    "c"\n')
        == 3
    )


def test_the_adapters_and_how_much_of_them_is_ours() -> None:
    adapters = sorted((ROOT / "contrib" / "dooers_contrib").glob("[a-z]*.py"))
    facts = {f"`dooers_contrib.{one.stem}`": (str(lines_of_code(one.read_text(encoding="utf-8"))),) for one in adapters}
    check("| adapter | lines of ours | what the vendor's library does for us |", facts)


# ---------------------------------------------------------------- what goes out


WIRE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")


def told(name: str) -> set[str]:
    """The keys that the wire's page lists of an object."""
    found = re.search(rf"(?m)^{name} +\{{((?:.|\n)+?)\}}$", WIRE)
    assert found, name
    return {part.split()[0] for part in re.sub(r"\{\w+\}", "", found[1]).replace("\n", " ").split(",")}


def test_the_objects_of_the_wire_have_the_keys_that_the_page_lists() -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    person = User(user_id="ana", user_name="Ana", user_email="ana@example.com", user_role="member")
    ids = dict.fromkeys(("id", "worker_id", "organization_id", "workspace_id", "user_id"), "x")
    times = dict.fromkeys(("created_at", "updated_at", "last_event_at"), at)
    thread = Thread(**ids, **times, owner=person, title="A title", metadata={"a": 1}, last_seq=1)  # type: ignore[arg-type]
    event = ThreadEvent(
        id="e", thread_id="t", type="message", actor="user", created_at=at, author="Ana", user=person, data={}, run_id="r",
        client_event_id="c", seq=1,
    )  # fmt: skip
    run = Run(id="r", thread_id="t", agent_id="a", status="failed", started_at=at, ended_at=at, error="no")
    out: dict[str, dict[str, Any]] = {"thread": thread_out(thread), "event": event_out(event), "run": run_out(run)}
    out["user"] = out["thread"]["owner"]
    assert {name: set(keys) for name, keys in out.items()} == {name: told(name) for name in out}


async def test_the_frames_of_the_server_are_those_of_the_page_with_the_keys_that_it_names() -> None:
    (table,) = {page for page in PAGES if rows(OUT, page)}
    named = {}
    for kind, carried, _ in rows(OUT, table):
        inner = re.findall(r"\{([^{}]*)\}", re.sub(r"(\w\??) ?\{[^{}]*\}", r"\1", carried.partition("`;")[0]))
        named[kind.strip("`")] = {part.strip() for keys in inner for part in keys.split(",") if part.strip()}
    heard = await conversation()
    assert set(heard) == set(named), "a frame is missing here or on the page"
    for kind, payloads in heard.items():
        for one in payloads:
            assert set(one) <= {key.rstrip("?") for key in named[kind]}, kind
            assert {key for key in named[kind] if not key.endswith("?")} <= set(one), kind


OUT = "| type | payload | who gets it |"


async def conversation() -> dict[str, list[dict[str, Any]]]:
    """What a client hears that does everything once: the payloads by the types of their frames."""
    field = SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model")
    worker = WorkerServer(WorkerConfig(database_type="memory", settings_schema=SettingsSchema([field])))

    async def words() -> AsyncIterator[str]:
        yield "hello"

    @worker.handler
    async def agent(send: WorkerSend) -> AsyncIterator[Any]:
        yield send.run_start()
        yield send.stream(words())
        yield send.run_end()

    async with WorkerClient(worker, organization_id="o", workspace_id="w", user_id="u", deltas=True) as client:
        frames = [await client.ask(f"{kind}.subscribe", {}) for kind in ("settings", "analytics")]
        event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": "again"}]}
        frames.append(await client.ask("event.create", {"event": event}))
        async with asyncio.timeout(30):
            while (frame := await client.receive())["payload"].get("run", {}).get("status") != "succeeded":
                frames.append(frame)
        frames.append(frame)
        thread_id = frame["payload"]["run"]["thread_id"]
        rest: dict[str, dict[str, Any]] = {
            "thread.subscribe": {"thread_id": thread_id},
            "thread.list": {"limit": 1},
            "event.list": {"thread_id": thread_id, "limit": 1},
            "feedback": {"target_type": "thread", "target_id": thread_id, "feedback": "like"},
            "settings.patch": {"field_id": "model", "value": "large"},
            "settings.public_schema": {},
            "thread.delete": {"thread_id": thread_id},
            "run.cancel": {"thread_id": thread_id},
            "ping": {},
        }
        frames += [await client.ask(kind, sent) for kind, sent in rest.items()]
        frames += client.unread
    await worker.close()
    heard: dict[str, list[dict[str, Any]]] = {}
    for frame in frames:
        heard.setdefault(frame["type"], []).append(frame["payload"])
    return heard
