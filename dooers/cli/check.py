"""`dooers check`: what a worker needs is looked at, and what is missing is said with what mends it. Nothing is changed or made."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from attrs import asdict, frozen

from dooers.cli.guard import is_loopback
from dooers.cli.target import TargetError, named, worker_of
from dooers.cli.terminal import KEEP, WorkerTarget, app, counted, out
from dooers.codec import dumps
from dooers.config import WorkerConfig
from dooers.exceptions import DooersError
from dooers.registration import Registered
from dooers.schema import SettingsFieldType

__all__ = ["Finding", "check"]

Status: TypeAlias = Literal["ok", "note", "fault"]
_MARKS: dict[Status, tuple[str, str, str]] = {
    "ok": ("✓", "ok  ", "green"),
    "note": ("!", "note", "yellow"),
    "fault": ("✗", "FAIL", "red"),
}
# What the database may take beyond its own timeout, which bounds its calls already.
PATIENCE = 2.0
_BASES = {"postgres": "PostgreSQL", "sqlite": "SQLite", "cosmos": "Cosmos DB", "memory": "memory"}


@frozen
class Finding:
    """What was looked at, how it stands, and how it is mended."""

    step: str
    status: Status
    what: str
    mend: str = ""


@app.command(
    rich_help_panel=KEEP,
    epilog="Examples: `dooers check`, `dooers check app:worker`, `dooers check app:worker --json`",
)
def check(
    target: WorkerTarget = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as one JSON object, for machines.")] = False,
) -> None:
    """Look whether a worker would run: its code, its database and broker, and what is dangerous in production.

    Nothing is changed or made. It ends with 0 if all is well (notes are no faults), 1 if something is wrong, 2 if there is no worker to
    look at.
    """
    findings, status = _look(target)
    if as_json:
        sys.stdout.write(dumps({"ok": status == 0, "findings": [asdict(finding) for finding in findings]}) + "\n")
    else:
        _show(findings)
    raise typer.Exit(status)


def _look(target: str | None) -> tuple[list[Finding], int]:
    try:
        target = named(target)
        worker = worker_of(target)
    except TargetError as error:
        return [Finding("worker", "fault", str(error))], 2
    logging.getLogger("dooers").setLevel(logging.CRITICAL)  # what is found is said once, below
    known = worker.registered
    config = worker.config
    findings = [Finding("worker", "ok", f"{target}, with the id {config.worker_id!r}"), *_registered(known)]
    findings += asyncio.run(_reached(config, target))
    findings += _dangers(config, known)
    return findings, int(any(finding.status == "fault" for finding in findings))


def _show(findings: list[Finding]) -> None:
    from dooers.chat import printable

    console = out()
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
        which = 0
    except (LookupError, UnicodeEncodeError):
        which = 1
    width = max(len(finding.step) for finding in findings)
    for finding in findings:
        mark, color = _MARKS[finding.status][which], _MARKS[finding.status][2]
        console.print(f"[{color}]{mark}[/] {finding.step:<{width}}  ", end="")
        console.print(" ".join(printable(finding.what).splitlines()), markup=False, soft_wrap=True)
        if finding.mend:
            indent = " " * (len(mark) + width + 3)
            console.print(f"{indent}→ " if which == 0 else f"{indent}> ", end="")
            console.print(printable(finding.mend), markup=False, soft_wrap=True)
    faults, notes = (sum(finding.status == status for finding in findings) for status in ("fault", "note"))
    console.print(f"\n{counted(faults, 'fault')}, {counted(notes, 'note')}", soft_wrap=True)


# ---------------------------------------------------------------- what was registered


def _registered(known: Registered) -> Iterator[Finding]:
    if known.handlers:
        names = ["the default one" if name is None else repr(name) for name in known.handlers]
        yield Finding("handlers", "ok", ", ".join(names))
    if None not in known.handlers:
        yield Finding(
            "handlers",
            "note",
            "there is no default one: messages are answered by NOT_CONFIGURED, unless handle() or dispatch() is given one",
            "register one with @worker.handler",
        )
    fields = [] if known.settings is None else [field.id for field in known.settings.every_field()]
    yield Finding("settings", "ok", ", ".join(fields) or "none")


# ---------------------------------------------------------------- what can be reached


async def _reached(config: WorkerConfig, target: str) -> list[Finding]:
    found = [finding async for finding in _database(config, target)]
    if config.broker_url or config.database_type == "postgres":
        if config.broker_url is None and any(finding.status == "fault" for finding in found):
            return [*found, Finding("broker", "note", "not looked at: it is in the database, which is at fault")]
        return [*found, await _broker(config)]
    return [*found, Finding("broker", "ok", "none: this worker runs in one process")]


async def _database(config: WorkerConfig, target: str) -> Any:
    from dooers.stores import open_store

    what = _BASES[config.database_type]
    if config.database_type == "memory" or config.database_name == ":memory:":
        yield Finding(
            "database", "note", "in memory: conversations end with the process", "name a database in the config"
        )
        return
    what += f", {config.database_name!r}"
    if config.database_type == "sqlite":
        folder, writable = _folder(config.database_name)
        if not writable:
            yield Finding(
                "database",
                "fault",
                f"{what}: {folder} is no directory that this user may write to",
                "make it, or name another file: database_name, WORKER_DATABASE_NAME",
            )
            return
    else:
        what += f" at {config.database_host}"
    schema, fault = await _within(config, lambda: open_store(config).schema())
    if fault:
        yield Finding("database", "fault", f"{what}: {fault}", _reach(config))
        return
    yield Finding("database", "ok", what)
    if schema.current:
        yield Finding("schema", "ok", schema.found)
    elif config.database_auto_migrate:
        yield Finding("schema", "note", f"found {schema.found}, needed {schema.needed}: the next start sees to that")
    else:
        yield Finding("schema", "fault", f"found {schema.found}, needed {schema.needed}", f"dooers migrate {target}")


def _folder(path: str) -> tuple[Path, bool]:
    """The directory of a file, and whether files may be made there: SQLite makes some beside its own."""
    folder = Path(path).absolute().parent
    return folder, folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _reach(config: WorkerConfig) -> str:
    if config.database_type == "sqlite":
        return "is it a SQLite file, and of a worker of this version?"
    names = "HOST, _KEY, _NAME" if config.database_type == "cosmos" else "HOST, _PORT, _USER, _PASSWORD, _NAME, _SSL"
    return f"is it there, and are these right: WORKER_DATABASE_{names}, or the same in WorkerConfig?"


async def _broker(config: WorkerConfig) -> Finding:
    from dooers.brokers import open_broker

    async def reach() -> None:
        broker = open_broker(config)
        await broker.open(lambda text: None, lambda: None)
        await broker.close()

    _, fault = await _within(config, reach)
    what = "in the database" if config.broker_url is None else config.broker_url.partition(":")[0]
    if fault:
        return Finding(
            "broker", "fault", f"{what}: {fault}", "is it there, and is broker_url (WORKER_BROKER_URL) right?"
        )
    return Finding("broker", "ok", what)


async def _within(config: WorkerConfig, work: Callable[[], Awaitable[Any]]) -> tuple[Any, str]:
    """What came of it, or why nothing did; in bounded time, whatever hangs."""
    limit = config.database_timeout + PATIENCE
    try:
        async with asyncio.timeout(limit):
            return await work(), ""
    except TimeoutError:
        return None, f"no answer within {limit:g} seconds"
    except (DooersError, ImportError) as error:
        return None, str(error)
    except Exception as error:  # of a driver: what it says may hold what is secret
        return None, type(error).__name__


# ---------------------------------------------------------------- what is dangerous


def _dangers(config: WorkerConfig, known: Registered) -> Iterator[Finding]:
    """What may be as it is while one develops, and not when others use it."""
    fields = [] if known.settings is None else list(known.settings.every_field())
    if not known.authenticates:
        yield Finding(
            "people", "note", "clients are believed who they say they are", "@worker.authenticate decides who they are"
        )
    elif config.allowed_origins is None:
        yield Finding(
            "origins",
            "note",
            "any web page may open a WebSocket: with a cookie as the proof, in the name of whoever looks at it",
            "allowed_origins names your pages",
        )
    changed = any(not field.is_internal and not field.readonly for field in fields)
    if changed and "settings.patch" not in config.permissions and not known.authorizes:
        yield Finding(
            "settings",
            "note",
            "everybody may change them",
            "permissions={'settings.patch': 'admin'}, or @worker.authorize",
        )
    passwords = [field.id for field in fields if field.type is SettingsFieldType.PASSWORD]
    if passwords and not config.settings_encryption_key:
        yield Finding(
            "settings",
            "note",
            f"{', '.join(passwords)}: in clear in the database",
            "WORKER_SETTINGS_ENCRYPTION_KEY seals them",
        )
    if config.expose_errors:
        yield Finding("errors", "note", "people see what went wrong inside", "expose_errors is for development")
    far = not (
        config.database_host == "localhost" or config.database_host.startswith("/") or is_loopback(config.database_host)
    )
    if config.database_type == "postgres" and far and config.database_ssl in (False, "disable", "prefer"):
        yield Finding("database", "note", "the connection may be in clear", "WORKER_DATABASE_SSL=verify-full")
    if config.analytics_webhook_url and not config.analytics_webhook_secret:
        yield Finding(
            "analytics",
            "note",
            "the webhook's batches are not signed: its receiver cannot tell yours from others",
            "WORKER_ANALYTICS_WEBHOOK_SECRET signs them",
        )
    if config.analytics_webhook_url and config.analytics_webhook_url.startswith("http://"):
        yield Finding("analytics", "note", "the webhook's batches travel in clear", "an https URL")
