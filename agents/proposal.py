"""Proposal: what an agent would like to happen, as a frozen value. Pure: no I/O, no store.

pending <-> snoozed
pending -> approved -> applying -> applied -> undoing -> undone
                              `-> apply_failed -> applying | needs_attention
pending -> rejected | expired | superseded | withdrawn
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, Self

from agents.errors import InvalidProposal

DEFAULT_EXPIRY = timedelta(hours=72)
"""How long a proposal waits for a decision unless its agent says otherwise; expiry never approves."""

DecidedBy = Literal["rule", "model", "blend"]
Risk = Literal["low", "medium", "high"]


class ProposalStatus(StrEnum):
    """Where a proposal stands."""

    PENDING = "pending"
    SNOOZED = "snoozed"
    APPROVED = "approved"
    APPLYING = "applying"
    APPLIED = "applied"
    APPLY_FAILED = "apply_failed"
    NEEDS_ATTENTION = "needs_attention"
    UNDOING = "undoing"
    UNDONE = "undone"
    REJECTED = "rejected"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"

    @property
    def is_open(self) -> bool:
        """Whether the proposal may still change something, so that no second one like it is made."""
        return self not in CLOSED

    def may_become(self, other: ProposalStatus) -> bool:
        """Whether the life cycle has an arrow from this status to `other`."""
        return other in TRANSITIONS[self]


_S = ProposalStatus

CLOSED = frozenset({_S.APPLIED, _S.UNDONE, _S.REJECTED, _S.EXPIRED, _S.SUPERSEDED, _S.WITHDRAWN})
"""Statuses in which a proposal waits for nothing."""

TRANSITIONS: Mapping[ProposalStatus, frozenset[ProposalStatus]] = MappingProxyType(
    {
        _S.PENDING: frozenset(
            {_S.SNOOZED, _S.APPROVED, _S.REJECTED, _S.EXPIRED, _S.SUPERSEDED, _S.WITHDRAWN}
        ),
        _S.SNOOZED: frozenset({_S.PENDING, _S.APPROVED, _S.REJECTED, _S.EXPIRED, _S.WITHDRAWN}),
        _S.APPROVED: frozenset({_S.APPLYING, _S.REJECTED, _S.WITHDRAWN}),
        _S.APPLYING: frozenset({_S.APPLIED, _S.APPLY_FAILED, _S.WITHDRAWN}),
        _S.APPLY_FAILED: frozenset({_S.APPLYING, _S.NEEDS_ATTENTION, _S.REJECTED, _S.WITHDRAWN}),
        _S.NEEDS_ATTENTION: frozenset({_S.APPLYING, _S.REJECTED, _S.WITHDRAWN}),
        _S.APPLIED: frozenset({_S.UNDOING}),
        _S.UNDOING: frozenset({_S.UNDONE, _S.APPLIED}),
        _S.UNDONE: frozenset(),
        _S.REJECTED: frozenset(),
        _S.EXPIRED: frozenset(),
        _S.SUPERSEDED: frozenset(),
        _S.WITHDRAWN: frozenset(),
    }
)
"""The arrows of the life cycle."""


def canonical_json(value: Any) -> str:
    """One text for one value, whatever the order of its keys.

    Raises:
        InvalidProposal: the value is not JSON (a NaN, a date, an object).
    """
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"not a JSON value: {error}; use texts, numbers, lists and plain objects"
        raise InvalidProposal(msg) from error


def sha256_of(*parts: str) -> str:
    """The SHA-256 in hex of texts, each kept apart from the next by its length."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an agent saw.

    Attributes:
        source: the file, table or address.
        locator: where in it: a line, a row id, a heading.
        excerpt: the piece itself, short enough to show.
        sha256: hash of the piece as it was read, in hex.
    """

    source: str
    locator: str
    excerpt: str
    sha256: str

    @classmethod
    def of(cls, source: str, locator: str, excerpt: str) -> Self:
        """Evidence whose hash is that of its excerpt."""
        return cls(source=source, locator=locator, excerpt=excerpt, sha256=sha256_of(excerpt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvers:
    """Who must approve.

    Attributes:
        mode: "any" one person, "all" of `people`, or a "quorum" of them.
        people: who may approve; empty means anybody.
        quorum: how many must approve when `mode` is "quorum".
    """

    mode: Literal["any", "all", "quorum"] = "any"
    people: tuple[str, ...] = ()
    quorum: int = 1

    def __post_init__(self) -> None:
        # Naming somebody twice must not ask for two approvals of one person.
        object.__setattr__(self, "people", tuple(dict.fromkeys(self.people)))
        if self.mode == "all" and not self.people:
            msg = "approvers: mode 'all' needs the names of the people"
            raise InvalidProposal(msg)
        if self.mode == "quorum" and not 1 <= self.quorum <= (len(self.people) or self.quorum):
            msg = f"approvers: a quorum of {self.quorum} cannot be reached by {len(self.people)} people"
            raise InvalidProposal(msg)

    def may_approve(self, person: str) -> bool:
        """Whether `person` is one of those who may approve."""
        return not self.people or person in self.people

    def satisfied_by(self, approvals: Iterable[str]) -> bool:
        """Whether the people in `approvals` are enough."""
        count = len({person for person in approvals if self.may_approve(person)})
        needed = {"any": 1, "all": len(self.people), "quorum": self.quorum}[self.mode]
        return count >= needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person did about a proposal.

    Attributes:
        action: "approve", "reject", "edit", "apply", "undo", "snooze" or "wake".
        by: who.
        via: through what: "cli", "web", "daemon".
        at: when, UTC.
        comment: why, perhaps empty.
        digest: `Proposal.digest` of what the person saw.
    """

    action: str
    by: str
    via: str
    at: datetime
    comment: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What an agent would like to happen, why, and on what grounds.

    The first group is the agent's, the second belongs to the store and is filled in when it is kept.

    Attributes:
        agent: the agent's name.
        kind: what sort of change, a free word that the agent owns.
        title: one line for a list.
        explanation: a few sentences for the person who decides.
        payload: what `apply` will act on, plain JSON data.
        fingerprint: the same for the same change; one open proposal per fingerprint.
        reasons: what spoke for it, one sentence each.
        constraints: what was checked and holds.
        confidence: 0 to 1, None when the agent makes no such claim.
        decided_by: whether a rule, a model or both (blend) decided.
        evidence: what the agent saw; a rejected proposal comes back only when this changes.
        call_ids: `LLMResponse.call_id` of the model calls behind it.
        risk: how bad a wrong approval would be.
        reversible: whether `undo` can take it back.
        precondition: hash of what it will change, None when `apply` needs no such check.
        approvers: who must approve.
        expires_at: when it stops waiting, UTC; None means 72 hours after it was kept.
        id: number given by the store, None before.
        status: where it stands.
        run_id: the run that made it.
        created_at: when it was kept, UTC.
        updated_at: when its status last changed, UTC.
        original_payload: the agent's payload if a person edited it.
        decisions: what people did about it, oldest first.
        undo_data: what `undo` needs, given by `apply`.
        error: why the last apply or undo failed.
        snoozed_until: when a snoozed one comes back, UTC.
    """

    agent: str
    kind: str
    title: str
    explanation: str
    payload: Mapping[str, Any]
    fingerprint: str
    reasons: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    confidence: float | None = None
    decided_by: DecidedBy = "rule"
    evidence: tuple[Evidence, ...] = ()
    call_ids: tuple[str, ...] = ()
    risk: Risk = "low"
    reversible: bool = True
    precondition: str | None = None
    approvers: Approvers = field(default_factory=Approvers)
    expires_at: datetime | None = None

    id: int | None = None
    status: ProposalStatus = ProposalStatus.PENDING
    run_id: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    original_payload: Mapping[str, Any] | None = None
    decisions: tuple[Decision, ...] = ()
    undo_data: Mapping[str, Any] | None = None
    error: str | None = None
    snoozed_until: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("agent", "kind", "title", "fingerprint"):
            if not getattr(self, name).strip():
                msg = f"a proposal's {name} must not be empty"
                raise InvalidProposal(msg)
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            msg = f"confidence must be from 0 to 1, not {self.confidence!r}"
            raise InvalidProposal(msg)
        for name in ("expires_at", "created_at", "updated_at", "snoozed_until"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                msg = f"{name} must be aware of its time zone (UTC)"
                raise InvalidProposal(msg)
        # A private copy: the caller's mapping may change later, this value must not.
        object.__setattr__(self, "payload", json.loads(canonical_json(dict(self.payload))))

    @property
    def digest(self) -> str:
        """SHA-256 of what would be done; an approval is bound to it, and `apply` checks it."""
        return sha256_of(self.agent, self.kind, canonical_json(self.payload), self.precondition or "")

    @property
    def evidence_hash(self) -> str:
        """SHA-256 of all evidence, in any order; changes when what the agent saw has changed."""
        return sha256_of(*sorted(sha256_of(e.source, e.locator, e.sha256) for e in self.evidence))

    @property
    def approved_by(self) -> frozenset[str]:
        """The people whose approval is for exactly what would be done now."""
        return frozenset(d.by for d in self.decisions if d.action == "approve" and d.digest == self.digest)

    def with_changes(self, **changes: Any) -> Proposal:
        """A copy with some fields changed."""
        return replace(self, **changes)
