"""The broker over PostgreSQL: the contract of all brokers on a real server, and what the server says of Changes by itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from attrs import evolve
from samples import T0, THREAD
from services.postgres import Address, OwnPostgres, Proxy, own_postgres

from brokers.contract import WITHIN, BrokerContract, Process
from dooers import WorkerConfig, WorkerServer
from dooers.brokers import Broker, open_broker
from dooers.brokers.postgres import LIMIT, QUIET, PostgresBroker
from dooers.exceptions import ConfigError, NotFoundError, StoreError
from dooers.models import Change, Run, Scope, TextPart, Thread, ThreadEvent
from dooers.news import News, read
from dooers.stores.postgres import PostgresStore
from dooers.stores.postgres_connection import address
from dooers.stores.sql_postgres import Beside


class TestPostgresBroker(BrokerContract):
    @pytest.fixture
    async def processes(self, postgres_config: WorkerConfig) -> AsyncIterator[list[Process]]:
        processes = [await Process(PostgresBroker(postgres_config)).open()]
        await is_alone(processes[0], True)
        processes.append(await Process(PostgresBroker(postgres_config)).open())
        # Who was alone says so to whoever comes first.
        await processes[1].until(lambda: processes[1].missed == 1)
        processes.append(await Process(PostgresBroker(postgres_config)).open())
        processes[1].missed = 0
        yield processes
        for process in processes:
            await process.broker.close()

    async def interrupt(self, broker: Broker) -> None:
        assert isinstance(broker, PostgresBroker)
        broker._connection.terminate()


@asynccontextmanager
async def opened(*configs: WorkerConfig) -> AsyncIterator[list[Process]]:
    """Brokers. Of several none takes itself to be alone before the others come, as somebody else's is there: so none is "late"."""
    async with AsyncExitStack() as stack:
        if len(configs) > 1 and configs[0].database_type == "postgres":
            settings = {"application_name": "dooers broker"}
            stranger = await asyncpg.connect(**address(configs[0]), server_settings=settings)
            stack.push_async_callback(stranger.close)
        processes = []
        for config in configs:
            processes.append(await Process(PostgresBroker(config)).open())
            stack.push_async_callback(processes[-1].broker.close)
        yield processes


# ---------------------------------------------------------------- where it leads


async def test_it_comes_with_the_database(postgres_config: WorkerConfig) -> None:
    assert isinstance(open_broker(postgres_config), PostgresBroker)


async def test_processes_of_other_tables_are_not_heard(postgres_config: WorkerConfig) -> None:
    others = evolve(postgres_config, database_table_prefix="other_")
    long = [evolve(postgres_config, database_table_prefix=f"{'p' * 39}{end}") for end in "ab"]
    async with opened(postgres_config, others, *long, postgres_config) as (one, two, three, four, five):
        one.broker.tell("to my own")
        three.broker.tell("to another")
        await five.hears("to my own")
        assert two.heard == four.heard == []
        await one.broker.lock("k")
        async with asyncio.timeout(WITHIN):
            await two.broker.lock("k")


async def test_a_url_leads_to_the_server_directly(postgres: Address, postgres_config: WorkerConfig) -> None:
    async with Proxy(postgres).open() as way:
        url = f"postgresql://{way.user}@{way.host}:{way.port}/{postgres_config.database_name}?sslmode=disable"
        async with opened(evolve(postgres_config, broker_url=url), postgres_config) as (one, two):
            one.broker.tell("hello")
            await two.hears("hello")


async def test_a_url_to_another_database_is_refused(postgres: Address, postgres_config: WorkerConfig) -> None:
    url = f"postgresql://{postgres.user}@/postgres?host={postgres.host}&port={postgres.port}"
    with pytest.raises(ConfigError, match="very database"):
        await Process(PostgresBroker(evolve(postgres_config, broker_url=url))).open()


async def test_a_store_elsewhere_may_use_it_and_tells_by_it(postgres: Address, postgres_config: WorkerConfig) -> None:
    url = f"postgresql://{postgres.user}@/postgres?host={postgres.host}&port={postgres.port}"
    config = WorkerConfig(database_type="memory", broker_url=url)
    assert PostgresBroker(config).announce is None
    async with opened(config, config) as (one, two):
        one.broker.tell("hello")
        await two.hears("hello")


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("postgresql://u:secret@127.0.0.1:1/d", StoreError),
        ("postgresql://u:secret@127.0.0.1:port/d", ConfigError),
        ("postgresql://u:secret@127.0.0.1:5432/d?sslmode=perhaps", ConfigError),
    ],
)
async def test_a_url_that_leads_nowhere_is_an_error_without_its_password(
    postgres_config: WorkerConfig, url: str, wrong: type[Exception]
) -> None:
    broker = PostgresBroker(evolve(postgres_config, broker_url=url))
    with pytest.raises(wrong) as raised:
        await Process(broker).open()
    assert "secret" not in f"{raised.value!r}"
    await broker.close()


async def test_behind_a_pooler_it_says_that_it_hears_nothing(
    postgres_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a pooler does to LISTEN: it is done, on a connection that the next statement does not get.
    async def listen(self: Any, channel: str, callback: Any) -> None:
        await self.execute("SELECT 1")

    monkeypatch.setattr("asyncpg.Connection.add_listener", listen)
    with pytest.raises(StoreError, match="broker_url"):
        await Process(PostgresBroker(evolve(postgres_config, database_timeout=0.3))).open()


async def test_nothing_stays_open_where_it_cannot_be_told_whether_the_url_leads_to_the_database(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    name = postgres_config.database_name
    url = f"postgresql://{postgres.user}@/{name}?host={postgres.host}&port={postgres.port}"
    with pytest.raises(StoreError):
        await PostgresBroker(evolve(postgres_config, broker_url=url, database_port=1)).open(print, print)
    async with postgres.session(name) as admin, asyncio.timeout(WITHIN):
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dooers broker' AND datname = $1"
        while await admin.fetchval(query, name):
            await asyncio.sleep(0.01)


async def test_a_worker_that_nobody_closed_says_goodbye_when_its_loop_ends(postgres_config: WorkerConfig) -> None:
    async def live() -> None:
        worker = WorkerServer(evolve(postgres_config, shutdown_grace=0))
        await worker.ensure_initialized()
        await asyncio.sleep(0)
        worker._parts.broker().tell("goodbye")

    async with opened(postgres_config) as (other,):
        broker = other.broker
        assert isinstance(broker, PostgresBroker)
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(asyncio.run, live())
        assert asyncio.get_running_loop().time() - began < 4
        await other.hears("goodbye")
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'dooers%' AND datname = current_database()"
        async with asyncio.timeout(WITHIN):
            while await broker._run(query) != 1:
                await asyncio.sleep(0.01)
        assert broker._company._others == set()


# ---------------------------------------------------------------- a connection that is lost


async def test_a_connection_that_somebody_ends_comes_back(postgres: Address, postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        await two.broker.lock("k")
        async with postgres.session(postgres_config.database_name) as admin:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'dooers broker' AND datname = current_database()"
            )
        one.broker.tell("said while nobody can be reached")
        await two.until(lambda: two.missed > 0)
        await one.until(lambda: one.missed > 0)
        one.broker.tell("after")
        await two.until(lambda: two.heard[-1:] == ["after"])
        waiting = asyncio.create_task(one.broker.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done, "what it held before, it holds again"
        two.broker.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)


async def test_a_connection_that_is_dead_without_a_word_is_found_out(
    postgres: Address, postgres_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dooers.brokers.postgres.QUIET", 0.1)
    proxy = Proxy(postgres)
    async with proxy.open() as way:
        config = evolve(postgres_config, database_host=way.host, database_port=way.port)
        async with opened(config, postgres_config) as (one, two):
            proxy.after = 0
            await one.until(lambda: one.missed > 0)
            two.broker.tell("hello")
            await one.hears("hello")


async def test_a_key_waits_for_a_server_that_restarts_and_is_refused_when_it_takes_too_long() -> None:
    with own_postgres() as server:
        assert isinstance(server, OwnPostgres)
        async with server.address.database() as name:
            config = server.address.config(name, database_timeout=20.0)
            async with opened(config, evolve(config, database_timeout=0.5)) as (patient, hasty):
                server.stop()
                waiting = asyncio.create_task(patient.broker.lock("k"))
                with pytest.raises(StoreError):
                    await hasty.broker.lock("k")
                server.start()
                await asyncio.wait_for(waiting, WITHIN)
                await patient.until(lambda: patient.missed > 0)
                await hasty.until(lambda: hasty.missed > 0)
                patient.broker.tell("hello")
                await hasty.until(lambda: hasty.heard == ["hello"])


async def test_a_key_is_given_though_the_connection_is_lost_while_one_waits_to_ask_for_it(
    postgres_config: WorkerConfig,
) -> None:
    async with opened(postgres_config) as (one,):
        broker = one.broker
        assert isinstance(broker, PostgresBroker)
        async with broker._talk:  # somebody is asking for something else
            asking = asyncio.create_task(broker.lock("k"))
            while not broker._talk._waiters:
                await asyncio.sleep(0)
            broker._connection.terminate()
            await broker._lost.wait()
        await asyncio.wait_for(asking, WITHIN)


async def test_a_connection_that_is_lost_in_the_middle_of_a_question_is_noticed_at_once(
    postgres_config: WorkerConfig,
) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        broker = one.broker
        assert isinstance(broker, PostgresBroker)
        # Where the server's last word comes between two messages of the driver, it closes the connection and tells nobody.
        broker._connection.remove_termination_listener(broker._on_lost)
        broker._connection.terminate()
        async with asyncio.timeout(QUIET / 2):
            one.broker.tell("said over a new one")
            await two.until(lambda: two.heard == ["said over a new one"])


async def test_whoever_waited_for_a_key_when_the_connection_was_away_is_told_that_it_is_free(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        await one.broker.lock("k")
        assert isinstance(one.broker, PostgresBroker)
        waiting = asyncio.create_task(two.broker.lock("k"))
        while not one.broker._keys._wanted:
            await asyncio.sleep(0.01)
        one.broker._keys._wanted.clear()  # as if it had not heard that somebody wants it
        async with postgres.session(postgres_config.database_name) as admin:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'dooers broker' AND datname = current_database()"
            )
        await one.until(lambda: one.missed > 0)
        await two.until(lambda: two.missed > 0)
        assert one.broker._keys._wanted == {"k"}
        one.broker.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)


async def test_keys_that_are_asked_for_at_once_share_a_statement(postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        assert isinstance(one.broker, PostgresBroker)
        sent = list[str]()
        one.broker._connection.add_query_logger(lambda record: sent.append(record.query))
        keys = [f"k{number}" for number in range(100)]
        await asyncio.gather(*(one.broker.lock(key) for key in keys))
        waiting = asyncio.gather(*(two.broker.lock(key) for key in keys))
        for key in keys:
            one.broker.unlock(key)
        await asyncio.wait_for(waiting, WITHIN)
        assert len([query for query in sent if "advisory" in query]) <= 6


# ---------------------------------------------------------------- keys that are kept


@contextmanager
def asked(process: Process) -> Iterator[list[str]]:
    """What is asked of the server for keys, or said of them."""
    broker = process.broker
    assert isinstance(broker, PostgresBroker)
    sent = list[str]()

    def note(record: Any) -> None:
        if "advisory" in record.query or "pg_notify" in record.query:
            sent.append(record.query)

    broker._connection.add_query_logger(note)
    yield sent
    broker._connection.remove_query_logger(note)


async def test_a_key_that_nobody_else_wants_costs_nothing_the_next_time(postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config) as (one,):
        await is_alone(one, True)
        await one.broker.lock("k")
        with asked(one) as sent:
            for _ in range(3):
                one.broker.unlock("k")
                waiting = [asyncio.create_task(one.broker.lock("k")) for _ in range(3)]
                for task in waiting:
                    await asyncio.wait_for(task, WITHIN)
                    if task is not waiting[-1]:
                        one.broker.unlock("k")
            assert sent == []


async def test_a_kept_key_goes_to_who_wants_it_and_comes_back(postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        for _ in range(5):
            for process in (one, two):
                await asyncio.wait_for(process.broker.lock("k"), WITHIN)
                process.broker.unlock("k")
        await asyncio.wait_for(one.broker.lock("k"), WITHIN)
        waiting = asyncio.create_task(two.broker.lock("k"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        one.broker.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)


async def test_a_turn_that_takes_a_kept_key_just_as_others_want_it_passes_it_on(postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        holding, most = 0, 0

        async def work(process: Process) -> None:
            nonlocal holding, most
            await process.broker.lock("k")
            holding += 1
            most = max(most, holding)
            await asyncio.sleep(0.001)
            holding -= 1
            process.broker.unlock("k")

        async with asyncio.timeout(WITHIN):
            await asyncio.gather(*(work(process) for process in (one, two) * 10))
        assert most == 1


async def test_keys_are_kept_within_bounds_and_the_one_that_was_not_needed_for_the_longest_time_goes(
    postgres_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dooers.brokers.postgres_keys.KEPT", 2)
    async with opened(postgres_config) as (one,):
        broker = one.broker
        assert isinstance(broker, PostgresBroker)
        for key in "abac":
            await broker.lock(key)
            broker.unlock(key)
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        async with asyncio.timeout(WITHIN):
            while await broker._run(query) != 2:
                await asyncio.sleep(0.01)
        assert list(broker._keys._kept) == ["a", "c"]


async def test_a_key_says_since_when_nobody_else_can_have_held_it(postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config, postgres_config) as (one, other):
        began = await one.broker.lock("k")
        one.broker.unlock("k")
        assert await one.broker.lock("k") == began
        one.broker.unlock("k")
        await other.broker.lock("k")
        other.broker.unlock("k")
        again = await one.broker.lock("k")
        assert began is not None
        assert again is not None
        assert again > began


async def test_a_kept_key_is_asked_for_again_after_a_time_in_which_it_may_have_been_taken(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    async with opened(postgres_config) as (one,):
        broker = one.broker
        assert isinstance(broker, PostgresBroker)
        await broker.lock("k")
        broker.unlock("k")
        broker._keys._asked_at -= postgres_config.run_timeout  # this process stood still
        with asked(one) as sent:
            await broker.lock("k")
        assert sent
        broker._keys._kept["gone"] = 0.0  # its connection was ended meanwhile, and this process has not seen it yet
        broker._keys._asked_at -= postgres_config.run_timeout
        async with postgres.session(postgres_config.database_name) as other:
            await other.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", broker._keys._name("gone"))
            waiting = asyncio.create_task(broker.lock("gone"))
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done
        await asyncio.wait_for(waiting, WITHIN)


async def test_what_is_only_kept_is_not_taken_back_with_a_new_connection(postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        broker = one.broker
        assert isinstance(broker, PostgresBroker)
        for key in ("kept", "held"):
            await broker.lock(key)
        broker.unlock("kept")
        broker._connection.terminate()
        await one.until(lambda: one.missed > 0)
        with asked(one) as sent:
            await asyncio.wait_for(two.broker.lock("kept"), WITHIN)
        assert not any("free" in query for query in sent)
        waiting = asyncio.create_task(two.broker.lock("held"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        broker.unlock("held")
        await asyncio.wait_for(waiting, WITHIN)


async def test_a_connection_that_is_lost_again_while_keys_are_taken_back_comes_back_with_all_of_them(
    postgres_config: WorkerConfig,
) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        broker = one.broker
        assert isinstance(broker, PostgresBroker)
        for key in "abc":
            await broker.lock(key)
        async with asyncio.timeout(QUIET):
            async with broker._talk:  # so that it is lost just as the first key is asked for
                broker._connection.terminate()
                await broker._lost.wait()
                await broker._here.wait()
                while not broker._talk._waiters:
                    await asyncio.sleep(0)
                broker._connection.terminate()
            await one.until(lambda: one.missed >= 2)
        two.broker.tell("hello")
        await one.hears("hello")
        waiting = [asyncio.create_task(two.broker.lock(key)) for key in "abc"]
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        assert not done
        for key in "abc":
            broker.unlock(key)
        await asyncio.wait_for(asyncio.gather(*waiting), WITHIN)


@pytest.mark.parametrize("where", ["before", "while it is said"])
async def test_who_has_more_to_say_than_fits_says_the_newest_and_that_something_is_missing(
    postgres_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("dooers.brokers.postgres.WAITING", 3)
    async with opened(postgres_config, postgres_config) as (one, two):
        broker = one.broker
        assert isinstance(broker, PostgresBroker)
        async with broker._talk:
            if where == "while it is said":  # and is put back, before what has come since
                broker.tell("on its way")
                while broker._waiting:
                    await asyncio.sleep(0)
            broker._connection.terminate()
            for n in range(5):
                broker.tell(f"{n}")
        await two.until(lambda: two.missed > 0)
        assert two.heard == ["2", "3", "4"]


async def test_a_key_is_taken_from_who_gives_no_sign_of_life_and_from_nobody_else(
    postgres: Address, postgres_config: WorkerConfig
) -> None:
    config = evolve(postgres_config, run_timeout=0.7, run_heartbeat=0.2)
    async with opened(config, config) as (one, two), postgres.session(config.database_name) as still:
        assert isinstance(two.broker, PostgresBroker)
        for key in ("still", "süß"):
            await still.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", two.broker._keys._name(key))
        await one.broker.lock("alive")
        waiting = asyncio.create_task(two.broker.lock("alive"))
        for key in ("still", "süß"):
            await asyncio.wait_for(two.broker.lock(key), WITHIN)
        done, _ = await asyncio.wait([waiting], timeout=2.0)
        assert not done, "who answers, keeps it"
        one.broker.unlock("alive")
        await asyncio.wait_for(waiting, WITHIN)


async def test_whoever_asks_from_outside_gets_a_key_before_it_is_taken_again(postgres_config: WorkerConfig) -> None:
    async with opened(postgres_config, postgres_config) as (one, two):
        order = list[str]()

        async def work(name: str, process: Process) -> None:
            await process.broker.lock("k")
            order.append(name)
            await asyncio.sleep(0.01)
            process.broker.unlock("k")

        await one.broker.lock("k")
        tasks = [asyncio.create_task(work("two", two))]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(work("one", one)) for _ in range(3)]
        one.broker.unlock("k")
        async with asyncio.timeout(WITHIN):
            await asyncio.gather(*tasks)
        assert order[0] == "two"


# ---------------------------------------------------------------- what the store says


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def a_thread(thread_id: str = "t", **more: Any) -> Thread:
    return evolve(THREAD, id=thread_id, last_seq=0, **more)


def an_event(event_id: str, **more: Any) -> ThreadEvent:
    fields: dict[str, Any] = {"thread_id": "t", "type": "message", "actor": "user", "created_at": T0}
    return ThreadEvent(**{**fields, "id": event_id, "content": [TextPart("hi")], **more})


def a_run(run_id: str = "r") -> Run:
    return Run(id=run_id, thread_id="t", started_at=T0, process_id="writer")


def beside_of(broker: PostgresBroker) -> Beside:
    announce = broker.announce
    assert announce is not None
    return lambda groups: announce(groups, "writer")


def opening(thread: Thread, event: ThreadEvent, **more: Any) -> Change:
    return Change(thread=thread, opens=True, events=(event,), **more)


@pytest.fixture
async def other(postgres_config: WorkerConfig) -> AsyncIterator[Process]:
    async with opened(postgres_config) as (process,):
        yield process


@pytest.fixture
async def store(postgres_config: WorkerConfig) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(postgres_config, beside=beside_of(PostgresBroker(postgres_config)))
    await store.open()
    yield store
    await store.close()


async def news(process: Process, count: int) -> list[News]:
    """What a process heard, once it is so much."""
    await process.until(lambda: sum(len(read(text)) for text in process.heard) >= count)
    heard = [one for text in process.heard for one in read(text)]
    process.heard.clear()
    assert {one.sender for one in heard} == {"writer"}
    return heard


def as_told(change: Change) -> Any:
    """What other processes have to know of a stored Change."""
    return change.thread, change.created, bool(change.patch), change.events, change.runs, change.removes


async def test_what_others_hear_of_a_change_is_what_was_stored(store: PostgresStore, other: Process) -> None:
    thread = a_thread(title="🎈 \"'\\ \n\u2028", metadata={"a": {"b": [1, None, 1.5]}})
    stored = [await store.apply(opening(thread, an_event("e1")))]
    stored.append(await store.apply(opening(thread, an_event("e2"))))  # of a thread that is there
    run = a_run()
    stored.append(await store.apply(Change(thread=thread, runs=(run,))))
    stored.append(await store.apply(Change(thread=thread, events=(an_event("e3"), an_event("e4", turn_seq=2)))))
    stored.append(await store.apply(Change(thread=thread, patch={"title": None, "updated_at": later(9)})))
    ended = evolve(run, status="failed", ended_at=later(3), error="no")
    stored.append(await store.apply(Change(thread=thread, runs=(ended,), events=(an_event("e5"),))))
    stored.append(await store.apply(Change(thread=thread, removes=True)))
    heard = await news(other, len(stored))
    assert [as_told(one.change) for one in heard] == [as_told(change) for change in stored]
    assert {one.kind for one in heard} == {"change"}


async def test_changes_written_together_are_told_one_by_one(store: PostgresStore, other: Process) -> None:
    thread = (await store.apply(opening(a_thread(), an_event("first")))).thread
    await news(other, 1)
    futures = [store.apply(Change(thread=thread, events=(an_event(f"e{n}"),))) for n in range(20)]
    stored = list(await asyncio.gather(*futures))
    heard = await news(other, 20)
    assert [as_told(one.change) for one in heard] == [as_told(change) for change in stored]


async def test_nothing_is_told_of_what_was_not_written(store: PostgresStore, other: Process) -> None:
    thread = a_thread()
    first = evolve(opening(thread, an_event("e1")), repeat_key="key")
    await store.apply(first)
    again = await store.apply(evolve(opening(thread, an_event("e2")), repeat_key="key"))
    assert again.repeated
    with pytest.raises(NotFoundError):
        await store.apply(Change(thread=a_thread("nowhere"), events=(an_event("e3", thread_id="nowhere"),)))
    with pytest.raises(NotFoundError):
        await store.apply(Change(thread=thread, guard=Scope("another", "o", "s", "u"), events=(an_event("e4"),)))
    await store.apply(Change(thread=thread, events=(an_event("last"),)))
    heard = await news(other, 2)
    assert [event.id for one in heard for event in one.events] == ["e1", "last"]


@pytest.mark.parametrize("letter", ["x", '"', "€", "🎈"])
async def test_what_is_too_large_to_tell_is_something_to_look_at(
    store: PostgresStore, other: Process, letter: str
) -> None:
    thread = (await store.apply(opening(a_thread(), an_event("first")))).thread
    await news(other, 1)
    for size in sorted({LIMIT // len(letter.encode()) - 40 * step for step in range(40)}):
        event = an_event(f"{letter}{size}", content=[TextPart(letter * size)])
        (stored,) = await asyncio.gather(store.apply(Change(thread=thread, events=(event,))))
        (one,) = await news(other, 1)
        if one.kind == "change":
            assert one.change.events == stored.events
        else:
            assert (one.kind, one.thread_id, one.events[0].id) == ("look", thread.id, event.id)
    whole = an_event("whole", content=[TextPart("x" * 1_000_000)])
    await store.apply(Change(thread=thread, events=(whole,)))
    assert [one.kind for one in await news(other, 1)] == ["look"]


async def test_a_thread_with_much_to_say_of_itself_is_looked_at_and_its_end_is_told(
    store: PostgresStore, other: Process
) -> None:
    thread = a_thread(metadata={"x": "y" * 20_000})
    await store.apply(opening(thread, an_event("first")))
    await store.apply(Change(thread=thread, events=(an_event("second"),)))
    await store.apply(Change(thread=thread, removes=True))
    opened_, event, end = await news(other, 3)
    assert opened_ == News(kind="look", sender="writer", thread_id=thread.id)
    assert (event.kind, [e.id for e in event.events]) == ("look", ["second"])
    assert (end.kind, end.removes, end.thread) == ("change", True, evolve(thread, metadata=None))


async def test_others_count_like_the_store_whoever_writes_and_however_much_at_once(
    postgres_config: WorkerConfig, other: Process
) -> None:
    """Two processes, a thread, and no order between them but the database's."""
    chance, numbered = random.Random(5), dict[str, int]()
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(2):
            beside = beside_of(PostgresBroker(postgres_config))
            stores.append(PostgresStore(postgres_config, beside=beside))
            await stores[-1].open()
            stack.push_async_callback(stores[-1].close)
        thread = (await stores[0].apply(opening(a_thread(), an_event("first")))).thread
        await news(other, 1)

        async def write(store: PostgresStore, name: str) -> None:
            for number in range(50):
                events = tuple(an_event(f"{name}-{number}-{n}") for n in range(chance.randint(0, 3)))
                runs: tuple[Run, ...] = (a_run(f"{name}-{number}"),) if not events or chance.random() < 0.3 else ()
                future = store.apply(Change(thread=thread, events=events, runs=runs))
                if chance.random() < 0.3:
                    await future
                future.add_done_callback(lambda f: numbered.update({e.id: e.seq for e in f.result().events}))
            await future

        await asyncio.gather(write(stores[0], "a"), write(stores[1], "b"))
        heard = await news(other, 100)
    events = [event for one in heard for event in one.events]
    assert [event.seq for event in events] == list(range(2, len(events) + 2))
    assert {event.id: event.seq for event in events} == numbered


async def test_a_process_that_writes_hears_nothing_of_it_but_by_name(
    postgres_config: WorkerConfig, store: PostgresStore, other: Process
) -> None:
    """The store's connections are not the broker's: who wrote is told by the sender, and it is one line for each Change."""
    await store.apply(opening(a_thread(created_at=T0), an_event("e1")))
    await other.until(lambda: len(other.heard) == 1)
    row, *lines = other.heard[0].split("\n")
    assert '"last_seq":1' in row
    assert len(lines) == 1


# ---------------------------------------------------------------- who is alone says nothing, and misses nothing


async def is_alone(process: Process, expected: bool) -> None:
    assert isinstance(process.broker, PostgresBroker)
    async with asyncio.timeout(WITHIN):
        while process.broker._company.alone != expected:
            await asyncio.sleep(0.01)


async def test_who_is_alone_knows_it_at_once_and_who_may_have_company_waits_for_its_answer(
    postgres_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dooers.brokers.postgres.ANSWER", 2 * WITHIN)
    async with opened(postgres_config) as (one,):
        await is_alone(one, True)
        other_tables = evolve(postgres_config, database_table_prefix="other_")
        async with opened(other_tables) as (stranger,):
            assert isinstance(stranger.broker, PostgresBroker)
            assert not await stranger.broker._is_by_itself()
            await is_alone(stranger, False)
        await is_alone(one, True)


async def test_what_the_store_says_for_this_process_is_not_read_by_it(
    postgres_config: WorkerConfig, other: Process
) -> None:
    async with opened(postgres_config) as (one,):
        assert isinstance(one.broker, PostgresBroker)
        store = PostgresStore(postgres_config, beside=beside_of(one.broker))
        await store.open()
        thread = a_thread()
        await store.apply(opening(thread, an_event("e1")))
        await store.apply(Change(thread=thread, events=(an_event("e2", content=[TextPart("x" * 20_000)]),)))
        other.broker.tell("after them")
        await one.hears("after them")
        assert [item.kind for item in await news(other, 2)] == ["change", "look"]
        await store.close()


async def test_who_is_alone_says_nothing_until_somebody_comes_who_then_knows_to_read(
    postgres: Address, postgres_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dooers.brokers.postgres.ANSWER", 0.2)
    thread = a_thread()
    async with AsyncExitStack() as stack:
        (one,) = await stack.enter_async_context(opened(postgres_config))
        assert isinstance(one.broker, PostgresBroker)
        store = PostgresStore(postgres_config, beside=beside_of(one.broker))
        await store.open()
        stack.push_async_callback(store.close)
        await is_alone(one, True)
        (bystander,) = await stack.enter_async_context(opened(evolve(postgres_config, database_table_prefix="other_")))
        async with postgres.session(postgres_config.database_name) as session:
            heard = list[str]()
            await session.add_listener(one.broker._channel, lambda *said: heard.append(said[3]))
            await store.apply(opening(thread, an_event("e1")))
            await session.execute("SELECT 1")
            assert heard == []
        # Somebody comes while something is being written: a lock keeps it from being done.
        async with postgres.session(postgres_config.database_name) as session, session.transaction():
            await session.execute("SELECT 1 FROM worker_threads FOR UPDATE")
            slow = store.apply(Change(thread=thread, events=(an_event("e2"),)))
            async with asyncio.timeout(WITHIN):
                while not await session.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.01)
            (two,) = await stack.enter_async_context(opened(postgres_config))
            await is_alone(one, False)
            two.broker.tell("to be heard before what comes now")
            await one.until(lambda: bool(one.heard))
            assert two.missed == 0
        await slow
        await two.until(lambda: two.missed == 1)
        await store.apply(Change(thread=thread, events=(an_event("e3"),)))
        assert [event.id for news_ in await news(two, 1) for event in news_.events] == ["e3"]
        assert (bystander.heard, bystander.missed, one.missed) == ([], 0, 0)
        await two.broker.close()
        await is_alone(one, True)
