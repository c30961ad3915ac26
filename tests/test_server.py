"""The worker's life: opened once by whoever comes first, closed cleanly or by its loop's end, and ready for any ASGI host."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import evolve
from fakes import serving
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from dooers import ConfigError, SettingsField, SettingsSchema, SignatureError, StoreError, WorkerConfig, WorkerServer
from dooers.stores import STORES
from dooers.testing import Closed, WorkerClient

WHO: dict[str, Any] = {"organization_id": "o", "workspace_id": "w", "user_id": "u"}


async def hello() -> str:
    return "hello"


async def test_constructing_opens_nothing(worker_config: WorkerConfig) -> None:
    WorkerServer(worker_config)
    assert not Path(worker_config.database_name).exists()


async def test_any_number_of_concurrent_first_calls_open_it_once(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)
    worker.handler(hello)
    opened = 0
    store: Any = worker._parts.store()
    real = store.open

    async def counted() -> None:
        nonlocal opened
        opened += 1
        await real()

    store.open = counted

    async def first(number: int) -> Any:
        calls: list[Any] = [
            worker.ensure_initialized,
            worker.repository,
            lambda: worker.settings("w"),
            lambda: worker.memory("t"),
            lambda: worker.analytics("w"),
            lambda: _dispatched(worker),
        ]
        return await calls[number % len(calls)]()

    await asyncio.gather(*(first(number) for number in range(60)))
    assert opened == 1
    await worker.close()


async def _dispatched(worker: WorkerServer) -> None:
    assert len(await (await worker.dispatch(**WHO, message="hi")).collect()) == 1


async def test_a_failed_opening_is_told_to_all_and_leaves_no_thread(tmp_path: Path) -> None:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(tmp_path)))
    before = set(threading.enumerate())
    results = await asyncio.gather(*(worker.ensure_initialized() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, StoreError) for result in results)
    await asyncio.sleep(0.05)
    left = [
        thread for thread in set(threading.enumerate()) - before if not thread.daemon and "AnyIO" not in thread.name
    ]
    assert left == []
    await worker.close()


async def test_it_can_be_closed_twice_and_opened_again(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)
    worker.handler(hello)
    await worker.close()
    for _ in range(3):
        async with worker.lifespan(None):
            await _dispatched(worker)
        await worker.close()
    assert len(await (await worker.repository()).list_threads()) == 3
    await worker.close()


def test_it_can_be_used_on_one_loop_after_another(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)
    worker.handler(hello)

    async def closes() -> None:
        await _dispatched(worker)
        await worker.close()

    async def forgets() -> None:
        await _dispatched(worker)

    for run in (closes, forgets, closes, forgets, forgets):
        asyncio.run(run())


def test_a_program_that_forgets_to_close_ends_all_the_same_and_closes_its_runs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import asyncio
            from dooers import WorkerConfig, WorkerServer

            worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="w.db"))
            who = dict(organization_id="o", workspace_id="w", user_id="u", message="hi", thread_id="t")

            @worker.handler
            async def agent(send):
                yield send.run_start()
                yield send.text("partial")
                await asyncio.sleep(60)

            async def main():
                stream = await worker.dispatch(**who)
                stream.detach()
                while len(await (await worker.repository()).list_events({"thread_id": "t"})) < 2:
                    await asyncio.sleep(0.01)

            async def after():
                print([run.status for run in await (await worker.repository()).list_runs({"thread_id": "t"})])

            asyncio.run(main())
            asyncio.run(after())
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "['canceled']"), done.stderr


async def test_an_asgi_host_without_a_lifespan_opens_it_on_first_use(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)
    transport = httpx.ASGITransport(app=worker.asgi_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert not Path(worker_config.database_name).exists()
        assert (await http.get("/ready")).status_code == 200
        assert Path(worker_config.database_name).exists()
        assert (await http.get("/")).status_code == 404
    await worker.close()


async def test_ready_says_no_without_saying_why(tmp_path: Path) -> None:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(tmp_path)))
    transport = httpx.ASGITransport(app=worker.asgi_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
        assert (await http.get("/health")).status_code == 200
    await worker.close()


async def test_a_socket_that_is_not_accepted_yet_is_accepted(worker_config: WorkerConfig) -> None:
    """`handle` takes the WebSocket of Starlette and FastAPI both before and after `accept()`."""
    from starlette.websockets import WebSocket

    worker = WorkerServer(worker_config)
    worker.handler(hello)
    for accepted in (False, True):
        sent: list[Any] = []
        incoming = [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": '{"id": "1", "type": "ping"}'},
            {"type": "websocket.disconnect", "code": 1000},
        ]

        async def receive(incoming: list[Any] = incoming) -> Any:
            await asyncio.sleep(0.01)
            return incoming.pop(0)

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        socket = WebSocket({"type": "websocket", "headers": [], "query_string": b""}, receive, send)
        if accepted:
            await socket.accept()
        await worker.handle(socket)
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send"]
    await worker.close()


async def test_a_worker_that_cannot_open_closes_the_socket_with_try_again(tmp_path: Path) -> None:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(tmp_path)))
    worker.handler(hello)
    client = WorkerClient(worker)
    await client.open()
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1013
    await worker.close()


async def test_named_handlers_are_chosen_by_name_at_both_doors(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)
    worker.handler(hello)

    @worker.handler("support")
    async def support(incoming: Any) -> AsyncIterator[str]:
        yield f"support: {incoming.message}"

    stream = await worker.dispatch("support", **WHO, message="hi")
    assert (await stream.collect())[0].data["text"] == "support: hi"
    async with WorkerClient(worker, handler="support") as client, WorkerClient(worker) as default:
        assert (await client.say("hi")).text == "support: hi"
        assert (await default.say("hi")).text == "hello"
    await worker.close()


def test_a_worker_has_a_classic_schema_or_a_class_not_both(worker_config: WorkerConfig) -> None:
    schema = SettingsSchema(fields=[SettingsField(id="a", type="text", label="A")])
    worker = WorkerServer(WorkerConfig(database_type="memory", settings_schema=schema))

    @dataclass
    class Settings:
        model: str = "a"

    with pytest.raises(ConfigError, match="has settings_schema in its config already"):
        worker.settings(Settings)
    typed = WorkerServer(worker_config)
    typed.settings(Settings)
    with pytest.raises(ConfigError, match="has the settings class Settings already"):
        typed.settings(Settings)


def test_a_config_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a WorkerConfig, got"):
        WorkerServer("sqlite")  # type: ignore[arg-type]


async def test_a_database_this_version_does_not_have_says_so_when_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STORES, "cosmos")
    worker = WorkerServer(WorkerConfig(database_type="cosmos", database_name="mydb"))
    with pytest.raises(ConfigError, match="'cosmos' is not available in this version; available: postgres, sqlite"):
        await worker.ensure_initialized()
    await worker.close()


async def test_typed_settings_are_loaded_from_the_classic_object(worker_config: WorkerConfig) -> None:
    worker = WorkerServer(worker_config)

    @worker.settings
    @dataclass
    class Settings:
        model: str = "small"

    settings: Any = await worker.settings()
    await settings.set("model", "large")
    assert await settings.load() == Settings(model="large")
    await worker.close()


# ---------------------------------------------------------------- which page may open a socket


@pytest.mark.parametrize(
    ("origin", "lets_in"),
    [
        ("https://app.example", True),
        ("https://evil.example", False),
        ("https://app.example.evil.example", False),
        ("null", False),
        (None, True),
    ],
)
async def test_a_page_of_another_origin_gets_403_before_the_socket_is_open(
    worker_config: WorkerConfig, origin: str | None, lets_in: bool
) -> None:
    asked: list[Any] = []
    worker = WorkerServer(evolve(worker_config, allowed_origins=["https://app.example"]))
    worker.authenticate(asked.append)
    headers = {} if origin is None else {"Origin": origin}
    async with serving(worker.asgi_app()) as address:
        opening = connect(f"ws://{address}/ws", additional_headers=headers, proxy=None)
        if lets_in:
            async with opening as socket:
                await socket.send('{"id": "1", "type": "ping"}')
                assert '"pong"' in str(await socket.recv())
        else:
            with pytest.raises(InvalidStatus) as refused:
                await opening
            assert refused.value.response.status_code == 403
            assert refused.value.response.body in (None, b"")
    assert asked == []
    await worker.close()


async def test_a_socket_that_its_host_has_accepted_already_is_closed_for_a_wrong_page(
    worker_config: WorkerConfig,
) -> None:
    worker = WorkerServer(evolve(worker_config, allowed_origins=[]))
    client = WorkerClient(worker, headers={"Origin": "https://app.example"})
    await client.open()
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 4403
    assert not Path(worker_config.database_name).exists()  # it has not even been opened
    await worker.close()


# ---------------------------------------------------------------- the hook that says who may do what


def test_an_authorize_hook_that_cannot_work_is_refused_when_it_is_registered(worker_config: WorkerConfig) -> None:
    async def waits(identity: Any, operation: Any, thread: Any) -> bool:
        return True

    class Waits:
        async def __call__(self, identity: Any, operation: Any, thread: Any) -> bool:
            return True

    wrong: list[tuple[Any, str]] = [
        (waits, "not async"),
        (partial(waits), "not async"),
        (Waits(), "not async"),
        (None, "a plain function"),
        ("name", "a plain function"),
        (lambda: True, r"\(identity, operation, thread\)"),
        (lambda identity, operation: True, r"\(identity, operation, thread\)"),
        (lambda identity, operation, thread, more: True, r"\(identity, operation, thread\)"),
        (lambda *, identity, operation, thread: True, r"\(identity, operation, thread\)"),
    ]
    for hook, told in wrong:
        with pytest.raises(SignatureError, match=told):
            WorkerServer(worker_config).authorize(hook)


@pytest.mark.parametrize("kind", ["authorize", "authenticate"])
def test_a_worker_has_one_hook_of_a_kind_and_gives_the_function_back(worker_config: WorkerConfig, kind: str) -> None:
    worker = WorkerServer(worker_config)

    def hook(*_: Any) -> bool:
        return True

    assert getattr(worker, kind)(hook) is hook
    with pytest.raises(SignatureError, match=f"an {kind} hook already"):
        getattr(worker, kind)(hook)
