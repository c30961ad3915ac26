"""`dooers chat`: the options of a conversation in the terminal. The conversation is `dooers.chat`."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from dooers.cli.terminal import BEGIN, app, fail, out
from dooers.exceptions import DisconnectedError, DooersError

__all__ = ["chat"]


@app.command(
    rich_help_panel=BEGIN,
    epilog="Examples: `dooers chat`, `echo hello | dooers chat`, `dooers chat ws://10.0.0.7:8000/ws --user ana`",
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
    from dooers.chat import run_chat

    try:
        run_chat(
            out(),
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
        fail(f"{error}{'; is a worker running there? (dooers run MODULE:NAME)' if nobody else ''}", 1)
    except DooersError as error:
        fail(f"{error} ({error.code})", 1)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "local"
