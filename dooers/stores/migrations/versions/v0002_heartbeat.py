"""A running run says whose it is and when it last gave a sign of life. Ids sort by their bytes, also in PostgreSQL. Runs are found in
the order in which they are listed, those that failed by themselves; so is what a turn said long after its message.

Runs of before have said nothing: the first process that looks closes those that are still called running.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    context = op.get_context()
    prefix = context.opts["prefix"]
    if context.dialect.name == "postgresql":
        sort_by_bytes(prefix)
    runs = f"{prefix}runs"
    op.add_column(runs, sa.Column("process_id", sa.Text))
    op.add_column(runs, sa.Column("beat_at", TIME))
    op.execute(f"UPDATE \"{runs}\" SET beat_at = started_at WHERE status = 'running'")
    # What is sorted by status first cannot be listed by time without reading all runs of a thread. Running ones are few at any time, so
    # whoever looks for those of a process, or for the dead, may read their index as a whole.
    order, running = ["thread_id", "started_at", "id"], sa.text("status = 'running'")
    op.drop_index(f"{runs}_of_thread", runs)
    op.create_index(f"{runs}_of_thread", runs, order)
    op.create_index(f"{runs}_running", runs, order, sqlite_where=running, postgresql_where=running)
    failed = sa.text("status = 'failed'")
    op.create_index(f"{runs}_failed", runs, order[1:], sqlite_where=failed, postgresql_where=failed)
    # Few are, so it costs nothing to write; and as nothing else can be asked of it, no plan takes it for the order of a thread.
    events, far = f"{prefix}events", sa.text("seq - turn_seq > 100")
    op.create_index(f"{events}_late", events, ["thread_id", "turn_seq", "seq"], sqlite_where=far, postgresql_where=far)


def sort_by_bytes(prefix: str) -> None:
    """Among equal times ids decide, and by the rules of a language they are in another order than everywhere else."""
    # What is compared with them has to follow: between two collations PostgreSQL would not know which.
    for table, columns in (("threads", ["id"]), ("events", ["id", "thread_id"]), ("runs", ["id", "thread_id"])):
        changes = ", ".join(f'ALTER COLUMN {column} TYPE TEXT COLLATE "C"' for column in columns)
        op.execute(f'ALTER TABLE "{prefix}{table}" {changes}')
