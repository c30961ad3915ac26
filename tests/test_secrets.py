"""Secrets are sown everywhere and everything is driven; then every byte that left is searched for them.

`NEVER` is what nobody may read anywhere: passwords and keys of the config, settings, what proves who somebody is. `OURS` is what the
application's own exceptions say: that belongs into the server's log, and nowhere else unless `expose_errors` is on.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sqlite3
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from cryptography.fernet import Fernet
from fakes import serving
from serving import dooers_run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.asyncio.client import connect

from dooers import (
    AuthRequest,
    ConfigError,
    Identity,
    Internal,
    Secret,
    UnauthenticatedError,
    WorkerConfig,
    WorkerServer,
)
from dooers.exceptions import HandlerError
from dooers.protocol import parse
from dooers.testing import Closed, WorkerClient

KEY = Fernet.generate_key().decode()
NEVER = {
    "database password": "never-database-password",
    "database key": "never-database-key",
    "encryption key": KEY,
    "webhook secret": "never-webhook-secret",
    "password that was set": "never-password-set",
    "password by default": "never-password-default",
    "internal setting": "never-internal",
    "auth token": "never-token",
    "header": "never-header",
    "cookie": "never-cookie",
    "query": "never-query",
}
WHERE = ("handler", "dependency", "teardown", "authenticate", "authorize", "shutdown", "keeper")
OURS = {where: f"ours-{where}" for where in WHERE}
WHO: dict[str, Any] = {"organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}


def failure(where: str) -> RuntimeError:
    return RuntimeError(f"cannot connect to postgres://admin:{OURS[where]}@db.internal/prod")


# ---------------------------------------------------------------- what left the worker


class Ears(logging.Handler):
    """Everything that was said by any logger, told to any client, posted, stored, or shown by a repr."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: dict[str, list[str]] = {}

    def hear(self, where: str, what: object) -> None:
        self.heard.setdefault(where, []).append(what if isinstance(what, str) else repr(what))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("uvicorn"):
            return  # the webhook's server, which is somebody else's
        self.hear("log", self.format(record))
        self.hear("log", record.args)

    def look_at_objects(self) -> None:
        """What a debugger, a careless log line or an error tracker would show of whatever is alive."""
        for one in gc.get_objects():
            if str(type(one).__module__).startswith("dooers"):
                where = "errors" if isinstance(one, BaseException) else "repr"
                self.hear(where, f"{type(one).__name__}: {one!r}")

    def look_at_files(self, folder: Path) -> None:
        for path in folder.iterdir():
            if path.is_file():
                self.hear("database", path.read_bytes().decode("latin-1"))

    def found(self, secrets: dict[str, str], *, but: tuple[str, ...] = ()) -> list[str]:
        """Which of these were heard, and where; the places `but` are not searched."""
        return sorted(
            f"{name} in {where}: {_around(next(text for text in texts if secret in text), secret)}"
            for where, texts in self.heard.items()
            for name, secret in secrets.items()
            if where not in but and any(secret in text for text in texts)
        )


def _around(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 80) : at + len(secret) + 10]


@pytest.fixture
def ears() -> Iterator[Ears]:
    made = Ears()
    root = logging.getLogger()
    level = root.level
    root.addHandler(made)
    root.setLevel(logging.DEBUG)
    try:
        yield made
    finally:
        root.setLevel(level)
        root.removeHandler(made)


class Overheard(WorkerClient):
    """A client of whose socket nothing goes unheard; by default it carries all that could prove somebody."""

    def __init__(self, worker: WorkerServer, ears: Ears, *, token: str = NEVER["auth token"], **options: Any) -> None:
        super().__init__(
            worker,
            connect={"worker_id": "worker", **WHO, "auth_token": token},
            headers={"Authorization": f"Bearer {NEVER['header']}", "Cookie": f"session={NEVER['cookie']}"},
            query=f"token={NEVER['query']}",
            **options,
        )
        socket: Any = self.socket
        real = socket.send

        async def send(message: dict[str, Any]) -> None:
            ears.hear("clients", message)
            await real(message)

        socket.send = send


@asynccontextmanager
async def webhook(ears: Ears, status: int = 200) -> AsyncIterator[str]:
    """The address of a webhook on this machine that hears everything; one that fails says why, as servers do."""

    async def hook(request: Request) -> PlainTextResponse:
        ears.hear("webhook", request.headers.items())
        ears.hear("webhook", (await request.body()).decode())
        return PlainTextResponse("", status)

    async with serving(Starlette(routes=[Route("/hook", hook, methods=["POST"])])) as address:
        yield f"http://{address}/hook"


# ---------------------------------------------------------------- a worker with something to hide


def a_worker(ears: Ears, folder: Path, **options: Any) -> WorkerServer:
    worker = WorkerServer(
        WorkerConfig(
            database_type="sqlite",
            database_name=str(folder / "worker.db"),
            database_password=NEVER["database password"],
            analytics_webhook_secret=NEVER["webhook secret"],
            database_key=NEVER["database key"],
            shutdown_grace=0.05,
            **{"settings_encryption_key": KEY, **options},
        )
    )

    @worker.settings
    @dataclass
    class Settings:
        model: str = "small"
        api_key: Secret = Secret(NEVER["password by default"])
        other_key: Secret = Secret("")
        route: Annotated[str, Internal()] = NEVER["internal setting"]

    @worker.authenticate
    async def authenticate(request: AuthRequest) -> Identity:
        ears.hear("repr", request)
        if request.auth_token == "broken":
            raise failure("authenticate")
        return request.claims

    @worker.authorize
    def authorize(identity: Identity, operation: str, thread: Any) -> bool:
        if operation == "feedback":
            raise failure("authorize")
        return True

    _handlers(worker, ears)
    return worker


def _handlers(worker: WorkerServer, ears: Ears) -> None:
    @worker.provide(scope="worker")
    async def keeper() -> AsyncIterator[str]:
        yield "kept"
        raise failure("keeper")

    @worker.provide
    async def broken() -> str:
        raise failure("dependency")

    @worker.provide(scope="turn")
    async def leaky() -> AsyncIterator[str]:
        yield "fine"
        raise failure("teardown")

    @worker.handler
    async def agent(incoming: Any, send: Any, settings: Any, keeper: str) -> AsyncIterator[Any]:
        assert (await settings.load()).other_key.reveal() in ("", NEVER["password that was set"])
        ears.look_at_objects()
        yield send.run_start()
        yield send.text(f"heard {incoming.message}")
        if incoming.message == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                raise failure("shutdown")
        raise failure("handler")

    @worker.handler("dependency")
    async def needs(broken: str) -> str:
        return broken

    @worker.handler("teardown")
    async def leaves(leaky: str) -> str:
        return leaky


async def drive(worker: WorkerServer, ears: Ears, folder: Path) -> None:
    """Everything that somebody could do, and everything that could go wrong with it."""
    async with Overheard(worker, ears) as client, Overheard(worker, ears) as watcher:
        for kind in ("settings.subscribe", "analytics.subscribe"):
            await watcher.ask(kind)
        await client.ask("settings.public_schema")
        for value in (NEVER["password that was set"], 5, None, "x" * 500_000, NEVER["password that was set"]):
            await client.ask("settings.patch", {"field_id": "other_key", "value": value})
        await client.ask("settings.patch", {"field_id": "route", "value": "mine"})
        await client.ask("settings.subscribe")
        reply = await client.say("hello")
        for handler in ("dependency", "teardown"):
            async with Overheard(worker, ears, handler=handler) as other:
                await other.say("hello", reply.thread_id)
        await client.ask("thread.subscribe", {"thread_id": reply.thread_id})
        await client.ask("event.list", {"thread_id": reply.thread_id})
        await client.ask("feedback", {"target_type": "thread", "target_id": reply.thread_id, "feedback": "like"})
        with suppress(Closed, UnauthenticatedError):
            await Overheard(worker, ears, token="broken").__aenter__()
        with pytest.raises(HandlerError):
            await (await worker.dispatch(**WHO, message="hello")).collect()
        memory = await worker.memory(reply.thread_id)
        ears.hear("models", [await memory.get_history(format="openai")])
        await client.ask("event.create", {"event": {"content": [{"type": "text", "text": "wait"}]}})
        await client.expect("run.upsert")
        ears.look_at_files(folder)
        ears.look_at_objects()
        await watcher.ask("ping")
    await worker.close()
    ears.look_at_files(folder)


async def drive_a_broken_store(worker: WorkerServer, ears: Ears, folder: Path) -> None:
    """The same doors, while the database does nothing of what it is asked."""
    async with Overheard(worker, ears) as client:
        thread_id = (await client.say("hello")).thread_id
        broken = sqlite3.connect(folder / "worker.db", isolation_level=None)
        broken.execute("PRAGMA foreign_keys=OFF")
        for table in ("threads", "events", "runs", "settings"):
            broken.execute(f"ALTER TABLE worker_{table} RENAME TO gone_{table}")
        broken.close()
        frames: list[tuple[str, dict[str, Any]]] = [
            ("settings.patch", {"field_id": "other_key", "value": NEVER["password that was set"]}),
            ("settings.subscribe", {}),
            ("thread.list", {}),
            ("thread.subscribe", {"thread_id": thread_id}),
            ("event.create", {"event": {"content": [{"type": "text", "text": "hello"}]}}),
        ]
        for kind, payload in frames:
            assert (await client.ask(kind, payload))["payload"]["error"]["code"] == "SERVER_ERROR", kind
    await worker.close()
    (folder / "worker.db").write_bytes(b"this is no database " * 1000)
    for path in folder.glob("worker.db-*"):
        path.unlink()
    client = Overheard(worker, ears)
    await client.open()
    with pytest.raises(Closed):
        await client.receive()
    ears.look_at_objects()
    await worker.close()


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize("status", [200, 500])
async def test_no_secret_leaves_a_worker_whatever_happens(ears: Ears, tmp_path: Path, status: int) -> None:
    async with webhook(ears, status) as url:
        worker = a_worker(ears, tmp_path, analytics_webhook_url=url, analytics_batch_size=1)
        await drive(worker, ears, tmp_path)
    assert {"clients", "webhook", "database", "log", "repr", "models"} <= ears.heard.keys()
    assert ears.found(NEVER) == []
    assert ears.found(OURS, but=("log", "errors")) == []
    said = "\n".join(ears.heard["log"])
    unsaid = [where for where, text in OURS.items() if text not in said]
    assert unsaid in ([], ["shutdown"])  # somebody must be able to find out


async def test_what_a_handler_fails_with_while_it_is_stopped_is_in_the_log_too(ears: Ears, tmp_path: Path) -> None:
    worker = a_worker(ears, tmp_path)
    async with Overheard(worker, ears) as client:
        await client.ask("event.create", {"event": {"content": [{"type": "text", "text": "wait"}]}})
        await client.expect("run.upsert")
    await worker.close()
    assert OURS["shutdown"] in "\n".join(ears.heard["log"])


async def test_a_store_that_fails_gives_nothing_away(ears: Ears, tmp_path: Path) -> None:
    await drive_a_broken_store(a_worker(ears, tmp_path), ears, tmp_path)
    assert ears.found(NEVER) == []
    ears.heard.pop("repr")  # where the file is, a config may show
    assert (
        ears.found({**OURS, "the schema": "no such table", "where it is": str(tmp_path)}, but=("log", "errors")) == []
    )
    assert "no such table" in "\n".join(ears.heard["log"])


async def test_only_expose_errors_lets_the_texts_of_exceptions_out_and_of_nothing_else(
    ears: Ears, tmp_path: Path
) -> None:
    await drive(a_worker(ears, tmp_path, expose_errors=True), ears, tmp_path)
    told = "\n".join(ears.heard["clients"])
    assert {where for where, text in OURS.items() if text in told} >= {"handler", "dependency"}
    assert OURS["authenticate"] not in told  # of who somebody is, strangers learn nothing
    assert "ours" not in "\n".join(ears.heard["models"])
    assert ears.found(NEVER) == []


async def test_a_store_that_fails_is_exposed_without_what_it_was_given(ears: Ears, tmp_path: Path) -> None:
    await drive_a_broken_store(a_worker(ears, tmp_path, expose_errors=True), ears, tmp_path)
    assert "StoreError" in "\n".join(ears.heard["clients"])
    assert ears.found(NEVER) == []


async def test_the_search_finds_what_is_there(ears: Ears, tmp_path: Path) -> None:
    """Without a key passwords are stored in clear: a search that does not find that would find nothing."""
    worker = a_worker(ears, tmp_path, settings_encryption_key=())
    async with Overheard(worker, ears) as client:
        await client.ask("settings.patch", {"field_id": "other_key", "value": NEVER["password that was set"]})
    await worker.close()
    ears.look_at_files(tmp_path)
    ears.hear("clients", {"text": f"x{NEVER['cookie']}x"})
    logging.getLogger("somebody").debug("token %s", NEVER["header"])
    assert [found.split(":")[0] for found in ears.found(NEVER)] == [
        "cookie in clients", "header in log", "password that was set in database",
    ]  # fmt: skip


# ---------------------------------------------------------------- one by one


def test_a_frame_that_was_read_shows_no_token_and_no_value() -> None:
    for kind, payload in [
        ("connect", {"worker_id": "w", "auth_token": NEVER["auth token"]}),
        ("settings.patch", {"field_id": "api_key", "value": NEVER["auth token"]}),
    ]:
        frame = parse(json.dumps({"id": "f", "type": kind, "payload": payload}))
        assert NEVER["auth token"] not in repr(frame), kind


@pytest.mark.parametrize(
    "name", ["database_password", "database_key", "settings_encryption_key", "analytics_webhook_url"]
)
@pytest.mark.parametrize("wrong", [("never-a-tuple",), b"never-bytes", {"never": "never-mapping"}])
def test_a_config_that_is_refused_does_not_show_the_secret_it_was_given(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        WorkerConfig(database_type="memory", **{name: wrong})
    assert "never" not in str(refused.value)


def test_what_is_no_config_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        WorkerServer({"database_password": NEVER["database password"]})  # type: ignore[arg-type]
    assert NEVER["database password"] not in str(refused.value)


async def test_the_address_of_a_webhook_is_a_secret_as_it_may_hold_one(ears: Ears, tmp_path: Path) -> None:
    async with webhook(ears) as url:
        secret = url.replace("http://", "http://user:never-userinfo@") + "?token=never-in-the-url"
        worker = a_worker(ears, tmp_path, analytics_webhook_url=secret)
        await (await worker.analytics()).track("something")
        await worker.close()
    ears.hear("repr", worker.config)
    assert ears.heard["webhook"]
    assert ears.found({"userinfo": "never-userinfo", "token": "never-in-the-url"}, but=("webhook",)) == []


async def test_a_served_worker_prints_no_secret_of_whoever_connects(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        textwrap.dedent(
            f"""
            from dooers import WorkerConfig, WorkerServer

            worker = WorkerServer(WorkerConfig(
                database_type="sqlite", database_name="w.db", database_password="{NEVER["database password"]}",
                database_key="{NEVER["database key"]}", settings_encryption_key="{KEY}",
            ))

            @worker.authenticate
            def authenticate(request):
                assert request.query_params and request.headers["cookie"]
                return request.claims

            @worker.handler
            async def agent(incoming, send):
                yield send.run_start()
                raise RuntimeError("{OURS["handler"]}")
            """
        )
    )
    headers = {"Authorization": f"Bearer {NEVER['header']}", "Cookie": f"session={NEVER['cookie']}"}
    with dooers_run("app:worker", tmp_path) as served:
        address = f"{served.ws}?token={NEVER['query']}"
        async with connect(address, additional_headers=headers, proxy=None) as socket:
            for kind, payload in [
                ("connect", {"worker_id": "worker", **WHO, "auth_token": NEVER["auth token"]}),
                ("event.create", {"event": {"content": [{"type": "text", "text": "hello"}]}}),
            ]:
                await socket.send(json.dumps({"id": kind, "type": kind, "payload": payload}))
            told = ""
            while '"failed"' not in told:
                told += str(await socket.recv())
        served.stop()
        assert [name for name, secret in {**NEVER, **OURS}.items() if secret in told] == []
        assert [name for name, secret in NEVER.items() if secret in served.said] == []
        assert OURS["handler"] in served.said
