"""The schema, versioned: `versions/` holds one Alembic script a step, this module says which of them a database needs, as SQL.

Not the place where they are run: that is `postgres_schema.py` and `sqlite_schema.py`, in one transaction each. The version is kept
in `{prefix}schema_version`; stores compare it with `HEAD` by one plain query at start, and Alembic is loaded only when there
is something to do. There is no way back to an older version but a backup.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from io import StringIO
from threading import Lock
from typing import Any, Literal, TypeAlias

from attrs import Factory, frozen

from dooers.exceptions import StoreError
from dooers.stores import Schema
from dooers.stores.migrations.predecessor import COLUMNS, unreadable_times

__all__ = ["HEAD", "TABLES", "VERSIONS", "Dialect", "Found", "done", "unreadable_times", "upgrade_statements"]

Dialect: TypeAlias = Literal["postgresql", "sqlite"]

# Every version there has been, oldest first. Anything else in a database comes from a later dooers.
VERSIONS = ("0001", "0002")
HEAD = VERSIONS[-1]
TABLES = tuple(COLUMNS)

# `alembic.op` is one object for the whole process: two workers that start at once would write into each other's scripts.
_alembic = Lock()


@frozen
class Found:
    """What a database holds under a prefix: a version, or None, and the columns of the tables that have our names, where they were
    looked at."""

    prefix: str
    version: str | None = None
    tables: Mapping[str, Set[str]] = Factory(dict)

    @property
    def current(self) -> bool:
        """Whether this is what the code needs."""
        return self.version == HEAD

    @property
    def adopts(self) -> bool:
        """Whether these are the predecessor's tables."""
        return self.version is None and bool(self.tables)

    def __str__(self) -> str:
        if self.version is not None:
            return f"schema version {self.version}"
        return "the tables of the predecessor, without a schema version" if self.tables else "no schema version"

    def check(self) -> None:
        """Raise StoreError for what no migration may touch: a newer schema, or tables of somebody else."""
        if self.version is not None and self.version not in VERSIONS:
            raise StoreError(
                f"the database has schema version {self.version}, this code knows versions up to {HEAD}: a newer dooers has "
                "been at it. Update dooers here; there is no way back but a backup"
            )
        if self.version is None and self.tables and (wrong := "; ".join(self._strangers())):
            raise StoreError(
                f"the database has tables with our names and no schema version, and they are not the predecessor's: {wrong}. "
                f"Nothing was touched; set a database_table_prefix other than {self.prefix!r}, or another database"
            )

    def _strangers(self) -> list[str]:
        wrong = []
        for table, names in COLUMNS.items():
            known, there = set(names.split()), self.tables.get(table)
            if there is None:
                wrong.append(f"there is no {self.prefix}{table}")
                continue
            said = [("unexpected", there - known), ("missing", known - there)]
            faults = [f"{what} {', '.join(sorted(columns))}" for what, columns in said if columns]
            if faults:
                wrong.append(f"columns of {self.prefix}{table}: {', '.join(faults)}")
        return wrong

    def schema(self, dialect: Dialect) -> Schema:
        """The same for people."""
        return Schema(self.current, str(self), f"schema version {HEAD}", lambda: upgrade_statements(dialect, self))

    def outdated(self) -> StoreError:
        """What to say where the schema is not what this code needs, and nobody may change it."""
        return StoreError(
            f"the database has {self}, this code needs {HEAD}; run `dooers migrate MODULE:NAME` "
            "or call `await worker.migrate()` once, or set database_auto_migrate=True"
        )


def done(was: Found, counts: Mapping[str, int]) -> str:
    """What a migration from there to here did, in a sentence; `counts` are rows by table."""
    if was.current:
        return f"the database was up to date: schema version {HEAD}"
    if was.adopts:
        what = ", ".join(f"{count} {table if count != 1 else table[:-1]}" for table, count in counts.items())
        return f"adopted the tables of the predecessor ({what}): now schema version {HEAD}"
    if was.version is None:
        return f"made the tables: schema version {HEAD}"
    return f"brought the database from schema version {was.version} to {HEAD}"


def upgrade_statements(dialect: Dialect, found: Found) -> list[str]:
    """What is missing, as SQL. Nothing is read on the way, so no script may ask the database what is in it."""
    if found.current:
        return []
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "dooers:stores/migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    written = _Statements()
    options: dict[str, Any] = {
        "dialect_name": dialect,
        # In any other style a driver's sign for a parameter, %, would be written twice.
        "dialect_opts": {"paramstyle": "named"},
        "as_sql": True,
        "output_buffer": written,
        "version_table": f"{found.prefix}schema_version",
        "prefix": found.prefix,
        "adopts": found.adopts,
    }
    with (
        _alembic,
        EnvironmentContext(
            config, scripts, fn=lambda revision, _: scripts._upgrade_revs(HEAD, revision), starting_rev=found.version
        ) as environment,
    ):
        environment.configure(**options)
        environment.run_migrations()
    return written.statements


class _Statements(StringIO):
    """Where Alembic writes its script: it writes a statement at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[str] = []

    def write(self, text: str) -> int:
        self.statements.append(text.strip())
        return len(text)
