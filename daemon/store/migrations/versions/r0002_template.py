"""Model calls know the prompt template that they were made from.

A migration never changes after its release and uses no name of `daemon.store.tables`, which go on changing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; the calls of before had no template."""
    op.add_column("model_calls", sa.Column("template", sa.Text, nullable=False, server_default=""))
