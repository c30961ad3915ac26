"""What a handler is given beside `send`: the history it may know, settings, analytics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import uuid4

import pytest
from attrs import Factory, define, evolve
from cryptography.fernet import Fernet
from samples import T0, THREAD

from dooers import (
    Secret,
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    WorkerConfig,
)
from dooers.access import visible
from dooers.analytics import Collector
from dooers.broadcast import Broadcast, Growth
from dooers.clock import SystemClock
from dooers.codec import loads
from dooers.context import WorkerAnalytics, WorkerContext, WorkerIncoming, WorkerMemory, WorkerSettings
from dooers.exceptions import (
    InternalFieldError,
    InvalidValueError,
    NotConfiguredError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
)
from dooers.models import Change, Identity, ImagePart, Scope, TextPart, Thread, ThreadEvent
from dooers.protocol import Dialect
from dooers.schema import Internal, Number
from dooers.settings import MASK, typed_settings
from dooers.stores.memory import MemoryStore
from dooers.vault import Vault


@define(eq=False)
class Session:
    """A member of the fan-out that keeps what it is sent."""

    scope: Scope = Scope("worker-1", "org-1", "ws-1")
    dialect: Dialect = "flat"
    grows: Growth = "done"
    frames: list[dict[str, Any]] = Factory(list)

    def sees(self, thread: Thread) -> bool:
        return visible(thread, self.scope)

    def put(self, text: str) -> None:
        self.frames.append(loads(text))

    def put_delta(self, text: str, event_id: str) -> None:
        self.put(text)

    def close(self, code: int) -> None:
        raise AssertionError("nobody closes this session")

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return [frame["payload"] for frame in self.frames]


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    await store.open()
    await store.apply(Change(thread=THREAD, opens=True))
    yield store
    await store.close()


async def say(store: MemoryStore, text: str, actor: str = "user", turn: int = 0, **more: Any) -> ThreadEvent:
    fields: dict[str, Any] = {"type": "message", "content": [TextPart(text)], "created_at": T0, **more}
    event = ThreadEvent(id=str(uuid4()), thread_id="thread-1", actor=actor, turn_seq=turn, **fields)  # type: ignore[arg-type]
    return (await store.apply(Change(thread=THREAD, events=(event,)))).events[0]


async def told(memory: WorkerMemory, **options: Any) -> list[str]:
    return [message["content"] for message in await memory.get_history(**options)]


async def raw(memory: WorkerMemory, **options: Any) -> list[str]:
    return [event.text for event in await memory.get_history_raw(**options)]


# ---------------------------------------------------------------- incoming


def test_an_incoming_message_knows_its_text_and_its_sender() -> None:
    identity = Identity(
        organization_id="o", workspace_id="w", user_id="u", user_name="n", user_email="e", user_role="r"
    )
    context = WorkerContext(thread_id="t", event_id="e1", worker_id="worker-1", identity=identity)
    incoming = WorkerIncoming([TextPart("one"), ImagePart("https://e.org/i.png"), TextPart("two")], context)
    assert incoming.message == "one\ntwo"
    assert (context.organization_id, context.workspace_id, context.user_id) == ("o", "w", "u")
    assert (context.user_name, context.user_email, context.user_role) == ("n", "e", "r")
    assert (context.thread_title, context.thread_created_at) == (None, None)


# ---------------------------------------------------------------- memory


async def test_history_is_the_newest_messages_oldest_first(store: MemoryStore) -> None:
    for n in range(1, 11):
        await say(store, f"m{n}", "user" if n % 2 else "assistant", turn=n if n % 2 else n - 1)
    memory = WorkerMemory(store, "thread-1")
    assert await told(memory, limit=3) == ["m8", "m9", "m10"]
    assert await told(memory, limit=3, order="asc") == ["m8", "m9", "m10"]
    assert await told(memory, limit=3, order="desc") == ["m10", "m9", "m8"]
    assert await told(memory) == [f"m{n}" for n in range(1, 11)]
    assert await raw(memory, limit=2) == ["m9", "m10"]
    assert await raw(memory, limit=2, order="desc") == ["m10", "m9"]


async def test_history_for_models_has_no_tool_events_and_no_error_notices(store: MemoryStore) -> None:
    await say(store, "question")
    await say(store, "", "assistant", type="tool.call", data={"name": "search"}, content=[])
    await say(store, "something went wrong", "system", notice=True)
    await say(store, "answer", "assistant")
    memory = WorkerMemory(store, "thread-1")
    assert await told(memory) == ["question", "answer"]
    assert await told(memory, limit=2) == ["question", "answer"]
    assert await raw(memory) == ["question", "", "something went wrong", "answer"]


async def test_history_is_filtered_before_it_is_limited(store: MemoryStore) -> None:
    for n in range(1, 21):
        await say(store, f"m{n}", "user" if n <= 3 else "assistant", author="bot" if n == 5 else None)
    memory = WorkerMemory(store, "thread-1")
    assert await told(memory, limit=2, filters={"actor": "user"}) == ["m2", "m3"]
    assert await told(memory, filters={"actor": "assistant", "author": "bot"}) == ["m5"]
    assert await raw(memory, limit=1, filters={"type": "message"}) == ["m20"]
    assert await raw(memory, filters={"type": "tool.call"}) == []


@pytest.mark.parametrize("limit", [0, -1, 10_001, True, 1.5, "5", None])
async def test_a_limit_that_is_none_is_an_invalid_value(store: MemoryStore, limit: Any) -> None:
    memory = WorkerMemory(store, "thread-1")
    with pytest.raises(InvalidValueError, match="limit"):
        await memory.get_history(limit=limit)
    with pytest.raises(InvalidValueError, match="limit"):
        await memory.get_history_raw(limit=limit)


async def test_unknown_orders_formats_and_filters_are_invalid_values(store: MemoryStore) -> None:
    memory = WorkerMemory(store, "thread-1")
    wrong: Any = "newest"
    with pytest.raises(InvalidValueError, match="order"):
        await memory.get_history(order=wrong)
    with pytest.raises(InvalidValueError, match="order"):
        await memory.get_history_raw(order=wrong)
    with pytest.raises(InvalidValueError, match="openai"):
        await memory.get_history(format="openia")
    with pytest.raises(InvalidValueError, match="filter"):
        await memory.get_history(filters={"thread_id": "thread-2"})


async def test_a_thread_that_is_not_there_has_no_history(store: MemoryStore) -> None:
    assert await told(WorkerMemory(store, "nothing")) == []


async def test_a_turn_does_not_see_the_messages_that_wait_behind_it(store: MemoryStore) -> None:
    await say(store, "q1")
    await say(store, "q2")
    await say(store, "q3")
    await say(store, "a1", "assistant", turn=1)
    assert await told(WorkerMemory(store, "thread-1", turn_seq=1)) == ["q1", "a1"]
    assert await told(WorkerMemory(store, "thread-1", turn_seq=2)) == ["q1", "a1", "q2"]
    await say(store, "a2", "assistant", turn=2)
    assert await told(WorkerMemory(store, "thread-1", turn_seq=3)) == ["q1", "a1", "q2", "a2", "q3"]
    assert await told(WorkerMemory(store, "thread-1")) == ["q1", "a1", "q2", "a2", "q3"]


@pytest.mark.parametrize("limit", range(1, 9))
async def test_a_message_that_waited_counts_as_newer_than_the_answers_before_it(store: MemoryStore, limit: int) -> None:
    for n in range(1, 6):
        await say(store, f"q{n}")
    for turn in (1, 2):
        await say(store, f"a{turn}", "assistant", turn=turn)
        await say(store, f"b{turn}", "assistant", turn=turn)
    third = ["q1", "a1", "b1", "q2", "a2", "b2", "q3"]
    assert await told(WorkerMemory(store, "thread-1", turn_seq=3), limit=limit) == third[-limit:]
    assert await raw(WorkerMemory(store, "thread-1", turn_seq=3), limit=limit, order="desc") == third[-limit:][::-1]
    assert await told(WorkerMemory(store, "thread-1"), limit=limit) == [*third, "q4", "q5"][-limit:]
    answers = ["a1", "b1", "a2", "b2"]
    memory = WorkerMemory(store, "thread-1", turn_seq=3)
    assert await told(memory, limit=limit, filters={"actor": "assistant"}) == answers[-limit:]
    assert await told(memory, limit=limit, filters={"actor": "user"}) == ["q1", "q2", "q3"][-limit:]


async def test_a_turn_reads_what_it_has_yielded_itself(store: MemoryStore) -> None:
    await say(store, "q1")
    settled: list[int] = []

    async def settle() -> None:
        settled.append(1)
        await say(store, "a1", "assistant", turn=1)

    memory = WorkerMemory(store, "thread-1", turn_seq=1, settle=settle)
    assert await told(memory) == ["q1", "a1"]
    assert settled == [1]


# ---------------------------------------------------------------- settings

SCHEMA = SettingsSchema(
    fields=[
        SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model", value="small"),
        SettingsField(id="count", type=SettingsFieldType.NUMBER, label="Count", value=3, min=0, max=10),
        SettingsField(id="secret", type=SettingsFieldType.PASSWORD, label="Secret"),
        SettingsField(id="hidden", type=SettingsFieldType.TEXT, label="Hidden", value="h", is_internal=True),
        SettingsField(id="fixed", type=SettingsFieldType.TEXT, label="Fixed", value="f", readonly=True),
    ]
)


@dataclass
class Typed:
    model: str = "small"
    count: Annotated[int, Number(min=0, max=10)] = 3
    note: str | None = None
    hidden: Annotated[str, Internal] = "h"


@define
class Desk:
    """Settings with somebody who listens."""

    store: MemoryStore
    broadcast: Broadcast
    session: Session

    def settings(
        self,
        schema: SettingsSchema | None = SCHEMA,
        worker_id: str = "worker-1",
        *,
        keys: Sequence[str] = (),
        **more: Any,
    ) -> WorkerSettings:
        vault = Vault(keys)
        return WorkerSettings(self.store, self.broadcast, SystemClock(), vault, worker_id, schema, **more)

    def typed(self) -> WorkerSettings:
        typed = typed_settings(Typed)
        return self.settings(typed.schema, typed=typed)

    @property
    def patches(self) -> list[tuple[str, Any]]:
        return [(payload["field_id"], payload["value"]) for payload in self.session.payloads]


@pytest.fixture
def desk(store: MemoryStore) -> Desk:
    broadcast, session = Broadcast(SystemClock()), Session()
    broadcast.join(session)
    broadcast.follow(session, "settings", "worker-1")
    return Desk(store, broadcast, session)


async def test_a_setting_is_its_default_until_it_is_set(desk: Desk) -> None:
    settings = desk.settings()
    assert await settings.get("model") == "small"
    await settings.set("model", "large")
    assert await settings.get("model") == "large"
    assert await desk.settings(worker_id="worker-2").get("model") == "small"
    assert desk.patches == [("model", "large")]


async def test_all_settings_come_with_defaults_and_without_those_excluded(desk: Desk) -> None:
    settings = desk.settings()
    await settings.set("count", 7)
    everything = {"model": "small", "count": 7, "secret": None, "hidden": "h", "fixed": "f"}
    assert await settings.get_all() == everything
    assert await settings.get_all(exclude=["model", "secret", "no such field"]) == {
        "count": 7,
        "hidden": "h",
        "fixed": "f",
    }


async def test_unknown_fields_are_not_found_and_wrong_values_are_refused(desk: Desk) -> None:
    settings = desk.settings()
    with pytest.raises(NotFoundError):
        await settings.get("nothing")
    with pytest.raises(NotFoundError):
        await settings.set("nothing", 1)
    with pytest.raises(InvalidValueError):
        await settings.set("count", 11)
    with pytest.raises(InvalidValueError):
        await settings.update({"model": "large", "count": "many"})
    assert (await desk.store.settings("worker-1")).values == {}
    assert desk.patches == []


async def test_a_handler_may_set_what_people_may_not_and_nobody_is_told_of_internal_fields(desk: Desk) -> None:
    settings = desk.settings()
    await settings.set("hidden", "new")
    await settings.set("fixed", "new")
    await settings.set("secret", "s3cret")
    assert await settings.get("secret") == "s3cret"
    assert desk.patches == [("fixed", "new"), ("secret", MASK)]


async def test_a_clients_patch_is_refused_where_it_may_not_write(desk: Desk) -> None:
    settings = desk.settings()
    with pytest.raises(InternalFieldError):
        await settings.patch("hidden", "x")
    with pytest.raises(ReadOnlyError):
        await settings.patch("fixed", "x")
    with pytest.raises(NotFoundError):
        await settings.patch("nothing", "x")
    with pytest.raises(InvalidValueError):
        await settings.patch("count", -1)
    with pytest.raises(NotConfiguredError):
        await desk.settings(None).patch("model", "x")
    await settings.patch("model", "large")
    assert await settings.get("model") == "large"


async def test_patching_the_mask_of_a_password_back_changes_nothing(desk: Desk) -> None:
    settings = desk.settings()
    await settings.patch("secret", "s3cret")
    await settings.patch("secret", MASK)
    assert await settings.get("secret") == "s3cret"
    assert desk.patches == [("secret", MASK)]


async def test_an_update_sets_several_fields_and_keeps_names_outside_the_schema(desk: Desk) -> None:
    settings = desk.settings()
    await settings.update({"model": "large", "count": 5, "extra": {"a": [1]}})
    assert (await desk.store.settings("worker-1")).values == {"model": "large", "count": 5, "extra": {"a": [1]}}
    assert desk.patches == [("model", "large"), ("count", 5)]
    await settings.update({})
    assert len(desk.patches) == 2


async def test_concurrent_sets_of_different_fields_all_survive(desk: Desk) -> None:
    settings = desk.settings(None)
    await asyncio.gather(*(settings.set(f"f{n}", n) for n in range(20)))
    assert await settings.get_all() == {f"f{n}": n for n in range(20)}


async def test_without_a_schema_any_json_value_may_be_set(desk: Desk) -> None:
    settings = desk.settings(None)
    await settings.set("anything", {"at": T0, "tags": {"one"}})
    assert await settings.get("anything") == {"at": "2026-01-01T00:00:00Z", "tags": ["one"]}
    assert await settings.get("nothing") is None
    with pytest.raises(InvalidValueError):
        await settings.set("anything", object())
    assert desk.patches == []


async def test_in_a_turn_settings_are_read_once_and_again_after_writing(desk: Desk) -> None:
    kept, outside = desk.settings(keep=True), desk.settings()
    assert await kept.get("model") == "small"
    await outside.set("model", "changed")
    assert await kept.get("model") == "small"
    await kept.set("count", 4)
    assert await kept.get("model") == "changed"
    assert await outside.get("count") == 4


async def test_settings_load_as_the_class_they_were_declared_by(desk: Desk) -> None:
    settings = desk.typed()
    assert await settings.load() == Typed()
    await settings.set("count", 9)
    await settings.set("note", "n")
    await settings.set("note", None)
    assert await settings.load() == Typed(count=9)
    with pytest.raises(NotConfiguredError):
        await desk.settings().load()


async def test_null_is_refused_everywhere_where_the_class_has_no_room_for_it(desk: Desk) -> None:
    settings = desk.typed()
    with pytest.raises(InvalidValueError):
        await settings.set("model", None)
    with pytest.raises(InvalidValueError):
        await settings.patch("model", None)
    with pytest.raises(InvalidValueError):
        await settings.update({"count": 1, "model": None})
    assert (await desk.store.settings("worker-1")).values == {}


async def test_a_snapshot_holds_public_fields_only(desk: Desk) -> None:
    settings = desk.settings()
    await settings.set("secret", "s3cret")
    snapshot = await settings.snapshot()
    assert {field["id"]: field["value"] for field in snapshot["fields"]} == {
        "model": "small",
        "count": 3,
        "secret": MASK,
        "fixed": "f",
    }
    assert snapshot["worker_id"] == snapshot["agent_id"] == "worker-1"
    with pytest.raises(NotConfiguredError):
        await desk.settings(None).snapshot()


# ---------------------------------------------------------------- settings that are sealed

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
TEXT, PASSWORD = SettingsFieldType.TEXT, SettingsFieldType.PASSWORD

LOCKED = SettingsSchema(
    fields=[
        SettingsField(id="model", type=TEXT, label="Model", value="small"),
        SettingsField(id="plain", type=PASSWORD, label="Plain"),
        SettingsField(id="inner", type=PASSWORD, label="Inner", is_internal=True, value="sk-default"),
        SettingsFieldGroup("group", "Group", [SettingsField(id="grouped", type=PASSWORD, label="Grouped")]),
        SettingsFieldGroup(
            "backend", "Backend", [SettingsField(id="hidden", type=PASSWORD, label="Hidden")], is_internal=True
        ),
    ]
)


@dataclass
class Inner:
    token: Secret = field(default_factory=lambda: Secret("t-default"))
    other: Secret | None = None


@dataclass
class Locked:
    api_key: Annotated[Secret, Internal] = field(default_factory=lambda: Secret("sk-default"))
    inner: Inner = field(default_factory=Inner)


async def stored(desk: Desk) -> dict[str, Any]:
    return dict((await desk.store.settings("worker-1")).values)


async def test_every_password_is_stored_sealed_and_nothing_else_is(desk: Desk) -> None:
    settings = desk.settings(LOCKED, keys=[NEW])
    secrets = {name: f"the secret of {name}" for name in ("plain", "inner", "grouped", "hidden")}
    given = {"model": "large", **secrets, "outside": "the secret of nobody"}
    await settings.update(given)
    values = await stored(desk)
    assert {name for name, value in values.items() if value == given[name]} == {"model", "outside"}
    assert not any(secret in str(values[name]) for name, secret in secrets.items())
    del given["outside"]
    assert await settings.get_all() == given
    assert [await settings.get(name) for name in given] == list(given.values())
    assert desk.patches == [("model", "large"), ("plain", MASK), ("grouped", MASK)]


async def test_a_sealed_password_is_a_mask_to_clients_and_may_be_patched(desk: Desk) -> None:
    settings = desk.settings(LOCKED, keys=[NEW])
    await settings.patch("plain", "s1")
    await settings.patch("plain", MASK)
    await settings.patch("grouped", "s2")
    model, plain, group = (await settings.snapshot())["fields"]
    assert (model["value"], plain["value"], group["fields"][0]["value"]) == ("small", MASK, MASK)
    await settings.patch("plain", None)
    await settings.patch("grouped", "")
    model, plain, group = (await settings.snapshot())["fields"]
    assert (plain["value"], group["fields"][0]["value"]) == (None, None)
    assert desk.patches == [("plain", MASK), ("grouped", MASK), ("plain", None), ("grouped", None)]


async def test_a_password_that_is_not_set_is_stored_as_nothing_and_its_default_is_not_stored(desk: Desk) -> None:
    settings = desk.settings(LOCKED, keys=[NEW])
    assert await settings.get("inner") == "sk-default"
    assert await stored(desk) == {}
    await settings.update({"plain": None, "grouped": "", "inner": None})
    assert await stored(desk) == {"plain": None, "grouped": "", "inner": None}
    assert [await settings.get(name) for name in ("plain", "grouped", "inner")] == [None, "", None]


async def test_what_was_stored_in_clear_is_read_and_sealed_with_the_next_write(desk: Desk) -> None:
    await desk.settings(LOCKED).set("plain", "s1")
    assert await stored(desk) == {"plain": "s1"}
    settings = desk.settings(LOCKED, keys=[NEW])
    assert await settings.get("plain") == "s1"
    assert await settings.get_stored() == {"plain": "s1"}
    await settings.set("plain", "s1")
    assert await stored(desk) != {"plain": "s1"}
    assert await settings.get("plain") == "s1"


async def test_secrets_of_a_settings_class_are_sealed_and_load_as_they_were(desk: Desk) -> None:
    typed = typed_settings(Locked)
    settings = desk.settings(typed.schema, typed=typed, keys=[NEW], keep=True)
    assert await settings.load() == Locked()
    await settings.set("api_key", Secret("in clear"))
    await settings.update({"inner.token": "in clear too", "inner.other": None})
    assert "in clear" not in str(await stored(desk))
    for _ in range(2):  # the second time from what the turn has kept
        assert await settings.load() == Locked(Secret("in clear"), Inner(Secret("in clear too"), None))


@pytest.mark.parametrize("keys", [(), (NEW,)])
async def test_a_password_that_no_key_opens_fails_only_who_asks_for_it(desk: Desk, keys: Sequence[str]) -> None:
    await desk.settings(LOCKED, keys=[OLD]).update({"plain": "s1", "grouped": "s2", "model": "large"})
    settings = desk.settings(LOCKED, keys=keys)
    said = r"setting 'plain' of worker 'worker-1' is sealed, and .* was the old key dropped\? Keep it after the new one"
    for read in (settings.get("plain"), settings.get_all(), settings.get_stored()):
        with pytest.raises(StoreError, match=said) as raised:
            await read
        for hidden in (OLD, NEW, "s1", *(await stored(desk))["plain"].values()):
            assert hidden not in str(raised.value)
    assert await settings.get("model") == "large"
    everything = await settings.get_all(exclude=["plain", "grouped"])
    assert everything == {"model": "large", "inner": "sk-default", "hidden": None}
    assert [field["value"] for field in (await settings.snapshot())["fields"][:2]] == ["large", MASK]
    await settings.set("plain", "s3")
    assert await settings.get("plain") == "s3"
    await settings.patch("grouped", "s4")
    assert await settings.get_stored() == {"plain": "s3", "grouped": "s4", "model": "large"}


async def test_a_sealed_password_copied_to_another_field_or_worker_does_not_open_there(desk: Desk) -> None:
    settings, other = desk.settings(LOCKED, keys=[NEW]), desk.settings(LOCKED, "worker-2", keys=[NEW])
    await settings.set("inner", "s1")
    sealed = (await stored(desk))["inner"]
    await desk.store.set_settings("worker-1", {"plain": sealed}, T0)
    await desk.store.set_settings("worker-2", {"inner": sealed}, T0)
    with pytest.raises(StoreError, match="'plain' of worker 'worker-1' holds what was sealed for another place"):
        await settings.get("plain")
    with pytest.raises(StoreError, match="'inner' of worker 'worker-2' holds what was sealed for another place"):
        await other.get("inner")
    assert await settings.get("inner") == "s1"


async def test_a_password_whose_field_became_another_kind_is_still_opened(desk: Desk) -> None:
    await desk.settings(LOCKED, keys=[OLD]).update({"plain": "s1", "grouped": "s2"})
    later = SettingsSchema(fields=[SettingsField(id="plain", type=TEXT, label="Plain")])
    settings = desk.settings(later, keys=[NEW, OLD])
    assert await settings.get("plain") == "s1"
    assert (await settings.snapshot())["fields"][0]["value"] == "s1"
    assert await settings.get_stored() == {"plain": "s1", "grouped": "s2"}
    # The old key may go after a rotation, whatever became of the fields.
    assert await settings.rotate() == (2, [])
    assert await desk.settings(later, keys=[NEW]).get_stored() == {"plain": "s1", "grouped": "s2"}


# ---------------------------------------------------------------- analytics


async def analytics_of(desk: Desk, **more: Any) -> WorkerAnalytics:
    desk.broadcast.follow(desk.session, "analytics", "worker-1")
    collector = Collector(WorkerConfig(database_type="memory"), desk.broadcast, SystemClock())
    return WorkerAnalytics(collector, SystemClock(), "worker-1", **more)


async def test_what_is_tracked_reaches_live_subscribers_whole(desk: Desk) -> None:
    analytics = await analytics_of(desk, thread=THREAD, user_id="ada", run_id=lambda: "run-1")
    await analytics.track("my.event", data={"at": T0, "n": 1})
    await analytics.track("bare")
    first, second = desk.session.payloads
    assert first["data"] == {"at": "2026-01-01T00:00:00Z", "n": 1}
    assert (first["event"], first["thread_id"], first["user_id"], first["run_id"]) == (
        "my.event",
        "thread-1",
        "ada",
        "run-1",
    )
    assert second["data"] is second["event_id"] is None  # nulls are carried


async def test_likes_and_dislikes_say_of_what_and_why(desk: Desk) -> None:
    analytics = await analytics_of(desk, thread=THREAD)
    await analytics.like("event", "e-1", "good")
    await analytics.dislike("run", "r-1")
    like, dislike = desk.session.payloads
    assert (like["event"], like["event_id"], like["data"]["reason"]) == ("feedback.like", "e-1", "good")
    assert (dislike["event"], dislike["event_id"]) == ("feedback.dislike", None)
    assert dislike["data"] == {"target_type": "run", "target_id": "r-1", "reason": None}


async def test_what_cannot_be_tracked_is_an_invalid_value(desk: Desk) -> None:
    analytics = await analytics_of(desk, thread=THREAD)
    wrong: Any
    for wrong in ("", None, 1):
        with pytest.raises(InvalidValueError):
            await analytics.track(wrong)
    with pytest.raises(InvalidValueError):
        await analytics.track("x", data={"no": object()})
    wrong = "message"
    with pytest.raises(InvalidValueError):
        await analytics.like(wrong, "e-1")
    assert desk.session.frames == []


async def test_without_a_thread_live_subscribers_hear_nothing(desk: Desk) -> None:
    await (await analytics_of(desk, thread_id="thread-1")).track("x")
    await (await analytics_of(desk, thread=evolve(THREAD, workspace_id="ws-2"))).track("x")
    assert desk.session.frames == []
