"""Our values as plain data for `--json`, and as the few words that people need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from daemon.render import Column, Screen, Style

if TYPE_CHECKING:
    from agents.context import ModelCall
    from agents.proposal import Proposal
    from daemon.events import DueTime, RunResult
    from llm import Selection


def plain(value: Any) -> Any:
    """A dataclass, however deep, as dicts and lists; everything else as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def proposal_data(proposal: Proposal) -> dict[str, Any]:
    """A proposal with its digest, by which an approval names exactly what was shown."""
    return {**plain(proposal), "digest": proposal.digest}


def run_data(result: RunResult) -> dict[str, Any]:
    """A run with its length; its proposals as their numbers."""
    data = plain(result)
    late = lateness(result)
    return {
        **data,
        "seconds": result.seconds,
        "late_seconds": None if late is None else late.total_seconds(),
        "proposals": [proposal.id for proposal in result.proposals],
    }


def lateness(result: RunResult) -> timedelta | None:
    """How long after its due time a run began, None of a run that was for none."""
    return None if result.due is None else result.started_at - result.due


def selection_data(selection: Selection) -> dict[str, Any]:
    """Which model is used and why; backend and model are null when rules decide alone."""
    config = selection.config
    return {
        "backend": None if config is None else config.backend,
        "model": None if config is None else config.model,
        "reason": selection.reason,
        "considered": plain(selection.considered),
    }


def percent(confidence: float | None) -> str:
    """A confidence as people read it, empty when none is claimed."""
    return "" if confidence is None else f"{confidence:.0%}"


def moment(at: datetime | None) -> str:
    """A time of day in UTC, to the minute."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def until(at: datetime | None, now: datetime) -> str:
    """How long it is until then: "in 3 h", "2 d ago"."""
    if at is None:
        return ""
    distance = at - now
    return f"in {_rough(distance)}" if distance >= timedelta(0) else f"{_rough(-distance)} ago"


def rough(span: timedelta | None) -> str:
    """A length of time to one unit, such as "3 h"; empty for None."""
    if span is None:
        return ""
    return _rough(span) if span >= timedelta(0) else f"-{_rough(-span)}"


def _rough(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{round(seconds / size)} {unit}"
    return f"{seconds} s"


def outcome_style(outcome: str) -> Style:
    """Green for what went well, red for what did not."""
    return "green" if outcome == "succeeded" else "red"


PROPOSAL_COLUMNS = (
    Column("id", right=True, style="bold"),
    Column("title"),
    Column("status"),
    Column("confidence", right=True),
    Column("decided by"),
    Column("expires"),
)


def show_proposals(screen: Screen, proposals: Iterable[Proposal], now: datetime) -> None:
    """A table of proposals."""
    screen.table(
        PROPOSAL_COLUMNS,
        [
            (
                proposal.id,
                proposal.title,
                proposal.status.value,
                percent(proposal.confidence),
                proposal.decided_by,
                until(proposal.expires_at, now) if proposal.status.is_open else "",
            )
            for proposal in proposals
        ],
    )


RUN_COLUMNS = (
    Column("agent", style="bold"),
    Column("outcome"),
    Column("new", right=True),
    Column("duplicates", right=True),
    Column("calls", right=True),
    Column("tokens", right=True),
    Column("seconds", right=True),
)


def run_cells(result: RunResult) -> tuple[object, ...]:
    """A run as the cells of `RUN_COLUMNS`."""
    tokens = result.prompt_tokens + result.completion_tokens
    return (
        result.agent,
        result.outcome.value,
        len(result.proposals),
        result.duplicates,
        result.calls,
        tokens,
        f"{result.seconds:.1f}",
    )


def run_remarks(result: RunResult) -> list[str]:
    """What a table of runs has no column for: errors, what was held back, the agent's own notes."""
    remarks: list[str] = []
    if result.error:
        remarks.append(f"{result.agent}: {result.error}")
    held = (
        (result.suppressed, "not proposed again: a person turned them down and nothing has changed"),
        (result.over_cap, "beyond the limits of this agent, not kept"),
        (result.withdrawn, "withdrawn, because they made no sense any more"),
    )
    remarks += [f"{result.agent}: {count} {words}" for count, words in held if count]
    remarks += [f"{result.agent}: {note}" for note in result.notes]
    return remarks


DUE_COLUMNS = (
    Column("due (UTC)"),
    Column("times", right=True),
    Column("agent", style="bold"),
    Column("fate"),
    Column("why, or the run"),
)


def due_cells(due: DueTime) -> tuple[object, ...]:
    """Due times of one fate as the cells of `DUE_COLUMNS`; of several the newest one is shown."""
    return (moment(due.last), due.count, due.agent, due.fate.value, _led_to(due))


def _led_to(due: DueTime) -> str:
    if due.run_id is None:
        return due.reason
    return f"{due.reason} ({due.run_id})" if due.reason else due.run_id


def show_call(screen: Screen, call: ModelCall, *, verbose: bool) -> None:
    """One model call: what it cost, and with `verbose` what was asked and answered."""
    tokens = f"{call.prompt_tokens} + {call.completion_tokens} tokens"
    source = "from the cache" if call.cached else f"{call.seconds:.1f} s"
    outcome = f"failed: {call.error}" if call.error else "answered"
    made_from = f", from the template {call.template}" if call.template else ""
    screen.line(f"  {call.backend}, {call.model}: {outcome}, {tokens}, {source}{made_from}")
    if not verbose:
        return
    for name, text in (("system", call.system_prompt), ("asked", call.prompt), ("answered", call.reply)):
        if text is not None:
            screen.line(f"  {name}:", "dim")
            screen.block(text)
