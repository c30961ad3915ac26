"""Whatever comes in through the open doors, nothing but the documented answers comes out. `DOOERS_TEST_LONG=1` tries far more.

The frames are made from the attrs classes of `protocol.CLIENT`, so that a new one is fuzzed from its first day.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import hmac
import json
import logging
import math
import os
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import attrs
import pytest
from attrs import define, frozen
from dooers_contrib.jwt import JwtAuthenticator
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dooers import (
    AuthRequest,
    DispatchError,
    DooersError,
    ForbiddenError,
    Identity,
    SettingsField,
    SettingsFieldType,
    SettingsSchema,
    SettingsSelectOption,
    UnauthenticatedError,
    WorkerConfig,
    WorkerServer,
)
from dooers.codec import clean, dumps, loads, plain
from dooers.content import check_url
from dooers.exceptions import InvalidCursorError, InvalidValueError, ProtocolError
from dooers.models import EventQuery, StoredSettings, ThreadQuery
from dooers.protocol import ANSWERS, CLIENT, Connect, event_out, parse, read_cursor, refusal, serialize, thread_out
from dooers.quota import WEIGHT
from dooers.settings import MASK, check_patch, public_fields
from dooers.testing import Closed, WorkerClient

LONG = os.environ.get("DOOERS_TEST_LONG") == "1"
Frame: TypeAlias = dict[str, Any]
Texts: TypeAlias = st.SearchStrategy[str]


def tries(count: int) -> settings:
    """How often a property is tried: this often, or twenty times that."""
    return settings(
        max_examples=count * 20 if LONG else count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def outcome(errors: type[Exception], function: Any, *args: Any, **more: Any) -> Any:
    """What a call gives back, or the error that it may raise instead."""
    try:
        return function(*args, **more)
    except errors as error:
        return error


def mostly(usual: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 4).flatmap(lambda die: rare if die == 4 else usual)


# ---------------------------------------------------------------- JSON that is odd, and frames that were right once


@frozen
class Raw:
    """JSON text that no Python value stands for: a key twice, a number beyond every float, NaN."""

    text: str


def written(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def nest(depth: int) -> Raw:
    return Raw("[" * depth + "]" * depth)


ODD_TEXTS = ["", "\x00", "\ud800", "\udfff\ud83d", "a\x00b", "\u202e", "İ", "x" * 300, "x" * 5000, "null", "__proto__"]
ODD_NUMBERS = [0, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**300, -0.0, 5e-324, 1.7e308]
ODD_RAW = [
    "1e400",
    "-1e400",
    "NaN",
    "-Infinity",
    "1" + "0" * 400,
    "9" * 5000,
    "01",
    "1.",
    "'a'",
    "//",
    '{"a":1,"a":[]}',
]
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        *ODD_TEXTS,
        *ODD_NUMBERS,
        *map(Raw, ODD_RAW),
        *map(nest, (99, 101, 900, 20_000)),
        None,
        True,
        [],
        {},
        {"k" * 5000: [0]},
    ]
).map(deepcopy)  # what is drawn is mutated further
TEXT: Texts = st.text(max_size=8) | st.text(st.characters(codec=None), max_size=4) | st.sampled_from(ODD_TEXTS)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)

# Names of what is there, filled in as a script runs: a frame about nothing is refused at the first step.
KNOWN = {
    "thread_id": "$thread",
    "after_event_id": "$event",
    "before_event_id": "$event",
    "run_id": "$run",
    "target_id": "$target",
    "worker_id": "worker",
    "agent_id": "worker",
    "field_id": "$field",
}
URLS = st.sampled_from(["https://example.com/a.png", "data:image/png;base64,AAAA"])


def fitting(hint: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Values that a field of a frame takes, from its annotation."""
    if hint is str:
        return mostly(URLS if name == "url" else st.just(KNOWN.get(name, "a")), TEXT)
    if hint is int:
        return mostly(st.integers(1, 300), st.sampled_from([0, -1, 2**63, 2**64 - 1]))
    if hint is bool:
        return st.booleans()
    if hint is Any:
        return mostly(st.sampled_from(["a", "", 1, -5, True, None, "ada@example.com", "2026-01-01", MASK]), JSON)
    if hint is NoneType:
        return st.none()
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return st.one_of([fitting(one, name) for one in get_args(hint)])
    if get_origin(hint) is list:
        return st.lists(fitting(get_args(hint)[0]), max_size=3)
    if get_origin(hint) is dict:
        return st.dictionaries(TEXT, JSON, max_size=3)
    if attrs.has(hint):
        return of_class(hint)
    raise AssertionError(f"no strategy for {hint!r}; teach it to this test")


def of_class(cls: type) -> st.SearchStrategy[Frame]:
    hints = get_type_hints(cls)
    needed = {a.name: fitting(hints[a.name], a.name) for a in attrs.fields(cls) if a.default is attrs.NOTHING}
    others = {a.name: fitting(hints[a.name], a.name) for a in attrs.fields(cls) if a.default is not attrs.NOTHING}
    if "type" in others:  # of a content part: it says which one it is
        needed["type"] = others.pop("type")
    return st.fixed_dictionaries(needed, optional=others)


WHO = {"user_id": mostly(st.just("ada"), TEXT), "user_name": TEXT, "user_role": TEXT}
PLACE = {"organization_id": mostly(st.just("org"), TEXT), "workspace_id": mostly(st.just("ws"), TEXT)}
MORE: dict[Any, Any] = {
    "auth_token": st.sampled_from(["good", "bad"]),
    "client": st.fixed_dictionaries({"capabilities": st.lists(st.just("deltas") | TEXT, max_size=3)}),
}
HERE, USER = {"worker_id": st.just("worker")}, st.fixed_dictionaries(WHO)
CONNECT = st.one_of(
    st.fixed_dictionaries({**HERE, **PLACE, **WHO}, optional=MORE),
    st.fixed_dictionaries({**HERE, "metadata": st.fixed_dictionaries({**PLACE, **WHO})}, optional=MORE),
    st.fixed_dictionaries({**HERE, **PLACE, "user": USER}, optional=MORE),
    st.fixed_dictionaries(
        {
            "agent_id": st.just("worker"),
            **PLACE,
            "user": st.fixed_dictionaries({**WHO, "identity_ids": st.lists(TEXT, max_size=3)}),
        },
        optional=MORE,
    ),
)
PAYLOADS = {kind: CONNECT if shape is Connect else of_class(shape) for kind, shape in CLIENT.items()}
# Messages more often than the rest: they make what the rest is about.
FRAMES = st.sampled_from([*CLIENT, *["event.create"] * 6]).flatmap(
    lambda kind: st.fixed_dictionaries({"id": TEXT, "type": st.just(kind), "payload": PAYLOADS[kind]})
)


@st.composite
def mutated(draw: st.DrawFn) -> Frame:
    """A valid frame with something done to one to three places in it."""
    frame = draw(FRAMES)
    for _ in range(draw(st.integers(1, 3))):
        _mutate(draw, frame)
    return frame


def _mutate(draw: st.DrawFn, at: Any) -> None:
    while True:
        places = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not places:
            return
        key = draw(st.sampled_from(places))
        if not isinstance(at[key], dict | list) or draw(st.booleans()):
            break
        at = at[key]
    match draw(st.sampled_from(["drop", "odd", "json", "wrap", "unknown", "twice"])):
        case "drop":
            del at[key]
        case "odd":
            at[key] = draw(ODD)
        case "json":
            at[key] = draw(JSON)
        case "wrap":
            at[key] = [at[key]]
        case "unknown" if isinstance(at, dict):
            at[draw(TEXT)] = draw(ODD)
        case "twice":
            at[key] = Raw('{"id":1,' + written({"id": at[key], "type": at[key]})[1:])
        case _:
            at[key] = None


CLIENT_TEXTS: Texts = FRAMES.map(written) | mutated().map(written)
ANY_TEXTS: Texts = CLIENT_TEXTS | JSON.map(written) | ODD.map(written) | st.text(st.characters(codec=None))


# ---------------------------------------------------------------- parse


def read(text: str | bytes) -> None:
    """Parse, and check that what comes out is either a frame or a refusal that can be sent."""
    got = outcome(ProtocolError, parse, text)
    if isinstance(got, ProtocolError):
        assert got.code in ("INVALID_FRAME", "TOO_LARGE")
        assert len(str(got)) < 1000
        assert str(got).startswith(got.path)
        told = loads(serialize("ack", refusal(got.frame_id, got), "x"))["payload"]
        assert told["ack_id"] == (got.frame_id or "")
    else:
        assert type(got.id) is str
        assert type(got.payload) is CLIENT[got.type]
        dumps(plain(got.payload))


@tries(250)
@given(ANY_TEXTS)
def test_a_text_is_a_frame_or_a_protocol_error(text: str) -> None:
    read(text)


@tries(200)
@given(
    st.binary() | CLIENT_TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")), st.integers(0, 400), st.binary()
)
def test_bytes_are_a_frame_or_a_protocol_error(data: bytes, at: int, inserted: bytes) -> None:
    read(data)
    read(data[:at] + inserted + data[at:])


@tries(200)
@given(FRAMES)
def test_every_frame_that_is_made_from_the_table_can_be_read(frame: Frame) -> None:
    got = outcome(ProtocolError, parse, written(frame))
    if isinstance(got, ProtocolError):  # how long an id may be is the only rule that the annotations do not have
        assert frame["type"] == "connect"
        assert "expected at most" in str(got)
    else:
        assert (clean(got.id), got.type) == (clean(frame["id"]), frame["type"])


@pytest.mark.parametrize("surrogate", [False, True])
@pytest.mark.parametrize("value", ["9" * 400, nest(120).text, '{"a":' + nest(120).text + "}"])
def test_what_is_too_deep_or_too_large_is_refused_under_the_id_of_its_frame(value: str, surrogate: bool) -> None:
    extra = r'"\ud800"' if surrogate else "0"
    text = f'{{"id": "a", "type": "settings.patch", "payload": {{"field_id": "f", "value": [{extra}, {value}]}}}}'
    with pytest.raises(ProtocolError) as caught:
        parse(text)
    assert (caught.value.frame_id, caught.value.path[:13]) == ("a", "payload.value")


SIZE = WorkerConfig(database_type="memory").max_frame_bytes
PATCH = '{"id":"a","type":"settings.patch","payload":{"field_id":"f","value":[%s"",%s""]}}'
CREATE = '{"id":"a","type":"event.create","payload":{"event":{"content":[%s%s{"type":"text","text":""}]}}}'
WHOSE = '{"id":"a","type":"connect","payload":{"worker_id":"w","user":{"identity_ids":[%s"",%s""]}}}'
LONE = r'"\ud800",'


@pytest.mark.parametrize(
    ("frame", "first", "unit"),
    [
        pytest.param(PATCH, LONE, nest(90).text + ",", id="deep lists, read the slow way"),
        pytest.param(PATCH, LONE, "[],", id="empty lists, read the slow way"),
        pytest.param(PATCH, LONE, "{},", id="empty objects, read the slow way"),
        pytest.param(PATCH, "", nest(90).text + ",", id="deep lists"),
        pytest.param(PATCH, "", "[],", id="empty lists"),
        pytest.param(PATCH, "", LONE, id="half characters"),
        pytest.param(CREATE, "", '{"type":"text","text":""},', id="texts"),
        pytest.param(CREATE, "", '{"type":"image","url":""},', id="images"),
        pytest.param(WHOSE, "", '"",', id="identities"),
    ],
)
def test_a_frame_of_the_largest_size_costs_little_whatever_its_shape(frame: str, first: str, unit: str) -> None:
    text = frame % (first, unit * ((SIZE - len(frame) - len(first)) // len(unit)))
    began = time.process_time()
    read(text)
    assert time.process_time() - began < 1.0


# ---------------------------------------------------------------- a whole session


FIELDS = [
    *(
        SettingsField(kind.value, kind, kind.value)
        for kind in SettingsFieldType
        if kind is not SettingsFieldType.SELECT
    ),
    SettingsField("select", "select", "", options=[SettingsSelectOption(value, "") for value in ("a", 1, True)]),
    SettingsField("whole", "number", "", integer=True, min=-5, max=5),
    SettingsField("short", "password", "", required=True, max_length=5),
    SettingsField("shown", "text", "", readonly=True),
    SettingsField("hidden", "text", "", is_internal=True),
]
SCHEMA = SettingsSchema(fields=FIELDS)
FIELD_IDS = [one.id for one in FIELDS]

BASE: Frame = {"settings_schema": SCHEMA, "max_frame_bytes": 16_384, "max_text_length": 1000, "max_subscriptions": 20}
SETUPS: dict[str, Frame] = {
    "roomy": {},
    "private, proved": {"private_threads": True, "turn_order": "replace"},
    "tight": {"frames_per_second": 5000, "frames_burst": 30, "thread_queue_limit": 1, "turn_order": "reject"},
}


async def answer(incoming: Any, send: Any) -> AsyncIterator[Any]:
    yield send.run_start(agent_id="fuzzed")
    yield send.tool_call("look", {"at": incoming.message[:10]})
    yield send.stream(pieces(incoming.message))
    yield send.update_thread(title=incoming.message[:50] or "nothing")
    yield send.run_end()


async def pieces(text: str) -> AsyncIterator[str]:
    for piece in (text[:5], text[5:]):
        yield piece
        await asyncio.sleep(0)


def believed_if_good(request: AuthRequest) -> Identity | None:
    return None if request.auth_token == "bad" else request.claims


@contextmanager
def no_error_logged() -> Iterator[None]:
    """Fail for whatever the worker or the event loop logs as an error."""
    caught: list[str] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            caught.append(self.format(record))

    handler = Catch(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("dooers", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert not caught, "\n".join(caught)


@define
class Talk:
    """A script on its way: what was sent, and what came back. The worker answers in order, so the two lists run together."""

    client: WorkerClient
    sent: list[str | None] = attrs.Factory(list)
    answers: list[Frame] = attrs.Factory(list)
    known: dict[str, str] = attrs.Factory(dict)
    closed: int | None = None

    async def say(self, texts: Sequence[str | None], names: Sequence[str]) -> None:
        """Send all of it at once, and wait until all of it is answered."""
        self.known["$field"] = names[0]
        for text in texts:
            for word, value in self.known.items():
                text = None if text is None else text.replace(word, value)
            self.sent.append(text)
            if text is None:
                self.client.socket.to_worker.put_nowait({"type": "websocket.receive", "bytes": b"\x00\xff"})
            else:
                self.client.post_text(text)
        while self.closed is None and len(self.answers) < len(self.sent):
            try:
                self._take(await self.client.receive())
            except Closed as closed:
                self.closed = closed.code

    def _take(self, frame: Frame) -> None:
        kind, payload = frame["type"], frame["payload"]
        if kind == "ack" or kind in ANSWERS.values():
            self.answers.append(frame)
        for event in payload.get("events", ()) if kind == "event.append" else ():
            self.known |= {"$thread": event["thread_id"], "$event": event["id"], "$target": event["id"]}
        if kind == "run.upsert":
            self.known["$run"] = payload["run"]["id"]

    def check(self) -> None:
        """One answer for each frame, in order, of the documented kind and under its id."""
        if self.closed is None:
            assert len(self.answers) == len(self.sent)
        else:
            assert self.closed == 4401
            assert self.answers[-1]["payload"]["error"]["code"] == "UNAUTHENTICATED"
        for text, got in zip(self.sent, self.answers, strict=False):
            frame_id, kind = _id_and_kind(text)
            if got["type"] == "ack":
                if got["payload"].get("error", {}).get("code") == "RATE_LIMITED" and len(text or "") > WEIGHT:
                    frame_id = ""  # a large one that is too much is not even read
                assert got["payload"]["ack_id"] == frame_id
                assert kind is not None or not got["payload"]["ok"]
                assert not got["payload"]["ok"] or kind not in ANSWERS
                assert got["payload"].get("error", {}).get("code") != "SERVER_ERROR"
            else:
                assert kind is not None
                assert got["type"] == ANSWERS[kind]


def _id_and_kind(text: str | None) -> tuple[str, str | None]:
    if text is None or len(text) > BASE["max_frame_bytes"]:
        return "", None
    got = outcome(ProtocolError, parse, text)
    return (got.frame_id or "", None) if isinstance(got, ProtocolError) else (got.id, got.type)


async def nothing_is_left(worker: WorkerServer, before: set[Any]) -> None:
    """Turns go on without their session; when they have ended, no trace of either is left."""
    parts, broadcast = worker._parts, worker._parts.broadcast()
    quotas = parts.quotas()._known.values()
    async with asyncio.timeout(10):
        while parts.runner().running or any(quota.turns for quota in quotas):
            await asyncio.sleep(0)
        while left := {task for task in asyncio.all_tasks() if not task.done()} - before:
            await asyncio.wait(left)
    assert not worker._sessions
    assert not any(quota.connections for quota in quotas)
    for index in (broadcast._places, broadcast._threads, broadcast._subscribed, broadcast._topics):
        assert not index


async def everything_can_be_read(worker: WorkerServer) -> None:
    store: Any = worker._parts.store()
    for thread in await store.threads(ThreadQuery(limit=200)):
        snapshot = await store.snapshot(thread.id)
        assert not snapshot.runs, "a run stayed open"
        events = await store.events(EventQuery(thread_id=thread.id))
        assert events[-len(snapshot.events) :] == snapshot.events
        assert [event.seq for event in events] == list(range(1, thread.last_seq + 1))
        loads(dumps([thread_out(thread, "metadata"), *map(event_out, events)]))
        who = {name: getattr(thread, name) for name in ("worker_id", "organization_id", "workspace_id", "user_id")}
        async with WorkerClient(worker, **who) as owner:
            listed = (await owner.ask("thread.list", {"limit": 200}))["payload"]["threads"]
            assert thread.id in [one["id"] for one in listed]
            told = (await owner.ask("thread.subscribe", {"thread_id": thread.id}))["payload"]
            assert [event["id"] for event in told["events"]] == [event.id for event in snapshot.events]
    await (await worker.settings("worker")).snapshot()


BURST = st.lists(mostly(FRAMES.map(written), ANY_TEXTS | st.none()), min_size=1, max_size=6)
FLOODED = mostly(BURST, BURST.map(lambda texts: texts * 30))
BURSTS = st.lists(st.tuples(FLOODED, st.permutations(FIELD_IDS)), min_size=1, max_size=6)


def hellos(connect: Frame) -> list[tuple[str, Frame]]:
    """What makes a script begin where there is something to be hurt: a connection, a thread, and a run in it."""
    content = [{"type": "text", "text": "hello hello"}]
    return [("connect", connect), ("event.create", {"event": {"content": content}})]


async def play(config: WorkerConfig, prove: bool, connect: Frame | None, bursts: Any) -> None:
    worker = WorkerServer(config)
    worker.handler(answer)
    if prove:
        worker.authenticate(believed_if_good)
    async with worker.lifespan():
        before = asyncio.all_tasks()
        client = WorkerClient(worker)
        await client.open()
        talk = Talk(client)
        if connect is not None:
            hello = [written({"id": kind, "type": kind, "payload": payload}) for kind, payload in hellos(connect)]
            await talk.say(hello, FIELD_IDS)
        for texts, names in bursts:
            await talk.say(texts, names)
        await talk.say(['{"id": "last", "type": "ping"}'], FIELD_IDS)
        talk.check()
        await client.drop()
        await nothing_is_left(worker, before)
        await everything_can_be_read(worker)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("database", ["memory", "sqlite"])
def test_no_script_of_frames_leaves_one_unanswered_a_session_dead_or_an_error_logged(database: Any, setup: str) -> None:
    options = {"database_type": database, "database_name": ":memory:", **BASE, **SETUPS[setup]}

    @tries(12 if database == "sqlite" else 25)
    @given(mostly(CONNECT, st.none()), BURSTS)
    def script(connect: Frame | None, bursts: Any) -> None:
        with no_error_logged():
            asyncio.run(play(WorkerConfig(**options), "proved" in setup, connect, bursts))

    with no_error_logged():
        script()
        gc.collect()  # an exception that nobody took is told when its task goes


# ---------------------------------------------------------------- the other open inputs


@tries(200)
@given(st.sampled_from(FIELD_IDS) | TEXT, JSON)
def test_a_patch_of_a_setting_is_kept_as_it_is_read_back_or_refused(field_id: str, value: Any) -> None:
    kept = outcome(DooersError, check_patch, SCHEMA, field_id, plain(value))
    if isinstance(kept, DooersError):
        assert kept.code in ("INVALID_VALUE", "READONLY", "INTERNAL", "NOT_FOUND")
        assert len(str(kept)) < 400
    else:
        assert loads(dumps(kept)) == kept
        assert SCHEMA.field(field_id).check(kept) == kept
        dumps(public_fields(SCHEMA, StoredSettings({field_id: kept})))


def cursor_of(value: str) -> str:
    return urlsafe_b64encode(value.encode("utf-8", "surrogatepass")).decode()


EDGES = ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-01-01", "2026-W01-1T00:00+00:00:00.1"]
TIMES = st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat()) | st.sampled_from(EDGES)


@tries(200)
@given(
    TEXT
    | JSON.map(written).map(cursor_of)
    | ODD.map(written).map(cursor_of)
    | st.tuples(TIMES | TEXT, JSON).map(lambda pair: cursor_of(written([*pair])))
)
@example(cursor_of(written([EDGES[0], "x"])))
@example(cursor_of(written([EDGES[1], "x"])))
def test_a_cursor_is_a_moment_that_every_store_can_compare_or_refused(text: str) -> None:
    try:
        at, thread_id = read_cursor(clean(text))  # as `parse` gives it
    except InvalidCursorError:
        return
    assert at.astimezone(UTC) == at
    assert isinstance(thread_id, str)


class Colour(Enum):
    RED = "red"
    ODD = ("a", b"b")


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    TEXT,
    st.binary(max_size=3),
    st.integers(),
    st.sampled_from([10**400, 2**64, object(), Colour, nest(1)]),
    st.floats(),
    st.decimals(),
    st.sampled_from([Decimal("1e999999"), Decimal("sNaN"), Decimal("-0")]),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.dates(),
    st.times(),
    st.uuids(),
    st.sampled_from(Colour),
)
PYTHON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.sets(st.integers() | TEXT, max_size=3)
        | st.dictionaries(
            st.one_of(TEXT, st.integers(), st.floats(), st.uuids(), st.dates(), st.none()), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and key == clean(key) and is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int) or (type(value) is str and value == clean(value))


@tries(200)
@given(PYTHON)
@example({10**5000: 1})
@example({"a": {-(10**4300): 1}})
def test_any_value_becomes_plain_json_or_an_error_that_says_where(value: Any) -> None:
    got = outcome(InvalidValueError, plain, value)
    if isinstance(got, InvalidValueError):
        assert str(got).startswith("value")
        assert len(str(got)) < 400
    else:
        assert is_plain(got)
        assert plain(got) == got
        assert loads(dumps(got)) == got


ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "message": TEXT,
    "worker_id": TEXT,
    "organization_id": TEXT,
    "workspace_id": TEXT,
    "user_id": TEXT,
    "user_name": TEXT,
    "thread_id": st.none() | TEXT,
    "thread_title": TEXT,
    "content": st.lists(fitting(get_type_hints(CLIENT["event.create"])["event"]).map(lambda event: event["content"])),
    "data": st.dictionaries(TEXT, PYTHON, max_size=3),
    "idempotency_key": TEXT,
}


async def dispatch(arguments: Frame) -> None:
    worker = WorkerServer(WorkerConfig(database_type="memory", settings_schema=SCHEMA))
    worker.handler(answer)
    refused: DispatchError | None = None
    async with worker.lifespan():
        try:
            stream = await worker.dispatch(**{"organization_id": "o", "workspace_id": "w", "user_id": "u", **arguments})
            await stream.collect()
        except DispatchError as error:
            refused = error
        await everything_can_be_read(worker)
    if refused is not None:
        assert refused.code in ("INVALID_VALUE", "NOT_FOUND", "TOO_LARGE"), refused
        assert len(str(refused)) < 1000


@tries(60)
@given(
    st.fixed_dictionaries({}, optional=ARGUMENTS), st.dictionaries(st.sampled_from(list(ARGUMENTS)), PYTHON, max_size=2)
)
@example({}, {"data": {10**5000: 1}})
@example({}, {"data": [1]})
def test_a_dispatch_is_answered_or_refused_for_its_arguments(right: Frame, wrong: Frame) -> None:
    with no_error_logged():
        asyncio.run(dispatch({**right, **wrong}))


@pytest.mark.parametrize("name", ARGUMENTS)
async def test_an_argument_that_cannot_even_be_quoted_is_refused_like_any_other(name: str) -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    await dispatch({name: deep})


# ---------------------------------------------------------------- URLs that other people's browsers open

SCRIPTS = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "\x01javascript:alert(1)",
    "java\nscript:alert(1)",
    "java\tscript:alert(1)",
    "java\rscript:alert(1)",
    "java\x00script:alert(1)",
    "javascript\n:alert(1)",
    "javascript&colon;alert(1)",
    "&#106;avascript:alert(1)",
    "javascript:https://example.com",
    "javascript://example.com/%0aalert(1)",
    "vbscript:msgbox(1)",
    "livescript:x",
    "file:///etc/passwd",
    "blob:https://example.com/1",
    "filesystem:https://example.com/1",
    "view-source:https://example.com",
    "about:blank",
    "jar:https://example.com!/a",
    "ws://example.com",
    "//example.com",
    "/\\example.com",
    "\\\\example.com",
    "/local",
    "local",
    "?x",
    "#x",
    "",
    "http:",
    "http:example.com",
    "http:/example.com",
    "http:\\\\example.com",
    "http://",
    "http:///example.com",
    "http://\\example.com",
    "https:// example.com",
    "https://\x01example.com",
    "https\n://example.com",
    "https://example.com\n",
    "https://example.com/\x7f",
    "\ufeffhttps://example.com",
    "\u00a0https://example.com",
    "http\u017f://example.com/../../logout",  # one letter that folds to an s, and no scheme that a browser knows
    "data\n:image/png,",
    "data:image/png",
    "data",
]
NOT_IMAGES = [
    "data:text/html,<script>",
    "data:,x",
    "data:;image/png,x",
    "DATA:TEXT/HTML;base64,AA",
    "data:application/xml,",
]
GOOD = [
    "https://example.com/a b?c#d",
    "HTTP://EXAMPLE.COM",
    "https://[::1]:8/x",
    "data:image/png;base64,AA==",
    "DATA:IMAGE/gif,x",
]


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("url", SCRIPTS)
def test_no_url_passes_that_a_browser_runs_or_takes_for_another(url: str, image: bool) -> None:
    with pytest.raises(InvalidValueError, match="expected an http, https or data URL"):
        check_url(url, "url", image=image)


@pytest.mark.parametrize("url", NOT_IMAGES)
def test_an_image_is_no_page_in_a_data_url(url: str) -> None:
    with pytest.raises(InvalidValueError, match="expected the data URL of an image"):
        check_url(url, "url", image=True)


@pytest.mark.parametrize("url", GOOD)
def test_a_url_of_an_image_passes(url: str) -> None:
    check_url(url, "url", image=True)


def opened(url: str) -> str:
    """The scheme that a browser finds in a URL, by the URL standard: it strips, drops, and only then looks. Empty: it is relative."""
    bare = re.sub("[\t\n\r]", "", url.strip("".join(map(chr, range(0x21)))))
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", bare)
    return found[1].lower() if found else ""


NOISE = st.text(st.sampled_from("\x00\t\n\r \x0b\x1f\x7f\u00a0\u2028\ufeffſK:/\\@&;#?%"), max_size=2)
SCHEMES = st.sampled_from(["javascript", "vbscript", "http", "https", "httpſ", "data", "file", "blob", "", "ſ"])


@tries(250)
@given(
    st.tuples(NOISE, SCHEMES, NOISE, st.sampled_from([":", "://", "&colon;"]), NOISE, TEXT, NOISE).map("".join)
    | st.sampled_from(SCRIPTS + NOT_IMAGES + GOOD).flatmap(
        lambda url: st.tuples(st.integers(0, len(url)), NOISE).map(lambda cut: url[: cut[0]] + cut[1] + url[cut[0] :])
    )
)
def test_what_passes_is_what_a_browser_opens(url: str) -> None:
    for image in (False, True):
        try:
            check_url(url, "url", image=image)
        except InvalidValueError:
            continue
        assert opened(url) in ("http", "https", "data")
        assert not re.search(r"[\x00-\x1f\x7f]|^\s", url)
        assert not image or opened(url) != "data" or url[5:11].lower() == "image/"


# ---------------------------------------------------------------- tokens

SECRET = "a secret of more than 64 bytes that only this test and this hook have between them"
HOOK = JwtAuthenticator(issuer="me", audience=None, algorithms=["HS256"], key=SECRET, claims={"user_role": "roles.0"})
RIGHT = {"iss": "me", "exp": int(time.time()) + 3600, "sub": "ada", "organization_id": "o", "workspace_id": "w"}
CLAIMS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys((*RIGHT, "aud", "nbf", "iat", "roles", "name", "jti", "sub"), ODD | JSON)
)
HEADS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("alg", "kid", "typ", "crit", "b64", "jwk", "zip"), ODD | JSON)
)


def token(head: Any, claims: Any) -> str:
    signed = ".".join(cursor_of(written(one)).rstrip("=") for one in (head, claims)).encode()
    proof = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    return f"{signed.decode()}.{urlsafe_b64encode(proof).decode().rstrip('=')}"


@tries(200)
@given(
    st.tuples(
        (HEADS | ODD).map(lambda head: {"alg": "HS256", **head} if isinstance(head, dict) else head),
        (CLAIMS | ODD).map(lambda claims: {**RIGHT, **claims} if isinstance(claims, dict) else claims),
    ).map(lambda pair: token(*pair))
    | TEXT
    | st.text(st.sampled_from(".=-_aA0é"), max_size=20)
)
@example(token({"alg": "HS256"}, RIGHT))
def test_a_token_is_somebody_or_refused(text: str) -> None:
    request = AuthRequest(
        claims=Identity(organization_id="x", workspace_id="x", user_id="x"),
        worker_id="worker",
        auth_token=text,
        headers={},
        query_params={},
        client=None,
    )
    try:
        identity = asyncio.run(HOOK(request))
    except (UnauthenticatedError, ForbiddenError):
        return
    assert identity.user_id.strip()
    assert identity.user_id != "x"
    assert identity.expires_at is not None
    assert identity.expires_at > datetime.now(UTC)
