"""A running run says whose it is and when it last gave a sign of life.

Runs of before have said nothing: the first process that looks closes those that are still called running.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    runs = f"{op.get_context().opts['prefix']}runs"
    op.add_column(runs, sa.Column("process_id", sa.Text))
    op.add_column(runs, sa.Column("beat_at", TIME))
    op.execute(f'UPDATE "{runs}" SET beat_at = started_at')
    # Few runs are running at any time; only they are ever looked for.
    running = sa.text("status = 'running'")
    op.create_index(f"{runs}_running", runs, ["beat_at"], sqlite_where=running, postgresql_where=running)


def downgrade() -> None:
    runs = f"{op.get_context().opts['prefix']}runs"
    op.drop_index(f"{runs}_running")
    op.drop_column(runs, "beat_at")
    op.drop_column(runs, "process_id")
