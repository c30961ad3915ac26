"""Passwords at rest: what is sealed and opens, what is on the disk, and a rotation of keys while others write."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import attrs
import pytest
from attrs import evolve
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from samples import T0

from dooers import Internal, Secret, SettingsField, SettingsFieldType, SettingsSchema, WorkerConfig, WorkerServer
from dooers.broadcast import Broadcast
from dooers.clock import SystemClock
from dooers.codec import dumps, loads
from dooers.context import WorkerSettings
from dooers.exceptions import ConfigError, NotConfiguredError, StoreError
from dooers.models import StoredSettings
from dooers.settings import MASK
from dooers.stores.memory import MemoryStore
from dooers.testing import WorkerClient
from dooers.vault import SEALED, Vault

OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))
SECRET = "hunter2-and-some-more-of-it"

SCHEMA = SettingsSchema(
    fields=[
        SettingsField(id="model", type=SettingsFieldType.TEXT, label="Model", value="small"),
        *(SettingsField(id=f"key{n}", type=SettingsFieldType.PASSWORD, label=f"Key {n}") for n in range(5)),
    ]
)


@attrs.frozen
class Locked:
    model: str = "small"
    api_key: Annotated[Secret, Internal] = Secret("sk-default")
    pin: Secret | None = None


# ---------------------------------------------------------------- sealing


@hypothesis_settings(deadline=None)
@given(
    value=st.one_of(st.text(min_size=1), st.integers(-(2**63), 2**63 - 1), st.dictionaries(st.text(), st.booleans()))
)
def test_what_is_sealed_opens_as_it_was_and_shows_nothing(value: Any) -> None:
    vault = Vault([NEW, OLD])
    sealed = vault.seal(value, "worker", "key")
    assert sealed != value
    assert vault.open(loads(dumps(sealed)), "worker", "key") == value
    assert vault.is_sealed(sealed)


def test_the_same_value_is_never_sealed_the_same_way_twice() -> None:
    vault = Vault([NEW])
    assert vault.seal(SECRET, "worker", "key") != vault.seal(SECRET, "worker", "key")


@pytest.mark.parametrize("nothing", [None, ""])
def test_nothing_stays_nothing(nothing: str | None) -> None:
    vault = Vault([NEW])
    assert vault.seal(nothing, "worker", "key") == nothing
    assert vault.open(nothing, "worker", "key") == nothing
    assert vault.is_current(nothing)


def test_without_keys_values_stay_in_clear() -> None:
    vault = Vault()
    assert not vault.has_key
    assert vault.seal(SECRET, "worker", "key") == vault.open(SECRET, "worker", "key") == SECRET


@pytest.mark.parametrize(
    "clear", [SECRET, MASK, 5, ["x"], {}, {"sealed": "x"}, {SEALED: 5}, {SEALED: "x", "more": 1}, dumps({SEALED: "x"})]
)
@pytest.mark.parametrize("keys", [(), (NEW,)])
def test_what_is_in_clear_opens_as_it_is(clear: Any, keys: tuple[str, ...]) -> None:
    vault = Vault(keys)
    assert vault.open(clear, "worker", "key") == clear
    assert not vault.is_sealed(clear)
    assert not vault.is_current(clear)


def test_an_older_key_opens_and_only_the_newest_is_current() -> None:
    sealed = Vault([OLD]).seal(SECRET, "worker", "key")
    both = Vault([NEW, OLD])
    assert both.open(sealed, "worker", "key") == SECRET
    assert (Vault([OLD]).is_current(sealed), both.is_current(sealed), Vault().is_current(sealed)) == (
        True,
        False,
        False,
    )
    assert Vault([NEW]).open(both.seal(SECRET, "worker", "key"), "worker", "key") == SECRET


@pytest.mark.parametrize(
    ("keys", "why"), [((), "there is no settings_encryption_key"), ((NEW, OTHER), "no key of settings_encryption_key")]
)
def test_a_value_that_no_key_opens_is_named_and_not_shown(keys: tuple[str, ...], why: str) -> None:
    sealed = Vault([OLD]).seal(SECRET, "worker", "key")
    with pytest.raises(StoreError, match=f"setting 'key' of worker 'worker' is sealed, and {why}") as raised:
        Vault(keys).open(sealed, "worker", "key")
    for hidden in (SECRET, OLD, NEW, OTHER, sealed[SEALED]):
        assert hidden not in str(raised.value)


def test_a_token_that_was_damaged_does_not_open() -> None:
    whole = Vault([NEW]).seal(SECRET, "worker", "key")[SEALED]
    for damaged in ("", "x", "ü" * 200, "gAAAA", whole[:-10], whole[:50] + "AAAA" + whole[54:]):
        with pytest.raises(StoreError, match="no key of settings_encryption_key opens it"):
            Vault([NEW]).open({SEALED: damaged}, "worker", "key")


@pytest.mark.parametrize(
    ("worker_id", "field_id"),
    [("worker", "other"), ("other", "key"), ("key", "worker"), ("", "workerkey"), ("worker", ""), ('worker","key', "")],
)
def test_a_value_opens_at_its_own_place_only(worker_id: str, field_id: str) -> None:
    vault = Vault([NEW])
    sealed = vault.seal(SECRET, "worker", "key")
    with pytest.raises(StoreError, match="sealed for another place"):
        vault.open(sealed, worker_id, field_id)


def test_what_somebody_else_sealed_with_the_same_key_does_not_open() -> None:
    with pytest.raises(StoreError, match="sealed for another place"):
        Vault([NEW]).open({SEALED: Fernet(NEW).encrypt(b"not ours").decode()}, "worker", "key")


def test_without_its_library_a_key_is_an_error_when_the_worker_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)
    WorkerServer(WorkerConfig(database_type="memory"))
    with pytest.raises(ConfigError, match=r"pip install 'dooers-workers-server\[encryption\]'") as raised:
        WorkerServer(WorkerConfig(database_type="memory", settings_encryption_key=NEW))
    assert NEW not in str(raised.value)


# ---------------------------------------------------------------- in a worker


def locked(config: WorkerConfig, *keys: str) -> WorkerServer:
    return WorkerServer(evolve(config, settings_schema=SCHEMA, settings_encryption_key=keys))


def on_disk(config: WorkerConfig) -> bytes:
    """All bytes of the database: its file, and the log beside it."""
    path = Path(config.database_name)
    files = [path, path.with_name(f"{path.name}-wal")]
    return b"".join(file.read_bytes() for file in files if file.exists())


@pytest.mark.parametrize("keys", [(), (NEW,)])
async def test_with_a_key_the_disk_never_sees_a_password(worker_config: WorkerConfig, keys: tuple[str, ...]) -> None:
    worker = locked(worker_config, *keys)
    async with worker.lifespan():
        settings = await worker.settings()
        await settings.set("key0", SECRET)
        await (await worker.repository()).update_settings("other", {"key1": SECRET})
        async with WorkerClient(worker) as client:
            assert (await client.ask("settings.patch", {"field_id": "key2", "value": SECRET}))["payload"]["ok"]
        assert await settings.get("key0") == await settings.get("key2") == SECRET
        assert (SECRET.encode() in on_disk(worker_config)) is (not keys)
    assert (SECRET.encode() in on_disk(worker_config)) is (not keys)


async def test_handlers_get_the_secret_and_clients_its_mask(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(evolve(worker_config, settings_encryption_key=NEW))
    worker.settings(Locked)
    seen: list[Any] = []

    @worker.handler
    async def agent(send: Any, typed: Locked, settings: WorkerSettings) -> AsyncIterator[Any]:
        seen.append((typed, await settings.get("pin")))
        yield send.text("ok")

    async with worker.lifespan(), WorkerClient(worker) as client:
        assert (await client.say("hi")).text == "ok"
        await (await worker.settings()).set("api_key", SECRET)
        client.post("settings.subscribe")
        await client.expect("settings.snapshot")
        client.post("settings.patch", {"field_id": "pin", "value": "1234"})
        assert (await client.expect("settings.patch"))["payload"]["value"] == MASK
        assert (await client.say("hi")).text == "ok"
        assert seen == [(Locked(), None), (Locked(api_key=Secret(SECRET), pin=Secret("1234")), "1234")]
        client.post("settings.subscribe")
        fields = (await client.expect("settings.snapshot"))["payload"]["fields"]
        assert [field["value"] for field in fields] == ["small", MASK]


async def test_a_lost_key_fails_the_turns_that_need_it_and_not_the_worker(worker_config: WorkerConfig) -> None:
    async with (first := locked(worker_config, OLD)).lifespan():
        await (await first.settings()).set("key0", SECRET)
    worker = locked(worker_config, NEW)

    @worker.handler
    async def agent(incoming: Any, send: Any, settings: Any) -> AsyncIterator[Any]:
        yield send.text(str(await settings.get(incoming.message)))

    async with worker.lifespan(), WorkerClient(worker) as client:
        assert (await client.say("model")).text == "small"
        assert SECRET not in (await client.say("key0")).text
        client.post("settings.subscribe")
        fields = (await client.expect("settings.snapshot"))["payload"]["fields"]
        assert [field["value"] for field in fields[:2]] == ["small", MASK]
        assert (await client.ask("settings.patch", {"field_id": "key0", "value": "again"}))["payload"]["ok"]
        assert (await client.say("key0")).text == "again"


# ---------------------------------------------------------------- rotation


async def test_after_a_rotation_the_old_key_may_go(worker_config: WorkerConfig) -> None:
    async with (clear := locked(worker_config)).lifespan():
        await (await clear.settings("ann")).update({"key0": "clear", "key1": None, "key2": "", "model": "large"})
    async with (old := locked(worker_config, OLD)).lifespan():
        await (await old.settings("ann")).set("key3", "old")
        await (await old.settings("bob")).set("key0", "old")
    async with (both := locked(worker_config, NEW, OLD)).lifespan():
        await (await both.settings("bob")).set("key1", "new")
        before = await both._parts.store().settings("ann")
        assert await both.rotate_settings() == 3
        assert await both.rotate_settings() == 0
        assert (await both._parts.store().settings("ann")).updated_at == before.updated_at
    async with (new := locked(worker_config, NEW)).lifespan():
        repo = await new.repository()
        assert await repo.get_settings("ann") == {
            "key0": "clear",
            "key1": None,
            "key2": "",
            "key3": "old",
            "model": "large",
        }
        assert await repo.get_settings("bob") == {"key0": "old", "key1": "new"}
        assert await new.rotate_settings() == 0


async def test_a_rotation_tells_nobody(worker_config: WorkerConfig) -> None:
    async with (old := locked(worker_config, OLD)).lifespan():
        await (await old.settings()).set("key0", SECRET)
    worker = locked(worker_config, NEW, OLD)
    async with worker.lifespan(), WorkerClient(worker) as client:
        client.post("settings.subscribe")
        await client.expect("settings.snapshot")
        assert await worker.rotate_settings() == 1
        client.post("ping")
        assert (await client.expect("pong", "settings.patch"))["type"] == "pong"


async def test_a_rotation_beside_writers_with_either_key_loses_nothing(worker_config: WorkerConfig) -> None:
    names, ids = [f"key{n}" for n in range(5)], ["ann", "bob"]
    old, new = locked(worker_config, OLD), locked(worker_config, NEW, OLD)
    async with old.lifespan(), new.lifespan():
        before = [await old.settings(worker_id) for worker_id in ids]
        for settings in before:
            await settings.update(dict.fromkeys(names, "0"))

        async def write(worker: WorkerServer, worker_id: str, mine: list[str]) -> None:
            settings = await worker.settings(worker_id)
            for n in range(1, 21):
                for name in mine:
                    await settings.patch(name, str(n))

        # Each field has one writer, so its last value is known.
        writing = [asyncio.create_task(write(old, worker_id, names[:2])) for worker_id in ids]
        writing += [asyncio.create_task(write(new, worker_id, names[2:4])) for worker_id in ids]
        while not all(task.done() for task in writing):
            with suppress(StoreError):  # gives up where the writers with the old key keep at it
                await new.rotate_settings()
        await asyncio.gather(*writing)
        await new.rotate_settings()
    async with (only := locked(worker_config, NEW)).lifespan():
        for worker_id in ids:
            assert await (await only.repository()).get_settings(worker_id) == {
                **dict.fromkeys(names[:4], "20"),
                names[4]: "0",
            }
        assert await only.rotate_settings() == 0


async def test_two_rotations_at_once_count_each_value_once(worker_config: WorkerConfig) -> None:
    async with (old := locked(worker_config, OLD)).lifespan():
        await (await old.settings()).update({f"key{n}": SECRET for n in range(5)})
    async with (one := locked(worker_config, NEW, OLD)).lifespan(), (two := locked(worker_config, NEW, OLD)).lifespan():
        assert sum(await asyncio.gather(one.rotate_settings(), two.rotate_settings(), one.rotate_settings())) == 5


async def test_what_no_key_opens_is_told_when_all_else_is_sealed_anew(worker_config: WorkerConfig) -> None:
    for worker_id, key in (("ann", OTHER), ("bob", OLD), ("cid", OTHER)):
        async with (worker := locked(worker_config, key)).lifespan():
            await (await worker.settings(worker_id)).set("key0", SECRET)
    async with (worker := locked(worker_config, NEW, OLD)).lifespan():
        for count in (1, 0):
            with pytest.raises(StoreError) as raised:
                await worker.rotate_settings()
            assert str(raised.value).startswith(
                f"{count} settings were sealed anew, but these cannot be opened: 'key0' of worker 'ann', "
                "'key0' of worker 'cid': was their key dropped? Keep it after the new one"
            )
        repo = await worker.repository()
        for worker_id in ("ann", "cid"):
            await repo.update_settings(worker_id, {"key0": "again"})
        assert await worker.rotate_settings() == 0
    async with (worker := locked(worker_config, NEW)).lifespan():
        assert await (await worker.repository()).get_settings("bob") == {"key0": SECRET}


async def test_an_error_names_a_few_of_many(worker_config: WorkerConfig) -> None:
    async with (worker := locked(worker_config, OLD)).lifespan():
        for n in range(13):
            await (await worker.settings(f"w{n:02}")).set("key0", SECRET)
    async with (worker := locked(worker_config, NEW)).lifespan():
        with pytest.raises(StoreError, match="'key0' of worker 'w09' and 3 more: was their key dropped"):
            await worker.rotate_settings()


async def test_without_a_key_there_is_nothing_to_rotate_to(worker_config: WorkerConfig) -> None:
    async with (worker := locked(worker_config)).lifespan():
        with pytest.raises(NotConfiguredError, match="a rotation needs settings_encryption_key: the new key first"):
            await worker.rotate_settings()


async def test_a_rotation_gives_up_where_others_never_stop_writing_with_the_old_key() -> None:
    class Busy(MemoryStore):
        """A store in which every read is followed by another process's write."""

        async def settings(self, worker_id: str) -> StoredSettings:
            found = await super().settings(worker_id)
            await self.set_settings(worker_id, {"key0": Vault([OLD]).seal(SECRET, worker_id, "key0")}, T0)
            return found

    store = Busy()
    await store.set_settings("ann", {"key0": SECRET}, T0)
    settings = WorkerSettings(store, Broadcast(SystemClock()), SystemClock(), Vault([NEW, OLD]), "ann", SCHEMA)
    with pytest.raises(StoreError, match="give the new key to every process first"):
        await settings.rotate()
