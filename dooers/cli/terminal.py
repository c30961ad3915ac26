"""What all commands share: the application that they are registered in, how they speak, and how they fail."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn, TypeAlias

import typer
from rich.console import Console

__all__ = ["BEGIN", "KEEP", "WorkerTarget", "app", "counted", "fail", "main", "notes", "out", "to_log"]

# The headings of `dooers --help`.
BEGIN, KEEP = "Begin", "Look after"

app = typer.Typer(
    name="dooers",
    help="Put an AI agent behind a chat: serve a worker, talk to it, and look after what it keeps.",
    epilog="Try it: `dooers new demo`, then there `dooers run` and, in a second terminal, `dooers chat`",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and so secrets
)

# Which worker: what a command takes first. None: the one that the project here names.
WorkerTarget: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="MODULE:NAME",
        help="Where the worker is, e.g. `app:worker`; by default what `pyproject.toml` names, `[tool.dooers] worker`.",
        show_default=False,
    ),
]


def main() -> None:
    """Run the command line; ends the process with 0, 1 (it failed) or 2 (it was asked for wrongly)."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="replace")  # a terminal that cannot show a character must not end a conversation
    try:
        app()
    except ModuleNotFoundError as missing:
        if missing.name not in ("uvicorn", "websockets"):
            raise
        raise SystemExit("pip install 'dooers-workers-server[cli]'") from None


def out() -> Console:
    """Where an answer goes."""
    return Console(soft_wrap=False, highlight=False)


def notes() -> Console:
    """Where goes what is no answer: progress, warnings, faults."""
    return Console(stderr=True, highlight=False)


def fail(message: str, status: int) -> NoReturn:
    """Say in one sentence why not, and end."""
    from dooers.chat import printable

    notes().print(printable(f"dooers: {message}"), style="red", markup=False, soft_wrap=True)
    raise SystemExit(status)  # not typer's: this is also said where typer is not around


def counted(number: int, what: str) -> str:
    """`1 thread`, `2 threads`, `no threads`."""
    return f"{f'{number:,}' if number else 'no'} {what}{'' if number == 1 else 's'}"


def to_log() -> None:
    """Let what the worker logs be seen."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("dooers").setLevel(logging.INFO)
