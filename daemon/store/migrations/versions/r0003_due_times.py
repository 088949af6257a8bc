"""What became of each due time, and what holds an agent.

A migration never changes after its release and uses no name of `daemon.store.tables`, which go on changing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns and the tables; runs of before had no due time."""
    op.add_column("runs", sa.Column("due", sa.Text))
    op.add_column("runs", sa.Column("attempt", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "due_times",
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("due", sa.Text, nullable=False),
        sa.Column("last", sa.Text, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("fate", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.PrimaryKeyConstraint("agent", "due"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "agent_states",
        sa.Column("agent", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("since", sa.Text),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("model_failures", sa.Integer, nullable=False),
        sa.Column("held_until", sa.Text),
        sa.Column("held_because", sa.Text, nullable=False),
        sa.Column("config_digest", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
