"""Runs of a thread in the order they are listed in, and the running ones found by their thread.

What is sorted by status first cannot be listed by time without reading all runs of a thread. Running runs are few at any time, so
whoever looks for those of a process, or for the dead, may read their index as a whole.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

RUNNING = sa.text("status = 'running'")


def upgrade() -> None:
    runs = f"{op.get_context().opts['prefix']}runs"
    order = ["thread_id", "started_at", "id"]
    op.drop_index(f"{runs}_of_thread", runs)
    op.create_index(f"{runs}_of_thread", runs, order)
    op.drop_index(f"{runs}_running", runs)
    op.create_index(f"{runs}_running", runs, order, sqlite_where=RUNNING, postgresql_where=RUNNING)


def downgrade() -> None:
    runs = f"{op.get_context().opts['prefix']}runs"
    op.drop_index(f"{runs}_running", runs)
    op.create_index(f"{runs}_running", runs, ["beat_at"], sqlite_where=RUNNING, postgresql_where=RUNNING)
    op.drop_index(f"{runs}_of_thread", runs)
    op.create_index(f"{runs}_of_thread", runs, ["thread_id", "status", "started_at", "id"])
