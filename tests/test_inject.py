"""What a handler's parameters get, what is refused at registration, and how dependencies live and die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import anyio
import pytest

from dooers import (
    HandlerError,
    Identity,
    Repository,
    SignatureError,
    WorkerAnalytics,
    WorkerConfig,
    WorkerIncoming,
    WorkerMemory,
    WorkerSend,
    WorkerServer,
    WorkerSettings,
)


@pytest.fixture
def worker() -> WorkerServer:
    return WorkerServer(WorkerConfig(database_type="memory"))


async def run(worker: WorkerServer, handler: Any = None, message: str = "hi") -> list[str]:
    stream = await worker.dispatch(handler, organization_id="o", workspace_id="w", user_id="u", message=message)
    return [event.data["text"] for event in await stream.collect() if event.send_type == "text"]


# ---------------------------------------------------------------- parameters


async def test_any_subset_in_any_order_is_bound_by_name(worker: WorkerServer) -> None:
    async def handler(memory: Any, incoming: Any) -> AsyncIterator[str]:
        assert isinstance(memory, WorkerMemory)
        yield incoming.message

    assert await run(worker, handler) == ["hi"]


async def test_every_well_known_name_is_what_it_says(worker: WorkerServer) -> None:
    async def handler(
        incoming: Any, send: Any, memory: Any, analytics: Any, settings: Any, identity: Any, repository: Any
    ) -> str:
        kinds = (WorkerIncoming, WorkerSend, WorkerMemory, WorkerAnalytics, WorkerSettings, Identity, Repository)
        given = (incoming, send, memory, analytics, settings, identity, repository)
        return str(all(isinstance(value, kind) for value, kind in zip(given, kinds, strict=True)))

    assert await run(worker, handler) == ["True"]


async def test_a_well_known_type_under_another_name_is_bound_by_its_annotation(worker: WorkerServer) -> None:
    async def handler(message: WorkerIncoming, who: Identity, database: Repository) -> str:
        assert isinstance(database, Repository)
        return f"{message.message} {who.user_id}"

    assert await run(worker, handler) == ["hi u"]


async def test_five_plain_parameters_of_any_name_bind_in_the_classic_order(worker: WorkerServer) -> None:
    async def handler(request, out, past, numbers, options):  # type: ignore[no-untyped-def]
        assert isinstance(past, WorkerMemory)
        assert isinstance(numbers, WorkerAnalytics)
        assert isinstance(options, WorkerSettings)
        yield out.text(request.message)

    assert await run(worker, handler) == ["hi"]


def test_five_parameters_with_a_well_known_name_out_of_place_are_refused(worker: WorkerServer) -> None:
    async def handler(sned, incoming, memory, analytics, settings):  # type: ignore[no-untyped-def]
        yield "never"

    with pytest.raises(SignatureError, match="did you mean 'send'"):
        worker.handler(handler)


async def test_a_default_is_used_for_what_nobody_provides(worker: WorkerServer) -> None:
    async def handler(incoming: Any, greeting: str = "hello") -> str:
        return f"{greeting} {incoming.message}"

    assert await run(worker, handler) == ["hello hi"]


async def test_methods_partials_and_callable_objects_are_handlers_too(worker: WorkerServer) -> None:
    class Bot:
        async def answer(self, incoming: Any) -> AsyncIterator[str]:
            yield f"method {incoming.message}"

        async def __call__(self, incoming: Any) -> AsyncIterator[str]:
            yield f"object {incoming.message}"

    async def configured(prefix: str, incoming: Any) -> str:
        return f"{prefix} {incoming.message}"

    assert await run(worker, Bot().answer) == ["method hi"]
    assert await run(worker, Bot()) == ["object hi"]
    assert await run(worker, partial(configured, "partial")) == ["partial hi"]


async def test_a_coroutine_may_return_a_text_an_event_or_nothing(worker: WorkerServer) -> None:
    async def text(incoming: Any) -> str:
        return "text"

    async def event(send: Any) -> Any:
        return send.text("event")

    async def nothing() -> None:
        return None

    assert await run(worker, text) == ["text"]
    assert await run(worker, event) == ["event"]
    assert await run(worker, nothing) == []


async def test_the_decorated_function_stays_an_ordinary_function(worker: WorkerServer) -> None:
    @worker.handler
    async def agent(incoming: Any) -> AsyncIterator[str]:
        yield f"hello {incoming}"

    assert [text async for text in agent("there")] == ["hello there"]


# ---------------------------------------------------------------- refused at registration


def test_all_faults_of_a_signature_are_told_at_once_with_place_and_suggestions(worker: WorkerServer) -> None:
    async def handler(incomming: Any, send: Any, database: Any) -> AsyncIterator[str]:
        yield "never"

    with pytest.raises(SignatureError) as caught:
        worker.handler(handler)
    text = str(caught.value)
    assert "test_inject.py:" in text
    assert "nobody provides 'incomming' (did you mean 'incoming'?)" in text
    assert "nobody provides 'database'" in text
    assert "Known: analytics, identity, incoming, memory, repository, send, settings" in text


def test_a_handler_that_is_not_asynchronous_is_refused(worker: WorkerServer) -> None:
    def plain(incoming: Any) -> str:
        return "no"

    def generator(incoming: Any) -> Iterator[str]:
        yield "no"

    for wrong in (plain, generator, "name of nothing", 5, None.__class__):
        with pytest.raises(SignatureError):
            worker.handler()(wrong)  # type: ignore[type-var]


def test_a_positional_only_parameter_is_refused(worker: WorkerServer) -> None:
    async def handler(incoming: Any, /) -> str:
        return "no"

    with pytest.raises(SignatureError, match="positional-only"):
        worker.handler(handler)


def test_one_default_handler_and_one_of_each_name(worker: WorkerServer) -> None:
    async def handler() -> str:
        return ""

    worker.handler(handler)
    worker.handler("named")(handler)
    with pytest.raises(SignatureError, match="already"):
        worker.handler(handler)
    with pytest.raises(SignatureError, match="already"):
        worker.handler("named")(handler)


def test_settings_annotated_with_another_class_is_refused(worker: WorkerServer) -> None:
    @worker.settings
    @dataclass
    class Settings:
        model: str = "a"

    @dataclass
    class Other:
        model: str = "a"

    async def handler(settings: Other) -> str:
        return settings.model

    with pytest.raises(SignatureError, match=r"annotated with Other; the class given to @worker.settings is Settings"):
        worker.handler(handler)


def test_a_name_that_is_taken_cannot_be_provided_again(worker: WorkerServer) -> None:
    def send() -> int:
        return 1

    with pytest.raises(SignatureError, match=r"'send' is provided already; .*worker\.override"):
        worker.provide(send)
    with pytest.raises(SignatureError, match="a name that a parameter can have"):
        worker.provide("not a name")(send)


def test_a_worker_dependency_may_not_take_what_belongs_to_a_turn(worker: WorkerServer) -> None:
    def tenant(identity: Any) -> str:
        return str(identity.organization_id)

    with pytest.raises(SignatureError, match="belongs to one turn"):
        worker.provide(scope="worker")(tenant)
    with pytest.raises(SignatureError, match="'turn' or 'worker', got 'request'"):
        worker.provide(scope="request")(tenant)  # type: ignore[call-overload]


def test_two_providers_of_one_type_are_told_apart_by_name(worker: WorkerServer) -> None:
    class Model: ...

    @worker.provide
    def small() -> Model:
        return Model()

    @worker.provide
    def large() -> Model:
        return Model()

    async def ambiguous(model: Annotated[Model, "which?"]) -> str:
        return ""

    # The class is local, so the annotation is compared by its name.
    with pytest.raises(SignatureError, match=r"nobody provides|provided by small and large"):
        worker.handler(ambiguous)


# ---------------------------------------------------------------- dependencies


class Database:
    pass


class Session:
    def __init__(self, database: Database) -> None:
        self.database = database


async def test_one_value_a_turn_is_shared_and_a_workers_value_is_shared_by_all(worker: WorkerServer) -> None:
    @worker.provide
    def database() -> Database:
        return Database()

    worker.provide("session", scope="turn")(Session)

    @worker.provide
    async def audit(session: Session) -> list[Session]:
        return [session]

    seen: list[tuple[Session, Session]] = []

    async def handler(session: Session, audit: Any) -> str:
        seen.append((session, audit[0]))
        return ""

    await asyncio.gather(*(run(worker, handler) for _ in range(10)))
    assert all(mine is audited for mine, audited in seen)
    assert len({id(mine) for mine, _ in seen}) == 10
    assert len({id(mine.database) for mine, _ in seen}) == 1


async def test_sync_and_async_functions_and_generators_and_classes_provide(worker: WorkerServer) -> None:
    @worker.provide
    def one() -> int:
        return 1

    @worker.provide
    async def two() -> int:
        return 2

    @worker.provide
    def three() -> Iterator[int]:
        yield 3

    @worker.provide
    async def four(incoming: Any) -> AsyncIterator[int]:
        yield 4

    async def handler(one: int, two: int, three: int, four: int) -> str:
        return f"{one}{two}{three}{four}"

    assert await run(worker, handler) == ["1234"]


async def test_teardown_runs_in_reverse_after_the_handlers_own_finally(worker: WorkerServer) -> None:
    log: list[str] = []

    @worker.provide
    async def first() -> AsyncIterator[str]:
        try:
            yield "first"
        finally:
            log.append("first down")

    @worker.provide
    async def second(first: str) -> AsyncIterator[str]:
        try:
            yield "second"
        finally:
            log.append("second down")

    async def handler(second: str) -> AsyncIterator[str]:
        try:
            yield "x"
        finally:
            log.append("handler's finally")

    await run(worker, handler)
    assert log == ["handler's finally", "second down", "first down"]
    log.clear()
    stream = await worker.dispatch(handler, organization_id="o", workspace_id="w", user_id="u", message="hi")
    async for _ in stream:
        break
    await stream.cancel()
    assert log == ["handler's finally", "second down", "first down"]


async def test_a_dependency_sees_the_handlers_error_and_cannot_hide_it(worker: WorkerServer) -> None:
    seen: list[BaseException] = []

    @worker.provide
    async def session() -> AsyncIterator[str]:
        try:
            yield "s"
        except RuntimeError as error:
            seen.append(error)

    async def handler(session: str) -> AsyncIterator[str]:
        yield "x"
        raise RuntimeError("boom")

    with pytest.raises(HandlerError) as caught:
        await run(worker, handler)
    assert seen == [caught.value.original]


async def test_an_error_in_a_dependencys_teardown_fails_the_turn(worker: WorkerServer) -> None:
    @worker.provide
    async def session() -> AsyncIterator[str]:
        yield "s"
        raise OSError("commit failed")

    async def handler(session: str) -> AsyncIterator[str]:
        yield "x"

    with pytest.raises(HandlerError) as caught:
        await run(worker, handler)
    assert isinstance(caught.value.original, OSError)


async def test_a_cancel_scope_and_a_context_variable_live_across_the_yields_of_handler_and_dependency(
    worker: WorkerServer,
) -> None:
    variable: ContextVar[str] = ContextVar("variable")

    @worker.provide
    async def group() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as tasks:
            variable.set("set in a dependency")
            yield tasks

    async def handler(group: Any) -> AsyncIterator[str]:
        with anyio.CancelScope():
            yield variable.get()
            yield variable.get()

    assert await run(worker, handler) == ["set in a dependency"] * 2


async def test_a_workers_generator_is_entered_once_and_left_at_close_in_the_same_task(worker: WorkerServer) -> None:
    log: list[Any] = []

    @worker.provide(scope="worker")
    async def pool() -> AsyncIterator[str]:
        task = asyncio.current_task()
        log.append("up")
        async with anyio.create_task_group():
            yield "pool"
        log.append(task is asyncio.current_task())

    async def handler(pool: str) -> str:
        return pool

    assert await asyncio.gather(*(run(worker, handler) for _ in range(5))) == [["pool"]] * 5
    assert log == ["up"]
    await worker.close()
    assert log == ["up", True]


async def test_worker_dependencies_are_torn_down_last_made_first(worker: WorkerServer) -> None:
    log: list[str] = []

    def made(name: str) -> Any:
        async def provider() -> AsyncIterator[str]:
            yield name
            await asyncio.sleep(0)
            log.append(name)

        return provider

    for name in ("a", "b", "c"):
        worker.provide(name, scope="worker")(made(name))

    async def handler(a: str, b: str, c: str) -> str:
        return a + b + c

    assert await run(worker, handler) == ["abc"]
    await worker.close()
    assert log == ["c", "b", "a"]


async def test_a_worker_dependency_that_fails_is_tried_again_by_the_next_turn(worker: WorkerServer) -> None:
    attempts: list[int] = []

    @worker.provide
    async def client() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError("not yet")
        return "client"

    async def handler(client: str) -> str:
        return client

    with pytest.raises(HandlerError, match="not yet"):
        await run(worker, handler)
    assert await run(worker, handler) == ["client"]
    assert len(attempts) == 2


async def test_a_turn_cancelled_while_a_worker_dependency_is_made_does_not_take_it_from_others(
    worker: WorkerServer,
) -> None:
    go, making = asyncio.Event(), asyncio.Event()

    @worker.provide
    async def client() -> str:
        making.set()
        await go.wait()
        return "client"

    async def handler(client: str) -> str:
        return client

    first = await worker.dispatch(handler, organization_id="o", workspace_id="w", user_id="u", message="1")
    first.detach()
    await making.wait()
    second = asyncio.create_task(run(worker, handler))
    await asyncio.sleep(0)
    await first.cancel()
    go.set()
    assert await second == ["client"]


# ---------------------------------------------------------------- overrides


async def test_an_override_reaches_nested_dependencies_and_ends_with_its_block(worker: WorkerServer) -> None:
    @worker.provide
    def database() -> str:
        return "real"

    @worker.provide
    def users(database: str) -> str:
        return f"users of {database}"

    async def handler(users: str) -> str:
        return users

    with worker.override(database="fake"):
        assert await run(worker, handler) == ["users of fake"]
        with worker.override(users="nobody"):
            assert await run(worker, handler) == ["nobody"]
        assert await run(worker, handler) == ["users of fake"]
    assert await run(worker, handler) == ["users of real"]


async def test_the_values_of_a_turn_can_be_overridden_too(worker: WorkerServer) -> None:
    @worker.settings
    @dataclass
    class Settings:
        model: str = "real"

    async def handler(settings: Settings, memory: Any) -> str:
        return f"{settings.model} {memory}"

    with worker.override(settings=Settings(model="fake"), memory="forgets"):
        assert await run(worker, handler) == ["fake forgets"]


def test_overriding_what_nobody_provides_is_refused_with_a_suggestion(worker: WorkerServer) -> None:
    with pytest.raises(SignatureError, match=r"nobody provides 'memroy' .did you mean 'memory'"):
        with worker.override(memroy=1):
            pytest.fail("the block must not be entered")


class Remembers(Protocol):
    async def get_history(self) -> list[Any]: ...


def test_a_name_of_a_turns_value_with_another_type_is_refused(worker: WorkerServer) -> None:
    with pytest.raises(SignatureError, match=r"'incoming' is annotated with int, and is a WorkerIncoming"):

        @worker.handler
        async def handler(incoming: int) -> None: ...


async def test_a_name_of_a_turns_value_may_be_annotated_by_anything_that_fits(worker: WorkerServer) -> None:
    async def handler(incoming: object, memory: Remembers, identity: Identity | None, send: Any) -> str:
        return f"{type(incoming).__name__} {type(memory).__name__} {identity is not None}"

    assert await run(worker, handler) == ["WorkerIncoming WorkerMemory True"]


# ---------------------------------------------------------------- around every turn


async def test_what_is_around_every_turn_runs_before_its_dependencies_are_made_and_after_they_are_gone(
    worker: WorkerServer,
) -> None:
    happened: list[str] = []

    @worker.around
    async def outer(incoming: Any) -> AsyncIterator[None]:
        happened.append(f"outer begins {incoming.message}")
        yield
        happened.append("outer ends")

    @worker.around
    def inner() -> Iterator[None]:
        happened.append("inner begins")
        yield
        happened.append("inner ends")

    @worker.provide
    async def model() -> AsyncIterator[str]:
        happened.append("made")
        yield "model"
        happened.append("torn down")

    async def handler(model: str) -> str:
        happened.append("handler")
        return model

    assert await run(worker, handler) == ["model"]
    assert happened == [
        *("outer begins hi", "inner begins", "made", "handler", "torn down", "inner ends", "outer ends"),
    ]


async def test_a_context_variable_that_is_set_around_a_turn_is_seen_by_its_handler_and_by_no_other_turn(
    worker: WorkerServer,
) -> None:
    current: ContextVar[str] = ContextVar("current", default="nobody's")

    @worker.around
    async def named(incoming: Any) -> AsyncIterator[None]:
        token = current.set(f"{incoming.message}'s")
        yield
        current.reset(token)

    async def handler() -> str:
        await asyncio.sleep(0)
        return current.get()

    assert await run(worker, handler) == ["hi's"]
    assert current.get() == "nobody's"


async def test_the_handlers_error_is_raised_where_what_is_around_it_yields_and_stays_the_turns(
    worker: WorkerServer,
) -> None:
    seen: list[BaseException] = []

    @worker.around
    async def watching() -> AsyncIterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(error)

    async def handler() -> str:
        raise ValueError("no")

    with pytest.raises(HandlerError):
        await run(worker, handler)
    assert [str(error) for error in seen] == ["no"]


async def test_an_error_around_a_turn_is_the_turns(worker: WorkerServer) -> None:
    @worker.around
    async def broken(incoming: Any) -> AsyncIterator[None]:
        if incoming.message:
            raise ValueError("no")
        yield

    async def handler() -> str:
        return "never"

    with pytest.raises(HandlerError):
        await run(worker, handler)


def test_what_is_around_turns_is_a_generator_and_asks_for_what_there_is(worker: WorkerServer) -> None:
    async def no_generator() -> None: ...

    with pytest.raises(SignatureError, match="expected a generator that yields once"):
        worker.around(no_generator)

    async def strange(incomming: Any) -> AsyncIterator[None]:
        yield

    with pytest.raises(SignatureError, match="did you mean 'incoming'"):
        worker.around(strange)
