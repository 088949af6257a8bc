"""Whether a person may decide something about a proposal now; each refusal says why and what to do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agents.errors import InvalidProposal
from agents.proposal import Proposal, ProposalStatus, canonical_json
from agents.words import problems_of
from daemon.errors import DecisionRefused
from daemon.intake import MAX_KEY, fit_payload, one_line

if TYPE_CHECKING:
    from agents.base import BaseAgent

_S = ProposalStatus

_STANDS: Mapping[ProposalStatus, str] = {
    _S.PENDING: "waits for a decision",
    _S.SNOOZED: "is snoozed",
    _S.APPROVED: "is approved and waits to be applied",
    _S.APPLYING: "is being applied",
    _S.APPLIED: "is already applied",
    _S.APPLY_FAILED: "was approved, but applying it failed",
    _S.NEEDS_ATTENTION: "failed more than once and needs attention",
    _S.UNDOING: "is being undone",
    _S.UNDONE: "was undone",
    _S.REJECTED: "was rejected",
    _S.EXPIRED: "has expired",
    _S.SUPERSEDED: "was replaced by a newer one",
    _S.WITHDRAWN: "was withdrawn, because what it is about has changed",
}

WAITING = frozenset({_S.PENDING, _S.SNOOZED})
APPLICABLE = frozenset({_S.APPROVED, _S.APPLY_FAILED, _S.NEEDS_ATTENTION})
REJECTABLE = WAITING | APPLICABLE
WITHDRAWABLE = WAITING | APPLICABLE
UNDOABLE = frozenset({_S.APPLIED, _S.UNDOING})

# What to do instead, where there is something.
_INSTEAD: Mapping[tuple[str, ProposalStatus], str] = {
    ("apply", _S.PENDING): "approve it first",
    ("apply", _S.SNOOZED): "approve it first",
    ("approve", _S.APPROVED): "apply it",
    ("approve", _S.APPLY_FAILED): "apply it again, or reject it",
    ("approve", _S.NEEDS_ATTENTION): "see what is wrong, then apply it again, or reject it",
    ("reject", _S.APPLIED): "undo it",
    ("edit", _S.APPROVED): "reject it, and the agent proposes anew when its data changes",
    ("undo", _S.PENDING): "reject it if you do not want it",
}


def check_status(proposal: Proposal, action: str, allowed: frozenset[ProposalStatus]) -> None:
    """The life cycle allows `action` where the proposal stands.

    Raises:
        DecisionRefused: it does not.
    """
    if proposal.status in allowed:
        return
    instead = _INSTEAD.get((action, proposal.status))
    msg = f"proposal {proposal.id} {_STANDS[proposal.status]}; it cannot be {_PAST[action]}"
    raise DecisionRefused(f"{msg}: {instead}" if instead else msg)


_PAST = {
    "approve": "approved",
    "reject": "rejected",
    "edit": "edited",
    "snooze": "snoozed",
    "apply": "applied",
    "undo": "undone",
}


def check_person(proposal: Proposal, by: str) -> str:
    """`by` is one of those who decide about the proposal; returns the name as it is kept.

    Raises:
        DecisionRefused: the name is empty or not one of them.
    """
    name = one_line(by, MAX_KEY)
    if not name:
        msg = f"proposal {proposal.id}: a decision needs the name of the person who takes it"
        raise DecisionRefused(msg)
    if not proposal.approvers.may_approve(name):
        people = ", ".join(proposal.approvers.people)
        msg = f"proposal {proposal.id} is for {people} to decide, not for {name}"
        raise DecisionRefused(msg)
    return name


def check_digest(proposal: Proposal, digest: str | None) -> None:
    """The proposal is still what the person saw; None means that no particular state was shown.

    Raises:
        DecisionRefused: it changed since.
    """
    if digest is not None and digest != proposal.digest:
        msg = f"proposal {proposal.id} has changed since you looked at it; look again, then decide"
        raise DecisionRefused(msg)


def check_time(proposal: Proposal, now: datetime) -> None:
    """The proposal's time has not run out.

    Raises:
        DecisionRefused: it has.
    """
    if has_expired(proposal, now):
        msg = f"proposal {proposal.id} expired at {_minute(proposal.expires_at)}; it will not be applied"
        raise DecisionRefused(msg)


def check_approved(proposal: Proposal) -> None:
    """Enough people approved exactly what would be done now.

    Raises:
        DecisionRefused: they did not.
    """
    if not proposal.approvers.satisfied_by(proposal.approved_by):
        msg = f"proposal {proposal.id} is not approved as it stands now; it is not applied"
        raise DecisionRefused(msg)


def check_approval_is_new(proposal: Proposal, by: str) -> None:
    """`by` has not approved this already.

    Raises:
        DecisionRefused: the approval is there and others are still missing.
    """
    if by in proposal.approved_by:
        msg = f"proposal {proposal.id} has your approval already; {missing_approvals(proposal)}"
        raise DecisionRefused(msg)


def missing_approvals(proposal: Proposal) -> str:
    """Who still has to approve, in words."""
    approvers = proposal.approvers
    left = [person for person in approvers.people if person not in proposal.approved_by]
    if approvers.mode == "all":
        return f"it still needs that of {', '.join(left)}"
    count = approvers.quorum - len(proposal.approved_by)
    return f"it still needs {count} more" + (f" of {', '.join(left)}" if left else "")


def check_undoable(proposal: Proposal) -> None:
    """There is something to undo.

    Raises:
        DecisionRefused: it was said to be irreversible, or the agent left nothing to undo it with.
    """
    if not proposal.reversible:
        msg = f"proposal {proposal.id} cannot be undone: its agent said so when it proposed it"
        raise DecisionRefused(msg)
    if proposal.undo_data is None:
        msg = f"proposal {proposal.id} cannot be undone: {proposal.error or 'its agent left nothing to undo'}"
        raise DecisionRefused(msg)


def check_snooze(proposal: Proposal, until: datetime, now: datetime) -> None:
    """`until` is a moment at which the proposal can wait again.

    Raises:
        DecisionRefused: it has passed, or comes after the proposal has expired.
    """
    if until.tzinfo is None:
        msg = f"proposal {proposal.id}: the time to snooze until needs a time zone"
        raise DecisionRefused(msg)
    if until <= now:
        msg = f"proposal {proposal.id} cannot be snoozed until {_minute(until)}: name a time in the future"
        raise DecisionRefused(msg)
    if proposal.expires_at is not None and until >= proposal.expires_at:
        msg = f"proposal {proposal.id} expires at {_minute(proposal.expires_at)}, before it would wake up"
        raise DecisionRefused(msg)


def edited_payload(agent: BaseAgent, proposal: Proposal, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The proposal's payload with some of its keys changed, as the agent's payload model allows it.

    Raises:
        DecisionRefused: it does not allow it, or nothing would change, or the result is too large.
    """
    model = agent.payloads.get(proposal.kind)
    if model is None:
        msg = f"proposal {proposal.id} cannot be edited: {agent.name} has no model of its payload"
        raise DecisionRefused(msg)
    from pydantic import ValidationError  # noqa: PLC0415 - only an edit needs it

    try:
        validated = model.model_validate({**proposal.payload, **changes})
        payload = validated.model_dump(mode="json", by_alias=True)
        fit_payload(payload)
    except ValidationError as error:
        faults = "; ".join(f"{key}: {text}" for key, text in problems_of(error))
        msg = f"proposal {proposal.id} cannot be changed like that: {faults}"
        raise DecisionRefused(msg) from error
    except InvalidProposal as error:
        msg = f"proposal {proposal.id} cannot be changed like that: {error}"
        raise DecisionRefused(msg) from error
    if canonical_json(payload) == canonical_json(dict(proposal.payload)):
        msg = f"proposal {proposal.id} says that already; nothing was changed"
        raise DecisionRefused(msg)
    return payload


def has_expired(proposal: Proposal, now: datetime) -> bool:
    """Whether the proposal no longer waits. What was begun in time may be tried again after it."""
    waits = proposal.status in WAITING or proposal.status is _S.APPROVED
    return waits and proposal.expires_at is not None and proposal.expires_at <= now


def _minute(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
