"""`dooers migrate`: a worker's database is brought up to date, or looked at. How is the stores' business."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Annotated

import typer

from dooers.cli.target import TargetError, worker_of
from dooers.cli.terminal import KEEP, WorkerTarget, app, fail
from dooers.exceptions import DooersError
from dooers.stores import Schema, open_store

__all__ = ["migrate"]


@app.command(
    rich_help_panel=KEEP,
    epilog="Examples: `dooers migrate app:worker`, `dooers migrate app:worker --check`",
)
def migrate(
    target: WorkerTarget = None,
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
        store = open_store(worker_of(target).config)
        logging.getLogger("dooers").setLevel(logging.WARNING)  # what was done is the answer, and said once
        if not check and not sql:
            said = asyncio.run(store.migrate())
        else:
            schema = asyncio.run(store.schema())
            said = _script(schema) if sql else _verdict(schema)
    except TargetError as error:
        fail(str(error), 2)
    except DooersError as error:
        fail(f"{error} ({error.code})", 2 if check else 1)
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
