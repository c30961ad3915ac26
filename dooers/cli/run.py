"""`dooers run`: the options of serving. The serving itself, and with it uvicorn, is in `serving.py`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from dooers.cli.target import TargetError, load, named
from dooers.cli.terminal import BEGIN, WorkerTarget, app, fail, to_log

__all__ = ["run"]


@app.command(
    rich_help_panel=BEGIN,
    epilog="Examples: `dooers run app:worker --open`, `dooers run app:worker --port 8001 --reload`",
)
def run(
    target: WorkerTarget = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    reload: Annotated[bool, typer.Option("--reload", help="Start again whenever a file here changes.")] = False,
    playground: Annotated[
        bool, typer.Option("--playground/--no-playground", help="Serve a page at / to talk to the worker in a browser.")
    ] = True,
    open_browser: Annotated[bool, typer.Option("--open", help="Open that page in your browser.")] = False,
) -> None:
    """Serve a worker, or any ASGI application, for development.

    MODULE is looked for in the current directory first. Ctrl-C stops it.

    On an address of this machine only, a worker without `allowed_origins` answers to web pages of this machine only: any other page in
    your browser could read your conversations.
    """
    from dooers.cli.serving import listen, serve

    # uvicorn ends well on SIGTERM and then raises it again: this makes that an ordinary end, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.path.insert(0, str(Path.cwd()))
    to_log()
    try:
        target = named(target)
        served = load(target)
        listening = listen(host, port)
    except TargetError as error:
        fail(str(error), 2)
    if not serve(target, served, host, listening, reload=reload, playground=playground, open_browser=open_browser):
        raise typer.Exit(1)
