"""Our values <-> rows of the tables. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from agents.context import ModelCall
from agents.errors import InvalidProposal
from agents.proposal import Approvers, Decision, Evidence, Proposal, ProposalStatus
from daemon.errors import StoreError
from daemon.events import RunOutcome, RunResult

Row = Mapping[Any, Any]

DECISIONS = frozenset({"approve", "reject", "edit", "apply", "undo", "snooze", "wake"})
"""Actions of events that are decisions (`Decision.action`); the others only tell what came of them."""

DAEMON = "askfirst"
"""`by` of what the program does by itself; `via` is then "daemon"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalEvent:
    """One thing that happened to a proposal.

    Attributes:
        proposal_id: the proposal.
        at: when, UTC.
        action: a decision's action, or "keep", "applied", "apply_failed", "give_up", "undone", "undo_failed",
            "withdraw", "expire".
        before: status before, None when it was kept for the first time.
        after: status after.
        by: who; "askfirst" when the program did it by itself.
        via: through what: "cli", "web", "daemon".
        comment: why, perhaps empty.
        digest: `Proposal.digest` at that moment.
        payload_before: the payload before an edit, None otherwise.
        payload_after: the payload after an edit, None otherwise.
        id: number in the order of happening, None before it is stored.
    """

    proposal_id: int
    at: datetime
    action: str
    before: ProposalStatus | None
    after: ProposalStatus
    by: str = DAEMON
    via: str = "daemon"
    comment: str = ""
    digest: str = ""
    payload_before: Mapping[str, Any] | None = None
    payload_after: Mapping[str, Any] | None = None
    id: int | None = None

    @property
    def decision(self) -> Decision | None:
        """The decision that this event is, None if it only tells what came of one."""
        if self.action not in DECISIONS:
            return None
        return Decision(
            action=self.action,
            by=self.by,
            via=self.via,
            at=self.at,
            comment=self.comment,
            digest=self.digest,
        )


# What a proposal and its row share as it is; the rest is named in the two functions below.
_SAME = (
    "agent",
    "kind",
    "title",
    "explanation",
    "payload",
    "original_payload",
    "precondition",
    "fingerprint",
    "confidence",
    "decided_by",
    "risk",
    "reversible",
    "run_id",
    "created_at",
    "updated_at",
    "expires_at",
    "snoozed_until",
    "undo_data",
    "error",
)
_LISTS = ("reasons", "constraints", "call_ids")


def proposal_to_row(proposal: Proposal) -> dict[str, Any]:
    """The columns of a proposal, without its number, which SQLite gives."""
    return {
        **{name: getattr(proposal, name) for name in _SAME},
        **{name: list(getattr(proposal, name)) for name in _LISTS},
        "status": proposal.status.value,
        "evidence": [asdict(piece) for piece in proposal.evidence],
        "evidence_hash": proposal.evidence_hash,
        "approvers": asdict(proposal.approvers),
    }


def proposal_from_row(row: Row, events: Iterable[ProposalEvent]) -> Proposal:
    """The proposal of a row, its decisions taken from its events.

    Raises:
        StoreError: the row holds what no proposal can.
    """
    try:
        fields: dict[str, Any] = {name: row[name] for name in _SAME}
        fields |= {name: tuple(row[name]) for name in _LISTS}
        approvers = row["approvers"]
        return Proposal(
            id=row["id"],
            **fields,
            status=ProposalStatus(row["status"]),
            evidence=tuple(Evidence(**piece) for piece in row["evidence"]),
            approvers=Approvers(**{**approvers, "people": tuple(approvers["people"])}),
            decisions=tuple(event.decision for event in events if event.decision is not None),
        )
    except (InvalidProposal, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(f"proposal {row['id']}", error) from error


def event_to_row(event: ProposalEvent) -> dict[str, Any]:
    """The columns of an event, without its number."""
    row = {name: getattr(event, name) for name in ProposalEvent.__dataclass_fields__ if name != "id"}
    return {**row, "after": event.after.value, "before": None if event.before is None else event.before.value}


def event_from_row(row: Row) -> ProposalEvent:
    """The event of a row.

    Raises:
        StoreError: the row holds an unknown status.
    """
    values = dict(row)
    try:
        before = None if values["before"] is None else ProposalStatus(values["before"])
        return ProposalEvent(**{**values, "before": before, "after": ProposalStatus(values["after"])})
    except ValueError as error:
        raise _unreadable(f"event {row['id']} of proposal {row['proposal_id']}", error) from error


_RUN_SAME = (
    "agent",
    "trigger",
    "started_at",
    "finished_at",
    "duplicates",
    "suppressed",
    "over_cap",
    "withdrawn",
    "calls",
    "cached_calls",
    "prompt_tokens",
    "completion_tokens",
    "backend",
    "model",
    "error",
    "due",
    "attempt",
)


def run_to_row(result: RunResult) -> dict[str, Any]:
    """The columns of a run."""
    return {
        **{name: getattr(result, name) for name in _RUN_SAME},
        "id": result.run_id,
        "outcome": result.outcome.value,
        "proposals": len(result.proposals),
        "notes": list(result.notes),
    }


def run_from_row(row: Row, proposals: tuple[Proposal, ...]) -> RunResult:
    """The run of a row.

    Raises:
        StoreError: the row holds an unknown outcome.
    """
    try:
        return RunResult(
            run_id=row["id"],
            **{name: row[name] for name in _RUN_SAME},
            outcome=RunOutcome(row["outcome"]),
            notes=tuple(row["notes"]),
            proposals=proposals,
        )
    except (ValueError, TypeError) as error:
        raise _unreadable(f"run {row['id']}", error) from error


def call_to_row(call: ModelCall, run_id: str, agent: str) -> dict[str, Any]:
    """The columns of a model call."""
    return {**asdict(call), "run_id": run_id, "agent": agent}


def call_from_row(row: Row) -> ModelCall:
    """The model call of a row."""
    return ModelCall(**{name: row[name] for name in ModelCall.__dataclass_fields__})


def _unreadable(what: str, error: Exception) -> StoreError:
    return StoreError(
        f"{what} cannot be read from the database ({error}): it is damaged or was edited by hand; "
        "restore a backup"
    )
