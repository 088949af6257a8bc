"""One proposal with everything that a person needs to decide about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agents.proposal import Approvers, Proposal
from daemon.commands.shapes import moment, percent, plain, proposal_data, show_call, until
from daemon.render import Screen, as_json

if TYPE_CHECKING:
    from agents.context import ModelCall
    from daemon.runtime import Runtime
    from daemon.store.rows import ProposalEvent

_DECIDED_BY: Mapping[str, str] = {
    "rule": "a rule",
    "model": "a model; look closely",
    "blend": "rules and a model together; look closely",
}


@dataclass(frozen=True, slots=True)
class ProposalReport:
    """A proposal, what happened to it, and the model calls behind it.

    Attributes:
        proposal: the proposal.
        events: everything that happened to it, the oldest first.
        calls: the model calls behind it.
    """

    proposal: Proposal
    events: tuple[ProposalEvent, ...]
    calls: tuple[ModelCall, ...]

    def data(self) -> dict[str, Any]:
        """The report for `--json`."""
        history = [plain(event) for event in self.events]
        return {**proposal_data(self.proposal), "history": history, "model_calls": plain(self.calls)}


async def proposal_report(runtime: Runtime, proposal_id: int) -> ProposalReport:
    """Read a proposal and what belongs to it.

    Raises:
        ProposalNotFound: there is none of that number.
    """
    proposal = await runtime.proposals.get(proposal_id)
    events = await runtime.proposals.events(proposal_id)
    calls = await runtime.runs.calls_by_id(proposal.call_ids) if proposal.call_ids else ()
    return ProposalReport(proposal, events, calls)


def show_proposal(screen: Screen, report: ProposalReport, *, verbose: bool, now: datetime) -> None:
    """Everything that a decider needs, the most important first."""
    proposal = report.proposal
    screen.line(f"{proposal.id}  {proposal.title}", "bold")
    screen.fields(_facts(proposal, now))
    screen.heading("Why")
    screen.block(proposal.explanation)
    screen.heading("What exactly would be done")
    screen.block(as_json(dict(proposal.payload)))
    _show_edit(screen, proposal)
    _show_list(screen, "What speaks for it", proposal.reasons)
    _show_list(screen, "What was checked", proposal.constraints)
    _show_evidence(screen, proposal)
    _show_calls(screen, report.calls, verbose=verbose)
    _show_list(screen, "What happened so far", map(_event_line, report.events))
    _show_choices(screen, proposal)


def _facts(proposal: Proposal, now: datetime) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("status", proposal.status.value.replace("_", " ")),
        ("agent", f"{proposal.agent}, {proposal.kind}"),
        ("decided by", _DECIDED_BY[proposal.decided_by]),
        ("confidence", percent(proposal.confidence) or "not given"),
        ("risk", proposal.risk),
        ("can be undone", "yes" if proposal.reversible else "NO"),
        ("to approve", _who(proposal.approvers)),
    ]
    if proposal.approved_by:
        facts.append(("approved by", ", ".join(sorted(proposal.approved_by))))
    if proposal.status.is_open:
        facts.append(("expires", f"{moment(proposal.expires_at)} UTC, {until(proposal.expires_at, now)}"))
    if proposal.snoozed_until is not None:
        facts.append(("snoozed until", f"{moment(proposal.snoozed_until)} UTC"))
    if proposal.error:
        facts.append(("error", proposal.error))
    return [*facts, ("made by run", proposal.run_id or ""), ("digest", proposal.digest)]


def _who(approvers: Approvers) -> str:
    people = ", ".join(approvers.people)
    match approvers.mode:
        case "all":
            return f"all of {people}"
        case "quorum":
            return f"{approvers.quorum} of {people or 'any people'}"
    return f"one of {people}" if people else "anybody"


def _show_edit(screen: Screen, proposal: Proposal) -> None:
    if proposal.original_payload is None:
        return
    screen.heading("What was edited")
    before, after = (as_json(dict(p)).split("\n") for p in (proposal.original_payload, proposal.payload))
    changed = [line for line in difflib.ndiff(before, after) if line.startswith(("- ", "+ "))]
    screen.block("\n".join(changed))


def _show_list(screen: Screen, heading: str, texts: Iterable[object]) -> None:
    listed = list(texts)
    if listed:
        screen.heading(heading)
        screen.items(listed)


def _show_evidence(screen: Screen, proposal: Proposal) -> None:
    if proposal.evidence:
        screen.heading("What the agent saw")
    for piece in proposal.evidence:
        screen.line(f"  {piece.source}, {piece.locator}:")
        screen.block(piece.excerpt, "dim")


def _show_calls(screen: Screen, calls: Iterable[ModelCall], *, verbose: bool) -> None:
    made = list(calls)
    if not made:
        return
    screen.heading("Model calls behind it" + ("" if verbose else " (--verbose shows what was said)"))
    for call in made:
        show_call(screen, call, verbose=verbose)


def _event_line(event: ProposalEvent) -> str:
    words = event.action.replace("_", " ")
    comment = f": {event.comment}" if event.comment else ""
    return f"{moment(event.at)}  {words} by {event.by} ({event.via}), now {event.after.value}{comment}"


def _show_choices(screen: Screen, proposal: Proposal) -> None:
    number, status = proposal.id, proposal.status
    choices: list[str] = []
    if status in {status.PENDING, status.SNOOZED}:
        choices = [f"approve {number}", f"reject {number}", f"snooze {number} --for 1d"]
    elif status in {status.APPROVED, status.APPLY_FAILED, status.NEEDS_ATTENTION}:
        choices = [f"apply {number}", f"reject {number}"]
    elif status is status.APPLIED and proposal.reversible and proposal.undo_data is not None:
        choices = [f"undo {number}"]
    _show_list(screen, "Your choices", (f"askfirst proposals {choice}" for choice in choices))
