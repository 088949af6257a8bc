"""The first schema: runs, their model calls, proposals and what happened to them.

A migration never changes after its release and uses no name of `daemon.store.tables`, which go on changing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_WAITING = "status IN ('apply_failed', 'applying', 'approved', 'needs_attention', 'pending', 'snoozed')"
_CLOSED = "status IN ('applied', 'expired', 'rejected', 'superseded', 'undone', 'withdrawn')"


def upgrade() -> None:
    """Make every table and index."""
    op.create_table("meta", _text("key", primary_key=True), _text("value"))
    _runs()
    _model_calls()
    _proposals()
    _proposal_events()


def _runs() -> None:
    op.create_table(
        "runs",
        _text("id", primary_key=True),
        _text("agent"),
        _text("trigger"),
        _text("outcome"),
        _text("started_at"),
        _text("finished_at"),
        _integer("proposals"),
        _integer("duplicates"),
        _integer("suppressed"),
        _integer("over_cap"),
        _integer("withdrawn"),
        _integer("calls"),
        _integer("cached_calls"),
        _integer("prompt_tokens"),
        _integer("completion_tokens"),
        sa.Column("backend", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("error", sa.Text),
        _text("notes"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_runs_agent", "runs", ["agent", "id"])


def _model_calls() -> None:
    op.create_table(
        "model_calls",
        _text("id", primary_key=True),
        sa.Column("run_id", sa.Text, _run(), nullable=False),
        _text("agent"),
        _text("at"),
        _text("backend"),
        _text("model"),
        sa.Column("system_prompt", sa.Text),
        _text("prompt"),
        sa.Column("reply", sa.Text),
        _integer("prompt_tokens"),
        _integer("completion_tokens"),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("error", sa.Text),
    )
    op.create_index("ix_model_calls_run", "model_calls", ["run_id"])


def _proposals() -> None:
    op.create_table(
        "proposals",
        sa.Column("id", sa.Integer, primary_key=True),
        _text("agent"),
        _text("kind"),
        _text("status"),
        _text("title"),
        _text("explanation"),
        _text("payload"),
        sa.Column("original_payload", sa.Text),
        sa.Column("precondition", sa.Text),
        _text("fingerprint"),
        _text("evidence_hash"),
        _text("evidence"),
        _text("reasons"),
        _text("constraints"),
        sa.Column("confidence", sa.Float),
        _text("decided_by"),
        _text("call_ids"),
        _text("risk"),
        sa.Column("reversible", sa.Boolean, nullable=False),
        _text("approvers"),
        sa.Column("run_id", sa.Text, _run()),
        _text("created_at"),
        _text("updated_at"),
        _text("expires_at"),
        sa.Column("snoozed_until", sa.Text),
        sa.Column("undo_data", sa.Text),
        sa.Column("error", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_proposals_status", "proposals", ["status", "agent"])
    op.create_index("ix_proposals_run", "proposals", ["run_id"])
    key = ["agent", "fingerprint"]
    op.create_index("ux_proposals_waiting", "proposals", key, unique=True, sqlite_where=sa.text(_WAITING))
    op.create_index("ix_proposals_closed", "proposals", key, sqlite_where=sa.text(_CLOSED))


def _proposal_events() -> None:
    op.create_table(
        "proposal_events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("proposal_id", sa.Integer, sa.ForeignKey("proposals.id"), nullable=False),
        _text("at"),
        _text("action"),
        sa.Column("before", sa.Text),
        _text("after"),
        _text("by"),
        _text("via"),
        _text("comment"),
        _text("digest"),
        sa.Column("payload_before", sa.Text),
        sa.Column("payload_after", sa.Text),
    )
    op.create_index("ix_proposal_events_proposal", "proposal_events", ["proposal_id"])


def _run() -> sa.ForeignKey:
    return sa.ForeignKey("runs.id", deferrable=True, initially="DEFERRED")


def _text(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, primary_key=primary_key)


def _integer(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)
