"""The schema, versioned: `versions/` holds one Alembic script a step, this module runs them. Not the place where rows are read.

The version is kept in `{prefix}schema_version`. Stores compare it with `HEAD` by one plain query at start; Alembic is
loaded only when there is something to do.
"""

from __future__ import annotations

import sqlite3
from io import StringIO
from threading import Lock
from typing import Any

__all__ = ["HEAD", "outdated", "upgrade_script", "upgrade_sqlite"]

HEAD = "0003"

# `alembic.op` is one object for the whole process: two workers that start at once would write into each other's database.
_alembic = Lock()


def outdated(found: str | None) -> str:
    """What to say where the schema is not the one this code needs, and nobody may change it."""
    return (
        f"the database has schema version {found}, this code needs {HEAD}; "
        "call `await worker.migrate()` once, or set database_auto_migrate=True"
    )


def upgrade_sqlite(connection: sqlite3.Connection, prefix: str) -> None:
    """Bring a SQLite database up to date, in one transaction that others wait for. Blocking: call it in a thread."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.connect() as bound:
        # IMMEDIATE takes the write lock before the version is read: of ten processes starting at once one migrates,
        # nine wait and then find nothing to do.
        bound.exec_driver_sql("BEGIN IMMEDIATE")
        run_scripts(bound, prefix)
        bound.commit()


def run_scripts(connection: Any, prefix: str) -> None:
    """Run what is missing on a SQLAlchemy connection, in whatever transaction it is in."""
    _run(None, prefix, connection=connection)


def upgrade_script(prefix: str, found: str | None) -> str:
    """What is missing as SQL for PostgreSQL. Nothing is read on the way, so no script may ask the database what is in it."""
    script = StringIO()
    _run(found, prefix, dialect_name="postgresql", as_sql=True, output_buffer=script)
    return script.getvalue()


def _run(found: str | None, prefix: str, **target: Any) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "dooers:stores/migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)

    # transaction_per_migration off: all of it is one step, or none.
    options: dict[str, Any] = {
        "version_table": f"{prefix}schema_version",
        "transaction_per_migration": False,
        "prefix": prefix,
    }
    try:
        with (
            _alembic,
            EnvironmentContext(
                config, scripts, fn=lambda revision, _: scripts._upgrade_revs(HEAD, revision), starting_rev=found
            ) as environment,
        ):
            environment.configure(**options, **target)
            environment.run_migrations()
    except CommandError as error:
        raise RuntimeError(f"{error}: this code knows the schema up to version {HEAD}; update dooers") from error
