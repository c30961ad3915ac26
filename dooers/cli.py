"""The `dooers` command: `run` serves a worker, `chat` talks to one, `migrate` brings its database up to date, `rotate-keys` seals its
passwords anew.

Not needed to serve in production: any ASGI server does that.
"""

from __future__ import annotations

import asyncio
import errno
import getpass
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

from dooers.exceptions import DooersError
from dooers.server import WorkerServer
from dooers.stores import Schema, open_store

try:
    import typer
    import uvicorn
    from rich.console import Console
    from uvicorn.supervisors import ChangeReload

    from dooers.chat import printable, run_chat
    from dooers.exceptions import DisconnectedError
except ModuleNotFoundError as missing:
    if missing.name not in ("rich", "typer", "uvicorn", "websockets"):
        raise
    # Whoever gets here has typed the command: a sentence helps, a traceback does not.
    raise SystemExit("pip install 'dooers-workers-server[cli]'") from None

__all__ = ["TargetError", "load", "main"]

# How the serving process of `--reload` learns what to serve: it is a fresh process that only gets an import string.
TARGET = "DOOERS_RUN_TARGET"
SHUTDOWN = 10
# Seconds after which a peer that takes nothing of what was sent to it is gone.
DEAF = 30.0

app = typer.Typer(
    name="dooers",
    help="Put an AI agent behind a chat: serve a worker, and talk to it from the terminal.",
    epilog="Try it: `dooers run examples.quickstart:worker`, then, in a second terminal: `dooers chat`",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and so secrets
)


def main() -> None:
    """Run the command line; ends the process with 0, 1 (it failed) or 2 (it was asked for wrongly)."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="replace")  # a terminal that cannot show a character must not end a conversation
    app()


# ---------------------------------------------------------------- run


@app.command(epilog="Example: `dooers run examples.quickstart:worker --port 8001 --reload`")
def run(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="Where the worker is, e.g. `examples.quickstart:worker`.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    reload: Annotated[bool, typer.Option("--reload", help="Start again whenever a file here changes.")] = False,
) -> None:
    """Serve a worker, or any ASGI application, for development.

    MODULE is looked for in the current directory first. Ctrl-C stops it.
    """
    # uvicorn ends well on SIGTERM and then raises it again: this makes that an ordinary end, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.path.insert(0, str(Path.cwd()))
    _log()
    try:
        served = load(target)
        listening = _listen(host, port)
    except TargetError as error:
        _fail(str(error), 2)
    os.environ[TARGET] = target
    config = uvicorn.Config(
        "dooers.cli:_reloaded" if reload else _asgi(served),
        factory=reload,
        reload=reload,
        log_config=None,
        log_level="warning",
        # Deflating costs a tenth of a busy core.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN,
    )
    server = _Server(config, _welcome(target, served, host, listening))
    try:
        if reload:
            ChangeReload(config, target=server.run, sockets=[listening]).run()
        else:
            server.run(sockets=[listening])
    except KeyboardInterrupt:
        return
    if not reload and not server.started:
        raise typer.Exit(1)


class _Server(uvicorn.Server):
    """uvicorn's server with our own word of welcome, said when it is true."""

    def __init__(self, config: uvicorn.Config, welcome: str) -> None:
        super().__init__(config)
        self.welcome = welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _out().print(self.welcome, markup=False, highlight=False, soft_wrap=True)


def _reloaded() -> Any:
    """What the serving process of `--reload` serves. A mistake is told, and the next change gives another chance."""
    _log()
    try:
        return _asgi(load(os.environ[TARGET]))
    except TargetError as error:
        _fail(str(error), 2)


def _asgi(served: Any) -> Any:
    return served.asgi_app() if isinstance(served, WorkerServer) else served


def _log() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("dooers").setLevel(logging.INFO)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
        # Connections inherit it. asyncio sets it by itself only on sockets it has made, and without it a turn of several
        # small frames waits 40 ms for the peer's delayed acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that takes nothing keeps its connection for ever otherwise, and a server that waits for its connections to end.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAF * 1000))
        return listening
    except OSError as error:
        number = error.errno or 0  # below zero for a name that is not found
        why = os.strerror(number) if number > 0 else error.strerror
        hint = f"; try --port {port + 1}" if number == errno.EADDRINUSE and port < 65535 else ""
        raise TargetError(f"cannot listen on {host}:{port}: {why}{hint}") from None


def _welcome(target: str, served: Any, host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    # An address to listen on is not always one to connect to.
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    chat = f"dooers chat ws://{near}:{port}/ws"
    if isinstance(served, WorkerServer) and served.config.worker_id != "worker":
        chat += f" --worker {served.config.worker_id}"
    return f"{target} listens on http://{near}:{port} (Ctrl-C stops it)\ntalk to it: {chat}"


# ---------------------------------------------------------------- what to serve


class TargetError(Exception):
    """What was asked for cannot be served; the text is one sentence for whoever asked."""


def load(target: str) -> Any:
    """The WorkerServer or ASGI application that `MODULE:NAME` names. TargetError, with a suggestion, where there is none."""
    name, _, attribute = target.partition(":")
    if not name or not attribute or name.endswith(".py") or "/" in name:
        meant = name.removesuffix(".py").strip("./").replace("/", ".")
        raise TargetError(
            f"expected MODULE:NAME, got {target!r}; did you mean {meant or 'app'}:{attribute or 'worker'}?"
        )
    module = _import(name, attribute)
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        raise TargetError(f"{name} has no {attribute!r}{_instead(module, attribute)}") from None
    if not _servable(found):
        what = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise TargetError(f"{target} is {what}, not a WorkerServer or an ASGI application{_instead(module, attribute)}")
    return found


def _worker(target: str) -> WorkerServer:
    """The worker that a command is about: looked for in the current directory first."""
    sys.path.insert(0, str(Path.cwd()))
    _log()
    worker = load(target)
    if not isinstance(worker, WorkerServer):
        raise TargetError(f"{target} is an ASGI application; expected the WorkerServer itself")
    return worker


def _import(name: str, attribute: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if name != absent and not name.startswith(f"{absent}."):
            raise TargetError(f"{name} needs the module {absent!r}, which is not installed") from None
        near = get_close_matches(absent.rpartition(".")[2], _modules_beside(absent), 1)
        if near:
            meant = ".".join([*absent.split(".")[:-1], near[0]]) + name.removeprefix(absent)
            raise TargetError(f"there is no module {absent!r}; did you mean {meant}:{attribute}?") from None
        raise TargetError(f"there is no module {absent!r} here; run this in the directory that holds it") from None
    except (Exception, SystemExit) as error:
        raise TargetError(f"{name} cannot be imported: {type(error).__name__}: {error}{_where(error)}") from None


def _modules_beside(name: str) -> set[str]:
    """The names of modules that could have been meant: those next to the one that is missing."""
    parent = name.rpartition(".")[0]
    folders: Iterable[str] = getattr(import_module(parent), "__path__", ()) if parent else [os.getcwd()]
    return {
        entry.stem
        for folder in folders
        for entry in Path(folder).iterdir()
        if entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))
    }


def _where(error: BaseException) -> str:
    """The place of an error: where Python says it lies in a text, else the deepest line that ran."""
    if isinstance(error, SyntaxError):
        return ""  # says so itself
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"


def _instead(module: ModuleType, attribute: str) -> str:
    """The name in the module that was probably meant: one like it, else the first that can be served."""
    known = [name for name, value in vars(module).items() if _servable(value)]
    near = get_close_matches(attribute, known, 1) or known
    return f"; did you mean {module.__name__}:{near[0]}?" if near else ""


def _servable(value: Any) -> bool:
    """A WorkerServer, or something to be awaited with (scope, receive, send). Handlers are generators, and so are neither."""
    if isinstance(value, WorkerServer):
        return True
    if isinstance(value, type) or not callable(value):
        return False
    called = value if inspect.isfunction(value) else type(value).__call__
    if not inspect.iscoroutinefunction(called):
        return False
    try:
        inspect.signature(value).bind(None, None, None)
    except (TypeError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- chat


@app.command(
    epilog="Examples: `dooers chat`, `echo hello | dooers chat`, `dooers chat ws://10.0.0.7:8000/ws --user ana`"
)
def chat(
    url: Annotated[str, typer.Argument(help="The WebSocket of the worker.")] = "ws://127.0.0.1:8000/ws",
    worker: Annotated[str, typer.Option(help="Worker id.")] = "worker",
    organization: Annotated[str, typer.Option(help="Organization id.")] = "local",
    workspace: Annotated[str, typer.Option(help="Workspace id.")] = "local",
    user: Annotated[str | None, typer.Option(help="User id; your login name when it is not given.")] = None,
    thread: Annotated[str | None, typer.Option(help="Open this thread instead of a new one.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="DOOERS_TOKEN", help="What proves who you are, if the worker asks.")
    ] = None,
) -> None:
    """Talk to a worker, live.

    Type a message, or `/help`. With piped input every line is a message, and it ends after the last answer.
    """
    try:
        run_chat(
            _out(),
            url,
            worker_id=worker,
            organization_id=organization,
            workspace_id=workspace,
            user_id=user if user is not None else _login(),
            auth_token=token,
            thread_id=thread,
        )
    except DisconnectedError as error:
        nobody = isinstance(error.__cause__, OSError)
        _fail(f"{error}{'; is a worker running there? (dooers run MODULE:NAME)' if nobody else ''}", 1)
    except DooersError as error:
        _fail(f"{error} ({error.code})", 1)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "local"


# ---------------------------------------------------------------- migrate


@app.command(
    epilog="Examples: `dooers migrate examples.quickstart:worker`, `dooers migrate examples.quickstart:worker --check`"
)
def migrate(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="Where the worker is, e.g. `examples.quickstart:worker`.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; end with 0 if it is up to date, 1 if not, 2 on an error.")
    ] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Change nothing; print the SQL that would be run.")] = False,
) -> None:
    """Bring the database of a worker up to date, and say what was done.

    It may be run while others start: one does it, the others wait. There is no way back, so have a backup.
    """
    try:
        if check and sql:
            raise TargetError("expected --check or --sql, got both")
        store = open_store(_worker(target).config)
        logging.getLogger("dooers").setLevel(logging.WARNING)  # what was done is the answer, and said once
        if not check and not sql:
            said = asyncio.run(store.migrate())
        else:
            schema = asyncio.run(store.schema())
            said = _script(schema) if sql else _verdict(schema)
    except TargetError as error:
        _fail(str(error), 2)
    except DooersError as error:
        _fail(f"{error} ({error.code})", 2 if check else 1)
    sys.stdout.write(f"{said}\n")
    if check and not schema.current:
        raise typer.Exit(1)


def _verdict(schema: Schema) -> str:
    if schema.current:
        return f"up to date: {schema.found}"
    return f"not up to date: found {schema.found}, needed {schema.needed}"


def _script(schema: Schema) -> str:
    if schema.current or schema.upgrade is None:
        return f"-- {_verdict(schema)}" + ("" if schema.current else ", which is not made by SQL")
    return "\n\n".join(["BEGIN;", *schema.upgrade(), "COMMIT;"])


# ---------------------------------------------------------------- rotate-keys


@app.command("rotate-keys", epilog="Example: `dooers rotate-keys examples.quickstart:worker`")
def rotate_keys(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="Where the worker is, e.g. `examples.quickstart:worker`.")
    ],
) -> None:
    """Seal the passwords in a worker's settings with its newest key, those still in clear too.

    First give the new key to every process, before the old one: `WORKER_SETTINGS_ENCRYPTION_KEY=new,old`. Afterwards the old one
    may go.
    """
    try:
        count = asyncio.run(_rotated(_worker(target)))
    except TargetError as error:
        _fail(str(error), 2)
    except DooersError as error:
        _fail(f"{error} ({error.code})", 1)
    _out().print(f"sealed anew with the newest key: {count}")


async def _rotated(worker: WorkerServer) -> int:
    async with worker.lifespan():
        return await worker.rotate_settings()


# ---------------------------------------------------------------- words


def _out() -> Console:
    return Console(soft_wrap=False, highlight=False)


def _fail(message: str, status: int) -> NoReturn:
    Console(stderr=True).print(
        printable(f"dooers: {message}"), style="red", markup=False, highlight=False, soft_wrap=True
    )
    raise SystemExit(status)  # not typer's: this is also said where typer is not around
