"""The wire as a value: every client frame in every dialect, every way to get one wrong, and what goes out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from dooers import protocol
from dooers.exceptions import InvalidValueError, NotFoundError, ProtocolError
from dooers.models import Change, DocumentPart, Identity, ImagePart, Run, TextPart, Thread, ThreadEvent, User
from dooers.protocol import (
    CLIENT,
    ClientFrame,
    Connect,
    Dialect,
    EventCreate,
    EventList,
    Feedback,
    Frame,
    NewEvent,
    Ping,
    PublicSchema,
    RunCancel,
    SettingsPatch,
    SettingsSubscribe,
    ThreadList,
    ThreadName,
    ThreadSubscribe,
    ThreadUpdate,
    WorkerName,
    ack,
    event_out,
    frames_of,
    iso,
    parse,
    refusal,
    run_out,
    serialize,
    thread_out,
)

FAST = settings(max_examples=200, deadline=None)
NOW = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


def frame(kind: str, payload: Any, **more: Any) -> str:
    return json.dumps({"id": "f1", "type": kind, "payload": payload, **more})


def read(kind: str, payload: Any) -> Any:
    got = parse(frame(kind, payload))
    assert (got.id, got.type) == ("f1", kind)
    return got.payload


def refused(text: str | bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as raised:
        parse(text)
    return raised.value


# ---------------------------------------------------------------- connect: four dialects

FLAT = {
    "worker_id": "w",
    "organization_id": "o",
    "workspace_id": "s",
    "user_id": "u",
    "user_name": "Ann",
    "user_email": "ann@x",
    "user_role": "member",
    "auth_token": "tok",
    "client": {"name": "web", "version": "1.0"},
}
METADATA = {
    "worker_id": "w",
    "metadata": {
        "organization_id": "o",
        "workspace_id": "s",
        "user_id": "u",
        "user_name": "Ann",
        "user_email": "ann@x",
        "user_role": "member",
    },
}
USER = {
    "worker_id": "w",
    "organization_id": "o",
    "workspace_id": "s",
    "user": {
        "user_id": "u",
        "user_name": "Ann",
        "user_email": "ann@x",
        "system_role": "admin",
        "organization_role": "owner",
        "workspace_role": "editor",
    },
    "client": {"name": "react", "version": "0.2.0"},
}
AGENTS = {
    "agent_id": "w",
    "organization_id": "o",
    "workspace_id": "s",
    "user": {
        "user_id": "u",
        "user_name": "Ann",
        "user_email": "ann@x",
        "system_role": "admin",
        "organization_role": "owner",
        "workspace_role": "editor",
        "identity_ids": ["i1", "i2"],
        "user_mobile_number": "+49",
        "user_whatsapp_number": None,
    },
    "client": {"name": "react", "version": "0.2.0", "capabilities": ["deltas", "later"]},
}
ANN = Identity(organization_id="o", workspace_id="s", user_id="u", user_name="Ann", user_email="ann@x")
MEMBER = evolve(ANN, user_role="member")
OWNER = evolve(ANN, system_role="admin", organization_role="owner", workspace_role="editor")

CONNECTS: list[tuple[dict[str, Any], Connect]] = [
    (FLAT, Connect("w", MEMBER, "flat", "tok")),
    (METADATA, Connect("w", MEMBER, "metadata")),
    (USER, Connect("w", OWNER, "user")),
    (AGENTS, Connect("w", evolve(OWNER, identity_ids=("i1", "i2")), "agents", None, frozenset({"deltas", "later"}))),
]


@pytest.mark.parametrize(("payload", "expected"), CONNECTS, ids=["flat", "metadata", "user", "agents"])
def test_every_dialect_of_connect_is_understood(payload: dict[str, Any], expected: Connect) -> None:
    assert read("connect", payload) == expected


@pytest.mark.parametrize(("payload", "expected"), CONNECTS, ids=["flat", "metadata", "user", "agents"])
def test_unknown_keys_of_connect_are_ignored_anywhere(payload: dict[str, Any], expected: Connect) -> None:
    widened = {name: {**value, "novel": [{}]} if isinstance(value, dict) else value for name, value in payload.items()}
    assert read("connect", {**widened, "novel": 1}) == expected


@pytest.mark.parametrize(
    ("payload", "dialect"),
    [
        ({"worker_id": "w"}, "flat"),
        ({"worker_id": "w", "metadata": None, "user": None}, "flat"),
        ({"worker_id": "w", "metadata": {}}, "metadata"),
        ({"worker_id": "w", "user": {}}, "user"),
        ({"worker_id": "w", "user": {}, "metadata": {}}, "user"),
        ({"agent_id": "a"}, "agents"),
        ({"agent_id": "a", "metadata": {}}, "agents"),
        ({"agent_id": None, "worker_id": "w"}, "flat"),
        ({"worker_id": "w", "client": {"version": "agents"}}, "flat"),
    ],
)
def test_the_dialect_is_told_by_the_keys(payload: dict[str, Any], dialect: Dialect) -> None:
    assert read("connect", payload).dialect == dialect


def test_agent_id_wins_over_worker_id() -> None:
    assert read("connect", {"agent_id": "a", "worker_id": "w"}).worker_id == "a"
    assert read("connect", {"agent_id": "", "worker_id": "w"}).worker_id == ""
    assert read("connect", {"agent_id": None, "worker_id": "w"}).worker_id == "w"


def test_the_top_level_wins_over_metadata_for_the_tenant_and_empty_is_not_absent() -> None:
    inner = {"organization_id": "inner-o", "workspace_id": "inner-s", "user_id": "u"}

    def tenant(**outer: Any) -> tuple[str, str]:
        identity = read("connect", {"worker_id": "w", "metadata": inner, **outer}).identity
        return identity.organization_id, identity.workspace_id

    assert tenant() == ("inner-o", "inner-s")
    assert tenant(organization_id="o", workspace_id="s") == ("o", "s")
    assert tenant(organization_id="", workspace_id="") == ("", "")
    assert tenant(organization_id=None) == ("inner-o", "inner-s")


def test_an_empty_user_id_in_user_is_not_filled_from_elsewhere() -> None:
    payload = {"worker_id": "w", "user_id": "flat", "metadata": {"user_id": "meta"}}
    assert read("connect", {**payload, "user": {"user_id": ""}}).identity.user_id == ""
    assert read("connect", {**payload, "user": {}}).identity.user_id == ""
    assert read("connect", payload).identity.user_id == "meta"
    assert read("connect", {"worker_id": "w", "user_id": "flat"}).identity.user_id == "flat"


def test_a_person_who_says_nothing_is_empty_not_none() -> None:
    identity = read("connect", {"worker_id": "w", "user": {"user_name": None, "identity_ids": None}}).identity
    assert identity == Identity(organization_id="", workspace_id="", user_id="")


def test_what_another_dialect_would_have_said_is_not_even_looked_at() -> None:
    payload = {"agent_id": "a", "user": {"user_id": "u"}, "user_role": {"not": "a text"}}
    assert read("connect", payload).identity.user_id == "u"


def test_the_repr_of_a_frame_shows_no_token_and_no_setting() -> None:
    assert "tok-1" not in repr(parse(frame("connect", {"worker_id": "w", "auth_token": "tok-1"})))
    assert "sk-1" not in repr(parse(frame("settings.patch", {"field_id": "key", "value": "sk-1"})))


@pytest.mark.parametrize(
    ("payload", "path", "what"),
    [
        ({}, "payload.worker_id", "is required (or agent_id)"),
        (None, "payload.worker_id", "is required (or agent_id)"),
        ([], "payload", "expected object, got array"),
        ("w", "payload", "expected object, got string"),
        ({"worker_id": 5}, "payload.worker_id", "expected string, got integer"),
        ({"worker_id": "w", "user": "ann"}, "payload.user", "expected object, got string"),
        ({"worker_id": "w", "user": {"user_id": 5}}, "payload.user.user_id", "expected string, got integer"),
        ({"worker_id": "w", "metadata": []}, "payload.metadata", "expected object, got array"),
        ({"worker_id": "w", "user_id": 5}, "payload.user_id", "expected string, got integer"),
        ({"worker_id": "w", "user_id": True}, "payload.user_id", "expected string, got boolean"),
        ({"worker_id": "w", "auth_token": {}}, "payload.auth_token", "expected string, got object"),
        (
            {"agent_id": "w", "user": {"identity_ids": [1]}},
            "payload.user.identity_ids[0]",
            "expected string, got integer",
        ),
        ({"agent_id": "w", "user": {"identity_ids": "ab"}}, "payload.user.identity_ids", "expected array, got string"),
        (
            {"worker_id": "w", "client": {"capabilities": ["a", None]}},
            "payload.client.capabilities[1]",
            "expected string, got null",
        ),
    ],
)
def test_a_wrong_connect_is_refused_with_the_path(payload: Any, path: str, what: str) -> None:
    error = refused(frame("connect", payload))
    assert (error.path, str(error), error.frame_id) == (path, f"{path}: {what}", "f1")


# ---------------------------------------------------------------- every other client frame

TEXT = {"type": "text", "text": "hi"}
MESSAGE = {"type": "message", "actor": "user", "content": [TEXT]}

GOLDEN: list[tuple[str, Any, Any]] = [
    ("thread.list", {}, ThreadList()),
    ("thread.list", None, ThreadList()),
    ("thread.list", {"cursor": None, "limit": None}, ThreadList()),
    ("thread.list", {"cursor": "", "limit": 0}, ThreadList("", 0)),
    ("thread.list", {"cursor": "c", "limit": 10, "extra": 1}, ThreadList("c", 10)),
    ("thread.list", {"query": "é\x00", "cursor": "c"}, ThreadList("c", None, "é")),
    ("thread.list", {"query": None}, ThreadList()),
    ("thread.update", {"thread_id": "t", "title": "T", "extra": 1}, ThreadUpdate("t", "T")),
    ("thread.update", {"thread_id": "t", "title": None}, ThreadUpdate("t", None)),
    ("thread.subscribe", {"thread_id": "t"}, ThreadSubscribe("t")),
    ("thread.subscribe", {"thread_id": "t", "after_event_id": None}, ThreadSubscribe("t")),
    ("thread.subscribe", {"thread_id": "t", "after_event_id": ""}, ThreadSubscribe("t", "")),
    ("thread.subscribe", {"thread_id": "", "after_event_id": "e"}, ThreadSubscribe("", "e")),
    ("thread.unsubscribe", {"thread_id": "t"}, ThreadName("t")),
    ("thread.delete", {"thread_id": "t"}, ThreadName("t")),
    ("event.create", {"event": MESSAGE}, EventCreate(NewEvent([TextPart("hi")]))),
    ("event.create", {"event": {"content": [TEXT]}}, EventCreate(NewEvent([TextPart("hi")]))),
    (
        "event.create",
        {"thread_id": None, "client_event_id": None, "event": {**MESSAGE, "data": None}, "metadata": {"any": 1}},
        EventCreate(NewEvent([TextPart("hi")])),
    ),
    (
        "event.create",
        {"thread_id": "", "client_event_id": "", "event": {**MESSAGE, "content": [], "data": {"a": [None, 1.5]}}},
        EventCreate(NewEvent([], data={"a": [None, 1.5]}), "", ""),
    ),
    (
        "event.create",
        {
            "thread_id": "t",
            "client_event_id": "c",
            "event": {
                **MESSAGE,
                "id": "ignored",
                "content": [
                    {"type": "image", "url": "http://x/i.png", "mime_type": None, "width": 3, "novel": 1},
                    {"type": "document", "url": "http://x/d", "filename": "d", "mime_type": "m", "size_bytes": 4},
                ],
            },
        },
        EventCreate(
            NewEvent([ImagePart("http://x/i.png", width=3), DocumentPart("http://x/d", "d", "m", 4)]), "t", "c"
        ),
    ),
    ("event.list", {"thread_id": "t"}, EventList("t")),
    ("run.cancel", {"run_id": "r"}, RunCancel("r")),
    ("run.cancel", {"thread_id": "t", "run_id": None, "novel": 1}, RunCancel(None, "t")),
    ("run.cancel", {"thread_id": "", "run_id": ""}, RunCancel("", "")),
    ("run.cancel", {}, RunCancel()),
    ("event.list", {"thread_id": "t", "before_event_id": "e", "limit": -5}, EventList("t", "e", -5)),
    ("settings.subscribe", {"worker_id": "w"}, SettingsSubscribe("w")),
    ("settings.subscribe", {"agent_id": "a", "audience": "admin"}, SettingsSubscribe(None, "a", "admin")),
    ("settings.subscribe", {}, SettingsSubscribe()),
    ("settings.unsubscribe", {"agent_id": "a"}, WorkerName(None, "a")),
    ("settings.patch", {"field_id": "f", "value": None}, SettingsPatch("f", None)),
    ("settings.patch", {"field_id": "f", "value": ""}, SettingsPatch("f", "")),
    (
        "settings.patch",
        {"worker_id": "w", "field_id": "f", "value": [1, {"a": "\x00"}]},
        SettingsPatch("f", [1, {"a": ""}]),
    ),
    ("settings.public_schema", {}, PublicSchema()),
    ("feedback", {"target_type": "event", "target_id": "e", "feedback": "like"}, Feedback("event", "e", "like")),
    (
        "feedback",
        {"target_type": "run", "target_id": "r", "feedback": "dislike", "reason": "", "classification": "c"},
        Feedback("run", "r", "dislike", "", "c"),
    ),
    (
        "feedback",
        {"target_type": "thread", "target_id": "t", "feedback": "like", "reason": None},
        Feedback("thread", "t", "like"),
    ),
    ("analytics.subscribe", {"worker_id": "w"}, WorkerName("w")),
    ("analytics.unsubscribe", {"agent_id": "w"}, WorkerName(None, "w")),
    ("ping", {}, Ping()),
    ("ping", None, Ping()),
    ("ping", {"novel": [1]}, Ping()),
]


@pytest.mark.parametrize(
    ("kind", "payload", "expected"), GOLDEN, ids=[f"{kind}-{at}" for at, (kind, _, _) in enumerate(GOLDEN)]
)
def test_every_client_frame_is_read(kind: str, payload: Any, expected: Any) -> None:
    assert read(kind, payload) == expected
    assert parse(frame(kind, payload).encode()) == ClientFrame("f1", kind, expected)


def test_the_golden_frames_leave_no_type_out() -> None:
    assert {kind for kind, _, _ in GOLDEN} | {"connect"} == CLIENT.keys()


def test_a_frame_without_a_payload_is_read_where_the_payload_may_be_empty() -> None:
    assert parse('{"id":"1","type":"ping"}') == ClientFrame("1", "ping", Ping())
    assert refused('{"id":"1","type":"thread.delete"}').path == "payload.thread_id"


def test_unknown_keys_beside_the_payload_are_ignored() -> None:
    assert parse(frame("ping", {}, version=3, payloads=[])).type == "ping"


def test_a_frame_id_may_be_empty_and_any_text() -> None:
    assert parse('{"id":"","type":"ping"}').id == ""
    assert parse('{"id":"é😀","type":"ping"}').id == "é😀"


def test_the_last_of_two_equal_keys_counts() -> None:
    assert parse('{"id":"1","id":"2","type":"nonsense","type":"ping"}') == ClientFrame("2", "ping", Ping())


# ---------------------------------------------------------------- frames that are none


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "{'id': 1}",
        "\ufeff{}",
        b"\xff\xfe",
        b"\x00",
        '{"id":"1","type":"ping","payload":NaN}',
        '{"id":"1","type":"ping","payload":{"a":-Infinity}}',
        "[" * 50_000,
        '{"a":' * 50_000,
        '{"id":"1","type":"ping","payload":{"a":' + "9" * 5000 + "}}",
    ],
)
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    error = refused(text)
    assert str(error).startswith("is not JSON (")
    assert (error.path, error.frame_id, error.code) == ("", None, "INVALID_FRAME")
    assert len(str(error)) < 500


@pytest.mark.parametrize("text", ["[" * 50_001, "{" * 60_000, "0," * 250_001, b"[" * 50_001, '{"a":[' * 40_000])
def test_a_frame_of_too_many_values_is_refused_before_it_is_read(text: str | bytes) -> None:
    assert refused(text).code == "TOO_LARGE"


def test_a_value_that_nobody_asks_for_may_be_any_size() -> None:
    assert parse('{"id":"1","type":"ping","payload":{"a":"\\ud800","b":' + "9" * 400 + "}}").id == "1"


@pytest.mark.parametrize("text", ["1", "null", "true", '"ping"', "[]", '[{"id":"1","type":"ping"}]', "1e999"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    assert str(refused(text)) == 'expected an object {"id", "type", "payload"}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "id: is required"),
        ('{"id":null,"type":"ping"}', "id: is required"),
        ('{"id":5,"type":"ping"}', "id: expected string"),
        ('{"id":["a"],"type":"ping"}', "id: expected string"),
    ],
)
def test_a_frame_without_an_id_is_refused(text: str, said: str) -> None:
    error = refused(text)
    assert (str(error), error.path, error.frame_id) == (said, "id", None)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("null", "type: is required"),
        ('"pong"', "type: 'pong' is none of connect, "),
        ('""', "type: '' is none of connect, "),
        ('"Ping"', "type: 'Ping' is none of connect, "),
        ("5", "type: 5 is none of connect, "),
        ('{"a":1}', "type: {'a': 1} is none of connect, "),
        ("[" * 1000 + "]" * 1000, "type: "),
        ('"' + "x" * 100_000 + '"', "type: 'xxx"),
    ],
)
def test_an_unknown_type_is_refused_and_quoted_shortly(kind: str, said: str) -> None:
    error = refused(f'{{"id":"f1","type":{kind},"payload":{{}}}}')
    assert str(error).startswith(said)
    assert (error.path, error.frame_id) == ("type", "f1")
    assert len(str(error)) < 500


WRONG: list[tuple[str, Any, str, str]] = [
    ("thread.list", [], "payload", "expected object, got array"),
    ("thread.list", {"cursor": 5}, "payload.cursor", "expected string, got integer"),
    ("thread.list", {"limit": "5"}, "payload.limit", "expected integer, got string"),
    ("thread.list", {"limit": 5.0}, "payload.limit", "expected integer, got number"),
    ("thread.list", {"limit": True}, "payload.limit", "expected integer, got boolean"),
    ("thread.list", {"limit": 10**30}, "payload.limit", "expected integer, got number"),
    ("thread.list", {"query": ["x"]}, "payload.query", "expected string, got array"),
    ("thread.update", {"title": "T"}, "payload.thread_id", "is required"),
    ("thread.update", {"thread_id": "t"}, "payload.title", "is required"),
    ("thread.update", {"thread_id": "t", "title": 5}, "payload.title", "expected string, got integer"),
    ("thread.subscribe", {}, "payload.thread_id", "is required"),
    ("thread.subscribe", {"thread_id": None}, "payload.thread_id", "expected string, got null"),
    (
        "thread.subscribe",
        {"thread_id": "t", "after_event_id": 5},
        "payload.after_event_id",
        "expected string, got integer",
    ),
    ("thread.unsubscribe", {"thread_id": ["t"]}, "payload.thread_id", "expected string, got array"),
    ("thread.delete", {}, "payload.thread_id", "is required"),
    ("event.create", {}, "payload.event", "is required"),
    ("event.create", {"event": None}, "payload.event", "expected object, got null"),
    ("event.create", {"event": {}}, "payload.event.content", "is required"),
    ("event.create", {"event": {"content": None}}, "payload.event.content", "expected array, got null"),
    ("event.create", {"event": {"content": "hi"}}, "payload.event.content", "expected array, got string"),
    ("event.create", {"event": {"content": ["hi"]}}, "payload.event.content[0]", "expected object, got string"),
    ("event.create", {"event": {"content": [{"type": "text"}]}}, "payload.event.content[0].text", "is required"),
    (
        "event.create",
        {"event": {"content": [{"type": "text", "text": 5}]}},
        "payload.event.content[0].text",
        "expected string, got integer",
    ),
    (
        "event.create",
        {"event": {"content": [TEXT, {"type": "text", "text": None}]}},
        "payload.event.content[1].text",
        "expected string, got null",
    ),
    (
        "event.create",
        {"event": {"content": [TEXT, {"type": "audio", "url": "u"}]}},
        "payload.event.content[1].type",
        "expected one of 'text', 'image', 'document', got 'audio'",
    ),
    (
        "event.create",
        {"event": {"content": [{"text": "hi"}]}},
        "payload.event.content[0].type",
        "expected one of 'text', 'image', 'document', got None",
    ),
    (
        "event.create",
        {"event": {"content": [{"type": {"a": 1}}]}},
        "payload.event.content[0].type",
        "expected one of 'text', 'image', 'document', got {'a': 1}",
    ),
    ("event.create", {"event": {"content": [{"type": "image"}]}}, "payload.event.content[0].url", "is required"),
    (
        "event.create",
        {"event": {"content": [{"type": "image", "url": "u", "width": "3"}]}},
        "payload.event.content[0].width",
        "expected integer, got string",
    ),
    (
        "event.create",
        {"event": {"content": [{"type": "document", "url": "u", "mime_type": "m"}]}},
        "payload.event.content[0].filename",
        "is required",
    ),
    (
        "event.create",
        {"event": {**MESSAGE, "type": "run.started"}},
        "payload.event.type",
        "expected 'message', got 'run.started'",
    ),
    (
        "event.create",
        {"event": {**MESSAGE, "actor": "assistant"}},
        "payload.event.actor",
        "expected 'user', got 'assistant'",
    ),
    ("event.create", {"event": {**MESSAGE, "actor": "system"}}, "payload.event.actor", "expected 'user', got 'system'"),
    ("event.create", {"event": {**MESSAGE, "data": []}}, "payload.event.data", "expected object, got array"),
    ("event.create", {"event": {**MESSAGE, "data": "x"}}, "payload.event.data", "expected object, got string"),
    ("event.create", {"event": MESSAGE, "thread_id": 5}, "payload.thread_id", "expected string, got integer"),
    (
        "event.create",
        {"event": MESSAGE, "client_event_id": {}},
        "payload.client_event_id",
        "expected string, got object",
    ),
    ("event.list", {"limit": 5}, "payload.thread_id", "is required"),
    ("event.list", {"thread_id": "t", "before_event_id": 1}, "payload.before_event_id", "expected string, got integer"),
    ("settings.subscribe", {"worker_id": 1}, "payload.worker_id", "expected string, got integer"),
    ("settings.unsubscribe", {"agent_id": []}, "payload.agent_id", "expected string, got array"),
    ("settings.patch", {"value": 1}, "payload.field_id", "is required"),
    ("settings.patch", {"field_id": "f"}, "payload.value", "is required"),
    ("settings.patch", {"field_id": 1, "value": 1}, "payload.field_id", "expected string, got integer"),
    ("settings.public_schema", "x", "payload", "expected object, got string"),
    (
        "feedback",
        {"target_type": "worker", "target_id": "t", "feedback": "like"},
        "payload.target_type",
        "expected 'event' or 'run' or 'thread', got 'worker'",
    ),
    ("feedback", {"target_type": "run", "feedback": "like"}, "payload.target_id", "is required"),
    (
        "feedback",
        {"target_type": "run", "target_id": "r", "feedback": 1},
        "payload.feedback",
        "expected 'like' or 'dislike', got 1",
    ),
    (
        "feedback",
        {"target_type": "run", "target_id": "r", "feedback": "like", "reason": []},
        "payload.reason",
        "expected string, got array",
    ),
    ("analytics.subscribe", {"worker_id": False}, "payload.worker_id", "expected string, got boolean"),
    ("analytics.unsubscribe", 5, "payload", "expected object, got integer"),
    ("ping", [], "payload", "expected object, got array"),
]


@pytest.mark.parametrize(
    ("kind", "payload", "path", "what"),
    WRONG,
    ids=[f"{kind}-{path}-{at}" for at, (kind, _, path, _) in enumerate(WRONG)],
)
def test_a_malformed_payload_is_refused_with_the_exact_path_and_the_frames_id(
    kind: str, payload: Any, path: str, what: str
) -> None:
    error = refused(frame(kind, payload))
    assert (error.path, str(error)) == (path, f"{path}: {what}")
    assert (error.frame_id, error.code) == ("f1", "INVALID_FRAME")


def test_a_nest_that_is_too_deep_is_refused_with_the_frames_id_wherever_it_is_kept() -> None:
    deep = "[" * 150 + "]" * 150
    for text, path in (
        (f'{{"id":"f1","type":"settings.patch","payload":{{"field_id":"f","value":{deep}}}}}', "payload.value"),
        (
            f'{{"id":"f1","type":"event.create","payload":{{"event":{{"content":[],"data":{{"a":{deep}}}}}}}}}',
            "payload.event.data.a",
        ),
    ):
        error = refused(text)
        assert error.path.startswith(path)
        assert error.frame_id == "f1"
        assert "nested more than 100 deep" in str(error)


def test_texts_are_read_without_what_no_database_can_hold() -> None:
    text = (
        '{"id":"f1","type":"event.create","payload":{"event":{"content":[{"type":"text","text":"a\\u0000\\ud83d"}]}}}'
    )
    assert parse(text).payload.event.content == [TextPart("a\ufffd")]
    assert read("thread.delete", {"thread_id": "t\x00"}) == ThreadName("t")


# ---------------------------------------------------------------- anything at all

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
VALID: list[dict[str, Any]] = [
    *({"id": "1", "type": kind, "payload": payload} for kind, payload, _ in GOLDEN),
    *({"id": "1", "type": "connect", "payload": payload} for payload, _ in CONNECTS),
]


def only_a_frame_or_a_protocol_error(text: str | bytes) -> None:
    try:
        got = parse(text)
    except ProtocolError as error:
        str(error).encode()
        json.loads(serialize("ack", refusal(error.frame_id, error), "a"))
    else:
        assert isinstance(got.payload, CLIENT[got.type])


@given(st.text(st.characters()) | st.binary())
@FAST
def test_any_text_and_any_bytes_are_a_frame_or_a_protocol_error(text: str | bytes) -> None:
    only_a_frame_or_a_protocol_error(text)


@given(VALUES)
@FAST
def test_any_json_is_a_frame_or_a_protocol_error(value: Any) -> None:
    only_a_frame_or_a_protocol_error(json.dumps(value))


@given(st.sampled_from(sorted(CLIENT)), VALUES)
@FAST
def test_any_payload_of_any_type_is_a_frame_or_a_protocol_error(kind: str, payload: Any) -> None:
    only_a_frame_or_a_protocol_error(frame(kind, payload))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key or index in it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@given(st.data())
@FAST
def test_a_valid_frame_with_one_value_changed_or_lost_is_a_frame_or_a_protocol_error(data: st.DataObject) -> None:
    mutated = json.loads(json.dumps(data.draw(st.sampled_from(VALID))))
    container, key = data.draw(st.sampled_from(places(mutated)))
    if data.draw(st.booleans()):
        container[key] = data.draw(VALUES)
    else:
        del container[key]
    only_a_frame_or_a_protocol_error(json.dumps(mutated))


@given(st.data())
@FAST
def test_a_valid_frame_with_its_text_damaged_is_a_frame_or_a_protocol_error(data: st.DataObject) -> None:
    text = json.dumps(data.draw(st.sampled_from(VALID)))
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, min(len(text), at + 5)))
    junk = data.draw(
        st.sampled_from(["", '"', "}", "[", "\\ud800", "\ud800", "NaN", "1e999", "9" * 400, "\x00", "null"])
    )
    only_a_frame_or_a_protocol_error(text[:at] + junk + text[end:])


# ---------------------------------------------------------------- what goes out

PERSON = User("u", "Ann", "ann@x", "member", ("i1",), "admin", "owner", "editor")
PERSON_OUT = {
    "user_id": "u",
    "user_name": "Ann",
    "user_email": "ann@x",
    "user_role": "member",
    "identity_ids": ["i1"],
    "system_role": "admin",
    "organization_role": "owner",
    "workspace_role": "editor",
}
THREAD = Thread(
    id="t",
    worker_id="w",
    organization_id="o",
    workspace_id="s",
    user_id="u",
    owner=PERSON,
    title="Title",
    metadata={"own": None},
    created_at=NOW,
    updated_at=NOW,
    last_event_at=NOW,
    last_seq=3,
)
BARE_THREAD_OUT = {
    "id": "t",
    "worker_id": "w",
    "agent_id": "w",
    "organization_id": "o",
    "workspace_id": "s",
    "user_id": "u",
    "owner": PERSON_OUT,
    "users": [PERSON_OUT],
    "created_at": "2024-05-01T12:00:00Z",
    "updated_at": "2024-05-01T12:00:00Z",
    "last_event_at": "2024-05-01T12:00:00Z",
    "last_seq": 3,
}
EVENT = ThreadEvent(
    id="e",
    thread_id="t",
    type="message",
    actor="user",
    created_at=NOW,
    user=PERSON,
    content=[TextPart("hi"), ImagePart("u")],
    client_event_id="c",
    seq=2,
    turn_seq=2,
)
RUN = Run(id="r", thread_id="t", started_at=NOW)


def sent(kind: str, payload: dict[str, Any]) -> Any:
    """The payload as a client reads it."""
    return json.loads(serialize(kind, payload, "f"))["payload"]


@pytest.mark.parametrize("dialect", ["flat", "user", "agents"])
def test_a_thread_goes_out_in_one_shape_for_all(dialect: Dialect) -> None:
    out = sent("x", thread_out(THREAD, dialect))
    assert out == {**BARE_THREAD_OUT, "title": "Title", "metadata": {"own": None}}
    assert sent("x", thread_out(evolve(THREAD, title=None, metadata=None), dialect)) == BARE_THREAD_OUT


def test_an_empty_title_and_empty_metadata_are_not_null() -> None:
    out = sent("x", thread_out(evolve(THREAD, title="", metadata={})))
    assert (out["title"], out["metadata"]) == ("", {})


def test_the_metadata_dialect_gets_the_identity_where_it_looks_for_it() -> None:
    expected = {"organization_id": "o", "workspace_id": "s", **PERSON_OUT}
    for thread in (THREAD, evolve(THREAD, metadata=None)):
        assert sent("x", thread_out(thread, "metadata"))["metadata"] == expected


def test_a_persons_message_goes_out_with_the_person_in_every_shape() -> None:
    assert sent("x", event_out(EVENT)) == {
        "id": "e",
        "thread_id": "t",
        "seq": 2,
        "type": "message",
        "actor": "user",
        "content": [{"type": "text", "text": "hi"}, {"type": "image", "url": "u"}],
        "created_at": "2024-05-01T12:00:00Z",
        "streaming": False,
        "finalized": True,
        "client_event_id": "c",
        "user": PERSON_OUT,
        "user_id": "u",
        "user_name": "Ann",
        "user_email": "ann@x",
    }


def test_a_message_that_is_being_written_is_streaming_not_finalized_and_has_no_number_yet() -> None:
    growing = sent("x", event_out(evolve(EVENT, streaming=True, seq=0)))
    assert (growing["streaming"], growing["finalized"]) == (True, False)
    assert "seq" not in growing
    whole = sent("x", event_out(EVENT))
    assert (whole["streaming"], whole["finalized"], whole["seq"]) == (False, True, 2)
    assert growing.keys() | {"seq"} == whole.keys()


def test_an_assistants_event_goes_out_without_a_person_and_without_nulls() -> None:
    event = ThreadEvent(
        id="e",
        thread_id="t",
        type="tool.result",
        actor="assistant",
        created_at=NOW,
        author="Bot",
        data={"result": None},
        run_id="r",
        seq=3,
    )
    out = sent("x", event_out(event))
    assert out["data"] == {"result": None}
    assert (out["author"], out["run_id"], out["content"]) == ("Bot", "r", [])
    assert not {"user", "user_id", "user_name", "user_email", "client_event_id"} & out.keys()
    assert None not in out.values()


def test_what_the_wire_does_not_know_of_an_event_stays_inside() -> None:
    assert not {"notice", "turn_seq"} & event_out(EVENT).keys()


def test_a_run_goes_out_without_nulls() -> None:
    running = {"id": "r", "thread_id": "t", "status": "running", "started_at": "2024-05-01T12:00:00Z"}
    assert sent("x", run_out(RUN)) == running
    failed = evolve(RUN, status="failed", ended_at=NOW, error="", agent_id="a")
    assert sent("x", run_out(failed)) == {
        **running,
        "status": "failed",
        "ended_at": "2024-05-01T12:00:00Z",
        "error": "",
        "agent_id": "a",
    }


def test_a_new_thread_is_told_before_its_first_event() -> None:
    frames = list(frames_of(Change(thread=THREAD, opens=True, created=True, events=(EVENT,))))
    assert [one.type for one in frames] == ["thread.upsert", "event.append"]
    assert [one.audience for one in frames] == ["tenant", "subscribers"]
    assert json.loads(frames[1].text("f", "flat"))["payload"]["events"][0]["client_event_id"] == "c"


def test_a_message_in_a_known_thread_is_told_alone() -> None:
    frames = list(frames_of(Change(thread=THREAD, opens=True, events=(EVENT, EVENT))))
    assert [one.type for one in frames] == ["event.append"]
    assert len(frames[0].payload["events"]) == 2
    assert frames[0].payload["thread_id"] == "t"


def test_a_failed_run_is_told_before_its_notice() -> None:
    change = Change(thread=THREAD, runs=(RUN, evolve(RUN, id="r2")), events=(EVENT,))
    frames = list(frames_of(change))
    assert [one.type for one in frames] == ["run.upsert", "run.upsert", "event.append"]
    assert [one.payload["run"]["id"] for one in frames[:2]] == ["r", "r2"]
    assert {one.audience for one in frames} == {"subscribers"}


def test_a_new_title_is_told_to_all_who_may_see_the_thread() -> None:
    (only,) = frames_of(Change(thread=THREAD, patch={"title": "x"}))
    assert (only.type, only.audience) == ("thread.upsert", "tenant")


def test_a_removed_thread_is_told_to_all_who_could_see_it() -> None:
    (only,) = frames_of(Change(thread=THREAD, removes=True))
    assert (only.type, only.payload, only.audience) == ("thread.deleted", {"thread_id": "t"}, "tenant")


def test_a_change_of_nothing_is_not_told() -> None:
    assert list(frames_of(Change(thread=THREAD))) == []


def test_a_frame_is_written_in_the_dialect_of_its_reader() -> None:
    (upsert,) = frames_of(Change(thread=THREAD, patch={"title": "x"}))
    flat, metadata = (json.loads(upsert.text("f9", dialect)) for dialect in ("flat", "metadata"))
    assert (flat["id"], flat["type"]) == ("f9", "thread.upsert")
    assert flat["payload"]["thread"]["metadata"] == {"own": None}
    assert metadata["payload"]["thread"]["metadata"]["user_id"] == "u"
    assert Frame("pong").text("f", "flat") == '{"id":"f","type":"pong","payload":{}}'


def test_an_ack_says_yes_and_carries_what_it_is_given() -> None:
    server = {"name": "n", "version": "v", "capabilities": []}
    assert ack("f1") == {"ack_id": "f1", "ok": True}
    assert ack("f1", server=server) == {"ack_id": "f1", "ok": True, "server": server}


def test_a_refusal_says_no_with_the_code_and_the_reason() -> None:
    assert refusal("f1", NotFoundError("there is no such thread")) == {
        "ack_id": "f1",
        "ok": False,
        "error": {"code": "NOT_FOUND", "message": "there is no such thread"},
    }
    assert refusal(None, InvalidValueError("x"))["ack_id"] == ""


def test_a_time_inside_a_payload_with_nulls_is_written_like_any_other() -> None:
    assert iso(None) is None
    assert iso(NOW) == "2024-05-01T12:00:00Z"


def test_every_public_name_is_there() -> None:
    assert all(hasattr(protocol, name) for name in protocol.__all__)
