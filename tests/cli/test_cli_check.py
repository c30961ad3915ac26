"""`dooers check`: what it finds, how it says so, and that it ends."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from services.postgres import Address
from serving import DOOERS, WITHIN

from dooers.cli.new import make

Checked: TypeAlias = "tuple[int, dict[str, tuple[str, str, str]], str]"

BOT = """
import sys
print("said while it is imported")
{before}
from dataclasses import dataclass
from dooers import Secret, WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(**{config!r}))

@worker.settings
@dataclass
class Settings:
    api_key: Secret = Secret("")

{after}

async def asgi(scope, receive, send): ...
"""
HANDLER = """
@worker.handler
async def agent(incoming, send):
    yield send.text("hi")
"""
SAFE = """
@worker.authenticate
async def who(request): ...

@worker.authorize
def may(identity, operation, thread): return True
"""


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., Checked]:
    """Runs `dooers check --json` of a worker: how it ended, what it found by step (the last of each), and what it complained about."""

    def check(before: str = "", after: str = HANDLER, target: str = "bot:worker", **config: Any) -> Checked:
        config = {"database_type": "sqlite", "database_name": "worker.db", **config}
        (tmp_path / "bot.py").write_text(BOT.format(before=before, after=after, config=config))
        done = dooers("check", target, "--json", cwd=tmp_path)
        assert "Traceback" not in done.stderr
        said = json.loads(done.stdout)
        assert said["ok"] == (done.returncode == 0)
        found = {one["step"]: (one["status"], one["what"], one["mend"]) for one in said["findings"]}
        return done.returncode, found, done.stderr

    return check


def dooers(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DOOERS, *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", **env},
        capture_output=True,
        encoding="utf-8",
        timeout=WITHIN,
        check=False,
    )


# ---------------------------------------------------------------- how it is said


def test_a_new_project_has_no_faults(tmp_path: Path) -> None:
    make("demo", tmp_path)
    done = dooers("check", cwd=tmp_path / "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "✓ worker    app:worker, with the id 'worker'",
        "✓ handlers  the default one",
        "✓ settings  greeting, pace",
        "✓ database  SQLite, 'worker.db'",
        "! schema    found no schema version, needed schema version 0002: the next start sees to that",
        "✓ broker    none: this worker runs in one process",
        "! people    clients are believed who they say they are",
        "            → @worker.authenticate decides who they are",
        "! settings  everybody may change them",
        "            → permissions={'settings.patch': 'admin'}, or @worker.authorize",
        "",
        "no faults, 3 notes",
    ]
    assert not (tmp_path / "demo" / "worker.db").exists()


def test_a_terminal_without_these_signs_gets_words(tmp_path: Path) -> None:
    make("demo", tmp_path)
    done = dooers("check", cwd=tmp_path / "demo", PYTHONIOENCODING="ascii", WORKER_DATABASE_NAME="nowhere/worker.db")
    assert done.returncode == 1
    assert "ok   worker " in done.stdout
    assert "note people " in done.stdout
    assert "FAIL database " in done.stdout
    assert "1 fault, 2 notes" in done.stdout


def test_what_a_module_says_is_not_mixed_into_the_answer(checked: Callable[..., Checked]) -> None:
    assert "said while it is imported" in checked()[2]


# ---------------------------------------------------------------- the worker


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"target": "bto:worker"}, "did you mean bot:worker?"),
        ({"target": "bot:asgi"}, "expected the WorkerServer itself"),
        ({"after": "@worker.handler\nasync def agent(incomin): ..."}, "SignatureError"),
        ({"after": "@worker.settings\nclass Other: ..."}, "ConfigError"),
        ({"database_typ": "sqlite"}, "WorkerConfig has no option 'database_typ' (did you mean 'database_type'?)"),
        (
            {"before": "sys.modules['cryptography.fernet'] = None", "settings_encryption_key": "A" * 43 + "="},
            "pip install 'dooers-workers-server[encryption]'",
        ),
    ],
)
def test_without_a_worker_it_says_why_and_ends_with_2(
    given: dict[str, Any], says: str, checked: Callable[..., Checked]
) -> None:
    code, found, _ = checked(**given)
    assert code == 2
    assert list(found) == ["worker"]
    assert found["worker"][0] == "fault"
    assert says in found["worker"][1]


def test_a_worker_without_a_default_handler_is_noted(checked: Callable[..., Checked]) -> None:
    code, found, _ = checked(after="")
    assert (code, found["handlers"][0]) == (0, "note")
    code, found, _ = checked(after=HANDLER.replace("handler", "handler('other')"))
    assert (code, found["handlers"][2]) == (0, "register one with @worker.handler")


# ---------------------------------------------------------------- the database


def test_a_directory_that_is_not_there_is_a_fault_and_the_rest_is_looked_at_all_the_same(
    checked: Callable[..., Checked],
) -> None:
    code, found, _ = checked(database_name="nowhere/worker.db", broker_url="redis://127.0.0.1:1/")
    assert code == 1
    assert found["database"][0] == "fault"
    assert "nowhere is no directory that this user may write to" in found["database"][1]
    assert found["broker"][:2] == ("fault", "redis: the broker cannot reach Redis (ConnectionError)")
    assert found["people"][0] == "note"


def test_a_file_that_is_no_database_is_a_fault(checked: Callable[..., Checked], tmp_path: Path) -> None:
    (tmp_path / "worker.db").write_text("these are not the bytes of a database, and they are many" * 100)
    code, found, _ = checked()
    assert (code, found["database"][0]) == (1, "fault")
    assert "file is not a database" in found["database"][1]


def test_a_schema_that_nobody_brings_up_to_date_is_a_fault_with_the_command(
    checked: Callable[..., Checked], tmp_path: Path
) -> None:
    code, found, _ = checked(database_auto_migrate=False)
    assert (code, found["schema"][0], found["schema"][2]) == (1, "fault", "dooers migrate bot:worker")
    assert dooers("migrate", "bot:worker", cwd=tmp_path).returncode == 0
    code, found, _ = checked(database_auto_migrate=False)
    assert (code, found["schema"][0]) == (0, "ok")
    with closing(sqlite3.connect(tmp_path / "worker.db")) as connection:
        connection.execute("UPDATE worker_schema_version SET version_num = '9999'")
        connection.commit()
    code, found, _ = checked()
    assert (code, found["database"][0]) == (1, "fault")
    assert "schema version 9999" in found["database"][1]


def test_conversations_in_memory_are_noted(checked: Callable[..., Checked]) -> None:
    for config in ({"database_type": "memory"}, {"database_name": ":memory:"}):
        code, found, _ = checked(**config)
        assert (code, found["database"][0]) == (0, "note")


async def test_postgresql_and_its_broker_are_reached(
    checked: Callable[..., Checked], postgres: Address, postgres_database: str
) -> None:
    config = postgres.config(postgres_database)
    where = {name: getattr(config, f"database_{name}") for name in ("type", "host", "port", "user", "name", "password")}
    code, found, _ = checked(**{f"database_{name}": value for name, value in where.items()})
    assert (code, found["database"][0], found["broker"][:2]) == (0, "ok", ("ok", "in the database"))
    code, found, _ = checked(
        **{f"database_{name}": value for name, value in where.items()}, database_table_prefix="no_"
    )
    assert (code, found["schema"][0]) == (0, "note")
    code, found, _ = checked(**{f"database_{name}": value for name, value in {**where, "name": "absent"}.items()})
    assert (code, found["database"][0], found["broker"][0]) == (1, "fault", "note")
    assert "WORKER_DATABASE_HOST" in found["database"][2]


@pytest.fixture
def hanging() -> Iterator[int]:
    """The port of a server that takes connections, and says nothing ever."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_it_ends_when_the_database_and_the_broker_hang(checked: Callable[..., Checked], hanging: int) -> None:
    began = time.monotonic()
    where = {"database_type": "postgres", "database_host": "127.0.0.1", "database_port": hanging}
    code, found, _ = checked(**where, database_timeout=0.5, broker_url=f"redis://127.0.0.1:{hanging}/")
    assert time.monotonic() - began < WITHIN - 5
    assert code == 1
    assert (found["database"][0], found["broker"][0]) == ("fault", "fault")
    assert found["people"][0] == "note"


@pytest.mark.parametrize(
    ("module", "config", "step", "extra"),
    [
        (
            "aiohttp",
            {"database_type": "cosmos", "database_host": "https://localhost:1", "database_key": "a2V5"},
            "database",
            "cosmos",
        ),
        ("redis", {"broker_url": "redis://127.0.0.1:1/"}, "broker", "redis"),
    ],
)
def test_an_extra_that_the_config_needs_is_named(
    module: str, config: dict[str, Any], step: str, extra: str, checked: Callable[..., Checked]
) -> None:
    code, found, _ = checked(before=f"sys.modules[{module!r}] = None", **config)
    assert (code, found[step][0]) == (1, "fault")
    assert f"pip install 'dooers-workers-server[{extra}]'" in found[step][1]


# ---------------------------------------------------------------- what is dangerous


def test_what_is_dangerous_in_production_is_noted(checked: Callable[..., Checked], tmp_path: Path) -> None:
    code, found, _ = checked(expose_errors=True, analytics_webhook_url="http://example.org/hook?token=s3cret")
    assert code == 0
    assert found["people"][0] == found["errors"][0] == found["analytics"][0] == "note"
    assert found["settings"] == (
        "note",
        "api_key: in clear in the database",
        "WORKER_SETTINGS_ENCRYPTION_KEY seals them",
    )
    assert "s3cret" not in dooers("check", "bot:worker", cwd=tmp_path).stdout
    _, found, _ = checked(after=HANDLER + SAFE)
    assert "people" not in found
    assert found["origins"][2] == "allowed_origins names your pages"


def test_a_worker_that_is_ready_has_nothing_to_be_noted(checked: Callable[..., Checked], tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "allowed_origins": ["https://app.example.com"],
        "settings_encryption_key": "A" * 43 + "=",
    }
    checked(after=HANDLER + SAFE, **config)
    assert dooers("migrate", "bot:worker", cwd=tmp_path).returncode == 0
    code, found, _ = checked(after=HANDLER + SAFE, **config)
    assert (code, {status for status, _, _ in found.values()}) == (0, {"ok"})
