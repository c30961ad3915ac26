"""Threads, events, runs and settings.

Column names avoid words that are reserved in any of the databases. Times and JSON are texts in SQLite and native types in
PostgreSQL. Where the predecessor's tables stand in their place, what is in them is carried over.
"""

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from dooers.stores.migrations import predecessor

revision = "0001"
down_revision = None

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
JSON = sa.Text().with_variant(postgresql.JSONB(), "postgresql")
NUMBER = sa.BigInteger()


def upgrade() -> None:
    context = op.get_context()
    prefix, dialect, adopts = context.opts["prefix"], context.dialect.name, context.opts["adopts"]
    if adopts:
        execute(predecessor.put_aside(prefix, dialect))
    create_threads(f"{prefix}threads")
    create_events(f"{prefix}events", f"{prefix}threads")
    create_runs(f"{prefix}runs", f"{prefix}threads")
    create_settings(f"{prefix}settings")
    if adopts:
        execute(predecessor.carry_over(prefix, dialect))


def execute(statements: Iterable[str]) -> None:
    for statement in statements:
        op.execute(sa.text(statement.replace(":", r"\:")))  # nothing in them is a parameter


def create_threads(threads: str) -> None:
    op.create_table(
        threads,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("workspace_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("owner", JSON, nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("metadata", JSON),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("last_event_at", TIME, nullable=False),
        sa.Column("last_seq", NUMBER, nullable=False),
    )
    # One for lists of a workspace, one for lists of a user where threads are private.
    place = ["worker_id", "organization_id", "workspace_id"]
    op.create_index(f"{threads}_recent", threads, [*place, "last_event_at", "id"])
    op.create_index(f"{threads}_recent_of_user", threads, [*place, "user_id", "last_event_at", "id"])


def create_events(events: str, threads: str) -> None:
    op.create_table(
        events,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("thread_id", sa.Text, sa.ForeignKey(f"{threads}.id", ondelete="CASCADE"), nullable=False),
        sa.Column("seq", NUMBER, nullable=False),
        sa.Column("turn_seq", NUMBER, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("author", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("sender", JSON),
        sa.Column("content", JSON, nullable=False),
        sa.Column("data", JSON),
        sa.Column("run_id", sa.Text),
        sa.Column("client_event_id", sa.Text),
        sa.Column("repeat_key", sa.Text),
        sa.Column("notice", sa.SmallInteger, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
    )
    # The only index that starts with thread_id, on purpose: with a second one PostgreSQL's generic plans pick the wrong one.
    op.create_index(f"{events}_order", events, ["thread_id", "seq"], unique=True)
    op.create_index(f"{events}_repeat", events, ["repeat_key"], unique=True)


def create_runs(runs: str, threads: str) -> None:
    op.create_table(
        runs,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("thread_id", sa.Text, sa.ForeignKey(f"{threads}.id", ondelete="CASCADE"), nullable=False),
        sa.Column("agent_id", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("error", sa.Text),
    )
    op.create_index(f"{runs}_of_thread", runs, ["thread_id", "status", "started_at", "id"])


def create_settings(settings: str) -> None:
    op.create_table(
        settings,
        sa.Column("worker_id", sa.Text, primary_key=True),
        sa.Column("field_id", sa.Text, primary_key=True),
        sa.Column("value", JSON, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
    )
