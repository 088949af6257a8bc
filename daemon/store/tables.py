"""The tables, as SQLAlchemy Core sees them; how they came to be is told by `migrations`.

A change here needs a migration beside it: a test compares the two.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

from agents.proposal import CLOSED, ProposalStatus
from daemon.errors import StoreError


class UTCDateTime(TypeDecorator[datetime]):
    """A moment as text, always UTC and always with microseconds, so that texts sort as moments do."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> str | None:
        """Aware moment to text; a naive one is refused, since nobody could say what it means."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = f"a moment without time zone cannot be stored: {value}"
            raise ValueError(msg)
        return value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: Any, _dialect: Dialect) -> datetime | None:
        """Text to aware moment."""
        if value is None:
            return None
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (TypeError, ValueError) as error:
            raise _damaged("a moment", value) from error


class JsonText(TypeDecorator[Any]):
    """Plain JSON data as text; None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Dialect) -> str | None:
        """Data to text. A lone surrogate, which SQLite cannot hold, becomes its JSON escape."""
        if value is None:
            return None
        written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return written.encode("utf-8", "backslashreplace").decode("utf-8")

    def process_result_value(self, value: Any, _dialect: Dialect) -> Any:
        """Text to data."""
        if value is None:
            return None
        try:
            return json.loads(value)
        except (TypeError, ValueError) as error:
            raise _damaged("JSON", value) from error


def _damaged(wanted: str, value: Any) -> StoreError:
    return StoreError(
        f"the database holds {str(value)[:40]!r} where {wanted} belongs: it is damaged or edited by hand; "
        "nothing was changed; look at it with 'askfirst doctor' or restore a backup"
    )


def _run() -> ForeignKey:
    # Checked at the commit: a run's row is written last, when it is known what became of its proposals.
    return ForeignKey("runs.id", deferrable=True, initially="DEFERRED")


metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("started_at", UTCDateTime, nullable=False),
    Column("finished_at", UTCDateTime, nullable=False),
    Column("proposals", Integer, nullable=False),
    Column("duplicates", Integer, nullable=False),
    Column("suppressed", Integer, nullable=False),
    Column("over_cap", Integer, nullable=False),
    Column("withdrawn", Integer, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("cached_calls", Integer, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("backend", Text),
    Column("model", Text),
    Column("error", Text),
    Column("notes", JsonText, nullable=False),
    Column("due", UTCDateTime),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Index("ix_runs_agent", "agent", "id"),
    sqlite_with_rowid=False,  # names sort by time, so this appends, and writes one page less for each run
)

model_calls = Table(
    "model_calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("run_id", Text, _run(), nullable=False),
    Column("agent", Text, nullable=False),
    Column("at", UTCDateTime, nullable=False),
    Column("backend", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("system_prompt", Text),
    Column("prompt", Text, nullable=False),
    Column("reply", Text),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("cached", Boolean, nullable=False),
    Column("error", Text),
    Column("template", Text, nullable=False, server_default=""),
    Index("ix_model_calls_run", "run_id"),
)

WAITING = tuple(sorted(s for s in ProposalStatus if s.is_open and s is not ProposalStatus.UNDOING))
"""Open statuses that hold their fingerprint. One being undone does not: it was closed while it was applied,
another one like it may have been made since, and the undo must still be possible."""


def _in(statuses: tuple[ProposalStatus, ...]) -> str:
    return "status IN ({})".format(", ".join(f"'{status.value}'" for status in statuses))


proposals = Table(
    "proposals",
    metadata,
    # The number people type. AUTOINCREMENT, because an agent's apply() is idempotent by this number: it must
    # never be given out twice, not even after the newest row was deleted.
    Column("id", Integer, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("explanation", Text, nullable=False),
    Column("payload", JsonText, nullable=False),
    Column("original_payload", JsonText),
    Column("precondition", Text),
    Column("fingerprint", Text, nullable=False),
    Column("evidence_hash", Text, nullable=False),
    Column("evidence", JsonText, nullable=False),
    Column("reasons", JsonText, nullable=False),
    Column("constraints", JsonText, nullable=False),
    Column("confidence", Float),
    Column("decided_by", Text, nullable=False),
    Column("call_ids", JsonText, nullable=False),
    Column("risk", Text, nullable=False),
    Column("reversible", Boolean, nullable=False),
    Column("approvers", JsonText, nullable=False),
    Column("run_id", Text, _run()),
    Column("created_at", UTCDateTime, nullable=False),
    Column("updated_at", UTCDateTime, nullable=False),
    Column("expires_at", UTCDateTime, nullable=False),
    Column("snoozed_until", UTCDateTime),
    Column("undo_data", JsonText),
    Column("error", Text),
    Index("ix_proposals_status", "status", "agent"),
    Index("ix_proposals_run", "run_id"),
    Index("ux_proposals_waiting", "agent", "fingerprint", unique=True, sqlite_where=text(_in(WAITING))),
    # Partial, so that keeping a new proposal does not write to it.
    Index(
        "ix_proposals_closed",
        "agent",
        "fingerprint",
        sqlite_where=text(_in(tuple(sorted(CLOSED)))),
    ),
    sqlite_autoincrement=True,
)

proposal_events = Table(
    "proposal_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("proposal_id", Integer, ForeignKey("proposals.id"), nullable=False),
    Column("at", UTCDateTime, nullable=False),
    Column("action", Text, nullable=False),
    Column("before", Text),
    Column("after", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("via", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("payload_before", JsonText),
    Column("payload_after", JsonText),
    Index("ix_proposal_events_proposal", "proposal_id"),
)

# A due time that was run, or consecutive ones that shared another fate. The run is no foreign key, so that
# either can be forgotten before the other.
due_times = Table(
    "due_times",
    metadata,
    Column("agent", Text, nullable=False),
    Column("due", UTCDateTime, nullable=False),
    Column("last", UTCDateTime, nullable=False),
    Column("count", Integer, nullable=False),
    Column("fate", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("run_id", Text),
    PrimaryKeyConstraint("agent", "due"),
    sqlite_with_rowid=False,
)

agent_states = Table(
    "agent_states",
    metadata,
    Column("agent", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("since", UTCDateTime),
    Column("failures", Integer, nullable=False),
    Column("model_failures", Integer, nullable=False),
    Column("held_until", UTCDateTime),
    Column("held_because", Text, nullable=False),
    Column("config_digest", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Exactly as Alembic would make it; here so that a new database needs no Alembic.
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
