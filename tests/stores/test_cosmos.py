"""The Cosmos DB store: the contract of all stores, and what only a service far away can do: throttle, lose an answer, stop half-way."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from attrs import evolve
from contract import SCOPE, StoreContract, a_run, a_thread, an_event, bury, later, opened, opening, seqs, texts
from services.between import Asked, Between, between, lose, throttle, unplug
from services.cosmos import Service, database, running, service

from dooers import WorkerConfig, WorkerServer
from dooers.exceptions import ConfigError, DooersError, NotFoundError, StoreError
from dooers.models import Change, EventQuery, Run, RunQuery, ThreadQuery
from dooers.stores import Store, cosmos_keys, open_store
from dooers.stores.cosmos import CosmosStore
from dooers.stores.cosmos_documents import INDEXING, event_name, key_partition, thread_partition, void_document

MANY = 250  # more events than a transaction holds, and more than two


@pytest.fixture(scope="session")
def cosmos() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture
async def config(cosmos: Service) -> AsyncIterator[WorkerConfig]:
    """A database of its own: what is counted or listed without a filter is this test's."""
    async with database(cosmos) as config:
        yield config


@pytest.fixture
async def store(config: WorkerConfig) -> AsyncIterator[CosmosStore]:
    async with running(config) as store:
        yield store


class TestCosmosStore(StoreContract):
    @pytest.fixture
    async def store(self, config: WorkerConfig) -> AsyncIterator[Store]:
        async with running(config) as store:
            yield store


@pytest.fixture
async def line(cosmos: Service) -> AsyncIterator[Between]:
    """The way to the service, which a test may disturb."""
    async with between(cosmos.url) as line:
        yield line


@pytest.fixture
async def far(config: WorkerConfig, line: Between) -> AsyncIterator[CosmosStore]:
    """A store at the other end of that line."""
    async with running(config, database_host=line.url) as store:
        yield store


async def everything(store: CosmosStore) -> list[dict[str, Any]]:
    return await store._container.query("SELECT * FROM c", {})


def once(what: Callable[[Asked], Awaitable[web.Response | None]], when: Callable[[Asked], bool]) -> Any:
    """A rule for the first request that fits; the others go through."""
    done: list[Asked] = []

    async def rule(asked: Asked) -> web.Response | None:
        if not done and when(asked):
            done.append(asked)
            return await what(asked)
        return await asked.go_on()

    return rule


# ---------------------------------------------------------------- how it is set up


async def test_the_config_chooses_this_store(config: WorkerConfig) -> None:
    assert isinstance(open_store(config), CosmosStore)


def test_without_the_sdk_the_error_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['azure.cosmos'] = None\n"
        "from dooers import WorkerConfig\n"
        "from dooers.exceptions import ConfigError\n"
        "from dooers.stores import open_store\n"
        "try:\n"
        "    open_store(WorkerConfig(database_type='cosmos', database_name='d', database_host='https://a.example/'))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'dooers-workers-server[cosmos]'" in done.stdout


@pytest.mark.parametrize("host", ["localhost", "account.documents.azure.com", "ftp://a.example/", "https://"])
def test_a_host_that_is_no_url_is_a_config_error(host: str) -> None:
    with pytest.raises(ConfigError, match=r"your-account.documents.azure.com"):
        CosmosStore(WorkerConfig(database_type="cosmos", database_name="d", database_host=host))


def test_plain_http_is_for_this_machine_only() -> None:
    with pytest.raises(ConfigError, match="https"):
        CosmosStore(WorkerConfig(database_type="cosmos", database_name="d", database_host="http://db.example:8081/"))


async def test_without_migration_a_missing_container_is_named(config: WorkerConfig) -> None:
    with pytest.raises(StoreError, match=r"worker_conversations.*database_auto_migrate"):
        await CosmosStore(evolve(config, database_auto_migrate=False)).open()
    async with running(config):
        pass
    async with running(config, database_auto_migrate=False) as store:
        await store.ping()


async def test_migrating_makes_the_container_and_looking_does_not(config: WorkerConfig) -> None:
    store = CosmosStore(config)
    for _ in range(2):
        schema = await store.schema()
        assert (schema.current, schema.found, schema.upgrade) == (False, "no container 'worker_conversations'", None)
    assert await store.migrate() == "there is a container 'worker_conversations'"
    assert (await store.schema()).current
    with pytest.raises(StoreError):
        await store.ping()  # it was open only meanwhile
    async with running(config) as opened:
        await opened.migrate()
        assert (await opened.schema()).current
        await opened.ping()


async def test_ten_stores_may_make_the_container_at_once(config: WorkerConfig) -> None:
    stores = [CosmosStore(config) for _ in range(10)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        await store.close()


async def test_only_what_is_asked_for_is_indexed(store: CosmosStore) -> None:
    found = (await store._container._need().read())["indexingPolicy"]
    assert [one["path"] for one in found["excludedPaths"]][:1] == ["/*"]
    assert {one["path"] for one in found["includedPaths"]} == {one["path"] for one in INDEXING["includedPaths"]}
    assert not any("content" in one["path"] or "data" in one["path"] for one in found["includedPaths"])


async def test_nobody_there_is_a_store_error_without_the_key(config: WorkerConfig) -> None:
    key = "c2VjcmV0LXNlY3JldA=="
    nobody = evolve(config, database_host="http://127.0.0.1:9/", database_key=key, database_timeout=1.0)
    with pytest.raises(StoreError) as caught:
        await CosmosStore(nobody).open()
    error: BaseException | None = caught.value
    while error is not None:
        assert key not in str(error)
        error = error.__cause__


async def test_a_wrong_key_is_named_but_not_shown(config: WorkerConfig, line: Between) -> None:
    async def refuse(asked: Asked) -> web.Response | None:
        return web.json_response({"message": f"wrong: {asked.headers.get('authorization')}"}, status=401)

    line.rule = refuse
    with pytest.raises(StoreError, match=r"401.*database_key") as caught:
        await CosmosStore(evolve(config, database_host=line.url)).open()
    assert config.database_key not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """A server's own certificate for this machine, signed by nobody else."""
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(["openssl", *made, *names, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)
    return context, str(pem)


async def test_a_certificate_of_nobody_known_is_refused_even_on_localhost(
    cosmos: Service, config: WorkerConfig, certificate: tuple[ssl.SSLContext, str]
) -> None:
    context, pem = certificate
    async with between(cosmos.url, tls=context) as line:
        with pytest.raises(StoreError):
            await CosmosStore(evolve(config, database_host=line.url)).open()
        assert line.asked == []
        async with running(config, database_host=line.url, database_ssl_ca=pem) as store:
            await store.ping()


async def test_a_wrong_file_of_certificates_is_a_config_error(config: WorkerConfig, tmp_path: Path) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ConfigError, match="database_ssl_ca"):
        await CosmosStore(evolve(config, database_host="https://127.0.0.1:9/", database_ssl_ca=str(wrong))).open()


# ---------------------------------------------------------------- several at once


async def test_two_stores_that_write_one_thread_give_out_each_number_once(config: WorkerConfig) -> None:
    async with running(config) as one, running(config) as two:
        thread = await opened(one)
        changes = [(store, n) for n in range(40) for store in (one, two)]
        stored = await asyncio.gather(
            *(
                store.apply(
                    Change(thread=thread, events=(an_event(thread, f"{'one' if store is one else 'two'} {n}"),))
                )
                for store, n in changes
            )
        )
        kept = await two.events(EventQuery(thread_id=thread.id))
        assert seqs(kept) == list(range(1, 81))
        assert sorted(seqs([change.events[0] for change in stored])) == list(range(1, 81))
        for name in ("one", "two"):
            assert [text for text in texts(kept) if text.startswith(name)] == [f"{name} {n}" for n in range(40)]


async def test_a_storm_of_patches_and_runs_of_four_stores_loses_nothing(config: WorkerConfig) -> None:
    async with running(config) as a, running(config) as b, running(config) as c, running(config) as d:
        thread = await opened(a)
        runs = [a_run(thread, at=later(n)) for n in range(10)]
        await asyncio.gather(
            *(a.apply(Change(thread=thread, patch={"title": f"t{n}"})) for n in range(10)),
            *(b.apply(Change(thread=thread, patch={"metadata": {"n": n}})) for n in range(10)),
            *(c.apply(Change(thread=thread, runs=(run,))) for run in runs),
            *(d.apply(Change(thread=thread, events=(an_event(thread),))) for _ in range(10)),
        )
        found = await b.thread(thread.id)
        assert found is not None
        assert (found.title, found.metadata, found.last_seq) == ("t9", {"n": 9}, 10)
        assert await a.runs(RunQuery(equal={"thread_id": thread.id}, oldest_first=True)) == runs


async def test_of_one_repeat_key_in_four_stores_one_change_is_written(config: WorkerConfig) -> None:
    async with running(config) as a, running(config) as b, running(config) as c, running(config) as d:
        threads = [a_thread() for _ in range(12)]
        stored = await asyncio.gather(
            *(
                store.apply(opening(thread, an_event(thread), repeat_key="k"))
                for store, thread in zip([a, b, c, d] * 3, threads, strict=True)
            )
        )
        assert sum(not change.repeated for change in stored) == 1
        assert len({(change.thread.id, change.events[0].id) for change in stored}) == 1
        assert await a.count_threads({}) == 1


async def test_a_stale_memory_of_a_thread_refuses_nobody(config: WorkerConfig) -> None:
    async with running(config) as one, running(config) as two:
        thread = await opened(one, "first")
        await two.apply(Change(thread=thread, removes=True))
        again = evolve(thread, created_at=later(9), last_seq=0)
        await two.apply(opening(again, an_event(again, "second")))
        stored = await one.apply(Change(thread=again, events=(an_event(again, "third"),)))
        assert stored.events[0].seq == 2
        assert texts(await one.events(EventQuery(thread_id=thread.id))) == ["second", "third"]
        with pytest.raises(NotFoundError):
            await one.apply(Change(thread=thread, events=(an_event(thread),)))


async def test_a_slow_thread_does_not_keep_others_waiting_and_its_queue_goes_away(
    far: CosmosStore, line: Between
) -> None:
    slow, fast = await opened(far), await opened(far)
    held, free = asyncio.Event(), asyncio.Event()

    async def hold(asked: Asked) -> web.Response | None:
        if any(operation.get("resourceBody", {}).get("pk") == thread_partition(slow.id) for operation in asked.batch):
            held.set()
            await free.wait()
        return await asked.go_on()

    line.rule = hold
    waiting = [far.apply(Change(thread=slow, events=(an_event(slow, str(n)),))) for n in range(3)]
    await held.wait()
    for _ in range(3):
        await far.apply(Change(thread=fast, events=(an_event(fast),)))
    assert not any(future.done() for future in waiting)
    free.set()
    assert [(await future).events[0].seq for future in waiting] == [1, 2, 3]
    await asyncio.sleep(0)
    assert far._queues == far._tasks == {}


# ---------------------------------------------------------------- settings


async def test_20_writers_of_settings_in_two_stores_lose_nothing(config: WorkerConfig) -> None:
    async with running(config) as one, running(config) as two:
        await asyncio.gather(
            *((one, two)[n % 2].set_settings("w", {f"f{n}": n, "shared": n}, later(n)) for n in range(20))
        )
        values = (await one.settings("w")).values
        assert {name: value for name, value in values.items() if name != "shared"} == {f"f{n}": n for n in range(20)}
        assert values["shared"] in range(20)


async def test_more_fields_than_a_transaction_holds_are_refused(store: CosmosStore) -> None:
    with pytest.raises(StoreError, match="at most 100"):
        await store.set_settings("w", {f"f{n}": n for n in range(101)}, later(0))
    await store.set_settings("w", {f"f{n}": n for n in range(100)}, later(0))
    assert len((await store.settings("w")).values) == 100


async def test_configured_names_every_worker_that_has_settings(store: CosmosStore) -> None:
    assert await store.configured() == []
    for name in ("b", "a/ü?", "c"):
        await store.set_settings(name, {"x": 1, "y": 2}, later(0))
    assert await store.configured() == ["a/ü?", "b", "c"]


async def test_swap_setting_replaces_only_what_it_was_told(store: CosmosStore) -> None:
    await store.set_settings("w", {"x": {"a": [1]}, "y": None}, later(3))
    assert not await store.swap_setting("w", "x", {"a": [2]}, "never")
    assert not await store.swap_setting("w", "z", None, "never")
    assert not await store.swap_setting("v", "x", {"a": [1]}, "never")
    assert await store.swap_setting("w", "x", {"a": [1]}, "new")
    assert await store.swap_setting("w", "y", None, False)
    found = await store.settings("w")
    assert (found.values, found.updated_at) == ({"x": "new", "y": False}, later(3))


async def test_of_many_that_swap_the_same_value_one_does(config: WorkerConfig) -> None:
    async with running(config) as one, running(config) as two:
        await one.set_settings("w", {"x": "old"}, later(0))
        done = await asyncio.gather(*((one, two)[n % 2].swap_setting("w", "x", "old", f"new {n}") for n in range(10)))
        assert sum(done) == 1
        assert (await two.settings("w")).values == {"x": f"new {done.index(True)}"}


async def test_a_swap_whose_answer_is_lost_is_known_to_be_done(far: CosmosStore, line: Between) -> None:
    await far.set_settings("w", {"x": "old"}, later(0))
    line.rule = once(lose, lambda asked: asked.writes("setting"))
    assert await far.swap_setting("w", "x", "old", "new")


# ---------------------------------------------------------------- a bad line


async def test_a_throttled_change_waits_as_long_as_it_is_told_and_is_written_once(
    far: CosmosStore, line: Between
) -> None:
    thread = await opened(far)
    throttled = 0

    async def three_times(asked: Asked) -> web.Response | None:
        nonlocal throttled
        if asked.writes("event") and throttled < 3:
            throttled += 1
            return await throttle(asked)
        return await asked.go_on()

    line.rule = three_times
    stored = await far.apply(Change(thread=thread, events=(an_event(thread),)))
    assert (throttled, stored.events[0].seq) == (3, 1)


async def test_an_operation_throttled_inside_its_batch_is_tried_again(far: CosmosStore, line: Between) -> None:
    thread = await opened(far)

    async def too_much(asked: Asked) -> web.Response | None:
        results: list[dict[str, Any]] = [{"statusCode": 424, "requestCharge": 0} for _ in asked.batch]
        results[-1] = {"statusCode": 429, "requestCharge": 0, "retryAfterMilliseconds": 5}
        return web.json_response(results, status=207)

    line.rule = once(too_much, lambda asked: asked.writes("event"))
    stored = await far.apply(Change(thread=thread, events=(an_event(thread),)))
    assert stored.events[0].seq == 1


async def test_a_service_that_throttles_for_ever_is_a_store_error_in_time(config: WorkerConfig, line: Between) -> None:
    async with running(config, database_host=line.url, database_timeout=0.5) as store:
        thread = await opened(store)

        async def always(asked: Asked) -> web.Response | None:
            return await throttle(asked)

        line.rule = always
        for work in (store.apply(Change(thread=thread, events=(an_event(thread),))), store.thread(thread.id)):
            with pytest.raises(StoreError, match=r"0.5 seconds"):
                await work


async def test_a_service_that_keeps_quiet_is_a_store_error_in_time_and_the_next_change_is_written(
    config: WorkerConfig, line: Between
) -> None:
    async with running(config, database_host=line.url, database_timeout=0.5) as store:
        thread = await opened(store)
        over = asyncio.Event()

        async def quiet(asked: Asked) -> web.Response | None:
            await over.wait()
            return None

        line.rule = once(quiet, lambda asked: asked.writes("event"))
        with pytest.raises(StoreError, match=r"no answer within 0.5 seconds"):
            await store.apply(Change(thread=thread, events=(an_event(thread, "lost"),)))
        stored = await store.apply(Change(thread=thread, events=(an_event(thread, "kept"),)))
        over.set()
        assert stored.events[0].seq == 1


@pytest.mark.parametrize("way", [lose, unplug])
@pytest.mark.parametrize("kind", ["opens", "events", "patch", "runs", "removes", "keyed", "many", "settings"])
async def test_an_answer_that_is_lost_changes_nothing(
    far: CosmosStore, line: Between, kind: str, way: Callable[[Asked], Awaitable[web.Response | None]]
) -> None:
    thread, new, run = await opened(far, "one"), a_thread(), a_run(a_thread())
    run = evolve(run, thread_id=thread.id)
    changes = {
        "opens": opening(new, an_event(new, "a"), an_event(new, "b")),
        "events": Change(thread=thread, events=(an_event(thread, "a"), an_event(thread, "b"))),
        "patch": Change(thread=thread, patch={"title": "T"}),
        "runs": Change(thread=thread, runs=(run,)),
        "removes": Change(thread=thread, removes=True),
        "keyed": opening(new, an_event(new, "a"), repeat_key="k"),
        "many": opening(new, *(an_event(new, str(n)) for n in range(MANY))),
    }
    for number in range(5):  # each transaction that it takes, in turn
        seen = 0

        def nth(asked: Asked, number: int = number) -> bool:
            nonlocal seen
            seen += bool(asked.batch)
            return bool(asked.batch) and seen == number + 1

        line.rule = once(way, nth)
        if kind == "settings":
            await far.set_settings("w", {"a": 1}, later(0))
            assert (await far.settings("w")).values == {"a": 1}
            continue
        change = changes[kind]
        stored = await far.apply(change)
        assert stored.created == change.opens
        assert not stored.repeated
        kept = await far.events(EventQuery(thread_id=stored.thread.id))
        if kind == "removes":
            assert kept == []
            assert stored.thread == thread
            await far.apply(opening(thread, an_event(thread, "one")))
        elif change.events:
            assert kept[-len(change.events) :] == list(stored.events)
            assert stored.thread == await far.thread(stored.thread.id)
            await far.apply(Change(thread=stored.thread, removes=True, exact=False))
            if kind == "events":
                await far.apply(opening(thread, an_event(thread, "one")))
        else:
            assert await far.thread(thread.id) == stored.thread
    line.rule = once(unplug, lambda asked: False)


async def test_the_price_of_a_change_is_logged_with_its_thread(
    store: CosmosStore, caplog: pytest.LogCaptureFixture
) -> None:
    thread = await opened(store)
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="dooers"):
        await store.apply(Change(thread=thread, events=(an_event(thread),)))
    assert [record.getMessage() for record in caplog.records if record.name == "dooers"] == [
        f"thread {thread.id}: 1 changes cost 1.00 request units in 1 requests"
    ]


async def test_a_turn_costs_one_request_for_each_of_its_changes(far: CosmosStore, line: Between) -> None:
    thread = a_thread()
    line.asked.clear()
    await far.apply(opening(thread, an_event(thread), guard=SCOPE, exact=False, repeat_key="k"))
    assert [bool(asked.batch) for asked in line.asked] == [False, True, True]  # is it there? the key, the message
    line.asked.clear()
    run = a_run(thread)
    for change in (
        Change(thread=thread, runs=(run,)),
        Change(thread=thread, events=(an_event(thread, actor="assistant", turn_seq=1),)),
        Change(thread=thread, runs=(evolve(run, status="succeeded", ended_at=later(1)),)),
    ):
        await far.apply(evolve(change, during=run.id))
    # A run that nobody has seen yet is looked for, its end is not.
    assert [bool(asked.batch) for asked in line.asked] == [False, True, True, True]


async def test_changes_that_wait_share_a_transaction(far: CosmosStore, line: Between) -> None:
    thread = await opened(far)
    line.asked.clear()
    runs = [a_run(thread, at=later(n)) for n in range(5)]
    changes = [
        Change(
            thread=thread, events=(an_event(thread, str(n), at=later(n)),), patch={"title": f"t{n}"}, runs=(runs[n],)
        )
        for n in range(5)
    ]
    stored = await asyncio.gather(*(far.apply(change) for change in changes))
    assert sum(bool(asked.batch) for asked in line.asked) == 1
    assert [(one.thread.title, one.thread.last_seq, one.events[0].seq) for one in stored] == [
        (f"t{n}", n + 1, n + 1) for n in range(5)
    ]
    assert await far.thread(thread.id) == stored[-1].thread
    assert await far.runs(RunQuery(oldest_first=True)) == runs


async def test_a_change_that_spoils_a_shared_transaction_costs_nobody_else(far: CosmosStore) -> None:
    thread = await opened(far, "one")
    there = (await far.events(EventQuery(thread_id=thread.id)))[0]
    bad = [
        Change(thread=thread, events=(there,)),
        Change(thread=thread, events=(an_event(thread, data={"no": object()}),)),
        Change(thread=thread, patch={"no such column": 1}),
        Change(thread=thread, events=(an_event(thread, "x" * 2_100_000),)),
        Change(thread=thread, runs=tuple(a_run(thread) for _ in range(100))),
    ]
    good = [Change(thread=thread, events=(an_event(thread, f"m{n}"),)) for n in range(len(bad))]
    results = await asyncio.gather(
        *(far.apply(change) for pair in zip(good, bad, strict=True) for change in pair), return_exceptions=True
    )
    assert [isinstance(result, DooersError) for result in results] == [False, True] * len(bad)
    assert texts(await far.events(EventQuery(thread_id=thread.id))) == ["one", *(f"m{n}" for n in range(len(bad)))]


async def test_a_lost_answer_to_a_shared_transaction_is_known_to_be_done(far: CosmosStore, line: Between) -> None:
    thread = await opened(far, "one")
    line.rule = once(lose, lambda asked: asked.writes("event"))
    changes = [Change(thread=thread, patch={"title": "T"})]
    changes += [Change(thread=thread, events=(an_event(thread, f"m{n}"),)) for n in range(5)]
    stored = await asyncio.gather(*(far.apply(change) for change in changes))
    assert [seqs(change.events) for change in stored] == [[], [2], [3], [4], [5], [6]]
    assert texts(await far.events(EventQuery(thread_id=thread.id))) == ["one", *(f"m{n}" for n in range(5))]


@pytest.mark.parametrize("meanwhile", ["buried", "appended"])
async def test_a_writer_that_remembers_a_run_as_open_finds_out_that_another_closed_it(
    far: CosmosStore, store: CosmosStore, meanwhile: str
) -> None:
    thread = await opened(far, "one")
    run = a_run(thread)
    change = Change(thread=thread, during=run.id, runs=(run,))
    await far.apply(change)
    await store.apply(Change(thread=thread, events=(an_event(thread, "two"),)))
    if meanwhile == "buried":
        await bury(store, later(1), later(60), "lost")
    late = [far.apply(Change(thread=thread, during=run.id, events=(an_event(thread, text),))) for text in ("a", "b")]
    results = await asyncio.gather(*late, return_exceptions=True)
    assert [isinstance(result, NotFoundError) for result in results] == [meanwhile == "buried"] * 2
    kept = texts(await far.events(EventQuery(thread_id=thread.id)))
    assert kept == (["one", "two"] if meanwhile == "buried" else ["one", "two", "a", "b"])


@pytest.mark.parametrize("overwritten", [True, False], ids=["overwritten", "alone"])
async def test_a_lost_answer_to_the_end_of_a_run_is_known_to_be_done(
    far: CosmosStore, store: CosmosStore, line: Between, overwritten: bool
) -> None:
    thread = await opened(far, "one")
    run = a_run(thread)
    await far.apply(Change(thread=thread, during=run.id, runs=(run,)))

    async def lose_and_overwrite(asked: Asked) -> web.Response | None:
        lost = await lose(asked)
        if overwritten:
            await store.apply(Change(thread=thread, patch={"title": "T"}))
        return lost

    line.rule = once(lose_and_overwrite, lambda asked: bool(asked.batch))
    ended = evolve(run, status="succeeded", ended_at=later(1))
    stored = await far.apply(Change(thread=thread, during=run.id, runs=(ended,)))
    assert stored.runs == (ended,)
    assert stored.thread.title == ("T" if overwritten else None)
    assert await far.run(run.id) == ended


# ---------------------------------------------------------------- signs of life


async def running_in(store: CosmosStore, process_id: str | None = "p", *, at: float = 0, count: int = 1) -> list[Run]:
    """Runs of one thread."""
    thread = await opened(store)
    runs = tuple(a_run(thread, at=later(at), process_id=process_id) for _ in range(count))
    await store.apply(Change(thread=thread, runs=runs))
    return list(runs)


async def test_a_heartbeat_is_one_request_however_many_runs_there_are(
    far: CosmosStore, line: Between, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        await running_in(far, count=20)
    line.asked.clear()
    with caplog.at_level(logging.DEBUG, logger="dooers"):
        await far.beat("p", later(50))
    assert len(line.asked) == 1
    assert [one.getMessage() for one in caplog.records if one.name == "dooers"] == [
        "the heartbeat of process p cost 1.00 request units in 1 requests"
    ]
    assert await bury(far, later(50), later(60), "lost") == []


async def test_looking_for_the_dead_asks_nothing_before_anybody_can_be_dead(far: CosmosStore, line: Between) -> None:
    async def asks(before: float, at: float) -> int:
        line.asked.clear()
        assert await bury(far, later(before), later(at), "lost") == []
        return len(line.asked)

    idle = await asks(0, 6)
    assert [await asks(at - 6, at) for at in (8, 10, 12)] == [0, 0, 0]
    assert await asks(8, 14) == idle
    await running_in(far, at=14.5)
    await far.beat("p", later(20))
    assert await asks(14.5, 20.5) == idle + 1  # the sign of one process
    assert [await asks(at - 6, at) for at in (22, 24, 26)] == [0, 0, 0]
    await far.beat("p", later(26))
    assert await asks(20.1, 26.1) == idle + 1


async def test_a_run_of_long_ago_that_is_written_after_a_look_is_found_all_the_same(store: CosmosStore) -> None:
    assert await bury(store, later(50), later(60), "lost") == []
    (run,) = await running_in(store, at=1)
    assert [one.id for one in await bury(store, later(2), later(61), "lost")] == [run.id]


async def test_a_run_of_an_older_version_counts_from_its_beginning(store: CosmosStore) -> None:
    (run,) = await running_in(store, at=30)
    (document,) = [one for one in await everything(store) if one["kind"] == "run"]
    del document["body"]["process_id"]
    await store._container.commit(document["pk"], [("replace", (document["id"], document), {})])
    assert await store.run(run.id) == evolve(run, process_id=None)
    await store.beat("p", later(40))
    assert await bury(store, later(30), later(60), "lost") == []
    assert [one.process_id for one in await bury(store, later(31), later(60), "lost")] == [None]


@pytest.mark.parametrize("way", [lose, unplug])
async def test_a_lost_answer_to_a_sign_of_life_or_a_burial_changes_nothing(
    far: CosmosStore, line: Between, way: Callable[[Asked], Awaitable[web.Response | None]]
) -> None:
    dead, alive = await running_in(far, "dead", count=3), await running_in(far, "alive")
    line.rule = once(way, lambda asked: asked.writes("process"))
    await far.beat("alive", later(50))
    line.rule = once(way, lambda asked: asked.writes("run"))
    buried = await bury(far, later(40), later(60), "lost")
    assert sorted(run.id for run in buried) == sorted(run.id for run in dead)
    assert await bury(far, later(49), later(61), "again") == []
    assert {run.error for run in await far.runs(RunQuery(equal={"status": "failed"}))} == {"lost"}
    assert await far.runs(RunQuery(equal={"status": "running"})) == alive


async def test_of_two_processes_that_bury_at_once_each_run_is_given_to_one(config: WorkerConfig) -> None:
    async with running(config) as one, running(config) as two:
        dead = [run.id for _ in range(10) for run in await running_in(one, count=2)]
        shares = await asyncio.gather(*(bury(store, later(1), later(60), "lost") for store in (one, two)))
        assert sorted(run.id for share in shares for run in share) == sorted(dead)


async def test_a_run_that_ends_while_it_is_buried_stays_as_it_ended(
    config: WorkerConfig, far: CosmosStore, line: Between
) -> None:
    async with running(config) as near:
        (run,) = await running_in(near)
        held, free = asyncio.Event(), asyncio.Event()

        async def hold(asked: Asked) -> web.Response | None:
            held.set()
            await free.wait()
            return await asked.go_on()

        line.rule = once(hold, lambda asked: asked.writes("run"))
        burying = asyncio.create_task(bury(far, later(1), later(60), "lost"))
        await held.wait()
        thread = await near.thread(run.thread_id)
        assert thread is not None
        ended = evolve(run, status="succeeded", ended_at=later(2))
        await near.apply(Change(thread=thread, runs=(ended,), events=(an_event(thread),)))
        free.set()
        assert await burying == []
        assert await near.run(run.id) == ended


async def test_more_dead_runs_of_one_thread_than_a_transaction_holds_are_buried(store: CosmosStore) -> None:
    first = await running_in(store, count=90)
    thread = await store.thread(first[0].thread_id)
    assert thread is not None
    more = tuple(a_run(thread, process_id="p") for _ in range(30))
    await store.apply(Change(thread=thread, runs=more))
    buried = await bury(store, later(1), later(60), "lost")
    assert {run.id for run in buried} == {run.id for run in (*first, *more)}
    await store.apply(Change(thread=thread, events=(an_event(thread, "the thread goes on"),)))


async def test_a_dead_run_is_found_until_it_is_closed_and_one_that_cannot_be_keeps_none_of_the_others(
    config: WorkerConfig, line: Between
) -> None:
    async with running(config, database_host=line.url, database_timeout=2.0) as far:
        (bad,), (good,) = await running_in(far), await running_in(far)

        async def refuse(asked: Asked) -> web.Response | None:
            partition = thread_partition(bad.thread_id)
            stuck = any(one.get("resourceBody", {}).get("pk") == partition for one in asked.batch)
            return await (throttle(asked) if stuck else asked.go_on())

        line.rule = refuse
        for at in (60, 61):
            dead = {run.id: run for run in await far.silent(later(1), later(at))}
            assert dead.keys() == {good.id, bad.id}
        thread = await far.thread(good.thread_id)
        assert thread is not None
        over = evolve(good, status="failed", ended_at=later(61), error="lost")
        await far.apply(Change(thread=thread, during=good.id, runs=(over,)))
        with pytest.raises(StoreError):
            await bury(far, later(1), later(61), "lost")
        line.rule = once(unplug, lambda asked: False)
        # Nobody knows whether the last of the tries that were given up got there all the same: then there is nobody left to bury.
        buried = [run.id for run in await bury(far, later(1), later(62), "lost")]
        closed = await far.run(bad.id)
        assert closed is not None
        assert (closed.status, closed.error) == ("failed", "lost")
        assert buried == ([bad.id] if closed.ended_at == later(62) else [])


async def test_a_service_that_does_not_answer_is_a_store_error_and_looking_goes_on(
    config: WorkerConfig, line: Between
) -> None:
    async with running(config, database_host=line.url) as far:
        (run,) = await running_in(far)
        line.rule = unplug
        with pytest.raises(StoreError):
            await far.beat("p", later(1))
        with pytest.raises(StoreError):
            await bury(far, later(1), later(60), "lost")
        line.rule = once(unplug, lambda asked: False)
        assert [one.id for one in await bury(far, later(1), later(60), "lost")] == [run.id]


async def test_a_burial_that_nobody_heard_of_is_done_all_the_same(config: WorkerConfig, line: Between) -> None:
    async with running(config, database_host=line.url) as far:
        (run,) = await running_in(far)
        gone = False

        async def then_nothing(asked: Asked) -> web.Response | None:
            nonlocal gone
            if gone:
                return None
            gone = asked.writes("run")
            return await (lose(asked) if gone else asked.go_on())

        line.rule = then_nothing
        with pytest.raises(StoreError):
            await bury(far, later(1), later(60), "lost")
        line.rule = once(unplug, lambda asked: False)
        assert await bury(far, later(1), later(62), "again") == []
        assert await far.run(run.id) == evolve(run, status="failed", ended_at=later(60), error="lost")
        assert await bury(far, later(100), later(100), "again") == []


@pytest.mark.usefixtures("impatient")
async def test_a_run_in_a_thread_that_a_crash_left_half_written_is_buried(config: WorkerConfig, line: Between) -> None:
    async with running(config) as store:
        (run,) = await running_in(store)
        thread = await store.thread(run.thread_id)
        assert thread is not None
        many = Change(thread=thread, events=tuple(an_event(thread) for _ in range(MANY)))
        async with running(config, database_host=line.url, **QUICK) as crashing:
            await crash_after(line, crashing, many, 1)
        assert [one.id for one in await bury(store, later(1), later(60), "lost")] == [run.id]
        assert await store.events(EventQuery(thread_id=thread.id)) == []


# ---------------------------------------------------------------- more than one transaction


async def test_more_events_than_a_transaction_holds_are_seen_all_at_once(far: CosmosStore, line: Between) -> None:
    thread = await opened(far, "first")
    reached, free = asyncio.Event(), asyncio.Event()
    batches = 0

    async def hold_the_last(asked: Asked) -> web.Response | None:
        nonlocal batches
        batches += bool(asked.batch)
        if asked.batch and batches == 3:
            reached.set()
            await free.wait()
        return await asked.go_on()

    line.rule = hold_the_last
    events = [an_event(thread, str(n)) for n in range(MANY)]
    run = a_run(thread)
    writing = far.apply(Change(thread=thread, events=tuple(events), runs=(run,)))
    await reached.wait()
    for query in (EventQuery(thread_id=thread.id), EventQuery(thread_id=thread.id, limit=1)):
        assert texts(await far.events(query)) == ["first"]
    assert await far.event(events[0].id) is None
    snapshot = await far.snapshot(thread.id, after_event_id=events[0].id)
    assert snapshot is not None
    assert (texts(snapshot.events), snapshot.runs) == (["first"], [])
    free.set()
    stored = await writing
    assert seqs(stored.events) == list(range(2, MANY + 2))
    assert await far.events(EventQuery(thread_id=thread.id, after_seq=1)) == list(stored.events)
    assert await far.run(run.id) == run


async def test_a_new_thread_of_many_events_is_not_seen_before_all_of_them_are(far: CosmosStore, line: Between) -> None:
    thread = a_thread()
    reached, free = asyncio.Event(), asyncio.Event()

    async def hold_the_thread(asked: Asked) -> web.Response | None:
        if asked.writes("thread"):
            reached.set()
            await free.wait()
        return await asked.go_on()

    line.rule = hold_the_thread
    writing = far.apply(opening(thread, *(an_event(thread) for _ in range(MANY)), repeat_key="k"))
    await reached.wait()
    assert await far.thread(thread.id) is None
    assert await far.threads(ThreadQuery()) == []
    assert await far.events(EventQuery(thread_id=thread.id)) == []
    assert await far.snapshot(thread.id) is None
    free.set()
    stored = await writing
    assert (stored.created, stored.thread.last_seq) == (True, MANY)


async def test_more_runs_than_a_transaction_holds_are_refused(store: CosmosStore) -> None:
    thread = await opened(store)
    runs = tuple(a_run(thread) for _ in range(100))
    with pytest.raises(StoreError, match="fewer than 100 runs"):
        await store.apply(Change(thread=thread, runs=runs))
    await store.apply(Change(thread=thread, runs=runs[:99], events=tuple(an_event(thread) for _ in range(3))))
    assert len(await store.runs(RunQuery(limit=200))) == 99


async def test_a_message_too_large_for_the_service_is_a_store_error_that_says_so(store: CosmosStore) -> None:
    thread = await opened(store)
    with pytest.raises(StoreError, match="2 MB"):
        await store.apply(Change(thread=thread, events=(an_event(thread, "x" * 2_100_000),)))
    large = [an_event(thread, "ü" * 400_000) for _ in range(4)]
    stored = await store.apply(Change(thread=thread, events=tuple(large)))
    assert seqs(stored.events) == [1, 2, 3, 4]


async def test_removing_a_long_thread_leaves_nothing_and_frees_its_keys(store: CosmosStore) -> None:
    thread = a_thread()
    for n in range(MANY):
        await store.apply(
            opening(thread, an_event(thread), runs=(a_run(thread),), repeat_key=f"k{n}" if n % 50 == 0 else None)
        )
    await store.apply(Change(thread=thread, removes=True))
    assert await everything(store) == []


# ---------------------------------------------------------------- crashes between two steps


async def crash_after(line: Between, store: CosmosStore, change: Change, steps: int) -> bool:
    """Apply a Change in a process that ends after so many transactions; whether it came to its end all the same."""
    done = 0

    async def until(asked: Asked) -> web.Response | None:
        nonlocal done
        if done >= steps:
            return None
        done += bool(asked.batch)
        return await asked.go_on()

    line.rule = until
    try:
        await store.apply(change)
    except DooersError:
        return False
    return done < steps


QUICK = {"database_timeout": 0.4}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosmos_keys, "LEASE", 0.1)
    monkeypatch.setattr("dooers.stores.cosmos_writer.LEASE", 0.1)


@pytest.mark.parametrize("steps", range(8))
async def test_a_crash_while_a_thread_is_removed_leaves_it_whole_or_gone(
    config: WorkerConfig, line: Between, steps: int
) -> None:
    async with running(config) as store:
        new = a_thread()
        thread = (await store.apply(opening(new, *(an_event(new) for _ in range(MANY))))).thread
        event = an_event(thread)
        await store.apply(Change(thread=thread, events=(event,), runs=(run := a_run(thread),), repeat_key="k"))
        async with running(config, database_host=line.url, **QUICK) as crashing:
            await crash_after(line, crashing, Change(thread=thread, removes=True), steps)
        gone = steps > 0
        assert (await store.thread(thread.id) is None) == gone
        assert len(await store.events(EventQuery(thread_id=thread.id))) == (0 if gone else MANY + 1)
        assert (await store.event(event.id) is None) == gone
        assert (await store.run(run.id) is None) == gone
        assert await store.runs(RunQuery()) == ([] if gone else [run])
        if gone and steps % 2:  # the next start goes on with it, or whoever removes it again
            async with running(config):
                pass
        else:
            removing = store.apply(Change(thread=thread, removes=True))
            if gone:
                with pytest.raises(NotFoundError):
                    await removing
            await asyncio.wait([removing])
        assert await everything(store) == []


async def test_a_thread_may_be_made_again_over_what_a_crash_left(config: WorkerConfig, line: Between) -> None:
    async with running(config) as store:
        new = a_thread()
        thread = (await store.apply(opening(new, *(an_event(new, "old") for _ in range(MANY))))).thread
        async with running(config, database_host=line.url, **QUICK) as crashing:
            await crash_after(line, crashing, Change(thread=thread, removes=True), 2)
        again = await store.apply(opening(thread, an_event(thread, "new")))
        assert (again.created, again.events[0].seq) == (True, 1)
        assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["new"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("steps", range(4))
async def test_a_crash_while_a_large_change_is_staged_leaves_all_of_it_or_nothing(
    config: WorkerConfig, line: Between, steps: int, exists: bool
) -> None:
    async with running(config) as store:
        thread = await opened(store, "first") if exists else a_thread()
        events = tuple(an_event(thread, str(n)) for n in range(MANY))
        change = Change(thread=thread, opens=True, events=events)
        async with running(config, database_host=line.url, **QUICK) as crashing:
            await crash_after(line, crashing, change, steps)
        before = int(exists) + (MANY if steps == 3 else 0)
        assert len(await store.events(EventQuery(thread_id=thread.id))) == before
        assert (await store.thread(thread.id) is None) == (before == 0)
        assert await store.event(events[0].id) is None or steps == 3
        stored = await store.apply(Change(thread=thread, opens=True, events=(an_event(thread, "next"),)))
        assert stored.events[0].seq == before + 1
        assert len(await store.events(EventQuery(thread_id=thread.id))) == before + 1
        assert sum(document["kind"] == "event" for document in await everything(store)) == before + 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("steps", range(3))
async def test_a_crash_between_a_claim_and_its_message_does_not_use_up_the_key(
    config: WorkerConfig, line: Between, steps: int
) -> None:
    async with running(config) as store:
        first, second = a_thread(), a_thread()
        async with running(config, database_host=line.url, **QUICK) as crashing:
            await crash_after(line, crashing, opening(first, an_event(first), repeat_key="k"), steps)
        again = await store.apply(opening(second, an_event(second), repeat_key="k"))
        assert again.repeated == (steps == 2)
        third = await store.apply(opening(second, an_event(second), repeat_key="k"))
        assert (third.repeated, third.events) == (True, again.events)
        assert await store.count_threads({}) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_writer_that_is_overtaken_on_its_key_comes_back_as_a_repeat(
    config: WorkerConfig, far: CosmosStore, line: Between
) -> None:
    slow, fast = a_thread(), a_thread()
    held, free = asyncio.Event(), asyncio.Event()

    async def hold(asked: Asked) -> web.Response | None:
        if asked.writes("event"):
            held.set()
            await free.wait()
        return await asked.go_on()

    line.rule = hold
    first = far.apply(opening(slow, an_event(slow), repeat_key="k"))
    await held.wait()
    async with running(config) as store:
        second = await store.apply(opening(fast, an_event(fast), repeat_key="k"))
        assert not second.repeated
        free.set()
        overtaken = await first
        assert (overtaken.repeated, overtaken.events, overtaken.thread) == (True, second.events, second.thread)
        assert [thread.id for thread in await store.threads(ThreadQuery())] == [fast.id]


async def test_a_void_is_no_event(store: CosmosStore) -> None:
    thread = await opened(store, "one")
    void = void_document(thread.id, "never")
    await store._container.commit(void["pk"], [("create", (void,), {})])
    assert await store.event("never") is None
    assert texts(await store.events(EventQuery(thread_id=thread.id))) == ["one"]
    snapshot = await store.snapshot(thread.id, after_event_id="never")
    assert snapshot is not None
    assert texts(snapshot.events) == ["one"]


# ---------------------------------------------------------------- ids of all kinds


@pytest.mark.parametrize("value", ["", "a/b", "a\\b?c#d", "%2F", "x" * 3000, "ü", "half \ud83d", "  ", "..", "~"])
async def test_any_text_may_be_an_id(store: CosmosStore, value: str) -> None:
    for read in (store.thread, store.event, store.run, store.snapshot):
        assert await read(value) is None
    for partition in (thread_partition(value), key_partition(value), event_name(value)):
        assert len(partition) < 255
        assert not set(partition) & set("/\\?#")
    if value.isprintable():
        thread = a_thread(value)
        await store.apply(opening(thread, an_event(thread, "one")))
        assert await store.thread(value) is not None
        assert texts(await store.events(EventQuery(thread_id=value))) == ["one"]


# ---------------------------------------------------------------- a worker on it


async def test_a_worker_closes_the_runs_of_a_dead_process_on_cosmos(config: WorkerConfig) -> None:
    worker = WorkerServer(evolve(config, run_heartbeat=0.05, run_timeout=0.2))

    @worker.handler
    async def agent(incoming: Any, send: Any) -> AsyncIterator[Any]:
        yield send.text(f"re: {incoming.message}")

    async with running(config) as store:
        (run,) = await running_in(store, "dead")
        try:
            who: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u"}
            await (await worker.dispatch(message="elsewhere", **who)).collect()
            async with asyncio.timeout(10):
                while not await store.events(EventQuery(thread_id=run.thread_id)):
                    await asyncio.sleep(0.01)
            closed = await store.run(run.id)
            assert closed is not None
            (notice,) = await store.events(EventQuery(thread_id=run.thread_id))
            assert (closed.status, texts([notice])) == ("failed", [closed.error])
            assert (notice.actor, notice.notice) == ("system", True)
        finally:
            await worker.close()


async def test_a_worker_answers_and_remembers_on_cosmos(config: WorkerConfig, line: Between) -> None:
    worker = WorkerServer(evolve(config, database_host=line.url))

    @worker.handler
    async def agent(incoming: Any, send: Any, memory: Any) -> AsyncIterator[Any]:
        yield send.run_start()
        known = await memory.get_history()
        yield send.text(f"{len(known)}: {incoming.message}")
        yield send.run_end()

    try:
        who: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u"}
        first = await worker.dispatch(message="hi", idempotency_key="1", **who)
        await first.collect()
        line.asked.clear()
        second = await worker.dispatch(message="again", thread_id=first.thread_id, idempotency_key="2", **who)
        await second.collect()
        # The key, the message, and at most one for each of three steps; the history is a query and a look at the thread.
        assert sum(bool(asked.batch) for asked in line.asked) <= 5
        assert len(line.asked) <= 10
        repeated = await worker.dispatch(message="again", thread_id=first.thread_id, idempotency_key="2", **who)
        await repeated.collect()
        assert repeated.is_repeat
        repository = await worker.repository()
        events = await repository.list_events({"thread_id": first.thread_id}, {"direction": "asc"})
        assert texts(events) == ["hi", "1: hi", "again", "3: again"]
        assert {run.status for run in await repository.list_runs({"thread_id": first.thread_id})} == {"succeeded"}
    finally:
        await worker.close()
